"""How likely a text is after its keywords, and keywords before a picture: what is shared is read once, and nothing else
changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmsrarec_ray.config import load
from mmsrarec_ray.models.load import TINY
from mmsrarec_ray.summarize.tuning.reference import _WRITE, PictureReference, TextReference
from mmsrarec_ray.summarize.tuning.terms import terms_of

LINES = ["red, mug", "", "blue, striped, bag, cotton, office, acme", "red, mug"]
TEXTS = ["Mug from Acme\nMade for the office.", "Bag", "Bag by Lumo.", "Mug from Acme\nMade for the office."]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(TINY)


_QWEN_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class QwenProcessor(Qwen2_5_VLProcessor):
    """Without its reader of videos, which wants torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


@pytest.fixture(scope="module")
def qwen() -> tuple[Any, Any]:
    """A random Qwen2.5-VL of two layers: it counts positions in a picture, and is told which tokens are a picture's."""
    marks = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    marks |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_tokens([*marks.values()], special_tokens=True)
    size = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    sight = {"depth": 2, "num_heads": 4, "out_hidden_size": 64, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config=size | text | ends | {"rope_parameters": rope},
        vision_config=size | sight,
        **{name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()},
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
    return model, QwenProcessor(Qwen2VLImageProcessorPil(), tokenizer, None, chat_template=_QWEN_TURNS)


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


def gain_plainly(model: Any, reference: PictureReference, said: str, pictures: list[Image.Image]) -> float:
    """How much likelier all of an answer is before the first picture than before the second, read alone."""
    found = []
    for picture in pictures:
        read = reference.processor(text=[reference.prompt + said], images=[[picture]], return_tensors="pt")
        answer = reference.processor.tokenizer(said, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(**read).logits[0, -len(answer) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(answer)), answer].sum().item())
    return found[0] - found[1]


def test_a_model_that_counts_positions_in_a_picture_is_asked_as_any_other(qwen: tuple[Any, Any]) -> None:
    """Its texts too, though the model remembers the positions of the pictures that it was shown before."""
    model, processor = qwen
    sizes = {"red": (56, 56), "blue": (112, 56), "white": (84, 56), "black": (140, 56)}
    pictures = [Image.new("RGB", size, colour) for colour, size in sizes.items()]
    grounding = PictureReference(model, processor, 6)
    words = [("mug",), ("bag",)]
    gains = grounding.gains(words, pictures[:2], pictures[2:])
    for n, [word] in enumerate(words):
        shown = [pictures[n], pictures[n + 2]]
        whole, before = (gain_plainly(model, grounding, said, shown) for said in (f"image: {word}", "image:"))
        assert abs(gains[n][0]) > 0.05
        assert gains[n] == pytest.approx([whole - before], abs=1e-4)
    settings = load(None, ["data.format=shop", "run=/nowhere"])
    reference = terms_of(settings, model, processor, ["a text"])["prediction"].reward.reader  # type: ignore[attr-defined]
    found = reference.log_probs(LINES, TEXTS)
    assert found == pytest.approx([plainly(qwen, *pair) for pair in zip(LINES, TEXTS, strict=True)], abs=1e-4)
