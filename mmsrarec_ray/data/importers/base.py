"""What every importer gives: where the rows are, and how to turn one into ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from mmsrarec_ray.data.read import BROKEN_ENCODING, MALFORMED, Source
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.store import Folder

Row = Mapping[str, Any]
WRONG_TYPE = "WrongType"
_TEXTS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}
_PACKED = {f"{ending}.gz": kind for ending, kind in _TEXTS.items()}
KINDS = {".parquet": "parquet", ".arrow": "arrow", **_TEXTS, **_PACKED}


@dataclass(frozen=True)
class Import:
    """A data set.

    item: a row of `items` -> item_id, title, text, image (bytes), image_uri, attributes (dict of strings).
    interactions: None for a catalogue alone. interaction_table: a block of `interactions` -> a table with
    SOURCE, ROW, ORDER, PROBLEM and user_id, item_id, timestamp (ms as int64 or null where it is wrong,
    or the order where the source has no time), weight (float32), and PROBLEM filled in for rows that are wrong.
    """

    items: Source
    item: Callable[[Row], dict[str, Any]]
    interactions: Source | None
    interaction_table: Callable[[pa.Table], pa.Table]
    ordered_by: str
    """`time`, or `order` where timestamps are positions."""
    weighted: bool = False
    """Whether interactions have weights, such as ratings."""
    events: bool = False
    """Whether the interactions come as lines of our own API: `interaction_table` gives event_id, impression,
    request_id, rank and bundle as well, and impressions are no interactions."""


def item_of(
    item_id: str,
    title: str | None,
    text: str | None = None,
    image_uri: str | None = None,
    *,
    image: bytes | None = None,
    attributes: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """An item as `Import.item` gives it, without the attributes that have no value."""
    return {
        "item_id": item_id,
        "title": title,
        "text": text,
        "image": image,
        "image_uri": image_uri,
        "attributes": {name: value for name, value in (attributes or {}).items() if value},
    }


def exists(folder: Folder, name: str) -> bool:
    """Whether there is a file or a folder of that name."""
    return folder.filesystem.get_file_info(folder.file(name)).type != pafs.FileType.NotFound


def find_files(folder: Folder, name: str, key: str) -> list[str]:
    """The file of that name, or the table files below the folder of that name, relative to `folder`.

    Raises InputError where there are none, or where they are of several kinds.
    """
    info = folder.filesystem.get_file_info(folder.file(name))
    if info.type == pafs.FileType.File:
        return [name]
    below = [f"{name}/{file}" for file in (folder / name).files()] if info.type == pafs.FileType.Directory else []
    files = [file for file in below if any(file.endswith(ending) for ending in KINDS)]
    if not files:
        raise InputError(f"{folder.file(name)}: {key} must be a file or a folder with {', '.join(KINDS)} files.")
    return files


def find_endings(folder: Folder, *endings: str) -> list[str]:
    """The files below `folder` that end so, relative to it. Raises InputError where there are none."""
    files = [name for name in folder.files() if name.endswith(endings)]
    if not files:
        raise InputError(f"{folder.path}: expected a file that ends in {' or '.join(endings)}, found none.")
    return files


def kind_of(folder: Folder, files: list[str], key: str) -> str:
    """The one kind of these files. Raises InputError for an unknown ending or for several kinds."""
    kinds = {next((kind for ending, kind in KINDS.items() if file.endswith(ending)), None) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise InputError(f"{folder.file(files[0])}: {key} must all end in one of {', '.join(KINDS)}.")
    return kinds.pop()  # type: ignore[return-value]


class RowError(ValueError):
    """What is wrong with a row: 'Class: field: message'."""


def parse_json(line: str) -> dict[str, Any]:
    """The object in a line of JSON. Raises RowError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{MALFORMED}: line: expected a JSON object: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"{MALFORMED}: line: expected a JSON object, got {_shown(row)}")
    return row


def clean_text(value: Any, field: str) -> str | None:
    """Text without surrounding space, numbers written out; None where nothing is left.

    Raises RowError where it is neither.
    """
    if value is None or value != value:  # NaN is how pandas writes that there is no text
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"{WRONG_TYPE}: {field}: expected text, got {_shown(value)}")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair
        raise RowError(f"{BROKEN_ENCODING}: {field}: expected Unicode text, got {text!a:.80}") from None
    return text or None


def clean_id(value: Any, field: str) -> str:
    """An id: text or a whole number. Raises RowError for anything else and for nothing."""
    if isinstance(value, float) and value == value:
        raise RowError(f"{WRONG_TYPE}: {field}: expected text or a whole number, got {value!r}")
    text = clean_text(value, field)
    if text is None:
        raise RowError(f"MissingId: {field}: expected an id, got nothing")
    return text


def clean_attribute(value: Any, field: str) -> str | None:
    """An attribute as text, the values of a list joined by `|`. Raises RowError."""
    if isinstance(value, list):
        return "|".join(text for each in value if (text := clean_text(_written(each), field))) or None
    return clean_text(_written(value), field)


def _written(value: Any) -> Any:
    """A truth value, a decimal, a date or a moment as text; anything else as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.isoformat() if isinstance(value, date) else value


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!a:.80}"
