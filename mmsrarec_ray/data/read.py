"""Reads tables of rows from files as a stream of blocks that remember where each row stands.

Every block has the columns SOURCE (file), ROW (from 1: the line of a text file, the row of a Parquet file),
ORDER (rises through all files in the order given), PROBLEM (null, or why the row cannot be read) and the
file's own columns: strings from text files, Arrow's types from Parquet and Arrow streams, and LINE alone from JSON
lines and from lines as they are. A text file may be packed with gzip (`.gz`).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
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

# Columns of ours, beside those of a file, which may well have a `source` or an `order`.
SOURCE = "mmsrarec_ray:source"
ROW = "mmsrarec_ray:row"
ORDER = "mmsrarec_ray:order"
PROBLEM = "mmsrarec_ray:problem"
LINE = "mmsrarec_ray:line"
PLACE = pa.schema([(SOURCE, pa.string()), (ROW, pa.int64()), (ORDER, pa.int64()), (PROBLEM, pa.string())])
_BLOCK_BYTES = 32 * 2**20  # a task that checks pictures holds several times as much
_ROWS_PER_BLOCK = 20_000
_ROWS_WITH_PICTURES = 1_000  # a block of Parquet or of an Arrow stream, whose rows may carry them
_LONGEST_FIELD = 10_000_000  # characters of a CSV field
_LONGEST_ROW = 500  # lines of a CSV row: where there are more, a stray quote took whole rows into a field
_FILE_SHIFT = 40  # order = file number << 40 | row: a file may have 10^12 rows
BROKEN_ENCODING, MALFORMED = "BrokenEncoding", "MalformedRow"


@dataclass(frozen=True)
class Separated:
    """Lines of fields with something between them, without quotes."""

    between: str
    fields: tuple[str, ...] = ()
    """Names of the fields of files without a header."""
    or_latin_1: bool = False
    """Read lines that are not UTF-8 as Latin-1."""


@dataclass(frozen=True)
class Source:
    """Files of one table. `kind`: csv, tsv, separated, lines (one field, LINE), jsonl, parquet or arrow."""

    folder: Folder
    files: list[str]
    """Below the folder."""
    kind: str
    columns: tuple[str, ...]
    """Columns that must be there; others are ignored. In JSON lines, each in one line of the first block."""
    separated: Separated | None = None
    """How files of that kind are written."""

    def blocks(self) -> ray.data.Dataset:
        """The rows as a Ray dataset of the blocks described above, one reading task a file."""
        files = [{"number": number, "name": name} for number, name in enumerate(self.files)]
        named = ray.data.from_items(files, override_num_blocks=max(1, len(files)))
        named.context.target_max_block_size = _BLOCK_BYTES
        return map_tables(named, _read, self, batch_size=1)


def _read(batch: pa.Table, source: Source) -> Iterator[pa.Table]:
    number, name = batch["number"][0].as_py(), batch["name"][0].as_py()
    where = source.folder.file(name)
    with source.folder.filesystem.open_input_file(where) as file:
        stream = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
        try:
            for first, table, problems in _READERS[source.kind](stream, source, where):
                rows = pa.array(first, pa.int64()) if isinstance(first, list) else first
                order = pc.add(rows, pa.scalar(number << _FILE_SHIFT, pa.int64()))
                place = [pa.array([where] * len(rows), pa.string()), rows, order, pa.array(problems, pa.string())]
                yield pa.table([*place, *table.columns], names=[*PLACE.names, *table.column_names])
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{where}: this is not gzip, or it is cut off: {error}") from None


def _missing(where: str, wanted: tuple[str, ...], there: list[str]) -> InputError | None:
    lost = [name for name in wanted if name not in there]
    if not lost:
        return None
    return InputError(f"{where}: expected the column(s) {', '.join(lost)}. Got {', '.join(there) or 'none'}.")


Block = tuple[Any, pa.Table, list[str | None]]


def _read_csv(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    """CSV with a header, or TSV, in which quotes are text. Bytes that are not UTF-8 spoil their row, not the file."""
    csv.field_size_limit(_LONGEST_FIELD)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    tabs = source.kind == "tsv"
    reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(text, strict=True)
    header, problem = _csv_row(reader, where)
    if problem:
        raise InputError(f"{where}: line 1: expected a header. {problem}.")
    header = header or []
    _check_header(header, where)
    if missing := _missing(where, source.columns, header):
        raise missing
    yield from _csv_blocks(reader, header, source.columns, where)


def _check_header(header: list[str], where: str) -> None:
    """Raises InputError for the first name that is not UTF-8."""
    for place, name in enumerate(header, 1):
        if _is_broken(name):
            got = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise InputError(f"{where}: line 1: column {place}: expected a name in UTF-8, got {got}.")


def _csv_blocks(reader: Any, header: list[str], columns: tuple[str, ...], where: str) -> Iterator[Block]:
    places = [header.index(name) for name in columns]
    numbers: list[int] = []
    rows: list[list[str | None]] = []
    problems: list[str | None] = []
    size = 0
    nothing: list[str | None] = [None] * len(columns)
    while True:
        line = reader.line_num + 1
        row, problem = _csv_row(reader, where)
        if row is None or len(rows) == _ROWS_PER_BLOCK or size >= _BLOCK_BYTES:
            if rows:
                yield numbers, _string_table(columns, rows), problems
            numbers, rows, problems, size = [], [], [], 0
        if row is None:
            return
        if not row and not problem:
            continue  # an empty line
        problem = problem or _text_problem(row, len(header))
        numbers.append(line)
        rows.append(nothing if problem else [row[place] for place in places])
        size += sum(len(value.encode()) for value in rows[-1] if value)
        problems.append(problem)


def _csv_row(reader: Any, where: str) -> tuple[list[str] | None, str | None]:
    """The next row (None at the end) and why it cannot be read. Raises InputError where a quote took in other rows."""
    before, problem = reader.line_num, None
    try:
        row = next(reader, None)
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise InputError(f"{where}: line {before + 1}: a quote is opened and never closed.") from None
        row, problem = [], f"{MALFORMED}: expected CSV: {error}"
    lines = reader.line_num - before
    if lines > _LONGEST_ROW:
        raise InputError(
            f"{where}: line {before + 1}: a row of {lines:,} lines begins here, expected at most {_LONGEST_ROW}. "
            "A stray quote takes all lines up to the next one into a field. Longer texts can be given as JSON lines."
        )
    if problem and lines > 1:
        problem += f"; the lines up to {reader.line_num} are lost with it"
    return row, problem


def _text_problem(row: list[str], fields: int) -> str | None:
    if len(row) != fields:
        return f"{MALFORMED}: expected {fields} fields, got {len(row)}"
    for position, value in enumerate(row):
        if _is_broken(value):
            return f"{BROKEN_ENCODING}: field {position + 1}: expected UTF-8"
    return None


def _is_broken(value: str) -> bool:
    """Whether bytes of it were not UTF-8."""
    return not value.isprintable() and any("\udc80" <= char <= "\udcff" for char in value)


def _string_table(columns: tuple[str, ...], rows: list[list[str | None]]) -> pa.Table:
    return pa.table({name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(columns)})


def _read_separated(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    """Fields as they are; the first line is a header where the source names no fields."""
    layout = source.separated
    assert layout is not None
    header = list(layout.fields)
    for numbers, table, problems in _read_lines(stream, source, where):
        lines = table[LINE].to_pylist()
        if not header:
            if problems[0]:
                raise InputError(f"{where}: line {numbers[0]}: expected a header in UTF-8. {problems[0]}.")
            header = (lines.pop(0) or "").split(layout.between)
            numbers, problems = numbers[1:], problems[1:]
        if missing := _missing(where, source.columns, header):
            raise missing
        places = [header.index(name) for name in source.columns]
        rows = [[] if line is None else line.split(layout.between) for line in lines]
        for place, row in enumerate(rows):
            if len(row) != len(header):
                problems[place] = problems[place] or f"{MALFORMED}: expected {len(header)} fields, got {len(row)}"
                rows[place] = [""] * len(header)
        yield numbers, _string_table(source.columns, [[row[place] for place in places] for row in rows]), problems


def _read_lines(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    """Lines as they are, binary decoded as UTF-8."""
    or_latin_1 = source.separated is not None and source.separated.or_latin_1
    numbers: list[int] = []
    values: list[str | None] = []
    problems: list[str | None] = []
    size = 0
    for number, line in enumerate(io.BufferedReader(stream), 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        value, problem = _decode(line.rstrip(b"\r\n"), or_latin_1)
        numbers.append(number)
        values.append(value)
        problems.append(problem)
        size += len(line)
        if len(values) == _ROWS_PER_BLOCK or size >= _BLOCK_BYTES:
            yield numbers, pa.table({LINE: pa.array(values, pa.string())}), problems
            numbers, values, problems, size = [], [], [], 0
    if values:
        yield numbers, pa.table({LINE: pa.array(values, pa.string())}), problems


def _decode(line: bytes, or_latin_1: bool) -> tuple[str | None, str | None]:
    """A line and what is wrong with it."""
    try:
        return line.decode("utf-8"), None
    except UnicodeDecodeError as error:
        if or_latin_1:
            return line.decode("latin-1"), None
        return None, f"{BROKEN_ENCODING}: byte {error.start + 1} of the line is not UTF-8"


def _read_json_lines(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    """Lines as they are. A key that none of the first lines has is a missing column."""
    for number, block in enumerate(_read_lines(stream, source, where)):
        if number == 0:
            _check_keys(block[1][LINE].to_pylist(), source, where)
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
    batches = file.iter_batches(batch_size=_ROWS_WITH_PICTURES, columns=list(source.columns))
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{where}: rows from {first:,} on cannot be read: {error}") from None
        if batch is None:
            return
        rows = pa.array(range(first, first + batch.num_rows), pa.int64())
        yield rows, *_decodable(pa.table(batch.columns, names=batch.schema.names))
        first += batch.num_rows


def _read_arrow(stream: pa.NativeFile, source: Source, where: str) -> Iterator[Block]:
    """An Arrow stream, which is how the library `datasets` keeps its tables."""
    first = 1
    try:
        batches = pa.ipc.open_stream(stream)
        if missing := _missing(where, source.columns, batches.schema.names):
            raise missing
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_WITH_PICTURES):
                table = pa.table(batch.slice(start, _ROWS_WITH_PICTURES).select(list(source.columns)))
                yield pa.array(range(first, first + len(table)), pa.int64()), *_decodable(table)
                first += len(table)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{where}: this is not an Arrow stream, or it is cut off: {error}") from None


def _decodable(table: pa.Table) -> tuple[pa.Table, list[str | None]]:
    """The table with the strings that are not UTF-8 taken out, and what is wrong with each row."""
    problems: list[str | None] = [None] * table.num_rows
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            decoded = pa.chunked_array([chunk.dictionary_decode() for chunk in table.column(place).chunks])
            field = pa.field(field.name, field.type.value_type)
            table = table.set_column(place, field, decoded.cast(field.type))
        if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            table = _nested_decodable(table, place, problems)
            continue
        raw = table.column(place).cast(pa.large_binary())
        try:
            raw.cast(pa.large_string())  # checks, in C++, what is nearly always right
        except pa.ArrowInvalid:
            values = raw.to_pylist()
            for row, value in enumerate(values):
                try:
                    values[row] = value if value is None else value.decode()
                except UnicodeDecodeError as error:
                    values[row] = None
                    problems[row] = f"{BROKEN_ENCODING}: {field.name}: byte {error.start + 1} is not UTF-8"
            table = table.set_column(place, field, pa.array(values, field.type))
    return table, problems


def _nested_decodable(table: pa.Table, place: int, problems: list[str | None]) -> pa.Table:
    """The same of a column of lists or other types that may have strings inside."""
    column, name = table.column(place), table.field(place).name
    try:
        column.validate(full=True)
        return table
    except pa.ArrowInvalid:
        broken = []
        for row in range(len(column)):
            try:
                column.slice(row, 1).combine_chunks().validate(full=True)
                broken.append(False)
            except pa.ArrowInvalid:
                broken.append(True)
                problems[row] = problems[row] or f"{BROKEN_ENCODING}: {name}: text in it is not UTF-8"
        kept = pc.if_else(pa.array(broken), pa.scalar(None, column.type), column)
        return table.set_column(place, table.field(place).with_nullable(True), kept)


_READERS: dict[str, Callable[[pa.NativeFile, Source, str], Iterator[Block]]] = {
    "csv": _read_csv,
    "tsv": _read_csv,
    "separated": _read_separated,
    "lines": _read_lines,
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
