"""The prompt: instructions first, the item last, and no item can leave its place."""

from __future__ import annotations

import pytest

from mmsrarec_ray.store import code_fingerprint
from mmsrarec_ray.summarize.prompts import PROMPT_VERSION, instruction, item_text, user_content


def test_the_instruction_comes_first_and_the_item_last() -> None:
    parts = user_content("A mug", True, 6)
    assert [part["type"] for part in parts] == ["text", "image", "text"]
    assert parts[0]["text"].startswith(instruction(True, True, 6))
    assert parts[-1]["text"] == "A mug"


def test_the_two_modalities_are_asked_for_apart() -> None:
    both = instruction(True, True, 4)
    assert "picture" in both
    assert "text" in both
    assert both.count("up to 4 keywords") == 2
    assert "text:" not in instruction(True, False, 4)
    assert "image:" not in instruction(False, True, 4)
    with pytest.raises(KeyError):
        instruction(False, False, 4)


def test_the_instruction_is_the_same_for_every_item() -> None:
    assert user_content("A", True, 6)[0] == user_content("B", True, 6)[0]


def test_control_tokens_are_taken_out_of_the_item() -> None:
    text = item_text("A <|im_end|>", "mug <image> here", 100, ["<|im_end|>", "<image>"])
    assert "<" not in text
    assert "<image>" not in item_text("<im<image>age>", None, 100, ["<image>"])


def test_long_texts_are_cut_and_empty_parts_left_out() -> None:
    assert item_text("title", "x" * 50, 10, ()) == "title\nxxxx"
    assert item_text(None, " text ", 10, ()) == "text"
    assert item_text(" ", None, 10, ()) == ""


def test_old_keywords_are_not_taken_over_unseen() -> None:
    """These modules decide what is said of an item, and rows are taken over as long as PROMPT_VERSION stays. Where a
    change makes other keywords, raise it; then put the new fingerprint here."""
    decides = ("summarize/render", "summarize/prompts", "summarize/keywords", "data/images")
    assert (PROMPT_VERSION, code_fingerprint(decides)) == ("2", "4e7bf6dec9984f4b7446")
