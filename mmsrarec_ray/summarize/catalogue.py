"""The examples from which a model learns to summarise a real catalogue: a published dataset's items, as prompts.

An item's split decides what may be done with it: `train` items are learnt from (and counted, for tf-idf), on
`validation` items a state of the model is chosen, on `test` items the result is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import torch
from PIL import Image
from torch.nn import functional
from transformers import Idefics3Processor

from mmsrarec_ray.data.images import ImageError, ImageLimits, load_image
from mmsrarec_ray.errors import ArtefactError, InputError
from mmsrarec_ray.models.architecture import normalise
from mmsrarec_ray.models.tokenizer import IMAGE
from mmsrarec_ray.store import MANIFEST, Folder, code_fingerprint, fingerprint
from mmsrarec_ray.summarize.keywords import render
from mmsrarec_ray.summarize.lessons import IMAGE_ONLY, MAX_KEYWORDS, Form, LanguageBatch
from mmsrarec_ray.summarize.prompts import item_text, user_content
from mmsrarec_ray.summarize.targets import Statistics, attribute_values, text_keywords

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_IGNORED = -100
_SMALLEST_CROP = 0.6  # of a side
_LIGHT, _TINT = 0.2, 0.1  # largest change of all channels, and of each
_SORTED_TOGETHER = 16  # batches whose examples are sorted by length, so that little is padding
_LIMITS = ImageLimits(max_bytes=20_000_000, max_pixels=50_000_000)
_DRAWN_BY = ("data/images", "models/architecture", "summarize/catalogue")
_COLUMNS = ["item_id", "title", "text", "image", "image_uri", "attributes", "content_hash", "split"]


@dataclass(frozen=True)
class Fields:
    """Which of an item's attributes teach what, and how much of its text the prompt holds."""

    image_attribute: str = "genres"
    """What a picture can hint at; its values become the picture half."""
    leave_out: tuple[str, ...] = ("imax", "(no genres listed)")
    """Values of it, lower case, that no picture shows."""
    text_attribute: str = "plot_keywords"
    """Keywords of the item, used where its text says them; it may be missing."""
    max_chars: int = 500
    """Characters of title and text in a prompt while the model is trained; short prompts train faster."""


@dataclass(frozen=True)
class Item:
    """One item as it is taught: `text` as the prompt holds it, the targets of both halves, its row in the pictures."""

    item_id: str
    text: str
    image_keywords: tuple[str, ...]
    text_keywords: tuple[str, ...]
    picture: int | None

    def fits(self, form: Form) -> bool:
        """Whether the item has all that this form of the prompt asks for."""
        has_image = self.picture is not None and bool(self.image_keywords)
        return (has_image or not form.has_image) and (bool(self.text_keywords) or not form.has_text)


def read_rows(dataset: Folder, per_split: int, seed: int) -> list[dict[str, Any]]:
    """Rows of the items table of a published dataset, at most `per_split` of each split, drawn by `seed`.

    Raises ArtefactError where the folder is not a published dataset.
    """
    if not dataset.exists(MANIFEST):
        raise ArtefactError(f"{dataset.path}: there is no such dataset, or it is unfinished.")
    table = ds.dataset(dataset.file("items"), filesystem=dataset.filesystem, format="parquet")
    every = table.to_table(columns=["item_id", "split"]).sort_by("item_id").to_pydict()
    ids, splits = np.array(every["item_id"]), np.array(every["split"])
    chosen: list[str] = []
    for number, split in enumerate((TRAIN, VALIDATION, TEST)):
        there = ids[splits == split]
        chosen += np.random.default_rng([seed, number]).permutation(there)[:per_split].tolist()
    return table.to_table(columns=_COLUMNS, filter=ds.field("item_id").isin(chosen)).sort_by("item_id").to_pylist()


def draw_on(rows: Sequence[dict[str, Any]], processor: Idefics3Processor, cache: Path) -> tuple[np.ndarray, list[int]]:
    """The pictures as the processor squares them: uint8 (n, size, size, 3), and each row's place in them or -1.

    An item without a usable picture has none. They are kept in `cache` under the hash of the items' contents
    and of the code that makes them.
    """
    size = processor.image_processor.max_image_size["longest_edge"]
    name = fingerprint([size, code_fingerprint(_DRAWN_BY), [row["content_hash"] for row in rows]])
    pixels_path, places_path = cache / f"pictures-{name}.npy", cache / f"places-{name}.npy"
    if not places_path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pictures: list[np.ndarray] = []
        places: list[int] = []
        for row in rows:
            picture = _picture(row, size)
            places.append(-1 if picture is None else len(pictures))
            if picture is not None:
                pictures.append(squared(processor, picture))
        np.save(pixels_path, np.stack(pictures) if pictures else np.empty((0, size, size, 3), np.uint8))
        unfinished = places_path.with_suffix(".part.npy")
        np.save(unfinished, np.array(places))
        unfinished.replace(places_path)
    return np.load(pixels_path, mmap_mode="r"), np.load(places_path).tolist()


def _picture(row: dict[str, Any], size: int) -> Image.Image | None:
    try:
        return load_image(row, _LIMITS, size)
    except (ImageError, FileNotFoundError):
        return None


