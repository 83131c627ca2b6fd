"""Atomic files of RecBole: `NAME.inter` and `NAME.item`, tab-separated, with a header of `field:type`.

The settings name columns by their field. Values of a list (`token_seq`, `float_seq`) stand between spaces; as an
attribute they are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from mmsrarec_ray.data.importers.base import Import, Row, find_endings
from mmsrarec_ray.data.importers.tables import columns_of, fields_of, interaction_columns, table_item
from mmsrarec_ray.data.read import Separated, Source
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.settings import Data, ItemColumns
from mmsrarec_ray.store import Folder

_TABS = Separated("\t")
_LONGEST_HEADER = 1 << 16  # bytes


def open_import(data: Data, folder: Folder) -> Import:
    items, interactions = find_endings(folder, ".item"), find_endings(folder, ".inter")
    columns, names = data.item_columns, columns_of(data.interaction_columns)
    of_items = _typed(folder, items[0], fields_of(columns))
    of_interactions = _typed(folder, interactions[0], names)
    typed_names = {of_interactions[theirs]: ours for theirs, ours in names.items()}
    return Import(
        items=Source(folder, items, "separated", tuple(of_items.values()), _TABS),
        item=partial(_item, typed=of_items, columns=columns, folder=folder),
        interactions=Source(folder, interactions, "separated", tuple(typed_names), _TABS),
        interaction_table=partial(interaction_columns, names=typed_names, unit=data.timestamp_unit),
        ordered_by="time" if data.interaction_columns.timestamp else "order",
        weighted=bool(data.interaction_columns.weight),
    )


def _typed(folder: Folder, file: str, fields: Iterable[str]) -> dict[str, str]:
    """Field -> `field:type`, as the header of a file has it. Raises InputError where a field is missing."""
    with folder.filesystem.open_input_stream(folder.file(file), compression=None) as stream:
        line = stream.read(_LONGEST_HEADER).split(b"\n")[0].decode("utf-8-sig", errors="replace").rstrip("\r")
    typed = {name.partition(":")[0]: name for name in line.split(_TABS.between) if ":" in name}
    if missing := [name for name in fields if name not in typed]:
        found = ", ".join(typed) or f"{line!a:.80}, which is no header of field:type"
        raise InputError(f"{folder.file(file)}: expected the field(s) {', '.join(missing)}. Got {found}.")
    return {name: typed[name] for name in fields}


def _item(row: Row, typed: dict[str, str], columns: ItemColumns, folder: Folder) -> dict[str, Any]:
    plain: dict[str, Any] = {field: row[name] for field, name in typed.items()}
    for field in columns.attributes:
        if typed[field].endswith("_seq"):
            plain[field] = plain[field].split(" ")
    return table_item(plain, columns, folder)
