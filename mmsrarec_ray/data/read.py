"""Reads tables of rows from files as a stream of blocks that remember where each row stands.

Every block has the columns `source` (file), `row` (from 1: the line of a text file, the row of a Parquet file),
`order` (rises through all files in the order given), `problem` (null, or why the row cannot be read) and the
file's own columns: strings from text files, Arrow's types from Parquet, and `json` (the line) from JSON lines.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from mmsrarec_ray.data.frames import map_tables
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.store import Folder

PLACE = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("order", pa.int64()),
        pa.field("problem", pa.string()),
    ]
)
_BLOCK_BYTES = 32 * 2**20  # a task that checks pictures holds several times as much
_ROWS_PER_BLOCK = 20_000
_PARQUET_ROWS_PER_BLOCK = 1_000  # rows may carry pictures
_LONGEST_FIELD = 10_000_000  # characters of a CSV field
_FILE_SHIFT = 40  # order = file number << 40 | row: a file may have 10^12 rows
BROKEN_ENCODING, MALFORMED = "BrokenEncoding", "MalformedRow"


@dataclass(frozen=True)
class Source:
    """Files of one table. `kind`: csv, tsv, lines (one field, `line`), jsonl or parquet."""

    folder: Folder
    files: list[str]
    """Below the folder."""
    kind: str
    columns: tuple[str, ...]
    """Columns that must be there; others are ignored. In JSON lines, each in one of the first 20,000 lines."""

    def blocks(self) -> ray.data.Dataset:
        """The rows as a Ray dataset of the blocks described above, one reading task a file."""
        files = [{"number": number, "name": name} for number, name in enumerate(self.files)]
        named = ray.data.from_items(files, override_num_blocks=max(1, len(files)))
        named.context.target_max_block_size = _BLOCK_BYTES
        return map_tables(named, _read, self, batch_size=1)


def _read(batch: pa.Table, source: Source) -> Iterator[pa.Table]:
    number, name = batch["number"][0].as_py(), batch["name"][0].as_py()
    where = source.folder.file(name)
    with source.folder.filesystem.open_input_file(where) as stream:
        for first, table, problems in _READERS[source.kind](stream, source, where):
            rows = pa.array(first, pa.int64()) if isinstance(first, list) else first
            order = pc.add(rows, pa.scalar(number << _FILE_SHIFT, pa.int64()))
            place = [pa.array([where] * len(rows), pa.string()), rows, order, pa.array(problems, pa.string())]
            yield pa.table([*place, *table.columns], names=[*PLACE.names, *table.column_names])


def _missing(where: str, wanted: tuple[str, ...], there: list[str]) -> InputError | None:
    lost = [name for name in wanted if name not in there]
    if not lost:
        return None
    return InputError(f"{where}: expected the column(s) {', '.join(lost)}. Got {', '.join(there) or 'none'}.")


Block = tuple[Any, pa.Table, list[str | None]]


def _read_csv(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    """CSV with a header. Bytes that are not UTF-8 spoil their row, not the file."""
    csv.field_size_limit(_LONGEST_FIELD)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter="\t" if source.kind == "tsv" else ",", strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InputError(f"{where}: line 1: expected a CSV header: {error}.") from None
    if missing := _missing(where, source.columns, header):
        raise missing
    yield from _csv_blocks(reader, header, source.columns, where)


def _csv_blocks(reader: Any, header: list[str], columns: tuple[str, ...], where: str) -> Iterator[Block]:
    places = [header.index(name) for name in columns]
    numbers: list[int] = []
    rows: list[list[str | None]] = []
    problems: list[str | None] = []
    nothing: list[str | None] = [None] * len(columns)
    while True:
        line = reader.line_num + 1
        row, problem = _csv_row(reader, len(header), f"{where}: line {line}")
        if row is None or len(rows) == _ROWS_PER_BLOCK:
            if rows:
                yield numbers, _string_table(columns, rows), problems
            numbers, rows, problems = [], [], []
        if row is None:
            return
        if not row and not problem:
            continue  # an empty line
        numbers.append(line)
        rows.append(nothing if problem else [row[place] for place in places])
        problems.append(problem)


def _csv_row(reader: Any, fields: int, where: str) -> tuple[list[str] | None, str | None]:
    """The next row (None at the end) and what is wrong with it."""
    try:
        row = next(reader, None)
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise InputError(f"{where}: a quote is opened and never closed.") from None
        return [], f"{MALFORMED}: expected CSV: {error}"
    return row, _text_problem(row, fields) if row else None


def _text_problem(row: list[str], fields: int) -> str | None:
    if len(row) != fields:
        return f"{MALFORMED}: expected {fields} fields, got {len(row)}"
    for position, value in enumerate(row):
        if not value.isprintable() and any("\udc80" <= char <= "\udcff" for char in value):
            return f"{BROKEN_ENCODING}: field {position + 1}: expected UTF-8"
    return None


def _string_table(columns: tuple[str, ...], rows: list[list[str | None]]) -> pa.Table:
    arrays = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
    return pa.table(arrays, names=list(columns))


def _read_lines(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    """Lines as they are: the column `line` (or `json`), binary decoded as UTF-8."""
    name = "json" if source.kind == "jsonl" else "line"
    numbers: list[int] = []
    values: list[str | None] = []
    problems: list[str | None] = []
    for number, line in enumerate(io.BufferedReader(stream), 1):
        if not line.strip():
            continue
        try:
            values.append(line.decode("utf-8").rstrip("\r\n"))
            problems.append(None)
        except UnicodeDecodeError as error:
            values.append(None)
            problems.append(f"{BROKEN_ENCODING}: byte {error.start + 1} of the line is not UTF-8")
        numbers.append(number)
        if len(values) == _ROWS_PER_BLOCK:
            yield numbers, pa.table({name: pa.array(values, pa.string())}), problems
            numbers, values, problems = [], [], []
    if values:
        yield numbers, pa.table({name: pa.array(values, pa.string())}), problems


def _read_json_lines(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    """Lines as they are: the column `json`. A key that none of the first lines has is a missing column."""
    for number, block in enumerate(_read_lines(stream, source, where)):
        if number == 0:
            _check_keys(block[1]["json"].to_pylist(), source, where)
        yield block


def _check_keys(lines: list[str | None], source: Source, where: str) -> None:
    keys: dict[str, None] = {}
    objects = 0
    for line in filter(None, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            objects += 1
            keys.update(dict.fromkeys(row))
    if not objects:
        raise InputError(f"{where}: this is not JSON lines: none of the first {len(lines)} lines is a JSON object.")
    if missing := _missing(where, source.columns, list(keys)):
        raise missing


def _read_parquet(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    try:
        file = pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{where}: this is not Parquet: {error}") from None
    if missing := _missing(where, source.columns, file.schema_arrow.names):
        raise missing
    first = 1
    for batch in file.iter_batches(batch_size=_PARQUET_ROWS_PER_BLOCK, columns=list(source.columns)):
        rows = pa.array(range(first, first + batch.num_rows), pa.int64())
        yield rows, *_decodable(pa.table(batch.columns, names=batch.schema.names))
        first += batch.num_rows


def _decodable(table: pa.Table) -> tuple[pa.Table, list[str | None]]:
    """The table with the strings that are not UTF-8 taken out, and what is wrong with each row."""
    problems: list[str | None] = [None] * table.num_rows
    for place, field in enumerate(table.schema):
        if not pa.types.is_string(field.type):
            continue
        raw = table.column(place).cast(pa.binary())
        try:
            raw.cast(pa.string())  # checks, in C++, what is nearly always right
        except pa.ArrowInvalid:
            values = raw.to_pylist()
            for row, value in enumerate(values):
                try:
                    values[row] = value if value is None else value.decode()
                except UnicodeDecodeError as error:
                    values[row] = None
                    problems[row] = f"{BROKEN_ENCODING}: {field.name}: byte {error.start + 1} is not UTF-8"
            table = table.set_column(place, field, pa.array(values, pa.string()))
    return table, problems


_READERS: dict[str, Callable[[pa.NativeFile, Source, str], Iterator[Block]]] = {
    "csv": _read_csv,
    "tsv": _read_csv,
    "lines": _read_lines,
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
}
