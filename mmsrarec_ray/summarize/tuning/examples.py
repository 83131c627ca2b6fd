"""The items that a summariser is tuned on, chosen on and judged on: drawn by hash, checked, put down as Parquet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from PIL import Image

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.frames import iter_tables, map_tables
from mmsrarec_ray.data.images import ImageLimits, load_image
from mmsrarec_ray.data.parts import read_parts, write_part
from mmsrarec_ray.data.splits import TEST, TRAIN, VALIDATION, hashes
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.pipeline import FAILURE_PARTS, failure, write_failures
from mmsrarec_ray.summarize.prompts import item_text, user_content
from mmsrarec_ray.summarize.render import Renderer
from mmsrarec_ray.summarize.reuse import Items

if TYPE_CHECKING:
    import datasets

SPLITS = (TRAIN, VALIDATION, TEST)
_COLUMNS = ("item_id", "title", "text", "image", "image_uri")
_READ = [*_COLUMNS, "content_hash", "split"]
_KEPT_PICTURES = 512


def write_examples(config: Config, items: Items, out: Folder) -> Counter[str]:
    """Write the items of each split that are used below `out/SPLIT`, and those that cannot be below `out/failures`.

    Which items are drawn depends on `tune_summarizer.seed` and their ids alone. Returns counts: SPLIT_items, failed.
    Raises InputError where a split has no usable item.
    """
    wanted = dict(zip(SPLITS, _limits(config), strict=True))
    below = {split: _threshold(items, split, wanted[split], config.tune_summarizer.seed) for split in SPLITS}
    drawn = map_tables(items.read(_READ), _draw, below, config.tune_summarizer.seed)
    written = drawn.map_batches(
        _Check,
        fn_constructor_args=(config, out),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.engine.preprocess_concurrency),
        num_cpus=1,
    )
    totals = Counter[str]()
    for part in iter_tables(written, name="examples"):
        for row in part.to_pylist():
            totals.update(row)
    for split in SPLITS:
        if not totals[f"{split}_items"]:
            raise InputError(
                f"tune_summarizer: the split {split} has no usable item ({totals['failed']} failed): "
                "split.item_validation and split.item_test say how many are kept apart."
            )
    return totals


def _limits(config: Config) -> tuple[int | None, int, int]:
    s = config.tune_summarizer
    return s.items, s.eval_items, s.test_items


def _threshold(items: Items, split: str, most: int | None, seed: int) -> int:
    """The largest hash of an id that is drawn."""
    everything = np.iinfo(np.uint64).max
    if most is None:
        return int(everything)
    hashed = map_tables(items.read(["item_id", "split"]), _hash, split, seed)
    numbers = np.concatenate([np.empty(0, np.uint64), *(table["hash"].to_numpy() for table in iter_tables(hashed))])
    return int(np.partition(numbers, most - 1)[most - 1]) if most < len(numbers) else int(everything)


def _hash(batch: pa.Table, split: str, seed: int) -> dict[str, np.ndarray]:
    ids = batch.filter(pc.equal(batch["split"], split))["item_id"].to_pylist()
    return {"hash": hashes(ids, seed, "tune_summarizer").astype(np.uint64)}


def _draw(batch: pa.Table, below: dict[str, int], seed: int) -> pa.Table:
    edges = np.array([below[split] for split in batch["split"].to_pylist()], np.uint64)
    return batch.filter(pa.array(hashes(batch["item_id"].to_pylist(), seed, "tune_summarizer") <= edges))


class _Check:
    """CPU actor: items in, those that can be summarised written, counts out."""

    def __init__(self, config: Config, out: Folder):
        self.render, self.out = Renderer(config), out

    def __call__(self, batch: pa.Table) -> dict[str, list[int]]:
        kept: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        failures = []
        for item in batch.to_pylist():
            try:
                self.render(item)
            except (ValueError, OSError) as error:
                failures.append(failure(item, type(error).__name__, str(error), "tune_summarizer"))
            else:
                kept[item["split"]].append({name: item[name] for name in _COLUMNS})
        schema = batch.select(_COLUMNS).schema
        for split, rows in kept.items():
            write_part(self.out / split, pa.Table.from_pylist(rows, schema), ["item_id"])
        write_failures(self.out / FAILURE_PARTS, failures)
        return {f"{split}_items": [len(rows)] for split, rows in kept.items()} | {"failed": [len(failures)]}


@dataclass(frozen=True)
class Example:
    """An item as it is asked about: `text` as the prompt holds it, `content` of the user's turn."""

    item_id: str
    title: str
    text: str
    has_image: bool
    content: list[dict[str, Any]]


class Examples:
    """The examples of a split, in the order of their ids; pictures are decoded when they are asked for."""

    def __init__(self, config: Config, folder: Folder, processor: Any):
        """processor: of the model that is asked."""
        self.table = read_parts(folder, list(_COLUMNS)).sort_by("item_id")
        self.settings, self.processor = config.summarize, processor
        self.control_tokens = tuple(processor.tokenizer.get_added_vocab())
        limits = ImageLimits(config.data.max_image_bytes, config.data.max_image_pixels)
        self._pictured = np.flatnonzero(_given(self.table, "image") | _given(self.table, "image_uri"))

        @lru_cache(maxsize=_KEPT_PICTURES)  # an item's answers come together, and share one picture
        def picture(number: int) -> Image.Image | None:
            return load_image(self._row(number), limits, config.model.image_size)

        self.picture = picture

    def __len__(self) -> int:
        return self.table.num_rows

    def _row(self, number: int) -> dict[str, Any]:
        return self.table.slice(number, 1).to_pylist()[0]

    def other_picture(self, number: int) -> Image.Image | None:
        """The picture of the next item that has one; None where no other has."""
        others = self._pictured[self._pictured != number]
        if not len(others):
            return None
        return self.picture(int(others[np.searchsorted(others, number) % len(others)]))

    def __getitem__(self, number: int) -> Example:
        row = self._row(number)
        text = item_text(row["title"], row["text"], self.settings.max_text_chars, self.control_tokens)
        has_image = self.picture(number) is not None
        content = user_content(text, has_image, self.settings.max_keywords)
        return Example(row["item_id"], row["title"] or "", text, has_image, content)

    def texts(self) -> list[str]:
        """Title and text of every item, as prompts hold them."""
        return [
            item_text(title, text, self.settings.max_text_chars, self.control_tokens)
            for title, text in zip(self.table["title"].to_pylist(), self.table["text"].to_pylist(), strict=True)
        ]

    def columns(self, number: int) -> dict[str, Any]:
        """What TRL's trainer and the rewards get of an item."""
        example, picture = self[number], self.picture(number)
        return {
            "prompt": [{"role": "user", "content": example.content}],
            "images": [picture] if picture is not None else [],
            "other_picture": self.other_picture(number),
            "has_image": example.has_image,
            "has_text": bool(example.text),
            "text": example.text,
            "title": example.title,
        }

    def dataset(self) -> datasets.Dataset:
        """All items, for TRL."""
        import datasets

        numbers = datasets.Dataset.from_dict({"number": list(range(len(self)))})
        return numbers.with_transform(self._batch)

    def _batch(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [self.columns(number) for number in batch["number"]]
        return {name: [row[name] for row in rows] for name in rows[0]}


def _given(table: pa.Table, name: str) -> np.ndarray:
    return pc.is_valid(table[name]).to_numpy()