def squared(processor: Idefics3Processor, picture: Image.Image) -> np.ndarray:
    """What the model sees of a picture: uint8 (size, size, 3)."""
    values = processor.image_processor([[picture]], return_tensors="np")["pixel_values"][0, 0]
    return np.rint((values.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)


class Catalogue:
    """Items with their targets, pictures and prompts; prompts are token for token what `Renderer` makes."""

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        pictures: np.ndarray,
        places: Sequence[int],
        processor: Idefics3Processor,
        fields: Fields,
    ) -> None:
        self.pictures, self.fields = pictures, fields
        self.tokenizer = processor.tokenizer
        self._template = processor.apply_chat_template
        blank = Image.new("RGB", (8, 8))
        # One mark for the picture, as the processor writes it out.
        self._image = self.tokenizer.decode(processor(text=[IMAGE], images=[[blank]])["input_ids"][0])
        control = tuple(self.tokenizer.get_added_vocab())
        texts = [item_text(row["title"], row["text"], fields.max_chars, control) for row in rows]
        learnt = (text for text, row in zip(texts, rows, strict=True) if row["split"] == TRAIN)
        self.statistics = Statistics.of(learnt)
        self.items: dict[str, list[Item]] = {TRAIN: [], VALIDATION: [], TEST: []}
        for row, text, place in zip(rows, texts, places, strict=True):
            self.items[row["split"]].append(self._item(row, text, place))
        self.labels = self._labels()
        for split in (TRAIN, VALIDATION):
            if not self.fitting(split, IMAGE_ONLY):
                raise InputError(
                    f"the dataset must have {split} items with a picture and the attribute "
                    f"{fields.image_attribute!r}. Got {len(self.items[split])} {split} items, none with both."
                )

    def _item(self, row: dict[str, Any], text: str, place: int) -> Item:
        attributes = dict(row["attributes"] or ())
        listed = attribute_values(attributes, self.fields.text_attribute)
        shown = attribute_values(attributes, self.fields.image_attribute, self.fields.leave_out)
        told = text_keywords(text, listed, self.statistics)
        return Item(row["item_id"], text, shown[:MAX_KEYWORDS], told, None if place < 0 else place)

    def _labels(self) -> tuple[str, ...]:
        """What pictures of train items can show, sorted."""
        return tuple(sorted({word for item in self.items[TRAIN] for word in item.image_keywords}))

    def fitting(self, split: str, form: Form) -> list[Item]:
        """The items of a split that have all that the form asks for."""
        return [item for item in self.items[split] if item.fits(form)]

    def content(self, item: Item, form: Form) -> list[dict]:
        """The content of the user's turn for an item."""
        return user_content(item.text if form.has_text else "", form.has_image, MAX_KEYWORDS)

    def prompt(self, item: Item, form: Form) -> str:
        """The whole prompt as text, with the picture's tokens written out."""
        turn: Any = [{"role": "user", "content": self.content(item, form)}]
        return self._template(turn, add_generation_prompt=True).replace(IMAGE, self._image)

    def answer(self, item: Item, form: Form) -> str:
        """The line the model should say."""
        return render(item.image_keywords if form.has_image else (), item.text_keywords if form.has_text else ())

    def batch(self, items: Sequence[Item], form: Form) -> LanguageBatch:
        """Prompts with their answers and the end of the turn, padded on the right."""
        encode, end = self.tokenizer, self.tokenizer.eos_token_id
        prompts = encode([self.prompt(item, form) for item in items], add_special_tokens=False)["input_ids"]
        answers = encode([self.answer(item, form) for item in items], add_special_tokens=False)["input_ids"]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(prompts), length), self.tokenizer.pad_token_id)
        labels = torch.full((len(prompts), length), _IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[row, len(prompt) - 1 : len(prompt) + len(answer)] = torch.tensor([*answer, end])
        return LanguageBatch(ids, labels)

    def pixels(self, items: Sequence[Item]) -> np.ndarray:
        """Their pictures: uint8 (n, size, size, 3). All must have one."""
        return self.pictures[[item.picture for item in items if item.picture is not None]]

    def marks(self, items: Sequence[Item]) -> torch.Tensor:
        """Which labels each picture shows: float32 (n, n_labels), 0 or 1."""
        return torch.tensor([[float(label in item.image_keywords) for label in self.labels] for item in items])


def distort(rng: np.random.Generator, pictures: np.ndarray) -> torch.Tensor:
    """Crop, mirror and tint pictures at random: uint8 (n, size, size, 3) to float32 (n, 3, size, size)."""
    pixels = normalise(pictures)
    n = len(pixels)
    side = rng.uniform(_SMALLEST_CROP, 1.0, (n, 2))
    shift = rng.uniform(-1, 1, (n, 2)) * (1 - side)
    mirror = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    place = np.zeros((n, 2, 3))
    place[:, 0, 0], place[:, 1, 1], place[:, :, 2] = side[:, 0] * mirror, side[:, 1], shift
    grid = functional.affine_grid(torch.from_numpy(place).float(), list(pixels.shape), align_corners=False)
    pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    light = 1 + rng.uniform(-_LIGHT, _LIGHT, (n, 1, 1, 1)) + rng.uniform(-_TINT, _TINT, (n, 3, 1, 1))
    shade = rng.uniform(-_LIGHT, _LIGHT, (n, 1, 1, 1))
    return (pixels * torch.from_numpy(light).float() + torch.from_numpy(shade).float()).clamp(-1, 1)


def step_items(items: Sequence[Item], count: int, step: int, seed: Sequence[int]) -> list[Item]:
    """A step's items: all before any comes again, in random batches of about equally long texts."""
    count = min(count, len(items))
    epoch, place = divmod(step, len(items) // count)
    rng = np.random.default_rng([*seed, epoch])
    order = rng.permutation(len(items))
    span = _SORTED_TOGETHER * count
    together = [sorted(order[i : i + span], key=lambda each: len(items[each].text)) for i in range(0, len(order), span)]
    batches = [part[i : i + count] for part in together for i in range(0, len(part) - count + 1, count)]
    return [items[each] for each in batches[rng.permutation(len(batches))[place]]]
