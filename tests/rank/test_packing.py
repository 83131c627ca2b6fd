"""Training with a shared prefix: the tensors, and that the model says of them what it says of separate sequences."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from mmsrarec_ray.adapters import load_base
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.packing import IGNORED, Collator
from mmsrarec_ray.rank.stage import TuneRecommender
from tests.rank.world import catalogue, config

FORMS = ("keywords", "text", "image")


def contexts(asker: Asker) -> list[dict[str, Any]]:
    """Two users: one with three candidates and all tasks, one with an empty history and two candidates."""
    found = []
    for history, neighbours, candidates in (([0, 1], [3], [1, 3, 0]), ([], [], [3, 1])):
        user = asker.user(history, neighbours)
        rows = [
            (asker.question(user, number), number, answer) for number, answer in zip(candidates, ANSWERS, strict=False)
        ]
        examples = [
            {"task": "choice", "prompt": q.prompt, "answer": answer, "picture": number if q.image else None}
            for q, number, answer in rows
        ]
        if history:
            described = asker.description(1, 1)
            asked = (("next_item", asker.instruction("next_item", user, 0), None), ("item_keywords", described, 1))
            examples += [
                {"task": task, "prompt": q.prompt, "answer": "- blue, hat", "picture": picture}
                for task, q, picture in asked
            ]
        found.append({"examples": examples})
    return found


ANSWERS = ("yes", "no", "no")


@pytest.fixture(scope="module")
def items() -> Catalogue:
    return catalogue()


@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_those_of_separate_sequences(items: Catalogue, form: str) -> None:
    settings = config(f"rank.candidate={form}")
    asker, model = Asker(settings, items), load_base(settings).eval()
    answers = []
    for shared_prefix in (True, False):
        batch = Collator(asker, shared_prefix)(contexts(asker))
        labels = batch.pop("labels")
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1]
        answers.append((labels[labels != IGNORED], logits[labels[:, 1:] != IGNORED]))
    (labels, shared), (expected_labels, separate) = answers
    assert labels.tolist() == expected_labels.tolist()
    assert len(labels) > 10
    torch.testing.assert_close(shared, separate, atol=2e-4, rtol=1e-4)


def test_a_context_is_one_sequence_with_the_user_once(items: Catalogue) -> None:
    asker = Asker(config("rank.candidate=keywords"), items)
    shared, separate = (Collator(asker, each)(contexts(asker)) for each in (True, False))
    assert len(shared["input_ids"]) == 3  # two users, and the item that is described
    assert len(separate["input_ids"]) == 7
    first = asker.tokenizer.decode(shared["input_ids"][0])
    assert first.count("User history, oldest first:") == 1
    assert first.count("Candidate item:") == 3


def test_a_candidate_does_not_see_another(items: Catalogue) -> None:
    """What another candidate is called changes nothing."""
    settings = config("rank.candidate=keywords")
    asker, model = Asker(settings, items), load_base(settings).eval()
    said = []
    for other in (3, 0):
        user = asker.user([0, 1], [3])
        examples = [
            {"task": "choice", "prompt": asker.question(user, number).prompt, "answer": "no", "picture": None}
            for number in (other, 1)
        ]
        batch = Collator(asker, True)([{"examples": examples}])
        labels = batch.pop("labels")
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1]
        said.append(logits[labels[:, 1:] != IGNORED])
    torch.testing.assert_close(said[0][1], said[1][1], atol=2e-4, rtol=1e-4)
    assert not torch.allclose(said[0][0], said[1][0], atol=1e-3)


def test_of_two_candidates_that_read_alike_each_answer_follows_its_own_prompt(items: Catalogue) -> None:
    settings = config("rank.candidate=keywords")
    asker = Asker(settings, replace(items, words=pa.array(["red, mug", "blue, hat", "blue, hat", "green, bag"])))
    user = asker.user([0], [3])
    examples = [
        {"task": "choice", "prompt": asker.question(user, number).prompt, "answer": answer, "picture": None}
        for number, answer in ((1, "yes"), (2, "no"))
    ]
    assert examples[0]["prompt"] == examples[1]["prompt"]
    model, before = load_base(settings).eval(), []
    for shared_prefix in (True, False):
        batch = Collator(asker, shared_prefix)([{"examples": examples}])
        labels = batch.pop("labels")
        with torch.inference_mode():
            before.append(model(**batch).logits[:, :-1][labels[:, 1:] != IGNORED])
    torch.testing.assert_close(before[0], before[1], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(before[0][0], before[0][1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_pictures_of_unequal_form_are_read_as_each_alone(items: Catalogue, shared_prefix: bool) -> None:
    """The processor cuts a square into other tiles than a strip."""
    settings = config("rank.candidate=image")
    strip = BytesIO()
    Image.new("RGB", (256, 100), "red").save(strip, "PNG")
    shown = items.shown.to_pylist()
    shown[3]["image"] = strip.getvalue()
    asker = Asker(settings, replace(items, shown=pa.Table.from_pylist(shown, items.shown.schema)))
    side = settings.model.image_size
    reader = asker.processor.image_processor
    reader.do_image_splitting, reader.size = True, {"longest_edge": 2 * side}
    reader.max_image_size = {"longest_edge": side}
    examples = [
        {"task": "choice", "prompt": asker.question("", number).prompt, "answer": "no", "picture": number}
        for number in (1, 3)
    ]
    model, collate = load_base(settings).eval(), Collator(asker, shared_prefix)

    def read(some: list[dict[str, Any]]) -> tuple[torch.Tensor, int]:
        batch = collate([{"examples": some}])
        labels = batch.pop("labels")
        with torch.inference_mode():
            return model(**batch).logits[:, :-1][labels[:, 1:] != IGNORED], batch["pixel_values"].shape[1]

    (both, most), *alone = read(examples), read(examples[:1]), read(examples[1:])
    tiles = [count for _, count in alone]
    assert len(set(tiles)) == 2
    assert most == max(tiles)
    torch.testing.assert_close(both, torch.cat([logits for logits, _ in alone]), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_a_batch_without_pictures_can_have_a_blank_one_that_teaches_nothing(
    items: Catalogue, shared_prefix: bool
) -> None:
    settings = config("rank.candidate=keywords")
    asker, model = Asker(settings, items), load_base(settings).eval()
    some = contexts(asker)[1:]  # a user whose questions have none
    plain, pictured = (Collator(asker, shared_prefix, each)(some) for each in (False, True))
    assert "pixel_values" not in plain
    assert len(pictured["pixel_values"]) == 1
    assert len(pictured["input_ids"]) == len(plain["input_ids"]) + 1
    assert (pictured["labels"][-1] == IGNORED).all()
    with torch.inference_mode():
        losses = [model(**batch).loss for batch in (plain, pictured)]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)
    with_picture = contexts(asker)[:1]  # its item_keywords
    assert len(Collator(asker, shared_prefix, True)(with_picture)["pixel_values"]) == 1


def test_pictures_that_look_alike_as_tokens_are_not_shared(items: Catalogue) -> None:
    asker = Asker(config("rank.candidate=image"), items)
    user = asker.user([0], [3])
    examples = [
        {"task": "choice", "prompt": asker.question(user, number).prompt, "answer": "no", "picture": number}
        for number in (1, 3)
    ]
    batch = Collator(asker, True)([{"examples": examples}])
    pictures = len(batch["pixel_values"])
    assert pictures == 2
    tokens = int((batch["input_ids"] == asker.image_token).sum())
    [alone] = [int((Collator(asker, True)([{"examples": examples[:1]}])["input_ids"] == asker.image_token).sum())]
    assert tokens == 2 * alone


def test_a_model_that_counts_positions_so_is_refused_a_shared_prefix_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"rope_scaling": {"mrope_section": [16, 24, 24]}}))
    model = f"model.source={tmp_path}"
    with pytest.raises(ConfigError, match=r"^tune_recommender\.shared_prefix: must be false for a model"):
        TuneRecommender(config(model)).check()
    TuneRecommender(config(model, "tune_recommender.shared_prefix=false")).check()


def test_a_model_that_counts_positions_in_rows_and_columns_is_told_where_pictures_are(items: Catalogue) -> None:
    """Processors of such models say it unasked; that of the tiny model does so on request."""
    asker = Asker(config("rank.candidate=image"), items)
    asked = contexts(asker)
    plain = Collator(asker, False)(asked)
    asker.processor = partial(asker.processor, return_mm_token_type_ids=True)
    typed = Collator(asker, False)(asked)
    types = typed.pop("mm_token_type_ids")
    examples = [example for context in asked for example in context["examples"]]
    for row, example in zip(types, examples, strict=True):
        expected: list[int] = []
        if example["picture"] is not None:
            picture = [[asker.picture(example["picture"])]]
            said = asker.processor(text=[example["prompt"]], images=picture, add_special_tokens=False)
            expected = list(said["mm_token_type_ids"][0])
            assert any(expected)
        assert row.tolist() == expected + [0] * (len(row) - len(expected))
    assert types[typed["input_ids"] == asker.image_token].all()
    assert typed.keys() == plain.keys()
    assert "mm_token_type_ids" not in Collator(asker, True)(asked)  # such models refuse a shared prefix
