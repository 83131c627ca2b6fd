"""MovieLens of every age."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmsrarec_ray.errors import InputError
from tests.data.conftest import Prepared
from tests.data.test_prepare import assert_counts_add_up

FLAGS = "|".join("1" if n in (1, 5) else "0" for n in range(19))  # Action, Comedy
CSV = {
    "movies.csv": 'movieId,title,genres\n1,"Misérables, Les (1995)",Drama|War\n2,Untitled,(no genres listed)\n',
    "ratings.csv": "userId,movieId,rating,timestamp\n7,1,4.5,1112486027\n7,2,3.0,1112486000\n",
    "tags.csv": "userId,movieId,tag,timestamp\n",
}
DAT = {
    "movies.dat": "1::Misérables, Les (1995)::Drama|War\n2::Untitled::(no genres listed)\n".encode("latin-1"),
    "ratings.dat": "7::1::4.5::1112486027\n7::2::3::1112486000\n",
}
OLD = {
    "u.item": (
        f"1|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?x|{FLAGS}\r\n2|Untitled||||"
        f"{'0|' * 18}0\r\n"
    ).encode("latin-1"),
    "u.data": "7\t1\t4.5\t1112486027\n7\t2\t3\t1112486000\n",
}


@pytest.mark.parametrize(("files", "genres"), [(CSV, "Drama|War"), (DAT, "Drama|War"), (OLD, "Action|Comedy")])
def test_every_age(prepare: Callable[..., Prepared], files: dict[str, str | bytes], genres: str) -> None:
    done = prepare(files, "data.format=movielens")
    film = done.item("1")
    assert film["title"] == "Misérables, Les (1995)"
    assert dict(film["attributes"]) == {"genres": genres, "year": "1995"}
    assert done.item("2")["attributes"] == []
    assert [(row["item_id"], row["timestamp"], row["weight"]) for row in done.rows("interactions")] == [
        ("2", 1112486000000, 3.0),
        ("1", 1112486027000, 4.5),
    ]
    assert_counts_add_up(done.counts)


def test_films_in_utf_8_with_colons(prepare: Callable[..., Prepared]) -> None:
    """As 10M has them, unlike 1M."""
    done = prepare(
        DAT | {"movies.dat": "1::Misérables, Les (1995)::Drama\n2::A: B (1999-2001)::War\n"}, "data.format=movielens"
    )
    assert done.item("1")["title"] == "Misérables, Les (1995)"
    assert dict(done.item("2")["attributes"])["year"] == "1999"


def test_broken_rows_fail_alone(prepare: Callable[..., Prepared]) -> None:
    files = {
        "movies.dat": "1::One::Drama\n2::Two\n::Three::War\n1::Again::War\n",
        "ratings.dat": b"7::1::5::10\n7::9::5::10\n7::1::5\n7::1::many::10\n7::1::5::then\n\xff::1::5::10\n",
    }
    done = prepare(files, "data.format=movielens")
    assert {(row["table"], row["row"]): row["error"] for row in done.rows("failures")} == {
        ("items", 2): "MalformedRow",
        ("items", 3): "MissingId",
        ("items", 4): "DuplicateId",
        ("interactions", 2): "UnknownItem",
        ("interactions", 3): "MalformedRow",
        ("interactions", 4): "BadWeight",
        ("interactions", 5): "BadTimestamp",
        ("interactions", 6): "BrokenEncoding",
    }
    assert_counts_add_up(done.counts)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"readme.txt": ""}, "ratings.csv and movies.csv or ratings.dat and movies.dat or u.data and u.item"),
        ({"ratings.dat": "7::1::5::10\n"}, "movies.dat: expected the films"),
    ],
)
def test_files_that_are_not_there(prepare: Callable[..., Prepared], files: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        prepare(files, "data.format=movielens")


def test_a_column_that_is_not_there(prepare: Callable[..., Prepared]) -> None:
    with pytest.raises(Exception, match=r"movies\.csv: expected the column\(s\) genres"):
        prepare(CSV | {"movies.csv": "movieId,title\n1,One\n"}, "data.format=movielens")
