"""Generic tables: Parquet, CSV or JSON lines, with the columns named in the configuration.

A picture is bytes, a path relative to the data folder, or a URI.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.importers.base import (
    Import,
    Row,
    RowError,
    clean_attribute,
    clean_id,
    clean_text,
    find_files,
    item_of,
    kind_of,
    parse_json,
)
from mmsrarec_ray.data.read import LINE, ORDER, PLACE, PROBLEM, SOURCE, Source
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.settings import Data, InteractionColumns, ItemColumns
from mmsrarec_ray.store import Folder

Find = Callable[[Folder, str, str], list[str]]
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_ISO = r"^\s*\d{4}-\d{2}-\d{2}([T ]|\s*$)"
_SHOWN = 80  # characters of a wrong value
_LATEST_MS = 253_402_300_800_000  # the year 10000: later is a wrong unit


def open_import(data: Data, folder: Folder, find: Find = find_files) -> Import:
    """find: of the files behind a setting, and of what kind they are."""
    items, item = catalogue(data, folder, find)
    interactions, names = None, {}
    if data.interactions is not None:
        names = columns_of(data.interaction_columns)
        found = find(folder, data.interactions, "data.interactions")
        interactions = Source(folder, found, kind_of(folder, found, "data.interactions"), tuple(names))
    return Import(
        items=items,
        item=item,
        interactions=interactions,
        interaction_table=partial(interaction_columns, names=names, unit=data.timestamp_unit),
        ordered_by="time" if interactions is None or data.interaction_columns.timestamp else "order",
        weighted=bool(data.interaction_columns.weight),
    )


def catalogue(data: Data, folder: Folder, find: Find = find_files) -> tuple[Source, Callable[[Row], dict[str, Any]]]:
    """The table of items, and what makes an item of its rows."""
    files = find(folder, data.items, "data.items")
    kind = kind_of(folder, files, "data.items")
    item = partial(table_item, columns=data.item_columns, folder=folder, parse=kind == "jsonl")
    return Source(folder, files, kind, fields_of(data.item_columns)), item


def fields_of(c: ItemColumns) -> tuple[str, ...]:
    """Their columns that make an item."""
    return tuple(name for name in (c.item_id, c.title, c.text, c.image, *c.attributes) if name)


def columns_of(i: InteractionColumns) -> dict[str, str]:
    """Their columns and what they are to us."""
    pairs = ((i.user_id, "user_id"), (i.item_id, "item_id"), (i.timestamp, "timestamp"), (i.weight, "weight"))
    return {theirs: ours for theirs, ours in pairs if theirs}


def table_item(row: Row, columns: ItemColumns, folder: Folder, parse: bool = False) -> dict[str, Any]:
    """An item out of the columns of a row. parse: the row is a line of JSON."""
    if parse:
        row = parse_json(row[LINE])
    picture = row.get(columns.image) if columns.image else None
    if isinstance(picture, dict):  # the library `datasets` keeps a picture as its bytes, or as where it lies
        picture = picture.get("bytes") or picture.get("path")
    uri = None if isinstance(picture, bytes) else clean_text(picture, str(columns.image))
    return item_of(
        clean_id(row.get(columns.item_id), columns.item_id),
        clean_text(row.get(columns.title), columns.title) if columns.title else None,
        clean_text(row.get(columns.text), columns.text) if columns.text else None,
        _locate(uri, folder) if uri else None,
        image=picture if isinstance(picture, bytes) else None,
        attributes={name: clean_attribute(row.get(name), name) for name in columns.attributes},
    )


def _locate(picture: str, folder: Folder) -> str:
    return picture if "://" in picture or picture.startswith("/") else folder.uri(picture)


def interaction_columns(block: pa.Table, names: dict[str, str], unit: str) -> pa.Table:
    """Rename and convert the columns of a block of interactions; a value that does not convert is a problem.

    names: their column -> ours (user_id, item_id, timestamp, weight); without `timestamp` the order serves.
    """
    if LINE in block.column_names:
        block = from_json(block, names)
    problem = block[PROBLEM]
    ours = {mine: _plain(block, theirs, mine) for theirs, mine in names.items()}
    columns = {name: pc.utf8_trim_whitespace(ours[name].cast(pa.string())) for name in ("user_id", "item_id")}
    if "timestamp" in ours:
        time = _milliseconds(ours["timestamp"], unit)
        expected = f"timestamp: expected {unit} since 1970 or ISO 8601"
        problem = blame(problem, time, ours["timestamp"], "BadTimestamp", expected)
        columns["timestamp"] = time
    else:
        columns["timestamp"] = block[ORDER]
    columns["weight"] = pa.nulls(len(block), pa.float32())
    if "weight" in ours:
        weight = _finite(_numbers(ours["weight"]).cast(pa.float32()))
        given = ours["weight"].cast(pa.string())
        lost = pc.and_(pc.is_null(weight), pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(given), ""), False))
        problem = blame(problem, pc.if_else(lost, None, 0.0), ours["weight"], "BadWeight", "weight: expected a number")
        columns["weight"] = weight
    place = {name: block[name] for name in PLACE.names} | {PROBLEM: problem}
    return pa.table(place | columns)


def from_json(block: pa.Table, names: dict[str, str]) -> pa.Table:
    """Lines of JSON as one column a field, strings. names: theirs -> ours; one that ends in `_id` must be there."""
    nothing: dict[str, str | None] = dict.fromkeys(names)
    rows, problems = [], []
    for line, problem in zip(block[LINE].to_pylist(), block[PROBLEM].to_pylist(), strict=True):
        row = nothing
        if not problem:
            try:
                row = _texts(parse_json(line), names)
            except RowError as error:
                problem = str(error)
        rows.append(row)
        problems.append(problem)
    values = {theirs: [row[theirs] for row in rows] for theirs in names}
    place = {name: block[name] for name in PLACE.names} | {PROBLEM: pa.array(problems, pa.string())}
    return pa.table(place | {name: pa.array(column, pa.string()) for name, column in values.items()})


def _texts(row: Row, names: dict[str, str]) -> dict[str, str | None]:
    return {
        theirs: clean_id(row.get(theirs), theirs) if ours.endswith("_id") else clean_text(row.get(theirs), theirs)
        for theirs, ours in names.items()
    }


def _plain(block: pa.Table, name: str, ours: str) -> pa.ChunkedArray:
    """A column without dictionary encoding. Raises InputError where its type can hold no such field."""
    column = block[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kinds = [pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_null]
    kinds += [] if ours.endswith("_id") else [pa.types.is_floating]
    kinds += [pa.types.is_timestamp, pa.types.is_date] if ours == "timestamp" else []
    if not any(fits(column.type) for fits in kinds):
        where = block[SOURCE][0].as_py() if block.num_rows else "a file without rows"
        raise InputError(f"{where}: column {name}: {column.type} values cannot be read as {ours}.")
    return column


def _is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Float64; null where there is no finite number."""
    if _is_text(column):
        column = pc.if_else(pc.match_substring_regex(column, _NUMBER), pc.utf8_trim_whitespace(column), None)
    return _finite(column.cast(pa.float64()))


