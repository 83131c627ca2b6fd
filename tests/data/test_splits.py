"""Splits: exact, seeded, and independent of the order of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsrarec_ray import job
from mmsrarec_ray.data import splits
from mmsrarec_ray.data.prepare import Prepare
from tests.data.conftest import CSV, ITEMS_CSV, Prepared, write_files

IDS = [f"user {n}" for n in range(1000)]


def _by_ratio(ids: list[str], seed: int = 0, validation: float = 0.1, test: float = 0.1) -> dict[str, str]:
    numbers = splits.hashes(ids, seed, "user")
    split = splits.RatioSplit.of(numbers, validation, test)
    return dict(zip(ids, split.names(numbers), strict=True))


def test_shares_are_exact() -> None:
    assert Counter(_by_ratio(IDS).values()) == {"train": 800, "validation": 100, "test": 100}


@given(st.integers(0, 60), st.floats(0.05, 0.45), st.floats(0.05, 0.45))
def test_shares_are_exact_for_any_number(n: int, validation: float, test: float) -> None:
    count = Counter(_by_ratio(IDS[:n], 0, validation, test).values())
    assert count["test"] == round(test * n)
    assert count["validation"] == min(n - count["test"], round(validation * n))


def test_an_id_keeps_its_split_whatever_stands_around_it() -> None:
    assert _by_ratio(IDS) == _by_ratio(IDS[::-1])
    assert _by_ratio(IDS) != _by_ratio(IDS, seed=1)


def test_users_and_items_of_the_same_id_are_split_apart() -> None:
    assert list(splits.hashes(IDS, 0, "user")) != list(splits.hashes(IDS, 0, "item"))


def test_leave_one_out_by_hand() -> None:
    split = splits.leave_one_out(np.array([1, 4, 2, 3]))
    train, validation, test = "train", "validation", "test"
    assert list(split) == [train, train, train, validation, test, train, train, train, validation, test]


def test_time_by_hand() -> None:
    """Ten moments, one interaction each: the last is test, the one before validation."""
    times = np.arange(100, 200, 10)
    edges = np.linspace(100, 191, 92)
    moments = splits.time_edges(np.histogram(times, edges)[0], edges, 0.1, 0.1)
    assert list(splits.by_time(times, *moments)) == ["train"] * 8 + ["validation", "test"]


def _log(order: list[int]) -> str:
    """Forty users with three interactions each, in some order."""
    rows = [f"u{n % 40},{'abc'[n // 40]},{n * 10}\n" for n in range(120)]
    return "user_id,item_id,timestamp\n" + "".join(rows[n] for n in order)


def _splits(done: Prepared) -> dict[tuple[str, str], str]:
    return {(row["user_id"], row["item_id"]): row["split"] for row in done.rows("interactions")}


def test_users_by_ratio(prepare: Callable[..., Prepared]) -> None:
    mixed = np.random.default_rng(0).permutation(120).tolist()
    files = {"items.csv": ITEMS_CSV, "interactions.csv": _log(list(range(120)))}
    done = prepare(files, *CSV)
    users = {row["user_id"]: row["split"] for row in done.rows("users")}
    assert Counter(users.values()) == {"train": 32, "validation": 4, "test": 4}
    assert all(row["split"] == users[row["user_id"]] for row in done.rows("interactions"))
    shuffled = prepare(files | {"interactions.csv": _log(mixed)}, *CSV, under="two")
    assert _splits(shuffled) == _splits(done)
    assert [(r["user_id"], r["item_id"]) for r in shuffled.rows("interactions")] == [
        (r["user_id"], r["item_id"]) for r in done.rows("interactions")
    ]


def test_leave_one_out(prepare: Callable[..., Prepared]) -> None:
    files = {"items.csv": ITEMS_CSV, "interactions.csv": _log(list(range(120))) + "short,a,1\nshort,b,2\n"}
    done = prepare(files, *CSV, "split.users=leave_one_out")
    expected = {0: "train", 1: "validation", 2: "test"}
    for row in done.rows("interactions"):
        assert row["split"] == ("train" if row["user_id"] == "short" else expected[row["position"]])
    assert {row["split"] for row in done.rows("users")} == {None}


def test_time_is_one_moment_for_all(prepare: Callable[..., Prepared]) -> None:
    files = {"items.csv": ITEMS_CSV, "interactions.csv": _log(list(range(120)))}
    done = prepare(files, *CSV, "split.users=time", "split.validation=0.2", "split.test=0.1")
    for row in done.rows("interactions"):
        number = row["timestamp"] // 10_000
        assert row["split"] == ("train" if number < 84 else "validation" if number < 108 else "test")
    assert done.metrics["split"] == {"train": 84, "validation": 24, "test": 12}


def test_items_are_split_exactly(prepare: Callable[..., Prepared]) -> None:
    items = "item_id,title,text\n" + "".join(f"{n},Title {n},\n" for n in range(50))
    done = prepare({"items.csv": items}, *CSV, "data.interactions=null")
    assert Counter(item["split"] for item in done.rows("items")) == {"train": 40, "validation": 5, "test": 5}


@pytest.mark.parametrize("setting", ["data.interaction_columns.timestamp=null", "data.format=microlens"])
def test_a_split_by_time_needs_times(tmp_path: Path, setting: str) -> None:
    files = {"items.csv": ITEMS_CSV, "interactions.csv": "user_id,item_id\n", "titles.csv": "", "pairs.tsv": ""}
    data = write_files(tmp_path / "data", files)
    words = ["data.format=tables", f"data.path={data}", f"run={tmp_path}/run", *CSV, "split.users=time", setting]
    with pytest.raises(job.UsageError, match=r"split\.users"):
        Prepare(job.load(None, words)).check()
