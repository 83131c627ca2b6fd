"""Validates rows on their way in. A wrong row becomes a failure that names file, row and field; the rest goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mmsrarec_ray.data.images import ImageLimits, ImageNotFetched, ImageTooLarge, check_image, read_image
from mmsrarec_ray.data.importers.base import RowError
from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.data.schemas import FAILURES
from mmsrarec_ray.store import Folder

STAGE = "prepare"
# What is known of an item before splits and core are: the rest of its row comes at the end.
STAGED_ITEMS = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("order", pa.int64()),
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("image_uri", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
        ("content_hash", pa.string()),
    ]
)
STAGED_INTERACTIONS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.int64()),
        ("weight", pa.float32()),
        ("order", pa.int64()),
    ]
)


PLACES = pa.schema([STAGED_ITEMS.field(name) for name in ("source", "row", "order", "item_id")])


def failures(table: str, ids: Any, rows: pa.Table, problems: Any) -> pa.Table:
    """Failure rows. ids, problems ('Class: message'): one a row of `rows`, which has `source` and `row`."""
    kinds, messages = [], []
    for problem in problems:
        kind, _, message = problem.partition(": ")
        kinds.append(kind)
        messages.append(message)
    count = len(kinds)
    columns = {
        "stage": [STAGE] * count,
        "table": [table] * count,
        "id": ids,
        "source": rows["source"],
        "row": rows["row"],
        "error": kinds,
        "message": messages,
        "content_hash": pa.nulls(count, pa.string()),
    }
    return pa.table(columns).cast(FAILURES)


def write_failures(folder: Folder, failed: pa.Table) -> None:
    write_part(folder, failed, ["table", "source", "row", "id"])


def content_hash(title: str | None, text: str | None, image: bytes) -> str:
    """SHA-256 over title, text and picture: 40 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in (title or "", text or ""):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    digest.update(image)
    return digest.hexdigest()[:40]


@dataclass(frozen=True)
class Staging:
    """Where a run puts what it has checked. Parts are named by their rows: a task that runs twice adds nothing."""

    out: Folder

    @property
    def items(self) -> Folder:
        return self.out / "staging" / "items"

    @property
    def tally(self) -> Folder:
        """How many rows were read, a part a block."""
        return self.out / "staging" / "tally"

    @property
    def failures(self) -> Folder:
        return self.out / "failures"

    def count(self, table: str, rows: pa.Table) -> None:
        """Note that these rows were read."""
        if rows.num_rows:
            first = {"table": [table], "order": [rows["order"][0].as_py()], "rows": [rows.num_rows]}
            write_part(self.tally, pa.table(first), ["table", "order"])


Convert = Callable[[Mapping[str, Any]], dict[str, Any]]


def check_items(block: pa.Table, convert: Convert, limits: ImageLimits, staging: Staging) -> pa.Table:
    """Check a block of raw items and stage the good ones; gives their places (`PLACES`).

    Pictures are checked by their header.
    """
    staging.count("items", block)
    good: list[dict[str, Any]] = []
    bad: list[int] = []
    ids: list[str | None] = []
    problems: list[str] = []
    for position, raw in enumerate(block.to_pylist()):
        item: dict[str, Any] = {"item_id": None}
        try:
            good.append(_item(raw, item, convert, limits))
        except RowError as error:
            bad.append(position)
            ids.append(item["item_id"])
            problems.append(str(error))
    rows = block.select(["source", "row"]).take(pa.array(bad, pa.int64()))
    write_failures(staging.failures, failures("items", pa.array(ids, pa.string()), rows, problems))
    staged = pa.Table.from_pylist(good, STAGED_ITEMS)
    write_part(staging.items, staged, ["order"])
    return staged.select(PLACES.names)


def _item(raw: dict[str, Any], item: dict[str, Any], convert: Convert, limits: ImageLimits) -> dict[str, Any]:
    """A staged item. Fills `item` as far as the row is right, so that a failure can name it; raises RowError."""
    if raw["problem"]:
        raise RowError(raw["problem"])
    item.update(convert(raw))
    content = _picture(item, limits)
    place = {name: raw[name] for name in ("source", "row", "order")}
    return item | place | {"content_hash": content_hash(item["title"], item["text"], content)}


def _picture(item: dict[str, Any], limits: ImageLimits) -> bytes:
    """What stands for the picture in the content hash; takes a reference that leads nowhere out of the item."""
    try:
        content = read_image(item, limits)
        if content is not None:
            check_image(content, limits)
    except FileNotFoundError:
        item["image_uri"] = None
        return b""
    except ImageNotFetched:
        return item["image_uri"].encode()
    except (ValueError, OSError) as error:
        kind = "ImageTooLarge" if isinstance(error, ImageTooLarge) else "UnreadableImage"
        raise RowError(f"{kind}: image: {error}") from None
    return content or b""


def check_interactions(
    block: pa.Table, convert: Callable[[pa.Table], pa.Table], items: ray.ObjectRef, staging: Staging
) -> pa.Table:
    """Check a block of raw interactions; gives the good ones (`STAGED_INTERACTIONS`).

    items: reference to the known ids, a string array.
    """
    rows = convert(block)
    staging.count("interactions", rows)
    problem = rows["problem"]
    for name in ("user_id", "item_id"):
        missing = pc.equal(pc.fill_null(rows[name], ""), "")
        problem = _first(problem, missing, f"MissingId: {name}: expected an id, got nothing")
    unknown = pc.invert(pc.is_in(rows["item_id"], value_set=ray.get(items)))
    said = pc.binary_join_element_wise(
        "UnknownItem: item_id: expected an item of the catalogue, got ", pc.fill_null(rows["item_id"], ""), ""
    )
    problem = _first(problem, unknown, said)
    wrong = pc.is_valid(problem)
    bad = rows.filter(wrong)
    write_failures(staging.failures, failures("interactions", bad["user_id"], bad, problem.filter(wrong).to_pylist()))
    return rows.filter(pc.invert(wrong)).select(STAGED_INTERACTIONS.names).cast(STAGED_INTERACTIONS)


def _first(problem: Any, wrong: Any, message: Any) -> Any:
    """The problem a row has already, else the message where it is wrong."""
    return pc.coalesce(problem, pc.if_else(wrong, message, pa.scalar(None, pa.string())))


def duplicates(items: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The rows whose id stands before already, and for each the place in `items` where it first stands.

    items: item_id, source, row, order. The first in input order stays.
    """
    table = items.append_column("place", pa.array(np.arange(items.num_rows)))
    firsts = table.group_by("item_id").aggregate([("order", "min")])
    joined = table.join(firsts, "item_id")
    later = joined.filter(pc.greater(joined["order"], joined["order_min"])).sort_by("order")
    where = pc.index_in(later["order_min"], value_set=items["order"]).to_numpy()
    return later, where
