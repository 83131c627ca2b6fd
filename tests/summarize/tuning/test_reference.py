"""How likely a text is after its keywords: the shared beginning is read once, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmsrarec_ray.config import load
from mmsrarec_ray.models.load import TINY
from mmsrarec_ray.summarize.tuning.reference import _WRITE, TextReference
from mmsrarec_ray.summarize.tuning.terms import terms_of

LINES = ["red, mug", "", "blue, striped, bag, cotton, office, acme", "red, mug"]
TEXTS = ["Mug from Acme\nMade for the office.", "Bag", "Bag by Lumo.", "Mug from Acme\nMade for the office."]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(TINY)


@pytest.fixture(scope="module")
def reference(tiny: tuple[Any, Any]) -> TextReference:
    settings = ["data.format=shop", "run=/nowhere"]
    return terms_of(load(None, settings), *tiny, ["a text"])["prediction"].reward.reader  # type: ignore[attr-defined]


def plainly(tiny: tuple[Any, Any], line: str, text: str) -> float:
    """The whole sequence in one pass, without any cache or padding."""
    model, processor = tiny
    turn: Any = [{"role": "user", "content": [{"type": "text", "text": f"{_WRITE} {line}"}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    first, second = (processor.tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, text))
    with torch.inference_mode():
        logits = model(torch.tensor([first + second])).logits[0, len(first) - 1 : -1]
    return logits.log_softmax(-1)[range(len(second)), second].mean().item()


def test_it_is_the_mean_log_probability_of_the_texts_tokens(tiny: tuple[Any, Any], reference: TextReference) -> None:
    found = reference.log_probs(LINES, TEXTS)
    assert found == pytest.approx([plainly(tiny, *pair) for pair in zip(LINES, TEXTS, strict=True)], abs=1e-4)


def test_a_pair_is_asked_once_and_an_empty_text_has_no_probability(
    tiny: tuple[Any, Any], reference: TextReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    means = reference._means
    monkeypatch.setattr(reference, "_means", lambda rows: asked.append(len(rows)) or means(rows))
    assert reference.log_probs([*LINES, "red"], [*TEXTS, ""])[-1] is None
    assert asked == [3]
