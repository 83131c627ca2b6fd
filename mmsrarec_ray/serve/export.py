"""What the online store holds, for the next training:

python -m mmsrarec_ray.serve.export events sqlite:///data/runs/shop/online/store.sqlite /data/events.jsonl
python -m mmsrarec_ray.serve.export items sqlite:///data/runs/shop/online/store.sqlite /data/items/online.parquet
python -m mmsrarec_ray.serve.export deletions sqlite:///data/runs/shop/online/store.sqlite /data/deletions.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsrarec_ray.errors import UsageError
from mmsrarec_ray.progress import say
from mmsrarec_ray.serve.store import Change, Item, Store, StoreUnavailable, open_store, page_of_changes

_ITEMS = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("image", pa.binary())])


def events(store: Store, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """All events after a place, as rows for JSON lines, each with its place."""
    while batch := store.events(after):
        for after, event in batch:
            yield after, event.row()


def items(store: Store) -> Iterator[list[Item]]:
    """The items that were put and not deleted since, each once, a page at a time, whether they have keywords or not."""
    seen = set[str]()  # one that is put again meanwhile is told of again
    for _, found in _changed(store, pictures=True):
        new = [item for item in found.values() if item.item_id not in seen and item.status != "deleted"]
        seen.update(item.item_id for item in new)
        yield new


def deletions(store: Store) -> Iterator[dict[str, Any]]:
    """Users and items that were deleted, as rows for JSON lines: `kind`, `id`, and `timestamp` (ms), when it was.

    What an item was before it was put again is nobody's business, so that is no deletion; a user that came back was
    deleted all the same, with all that was known by then.
    """
    for changes, found in _changed(store, pictures=False):
        for each in changes:
            if each.kind == "user" or (each.id in found and found[each.id].status == "deleted"):
                yield {"kind": each.kind, "id": each.id, "timestamp": each.position}


def _changed(store: Store, pictures: bool) -> Iterator[tuple[list[Change], dict[str, Item]]]:
    """All changes, a page at a time, and the items that they tell of."""
    changes, items = page_of_changes(store, 0, pictures)
    while changes:
        yield changes, items
        changes, items = page_of_changes(store, changes[-1].position, pictures)


def write_events(store: Store, out: IO[bytes], after: int) -> str:
    last = after

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal last
        for place, row in events(store, after):
            last = place
            yield row

    return f"{_write_lines(out, rows()):,} events; next time --after {last}"


def write_items(store: Store, out: IO[bytes], after: int) -> str:
    count = 0
    with pq.ParquetWriter(out, _ITEMS) as writer:
        for page in items(store):
            rows = [{name: getattr(item, name) for name in _ITEMS.names} for item in page]
            writer.write_table(pa.Table.from_pylist(rows, _ITEMS))
            count += len(rows)
    return f"{count:,} items"


def write_deletions(store: Store, out: IO[bytes], after: int) -> str:
    return f"{_write_lines(out, deletions(store)):,} deletions"


def _write_lines(out: IO[bytes], rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        count += 1
    return count


WRITERS: dict[str, Callable[[Store, IO[bytes], int], str]] = {
    "events": write_events,
    "items": write_items,
    "deletions": write_deletions,
}


def write(what: str, store: Store, out: Path, after: int = 0) -> str:
    """Write a file, which appears whole or not at all; returns what is in it, in words."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as stream:
            told = WRITERS[what](store, stream, after)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return told


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong usage, a store that does not answer, or no place to write."""
    parser = argparse.ArgumentParser(
        prog="python -m mmsrarec_ray.serve.export", description="What the store holds, for the next training."
    )
    parser.add_argument("what", choices=WRITERS, help="events and deletions come as JSON lines, items as Parquet")
    parser.add_argument("store", help="its address: sqlite:///…, postgresql://…, redis://… or env:NAME")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--after", type=int, help="only events after this place, as the last export said it")
    options = parser.parse_args(arguments)
    if options.after is not None and options.what != "events":
        parser.error(f"--after is for events: {options.what} are always written whole")
    try:
        with closing(open_store(options.store, make=False)) as store:
            say(write(options.what, store, options.out, options.after or 0))
    except (UsageError, StoreUnavailable, OSError) as error:
        say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