def _finite(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_finite(column), column, None)


def _milliseconds(column: pa.ChunkedArray, unit: str) -> pa.ChunkedArray:
    """Int64 milliseconds since 1970; null where there is no time between 1970 and the year 10000."""
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s" if pa.types.is_date32(column.type) else "ms"))
    if pa.types.is_timestamp(column.type):
        column, unit = column.cast(pa.int64()), column.type.unit
    if pa.types.is_integer(column.type):
        whole = column.cast(pa.int64(), safe=False)
        # Division rounds towards 0, and products wrap: marks for no time would become 1970.
        whole = pc.if_else(pc.greater_equal(whole, 0), whole, None)
        if unit == "s":
            scaled = pc.multiply(pc.if_else(pc.less(whole, _LATEST_MS // 1000), whole, None), 1000)
        else:
            scaled = pc.divide(whole, _PER_SECOND[unit] // 1000)
    else:
        scaled = pc.floor(pc.divide(pc.multiply(_numbers(column), 1000.0), float(_PER_SECOND[unit])))
    possible = pc.and_(pc.greater_equal(scaled, 0), pc.less(scaled, _LATEST_MS))
    time = pc.if_else(possible, scaled, None).cast(pa.int64())
    return pc.coalesce(time, _iso_milliseconds(column)) if _is_text(column) else time


def _iso_milliseconds(column: pa.ChunkedArray) -> pa.Array:
    """Moments written as ISO 8601, UTC where they name no zone; null for anything else."""
    moments = pc.if_else(pc.match_substring_regex(column, _ISO), pc.utf8_trim_whitespace(column), None)
    return pa.array([None if text is None else _moment(text) for text in moments.to_pylist()], pa.int64())


def _moment(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(milliseconds=1) if since >= timedelta() else None


def blame(problem: Any, converted: Any, value: Any, kind: str, expected: str) -> Any:
    """Say what is wrong with the rows whose value did not convert, where nothing was wrong before."""
    got = pc.utf8_slice_codeunits(pc.fill_null(value.cast(pa.string()), "nothing"), 0, _SHOWN)
    said = pc.binary_join_element_wise(f"{kind}: {expected}, got ", got, "")
    return pc.coalesce(problem, pc.if_else(pc.is_null(converted), said, pa.scalar(None, pa.string())))
