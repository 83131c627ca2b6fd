"""Validates rows on their way in. A wrong row becomes a failure that names file, row and field; the rest goes on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mmsrarec_ray.data.images import (
    WEB_ADDRESS,
    ImageLimits,
    ImageNotFetched,
    ImageTooLarge,
    check_image,
    read_image,
)
from mmsrarec_ray.data.importers.base import RowError
from mmsrarec_ray.data.parts import replace_part, write_part
from mmsrarec_ray.data.read import ORDER, PLACE, PROBLEM, ROW, SOURCE
from mmsrarec_ray.data.schemas import FAILURES
from mmsrarec_ray.fetch import FetchError, FetchRules, fetch_all
from mmsrarec_ray.store import Folder

STAGE = "prepare"
_FETCHED_ROWS = 100  # items whose fetched pictures are held at a time
# What is known of an item before splits and core are: the rest of its row comes at the end.
STAGED_ITEMS = pa.schema(
    [
        *(PLACE.field(name) for name in (SOURCE, ROW, ORDER)),
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
        PLACE.field(ORDER),
    ]
)
# What a line of our own API has beside that.
STAGED_EVENTS = pa.schema(
    [
        *STAGED_INTERACTIONS,
        ("event_id", pa.string()),
        ("impression", pa.bool_()),
        ("request_id", pa.string()),
        ("rank", pa.int32()),
        ("bundle", pa.string()),
    ]
)
PLACES = pa.schema([STAGED_ITEMS.field(name) for name in (SOURCE, ROW, ORDER, "item_id")])


def failures(table: str, ids: Any, rows: pa.Table, problems: Any) -> pa.Table:
    """Failure rows. ids, problems ('Class: message'): one a row of `rows`, which has SOURCE and ROW."""
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
        "source": rows[SOURCE],
        "row": rows[ROW],
        "error": kinds,
        "message": messages,
        "content_hash": pa.nulls(count, pa.string()),
    }
    return pa.table(columns).cast(FAILURES)


def _write_block(folder: Folder, table: str, block: pa.Table, rows: pa.Table) -> None:
    """Write what became of a block of raw rows, named by where the block begins.

    Not by the rows: where a server was at fault, a task that runs a second time may find others good.
    """
    if block.num_rows:
        replace_part(folder, f"{table}-{block[ORDER][0].as_py():016x}", rows)


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
    """Where a run puts what it has checked. Parts are named by their block: a task that runs twice adds nothing."""

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
            first = {"table": [table], "order": [rows[ORDER][0].as_py()], "rows": [rows.num_rows]}
            write_part(self.tally, pa.table(first), ["table", "order"])


Convert = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class ItemRules:
    """What an item must fulfil. fetch: None where pictures on the web stay there; gone: reference to `Deletions`."""

    convert: Convert
    limits: ImageLimits
    fetch: FetchRules | None
    gone: ray.ObjectRef


def check_items(block: pa.Table, rules: ItemRules, staging: Staging) -> Iterator[pa.Table]:
    """Check a block of raw items and stage the good ones; gives their places (`PLACES`).

    Pictures are checked by their header.
    """
    rows = _FETCHED_ROWS if rules.fetch else max(1, block.num_rows)
    for start in range(0, max(1, block.num_rows), rows):
        yield _check_items(block.slice(start, rows), rules, staging)


def _check_items(block: pa.Table, rules: ItemRules, staging: Staging) -> pa.Table:
    staging.count("items", block)
    read = block
    converted = [_convert(raw, rules.convert) for raw in block.to_pylist()]
    gone = pc.is_in(
        pa.array([row.item["item_id"] for row in converted], pa.string()), value_set=ray.get(rules.gone).items
    )
    staging.count("deleted items", block.filter(gone))
    block = block.filter(pc.invert(gone))
    rows = [row for row, is_gone in zip(converted, gone.to_pylist(), strict=True) if not is_gone]
    fetched = _fetch(rows, rules.fetch) if rules.fetch else {}
    for row in rows:
        if not row.problem:
            _check_picture(row, fetched, rules.limits)
    bad = [number for number, row in enumerate(rows) if row.problem]
    ids = pa.array([rows[number].item["item_id"] for number in bad], pa.string())
    places = block.select([SOURCE, ROW]).take(pa.array(bad, pa.int64()))
    failed = failures("items", ids, places, [rows[number].problem for number in bad])
    _write_block(staging.failures, "items", read, failed)
    staged = pa.Table.from_pylist([row.item for row in rows if not row.problem], STAGED_ITEMS)
    _write_block(staging.items, "items", read, staged)
    return staged.select(PLACES.names)


@dataclass
class _Row:
    """A staged item, as far as its row is right, and what is wrong with it."""

    item: dict[str, Any]
    problem: str | None = None


def _convert(raw: dict[str, Any], convert: Convert) -> _Row:
    row = _Row({"item_id": None}, raw[PROBLEM])
    if not row.problem:
        try:
            row.item = convert(raw) | {name: raw[name] for name in (SOURCE, ROW, ORDER)}
        except RowError as error:
            row.problem = str(error)
    return row


def _fetch(rows: list[_Row], rules: FetchRules) -> dict[str, bytes | FetchError]:
    """The pictures on the web of these items: each with its bytes, or why there are none."""
    uris = [row.item["image_uri"] for row in rows if not row.problem]
    return fetch_all([uri for uri in uris if uri and re.match(WEB_ADDRESS, uri)], rules)


def _check_picture(row: _Row, fetched: Mapping[str, bytes | FetchError], limits: ImageLimits) -> None:
    """Put a fetched picture into the item, a reference that leads nowhere out of it, and hash the content."""
    item = row.item
    answer = fetched.get(item["image_uri"])
    if isinstance(answer, FetchError):
        row.problem = f"ImageNotFetched: image: {answer}"
        return
    item["image"] = answer or item["image"]
    try:
        content = read_image(item, limits)
        if content is not None:
            check_image(content, limits)
    except FileNotFoundError:
        item["image_uri"], content = None, None
    except ImageNotFetched:
        content = item["image_uri"].encode()
    except (ValueError, OSError) as error:
        kind = "ImageTooLarge" if isinstance(error, ImageTooLarge) else "UnreadableImage"
        row.problem = f"{kind}: image: {error}"
        return
    item["content_hash"] = content_hash(item["title"], item["text"], content or b"")


def check_interactions(
    block: pa.Table,
    convert: Callable[[pa.Table], pa.Table],
    items: ray.ObjectRef,
    gone: ray.ObjectRef,
    staging: Staging,
) -> pa.Table:
    """Check a block of raw interactions; gives the good ones (`STAGED_INTERACTIONS`, or `STAGED_EVENTS`).

    items: reference to the known ids, a string array; gone: to `Deletions`.
    """
    rows = convert(block)
    staging.count("interactions", rows)
    deleted = ray.get(gone).of_interactions(rows)
    staging.count("deleted", rows.filter(deleted))
    rows = rows.filter(pc.invert(deleted))
    problem = rows[PROBLEM]
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
    failed = failures("interactions", bad["user_id"], bad, problem.filter(wrong).to_pylist())
    _write_block(staging.failures, "interactions", block, failed)
    schema = STAGED_EVENTS if "event_id" in rows.column_names else STAGED_INTERACTIONS
    return rows.filter(pc.invert(wrong)).select(schema.names).cast(schema)


def _first(problem: Any, wrong: Any, message: Any) -> Any:
    """The problem a row has already, else the message where it is wrong."""
    return pc.coalesce(problem, pc.if_else(wrong, message, pa.scalar(None, pa.string())))


def duplicates(items: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The rows whose id stands before already, and for each the place in `items` where it first stands.

    items: `PLACES`. The first in input order stays.
    """
    table = items.append_column("place", pa.array(np.arange(items.num_rows)))
    firsts = table.group_by("item_id").aggregate([(ORDER, "min")])
    joined = table.join(firsts, "item_id")
    later = joined.filter(pc.greater(joined[ORDER], joined[f"{ORDER}_min"])).sort_by(ORDER)
    where = pc.index_in(later[f"{ORDER}_min"], value_set=items[ORDER]).to_numpy()
    return later, where
