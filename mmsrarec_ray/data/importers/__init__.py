"""Importers: one module a format. Each says which files hold the items and the interactions of a data set and how
one row of them becomes one of ours."""

from __future__ import annotations

from collections.abc import Callable

from mmsrarec_ray.data.importers import (
    amazon,
    events,
    huggingface,
    microlens,
    movielens,
    movies,
    recbole,
    tables,
)
from mmsrarec_ray.data.importers.base import Import
from mmsrarec_ray.settings import Data
from mmsrarec_ray.store import Folder

_IMPORTERS: dict[str, Callable[[Data, Folder], Import]] = {
    "shop": tables.open_import,
    "tables": tables.open_import,
    "movies": movies.open_import,
    "microlens": microlens.open_import,
    "amazon": amazon.open_import,
    "recbole": recbole.open_import,
    "movielens": movielens.open_import,
    "huggingface": huggingface.open_import,
    "events": events.open_import,
}


def open_import(data: Data, folder: Folder) -> Import:
    """The import of a data set that lies in `folder`. Raises InputError where its files are not there."""
    return _IMPORTERS[data.format](data, folder)
