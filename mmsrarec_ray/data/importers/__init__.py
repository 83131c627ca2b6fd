"""Importers: one module a format. Each says which files hold the items and the interactions of a data set and how
one row of them becomes one of ours."""

from __future__ import annotations

from mmsrarec_ray.config import Data
from mmsrarec_ray.data.importers import microlens, movies, tables
from mmsrarec_ray.data.importers.base import Import
from mmsrarec_ray.store import Folder


def open_import(data: Data, folder: Folder) -> Import:
    """The import of a data set that lies in `folder`. Raises InputError where its files are not there."""
    if data.format == "movies":
        return movies.open_import(folder)
    if data.format == "microlens":
        return microlens.open_import(folder)
    return tables.open_import(data, folder)
