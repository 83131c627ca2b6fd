"""Folders of the Hugging Face library `datasets`: what `save_to_disk` writes, and Parquet files as the hub has them.

They are tables: columns are named by the settings. Nothing is imported from the library, and no hub is asked.
"""

from __future__ import annotations

import json

from mmsrarec_ray.data.importers import tables
from mmsrarec_ray.data.importers.base import Import, find_files
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.settings import Data
from mmsrarec_ray.store import Folder

_SPLITS, _STATE = "dataset_dict.json", "state.json"


def open_import(data: Data, folder: Folder) -> Import:
    return tables.open_import(data, folder, _find)


def _find(folder: Folder, name: str, key: str) -> list[str]:
    """The files of a saved dataset, of all splits of a saved DatasetDict, or the table files below a folder."""
    saved = folder / name
    if saved.exists(_SPLITS):
        splits = _read(saved, _SPLITS, "splits")
        return [file for split in splits for file in _shards(folder, f"{name}/{split}")]
    return _shards(folder, name) if saved.exists(_STATE) else find_files(folder, name, key)


def _shards(folder: Folder, name: str) -> list[str]:
    """The files that a saved dataset says are its own: others in its folder are caches of the library."""
    saved = folder / name
    files = [file["filename"] for file in _read(saved, _STATE, "_data_files")]
    if missing := [file for file in files if not saved.exists(file)]:
        raise InputError(f"{saved.path}: {_STATE} names files that are not there: {', '.join(missing)}.")
    return [f"{name}/{file}" for file in files]


def _read(saved: Folder, file: str, field: str) -> list:
    """A list in one of the library's own files. Raises InputError where it is not there."""
    try:
        found = json.loads(saved.read_bytes(file))[field]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{saved.file(file)}: expected what `save_to_disk` of `datasets` writes: {error!r}") from None
    if not isinstance(found, list) or not found:
        raise InputError(f"{saved.file(file)}: expected a list under {field!r}, got {found!a:.80}")
    return found
