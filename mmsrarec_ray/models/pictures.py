"""How much of a model's context a picture takes."""

from __future__ import annotations

from typing import Any

from PIL import Image


def picture_tokens(processor: Any, content: list[dict[str, Any]], size: int) -> int:
    """By how many tokens a picture of the largest size makes a prompt longer than its mark.

    content: of the user's turn, with a picture; size: pixels of its longer side.
    """
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    whole = processor(text=[text], images=[[Image.new("RGB", (size, size))]], add_special_tokens=False)
    return len(whole["input_ids"][0]) - len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
