"""The items that a summariser is tuned on, chosen on and judged on: drawn by hash, checked, put down as Parquet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
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
from mmsrarec_ray.data.rows import Rows
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
_HAS_IMAGE = "has_image"  # whether the picture could be read: so nobody has to read it for that
_READ = [*_COLUMNS, "content_hash", "split"]
_GROUP = 8  # examples that are read together: they are asked for one at a time, in any order
_KEPT = 512
# A worker without a picture would pass by layers whose weights the others gather, and all would wait for ever.
_UNPICTURED = "with tune_summarizer.deepspeed=zero3 each item must have a picture; zero2 takes those without."


def write_examples(config: Config, items: Items, out: Folder) -> Counter[str]:
    """Write the items of each split that are used below `out/SPLIT`, and those that cannot be below `out/failures`.

    Which items are drawn depends on `tune_summarizer.seed` and their ids alone. Returns counts: SPLIT_items, failed.
    Raises InputError where a split has no usable item, and where there are fewer to learn from than an update takes.
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
    _require_an_update(config, totals)
    return totals


def _require_an_update(config: Config, totals: Counter[str]) -> None:
    s, usable = config.tune_summarizer, totals[f"{TRAIN}_items"]
    needed = s.batch_size // s.generations
    if usable < needed:
        raise InputError(
            f"tune_summarizer.batch_size: an update takes {s.batch_size} answers, generations ({s.generations}) of "
            f"each of {needed} items, and there are {usable} usable ones to learn from ({totals['failed']} failed): it "
            f"may be {usable * s.generations} at most. tune_summarizer.items is the most that are drawn."
        )


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
        self.pictured = config.tune_summarizer.deepspeed == "zero3"

    def __call__(self, batch: pa.Table) -> dict[str, list[int]]:
        kept: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        failures = []
        for item in batch.to_pylist():
            try:
                rendered = self.render(item)
                if self.pictured and rendered.image is None:
                    raise ValueError(_UNPICTURED)
            except (ValueError, OSError) as error:
                failures.append(failure(item, type(error).__name__, str(error), "tune_summarizer"))
            else:
                said = {name: item[name] for name in _COLUMNS}
                kept[item["split"]].append(said | {_HAS_IMAGE: rendered.image is not None})
        schema = batch.select(_COLUMNS).schema.append(pa.field(_HAS_IMAGE, pa.bool_()))
        for split, rows in kept.items():
            write_part(self.out / split, pa.Table.from_pylist(rows, schema), ["item_id"], _GROUP)
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
    """The examples of a split, in the order of their ids; each is read, and its picture decoded, when it is asked for:
    what is held does not grow with the pictures."""

    def __init__(self, config: Config, folder: Folder, processor: Any):
        """processor: of the model that is asked."""
        self.folder, self.settings, self.processor = folder, config.summarize, processor
        self.control_tokens = tuple(processor.tokenizer.get_added_vocab())
        limits = ImageLimits(config.data.max_image_bytes, config.data.max_image_pixels)
        self._rows = Rows(folder.filesystem, [folder.file(name) for name in folder.files()])
        has_image = read_parts(folder, ["item_id", _HAS_IMAGE]).sort_by("item_id")[_HAS_IMAGE]
        self._pictured = np.flatnonzero(has_image.to_numpy())

        @lru_cache(maxsize=_KEPT)  # an item's answers come together, and share one picture
        def read(number: int) -> tuple[str, str | None, str | None, Image.Image | None]:
            row = self._rows.read(number, list(_COLUMNS))
            return row["item_id"], row["title"], row["text"], load_image(row, limits, config.model.image_size)

        self._read = read

    def __len__(self) -> int:
        return len(self._rows)

    def picture(self, number: int) -> Image.Image | None:
        """None of an item without one."""
        return self._read(number)[-1]

    def other_picture(self, number: int) -> Image.Image | None:
        """The picture of the next item that has one; None where no other has."""
        others = self._pictured[self._pictured != number]
        if not len(others):
            return None
        return self.picture(int(others[np.searchsorted(others, number) % len(others)]))

    def __getitem__(self, number: int) -> Example:
        item_id, title, said, picture = self._read(number)
        text = self._text(title, said)
        content = user_content(text, picture is not None, self.settings.max_keywords)
        return Example(item_id, title or "", text, picture is not None, content)

    def texts(self) -> list[str]:
        """Title and text of every item, as prompts hold them."""
        table = read_parts(self.folder, ["item_id", "title", "text"])
        said = sorted(zip(*(table[name].to_pylist() for name in table.column_names), strict=True), key=itemgetter(0))
        return [self._text(title, text) for _, title, text in said]

    def _text(self, title: str | None, text: str | None) -> str:
        return item_text(title, text, self.settings.max_text_chars, self.control_tokens)

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
