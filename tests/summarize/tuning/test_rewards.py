"""Each reward on answers whose value a person can work out, and all of them against answers that cheat."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.shop import law, write
from mmsrarec_ray.data.shop.draw import item_picture
from mmsrarec_ray.data.shop.truth import item_keywords
from mmsrarec_ray.models.load import TINY
from mmsrarec_ray.models.sentences import WordEncoder
from mmsrarec_ray.models.word_model import WordModel
from mmsrarec_ray.summarize.keywords import Grammar, Keywords, render
from mmsrarec_ray.summarize.tuning.hacks import HACKS
from mmsrarec_ray.summarize.tuning.reference import PictureReference
from mmsrarec_ray.summarize.tuning.rewards import (
    Copying,
    Count,
    Finite,
    Form,
    Grounding,
    Information,
    Prediction,
    Reconstruction,
    Repetition,
    Said,
    Tokens,
    read,
    weighted,
)
from mmsrarec_ray.summarize.tuning.terms import terms_of, weights_of

TEXTS = ["Cotton bag by Acme", "Oak chair by Lumo", "Steel lamp by Zuma", "Wool hat by Acme"]
MUG = "image: red, striped, mug; text: mug, ceramic, acme"


def columns(**given: Any) -> dict[str, Any]:
    rows = len(next(iter(given.values())))
    defaults = {"has_image": [True] * rows, "has_text": [True] * rows, "title": ["t"] * rows, "text": ["t"] * rows}
    return defaults | given


def conversation(answer: str) -> list[dict[str, str]]:
    """As TRL gives answers to prompts with pictures."""
    return [{"role": "assistant", "content": answer}]


class Fixed:
    """A reader that knows the surprise of a text in advance."""

    def __init__(self, logs: dict[tuple[str, str], float | None]):
        self.logs = logs

    def log_probs(self, keywords: Any, texts: Any) -> list[float | None]:
        return [self.logs[pair] for pair in zip(keywords, texts, strict=True)]


def test_answers_are_read_with_their_repeats_and_a_wrong_form_says_nothing() -> None:
    said = read([conversation(" image: Red, red; text: mug\n"), "text: mug", "a red mug", ""])
    assert said == [Said(("red", "red"), ("mug",)), Said((), ("mug",)), Said((), ()), Said((), ())]
    assert said[0].line == "red, red, mug"


@pytest.mark.parametrize(
    ("answer", "has_image", "has_text", "expected"),
    [
        (MUG, True, True, 0.0),
        (MUG, True, False, -1.0),
        ("text: mug", False, True, 0.0),
        ("image: red, striped, mug; text: mug, cer, ", True, True, -1.0),  # cut off
        ("image: a b c d; text: mug", True, True, -1.0),  # four words are no keyword
        ("image: a, b, c, d; text: mug", True, True, -1.0),  # four keywords
        ("", True, True, -1.0),
    ],
)
def test_form(answer: str, has_image: bool, has_text: bool, expected: float) -> None:
    form = Form(Grammar(max_keywords=3, max_words=3, max_word_chars=16))
    assert form([answer], has_image=[has_image], has_text=[has_text]) == [expected]


def test_information_is_the_cosine_with_the_text() -> None:
    information = Information(WordEncoder(TEXTS))
    own, other, nothing = information(
        ["text: cotton, bag, acme", "text: oak, chair, lumo", "nonsense"], **columns(text=[TEXTS[0]] * 3)
    )
    assert own > 0.5 > other
    assert nothing == 0
    assert -1 <= other <= own <= 1 + 1e-6
    assert information(["text: cotton"], **columns(text=[""])) == [0.0]


def test_reconstruction_is_minus_the_perplexity_and_prediction_the_share_of_surprise_that_is_gone() -> None:
    reader = Fixed(
        {
            ("bag", "x"): -1.0,
            ("", "x"): -4.0,
            ("hat", "x"): -8.0,
            ("hot", "x"): -20.0,
            ("bag", ""): None,
            ("", ""): None,
        }
    )
    said = ["text: bag", "text: hat", "text: hot", "text: bag", "none"]
    given = columns(text=["x", "x", "x", "", "x"])
    expected = [-math.exp(1), -math.exp(8), -math.exp(20), 0.0, -math.exp(4)]
    assert Reconstruction(reader)(said, **given) == pytest.approx(expected)
    assert Prediction(reader)(said, **given) == pytest.approx([0.75, -1.0, -1.0, 0.0, 0.0])


def test_length_in_keywords_and_in_tokens() -> None:
    assert Count()([MUG, "text: mug", "no form"], **columns(text=[""] * 3)) == [-6.0, -1.0, 0.0]
    ids = [[1] * 16, [1] * 64, [1] * 80]
    assert Tokens(64)([MUG] * 3, completion_ids=ids, **columns(text=[""] * 3)) == [-0.25, -1.0, -1.0]


def test_repetition_counts_both_halves() -> None:
    said = [MUG, "image: red; text: mug", "image: red, red; text: red, red", "no form"]
    assert Repetition()(said, **columns(text=[""] * 4)) == pytest.approx([-1 / 6, 0.0, -0.75, 0.0])


def test_copying_needs_the_whole_title_and_little_else() -> None:
    said = [
        "text: fine oak chair",
        "text: chair, oak, fine",
        "text: oak, red, round, new",
        "text: red",
        "text: fine oak",
    ]
    titles = ["Fine oak chair"] * 4 + ["Fine oak"]
    assert Copying()(said, **columns(title=titles)) == pytest.approx([-1.0, -1.0, -1 / 3 / 4, 0.0, 0.0])


def test_what_is_no_number_counts_as_the_lowest_and_is_counted() -> None:
    logged: dict[str, float] = {}
    values = iter([[1.0, math.nan, -2.0, -1e300], [math.nan], [0.5]])
    term = Finite("information", lambda completions, **columns: next(values))
    assert term.__name__ == "information"
    assert term(["a"] * 4, log_metric=logged.__setitem__) == [1.0, -2.0, -2.0, -2.0]
    assert logged == {"rewards/information/not_finite": 2.0}
    assert term(["a"], log_metric=logged.__setitem__) == [0.0]
    assert term(["a"], log_metric=logged.__setitem__) == [0.5]
    assert logged == {"rewards/information/not_finite": 0.0}


def test_the_word_model_is_a_distribution_that_listens_to_keywords() -> None:
    model = WordModel(TEXTS)
    vocabulary = [*model.words, "never seen"]
    for cache in (set(), {"oak", "bag"}):
        for before in ("", "by", "cotton"):
            assert sum(model._probability(before, word, cache) for word in vocabulary) == pytest.approx(1)
    told, untold, wrong, empty = model.log_probs(["oak, lumo", "", "cotton, acme", "oak"], [TEXTS[1]] * 3 + [""])
    assert told > untold > wrong  # type: ignore[operator]
    assert empty is None


@dataclass(frozen=True)
class World:
    """Items of a shop, and the model they are asked about."""

    model: Any
    processor: Any
    honest: list[Keywords]
    pictures: list[Image.Image]
    rows: list[tuple[str, str]]

    def columns(self) -> dict[str, Any]:
        n = len(self.honest)
        return {
            "text": ["\n".join(row) for row in self.rows[:n]],
            "title": [row[0] for row in self.rows[:n]],
            "images": [[picture] for picture in self.pictures],
            "other_picture": self.pictures[1:] + self.pictures[:1],
            "has_image": [True] * n,
            "has_text": [True] * n,
        }


@pytest.fixture(scope="module")
def world() -> World:
    shop = law.draw_shop(30_000_001, 1200)
    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()
    honest = [Keywords(*item_keywords(shop, index)) for index in range(60)]
    pictures = [item_picture(shop, index)[0] for index in range(60)]
    rows = [write.item_text(shop, index) for index in range(1200)]
    return World(model, AutoProcessor.from_pretrained(TINY), honest, pictures, rows)


def test_grounding_believes_what_the_picture_shows_and_the_text_does_not_say(world: World) -> None:
    grounding = Grounding(PictureReference(world.model, world.processor, 6), 6)
    shown = [keywords.image for keywords in world.honest[:20]]
    given = {name: values[:20] for name, values in world.columns().items()}
    lines = [render(image, ("x",)) for image in shown]
    honest = grounding(lines, **given | {"text": [""] * 20})
    wrong = grounding([*lines[1:], lines[0]], **given | {"text": [""] * 20})
    assert np.mean(honest) > 0.3
    assert np.mean(wrong) < -0.2
    said_already = grounding(lines, **given | {"text": [" ".join(image) for image in shown]})
    assert said_already == [0.0] * 20
    same_picture = grounding(lines, **given | {"other_picture": world.pictures[:20]})
    assert np.abs(same_picture).max() < 1e-5
    without = grounding(lines, **given | {"images": [[]] * 20, "other_picture": [None] * 20})
    assert without == [0.0] * 20
    no_other = grounding(lines, **given | {"text": [""] * 20, "other_picture": [None, *given["other_picture"][1:]]})
    assert no_other == pytest.approx([0.0, *honest[1:]], abs=1e-5)


def test_grounding_does_not_depend_on_what_else_is_asked(world: World) -> None:
    reference = PictureReference(world.model, world.processor, 6)
    said = [("red", "striped", "mug"), ("plain",), (), ("round", "blue bag", "plain", "plain")]
    pictures, others = world.pictures[:4], world.pictures[4:8]
    together = reference.gains(said, pictures, others)
    assert [len(each) for each in together] == [3, 1, 0, 4]
    alone = [reference.gains([s], [p], [o])[0] for s, p, o in zip(said, pictures, others, strict=True)]
    for first, second in zip(together, alone, strict=True):
        assert first == pytest.approx(second, abs=1e-4)


def test_rewards_can_be_pickled(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, term in terms_of(config(), world.model, world.processor, TEXTS).items():
        again = pickle.loads(pickle.dumps(term))
        assert again.__name__ == name


def config(*settings: str) -> Config:
    return load(None, ["data.format=shop", "run=/nowhere", "tune_summarizer.reference=words", *settings])


def rewards(world: World, weights: dict[str, float]) -> dict[str, np.ndarray]:
    """The sum of rewards of honest answers and of each hack, an item each."""
    terms = terms_of(config(), world.model, world.processor, ["\n".join(row) for row in world.rows[200:]])
    given, tokenizer = world.columns(), world.processor.tokenizer
    answers = {name: hack(world.honest, given["title"]) for name, hack in HACKS.items()}
    answers["honest"] = [render(each.image, each.text) for each in world.honest]
    answers["picture left out"] = [render(("x",), each.text) for each in world.honest]
    sums = {}
    for name, said in answers.items():
        ids = [[*tokenizer(answer, add_special_tokens=False)["input_ids"], 0] for answer in said]
        sums[name] = np.array(weighted({t: terms[t](said, completion_ids=ids, **given) for t in weights}, weights))
    return sums


def test_honest_keywords_beat_every_hack_under_the_default_reward(world: World) -> None:
    sums = rewards(world, weights_of(config()))
    honest = sums.pop("honest")
    assert set(HACKS) < set(sums)
    for name, cheating in sums.items():
        assert np.mean(honest > cheating) >= 0.9, name
        assert np.mean(honest - cheating) > 0.2, name


def test_the_papers_reward_falls_for_titles_and_never_misses_the_picture(world: World) -> None:
    """A finding, held so that it is seen when it changes: docs/summaries.md."""
    sums = rewards(world, weights_of(config("tune_summarizer.reward=paper")))
    honest = sums.pop("honest")
    lost = {name for name, cheating in sums.items() if np.mean(honest - cheating) <= 0}
    assert lost == {"title shuffled", "picture left out"}
