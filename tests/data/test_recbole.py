"""RecBole's atomic files; ml-100k of its wheel where that is at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.errors import InputError
from tests.data.conftest import Prepared, prepare_folder
from tests.data.test_prepare import ROOT, assert_counts_add_up

ITEMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
INTERACTIONS = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
CONFIG = ROOT / "configs" / "recbole.yaml"


def settings() -> list[str]:
    """Those of the configuration for ml-100k, as words."""
    columns = load(CONFIG, ["data.path=/nowhere", "run=/nowhere"]).data
    words = [f"data.item_columns.{name}={_word(value)}" for name, value in columns.item_columns]
    return [*words, *(f"data.interaction_columns.{name}={_word(value)}" for name, value in columns.interaction_columns)]


def _word(value: object) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else "null" if value is None else str(value)


def test_atomic_files(prepare: Callable[..., Prepared]) -> None:
    files = {
        "ml.item": ITEMS + '1\t"Toy" Story\t1995\tAnimation Comedy\n2\tGoldenEye\t\t\n',
        "ml.inter": INTERACTIONS + "196\t2\t3\t881250949\n196\t1\t4.5\t881250948.5\n",
        "ml.user": "user_id:token\tage:token\n196\t49\n",
    }
    done = prepare(files, "data.format=recbole", *settings())
    assert done.item("1")["title"] == '"Toy" Story'
    assert dict(done.item("1")["attributes"]) == {"release_year": "1995", "class": "Animation|Comedy"}
    assert done.item("2")["attributes"] == []
    assert [(row["item_id"], row["timestamp"], row["weight"]) for row in done.rows("interactions")] == [
        ("1", 881250948500, 4.5),
        ("2", 881250949000, 3.0),
    ]


def test_without_times_in_several_files(prepare: Callable[..., Prepared]) -> None:
    files = {
        "x.item": "item_id:token\tname:token\n1\tOne\n2\tTwo\n3\tThree\n",
        "x.part1.inter": "item_id:token\tuser_id:token\n3\tu\n1\tu\n",
        "x.part2.inter": "user_id:token\titem_id:token\nu\t2\n",
    }
    done = prepare(
        files,
        *("data.format=recbole", "data.item_columns.title=name", "data.item_columns.text=null"),
        *("data.item_columns.image=null", "data.interaction_columns.timestamp=null"),
    )
    assert done.history("u") == ["3", "1", "2"]


def test_broken_rows_fail_alone(prepare: Callable[..., Prepared]) -> None:
    files = {
        "ml.item": (ITEMS + "1\tOne\t1995\tWar\n2\tTwo\n\tThree\t1995\tWar\n").encode() + b"4\t\xe9\t1995\tWar\n",
        "ml.inter": INTERACTIONS + "u\t1\t3\t10\nu\t9\t3\t10\n\t1\t3\t10\nu\t1\t3\tnever\nu\t1\tx\t10\nu\n",
    }
    done = prepare(files, "data.format=recbole", *settings())
    assert {(row["table"], row["row"]): row["error"] for row in done.rows("failures")} == {
        ("items", 3): "MalformedRow",
        ("items", 4): "MissingId",
        ("items", 5): "BrokenEncoding",
        ("interactions", 3): "UnknownItem",
        ("interactions", 4): "MissingId",
        ("interactions", 5): "BadTimestamp",
        ("interactions", 6): "BadWeight",
        ("interactions", 7): "MalformedRow",
    }
    assert_counts_add_up(done.counts)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"ml.inter": INTERACTIONS}, "expected a file that ends in .item"),
        ({"ml.item": ITEMS}, "expected a file that ends in .inter"),
        ({"ml.item": "1\tOne\n", "ml.inter": INTERACTIONS}, "ml.item: expected the field.* no header of field:type"),
        ({"ml.item": ITEMS, "ml.inter": "user_id:token\n"}, "ml.inter: expected the field.*item_id.*Got user_id"),
    ],
)
def test_files_that_are_refused(prepare: Callable[..., Prepared], files: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        prepare(files, "data.format=recbole", *settings())


def test_the_real_ml_100k(ray_session: str, tmp_path: Path) -> None:
    """The folder recbole/dataset_example/ml-100k of RecBole's wheel."""
    folder = Path(os.environ.get("MMSRAREC_DATA", "/nowhere")) / "ml-100k"
    if not (folder / "ml-100k.inter").exists():
        pytest.skip("MMSRAREC_DATA has no folder ml-100k with ml-100k.inter and ml-100k.item of RecBole")
    done = prepare_folder(str(folder), str(tmp_path), "data.format=recbole", *settings())
    assert done.counts["interactions_out"] == done.counts["interactions_in"] == 100_000
    assert (done.counts["items_out"], done.metrics["users"]) == (1682, 943)
    assert done.rows("failures") == []
