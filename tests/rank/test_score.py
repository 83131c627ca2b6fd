"""The scorer against transformers and PEFT: the same numbers, whatever is scored beside."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from mmsrarec_ray.adapters import adapted_modules
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.shop.generate import item_row, shop_of, truth_row
from mmsrarec_ray.models.load import TINY
from mmsrarec_ray.rank import score as scoring
from mmsrarec_ray.rank.answers import Answers, keys_of
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.score import Questions, score
from mmsrarec_ray.store import Folder

ITEMS = 30
MODULES = ("q_proj", "v_proj", "down_proj")
HISTORIES = [np.array([3, 1, 4]), np.array([3, 1, 4]), np.zeros(0, np.int64), np.arange(5)]
NEIGHBOURS = [np.array([7, 8]), np.array([7, 8]), np.zeros(0, np.int64), np.array([9])]
CANDIDATES = [np.arange(10, 22), np.arange(10, 22)[::-1], np.array([2]), np.array([20, 29, 11, 5])]
LIKED = [["red, blue", "oak"], ["red, blue", "oak"], ["", "wool"], []]
EVIDENCE = [[f"chosen with this history {number % 10}" for number in each] for each in CANDIDATES]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """The first items of a shop; one has no keywords, one no picture, and the picture of one is damaged."""
    shop = shop_of(5, 1200)
    rows = [item_row(shop, index) for index in range(ITEMS)]
    words = [", ".join(str(value) for value in truth_row(shop, index).values()) for index in range(ITEMS)]
    rows[11]["image"] = None
    rows[12]["image"] = rows[12]["image"][:200]
    words[13] = ""
    table = pa.Table.from_pylist([{"image_uri": None, **row} for row in rows])
    shown = table.select(["title", "text", "image", "image_uri"])
    return Catalogue(table["item_id"].combine_chunks(), pa.array(words), shown)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA adapter that says something: its weights are random."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=adapted_modules(MODULES), init_lora_weights=False)
    get_peft_model(AutoModelForImageTextToText.from_pretrained(TINY), lora).save_pretrained(folder)
    return str(folder)


def config() -> Config:
    words = ["data.format=shop", "run=/nowhere", "rank.candidate=image", "tune_recommender.lora.rank=8"]
    return load(None, [*words, "engine.batch_size=16", "rank.evidence=[cooccurrence]"])


def by_transformers(settings: Config, catalogue: Catalogue, adapter: str) -> list[np.ndarray]:
    """Each question alone, without any cache."""
    asker = Asker(settings, catalogue)
    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).eval()
    found = []
    every = Questions(HISTORIES, NEIGHBOURS, CANDIDATES, EVIDENCE, LIKED)
    for history, neighbours, candidates, evidence, liked in every.users():
        user = asker.user(history, neighbours, liked)
        asked = zip(candidates, evidence, strict=True)
        questions = [asker.question(user, candidate, said) for candidate, said in asked]
        found.append(np.array([_p_yes(asker, model, each.prompt, each.image) for each in questions]))
    return found


def _p_yes(asker: Asker, model: torch.nn.Module, prompt: str, image: object) -> float:
    pictures = {"images": [image]} if image is not None else {}
    inputs = asker.processor(text=[prompt], return_tensors="pt", add_special_tokens=False, **pictures)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1]
    yes, no = asker.answers
    return torch.sigmoid(logits[yes] - logits[no]).item()


def test_scores_are_those_of_transformers(
    ray_session: str, catalogue: Catalogue, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, kept, every = (
        config(),
        Folder.at(str(tmp_path)),
        Questions(HISTORIES, NEIGHBOURS, CANDIDATES, EVIDENCE, LIKED),
    )
    later = Questions(HISTORIES[:1], NEIGHBOURS[:1], [np.arange(20, 28)], [[""] * 8], LIKED[:1])
    reference = by_transformers(settings, catalogue, adapter)
    # Some are known already: a wrong score, which shows that it is taken and that the others land in their places.
    answers, [key] = Answers(kept), keys_of(HISTORIES[3], NEIGHBOURS[3], CANDIDATES[3][1:2], EVIDENCE[3][1:2], LIKED[3])
    answers.keep(np.array([key]), np.array([2.0]), 5.0)
    began = time.perf_counter()
    found = score(settings, catalogue, adapter, every, answers, later)
    took = time.perf_counter() - began
    assert len(found) == len(every)
    assert found[3][1] == 2.0
    assert 5.0 - took < answers.spared_seconds < 5.0  # what it found, less what it asked for others
    reference[3][1] = 2.0
    for ours, by_itself in zip(found, reference, strict=True):
        np.testing.assert_allclose(ours, by_itself, atol=1e-5)
    np.testing.assert_allclose(found[0], found[1][::-1], atol=1e-6)  # the candidates in another order
    assert len(np.unique(found[0])) > 10

    monkeypatch.setattr(scoring, "asked", None)  # from here on no engine can start
    again, answers = Questions.joined([every.take(slice(None, None, -1)), later]), Answers(kept)
    *asked, what_was_later = score(settings, catalogue, adapter, again, answers)
    for ours, before in zip(asked, found[::-1], strict=True):
        np.testing.assert_array_equal(ours, before)
    assert answers.spared_seconds > 5.0
    assert len(np.unique(what_was_later)) > 5
    assert ((what_was_later > 0) & (what_was_later < 1)).all()
