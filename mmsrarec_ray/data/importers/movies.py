"""Films with posters: `items.jsonl`, `interactions.csv` (ratings with Unix seconds) and a folder of pictures.

Genres, plot keywords, director and year are kept as attributes, apart from the text: they are what a summariser
is taught and examined with, so the prompt must not hold them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mmsrarec_ray.data.importers.base import (
    Import,
    Row,
    clean_attribute,
    clean_id,
    clean_text,
    find_files,
    item_of,
    parse_json,
)
from mmsrarec_ray.data.importers.tables import interaction_columns
from mmsrarec_ray.data.read import LINE, Source
from mmsrarec_ray.settings import Data
from mmsrarec_ray.store import Folder

_ATTRIBUTES = ("genres", "plot_keywords", "director", "year")


def open_import(data: Data, folder: Folder) -> Import:
    items = Source(folder, find_files(folder, "items.jsonl", "items.jsonl"), "jsonl", ("item_id",))
    columns = ("user_id", "item_id", "rating", "timestamp")
    found = find_files(folder, "interactions.csv", "interactions.csv")
    names = dict(zip(columns, ("user_id", "item_id", "weight", "timestamp"), strict=True))
    return Import(
        items=items,
        item=partial(_item, folder=folder),
        interactions=Source(folder, found, "csv", columns),
        interaction_table=partial(interaction_columns, names=names, unit="s"),
        ordered_by="time",
        weighted=True,
    )


def _item(row: Row, folder: Folder) -> dict[str, Any]:
    film = parse_json(row[LINE])
    plots = [clean_text(film.get(name), name) for name in ("description", "plot_omdb")]
    said = [plot for plot in plots if plot]
    text = " ".join(said[:1] if len(said) == 2 and said[1] in said[0] else said) or None
    image = clean_text(film.get("image"), "image")
    return item_of(
        clean_id(film.get("item_id"), "item_id"),
        clean_text(film.get("title"), "title"),
        text,
        folder.uri(image) if image else None,
        attributes={name: clean_attribute(film.get(name), name) for name in _ATTRIBUTES},
    )
