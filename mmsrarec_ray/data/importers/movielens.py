"""MovieLens of every age: `ratings.csv` and `movies.csv` (latest, 20M, 25M, 32M), `ratings.dat` and `movies.dat` with
`::` (1M, 10M), `u.data` and `u.item` (100K).

Genres and year are kept as attributes, as the film's own fields are by the importer of films with posters.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from mmsrarec_ray.data.importers.base import Import, Row, clean_id, clean_text, exists, item_of
from mmsrarec_ray.data.importers.tables import interaction_columns
from mmsrarec_ray.data.read import Separated, Source
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.settings import Data
from mmsrarec_ray.store import Folder

_RATINGS = {"userId": "user_id", "movieId": "item_id", "rating": "weight", "timestamp": "timestamp"}
_MOVIES = ("movieId", "title", "genres")
_YEAR = re.compile(r"\((\d{4})(?:[-–](?:\d{4})?)?\)\s*$")  # a series may have two: (2011-2012)
_NO_GENRES = "(no genres listed)"
# The columns of u.item that say whether a film is of a genre; `unknown` comes before them.
_GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_FILM_100K = ("movieId", "title", "released", "video", "imdb", "unknown", *_GENRES)


def open_import(data: Data, folder: Folder) -> Import:
    names = next((names for names in _SOURCES if exists(folder, names[0])), None)
    if names is None:
        ages = " or ".join(" and ".join(names) for names in _SOURCES)
        raise InputError(f"{folder.path}: expected the files of a MovieLens: {ages}. Found none.")
    if not exists(folder, names[1]):
        raise InputError(f"{folder.file(names[1])}: expected the films beside {names[0]}. There is no such file.")
    ratings, films = _SOURCES[names]
    return Import(
        items=_source(folder, names[1], films, _MOVIES if films is None else films.fields),
        item=_item,
        interactions=_source(folder, names[0], ratings, tuple(_RATINGS)),
        interaction_table=partial(interaction_columns, names=_RATINGS, unit="s"),
        ordered_by="time",
        weighted=True,
    )


# Names of the files -> how ratings and films are written; None: CSV.
_SOURCES: dict[tuple[str, str], tuple[Separated | None, Separated | None]] = {
    ("ratings.csv", "movies.csv"): (None, None),
    ("ratings.dat", "movies.dat"): (Separated("::", tuple(_RATINGS)), Separated("::", _MOVIES, or_latin_1=True)),
    ("u.data", "u.item"): (Separated("\t", tuple(_RATINGS)), Separated("|", _FILM_100K, or_latin_1=True)),
}


def _source(folder: Folder, name: str, layout: Separated | None, columns: tuple[str, ...]) -> Source:
    return Source(folder, [name], "separated" if layout else "csv", columns, layout)


def _item(row: Row) -> dict[str, Any]:
    title = clean_text(row["title"], "title")
    year = _YEAR.search(title or "")
    genres = "|".join(genre for genre in _GENRES if row[genre] == "1") if "Action" in row else row["genres"].strip()
    return item_of(
        clean_id(row["movieId"], "movieId"),
        title,
        attributes={"genres": None if genres == _NO_GENRES else genres, "year": year and year[1]},
    )
