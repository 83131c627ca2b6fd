"""The examples from which a model learns the summary prompt: shop items, their prompts and true answers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import Idefics3Processor

from mmsrarec_ray.data.shop import truth, write
from mmsrarec_ray.data.shop.draw import SIZE, item_picture
from mmsrarec_ray.data.shop.law import LOOK_ATTRIBUTES, Shop, draw_shop
from mmsrarec_ray.models.pretrain_vision import CELL
from mmsrarec_ray.summarize.keywords import render
from mmsrarec_ray.summarize.prompts import item_text, user_content

MAX_KEYWORDS = 6
MAX_CHARS = 1000
IGNORED = -100
_SPAN = 500
_STAND_IN = "\u241a"  # stands for the item's text while the fixed part of a prompt is worked out


class Form(NamedTuple):
    """Which parts of an item the prompt holds."""

    has_image: bool
    has_text: bool


BOTH, IMAGE_ONLY, TEXT_ONLY = Form(True, True), Form(True, False), Form(False, True)
FORMS = (BOTH, IMAGE_ONLY, TEXT_ONLY)


def shop_text(shop: Shop, index: int, control_tokens: Sequence[str] = ()) -> str:
    """An item's title and text as the prompt holds them."""
    return item_text(*write.item_text(shop, index), MAX_CHARS, control_tokens)


def shop_answer(shop: Shop, index: int, form: Form, told: int | None = None) -> str:
    """The summary a perfect reader gives of an item. told: the item whose text stands there; by default the same."""
    image, text = (
        truth.item_keywords(shop, index).image,
        truth.item_keywords(shop, index if told is None else told).text,
    )
    return render(image if form.has_image else (), text if form.has_text else ())


def _fixed_parts(processor: Idefics3Processor, form: Form) -> tuple[str, str]:
    """What stands before and after the item's text in a prompt of this form, image tokens written out."""
    turn: Any = [
        {"role": "user", "content": user_content(_STAND_IN if form.has_text else "", form.has_image, MAX_KEYWORDS)}
    ]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    blank = [[Image.new("RGB", (SIZE, SIZE))]] if form.has_image else None
    ids = processor(text=[prompt], images=blank)["input_ids"][0]
    before, _, after = processor.tokenizer.decode(ids).partition(_STAND_IN)
    return before, after


class LanguageBatch(NamedTuple):
    """Prompts with their answers, int64 (n, length) each; `labels[i, t]` is the token after `ids[i, :t + 1]`.

    Padding stands on the right and is never a label, so a causal model needs no mask.
    """

    ids: torch.Tensor
    labels: torch.Tensor


class Lessons:
    """Prompts and answers of a shop's items, token for token what the processor makes of `user_content`."""

    def __init__(self, shop: Shop, processor: Idefics3Processor) -> None:
        self.shop, self.processor = shop, processor
        self.tokenizer = processor.tokenizer
        self.labels = np.stack([shop.attributes[name] for name in LOOK_ATTRIBUTES], 1)
        self._fixed = {form: _fixed_parts(processor, form) for form in FORMS}

    def prompt(self, index: int, form: Form) -> str:
        """The whole prompt of an item, as text with its marks."""
        before, after = self._fixed[form]
        text = shop_text(self.shop, index, self.tokenizer.all_special_tokens) if form.has_text else ""
        return before + text + after

    def batch(
        self, indices: Sequence[int] | np.ndarray, form: Form, told: Sequence[int] | np.ndarray | None = None
    ) -> LanguageBatch:
        """The examples of these items in one form. told: the items whose texts stand beside the pictures of `indices`;
        by default the same."""
        pairs = [(int(i), int(j)) for i, j in zip(indices, indices if told is None else told, strict=True)]
        prompts = self.tokenizer([self.prompt(j, form) for _, j in pairs])["input_ids"]
        answers = self.tokenizer([shop_answer(self.shop, i, form, j) for i, j in pairs])["input_ids"]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(prompts), length), self.tokenizer.pad_token_id)
        labels = torch.full((len(prompts), length), IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            ending = torch.tensor([*answer, self.tokenizer.eos_token_id])
            labels[row, len(prompt) - 1 : len(prompt) + len(answer)] = ending
        return LanguageBatch(ids, labels)


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures: uint8 (n, SIZE, SIZE, 3), and silhouettes: uint8 (n, SIZE / CELL, SIZE / CELL), up to 255."""

    pixels: np.ndarray
    silhouettes: np.ndarray


def _draw_span(span: tuple[int, int, int, int]) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Draw items start to stop of a shop; span: seed, items of the shop, start, stop."""
    seed, n_items, start, stop = span
    shop = draw_shop(seed, n_items)
    pixels = np.empty((stop - start, SIZE, SIZE, 3), np.uint8)
    cells = np.empty((stop - start, SIZE // CELL, SIZE // CELL), np.uint8)
    for row, index in enumerate(range(start, stop)):
        image, silhouette = item_picture(shop, index)
        pixels[row] = np.asarray(image)
        cells[row] = 255 * silhouette.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL).mean((1, 3))
    return start, stop, pixels, cells


def _map(work: Callable, tasks: Sequence, processes: int) -> Iterator:
    """Results in the order of the tasks; with one process, in this one."""
    if processes == 1:
        yield from map(work, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(work, tasks)


def draw_pictures(seed: int, n_items: int, cache: Path, processes: int) -> Pictures:
    """The pictures of every item of a shop, drawn once by `processes` and read from the folder `cache` later."""
    cache.mkdir(parents=True, exist_ok=True)
    names = [cache / f"{what}-{seed}-{n_items}.npy" for what in ("pictures", "silhouettes")]
    if not all(name.exists() for name in names):
        shapes = ((n_items, SIZE, SIZE, 3), (n_items, SIZE // CELL, SIZE // CELL))
        unfinished = [name.with_suffix(".part") for name in names]
        arrays = [
            np.lib.format.open_memmap(name, "w+", np.uint8, shape)
            for name, shape in zip(unfinished, shapes, strict=True)
        ]
        spans = [(seed, n_items, i, min(i + _SPAN, n_items)) for i in range(0, n_items, _SPAN)]
        for start, stop, pixels, cells in _map(_draw_span, spans, processes):
            arrays[0][start:stop], arrays[1][start:stop] = pixels, cells
        for array, part, name in zip(arrays, unfinished, names, strict=True):
            array.flush()
            part.replace(name)
    return Pictures(*(np.load(name, mmap_mode="r") for name in names))
