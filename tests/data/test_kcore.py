"""The k-core against cascades worked out by hand, and against the paper's figures."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
import ray

from mmsrarec_ray.data.partition import partition_firsts
from tests.data.conftest import CSV, Prepared

# u, v and w hold a and b together. c hangs on x alone, x on c: both fall at once.
# d is held by w and y; y has only d and c: with c gone y has one item and falls, and so d falls, in a third round.
CASCADE = {"u": "ab", "v": "ab", "w": "abd", "x": "ca", "y": "dc"}


def _files(histories: dict[str, str]) -> dict[str, str]:
    items = sorted(set("".join(histories.values())) | {"z"})
    rows = [f"{user},{item},{n}\n" for user, history in histories.items() for n, item in enumerate(history)]
    return {
        "items.csv": "item_id,title,text\n" + "".join(f"{item},Title,\n" for item in items),
        "interactions.csv": "user_id,item_id,timestamp\n" + "".join(rows),
    }


def _core(done: Prepared) -> dict[str, str]:
    return {user: "".join(done.history(user)) for user in sorted({row["user_id"] for row in done.rows("interactions")})}


@pytest.mark.parametrize("rows", [4, 1000])
def test_a_cascade_by_hand(prepare: Callable[..., Prepared], rows: int) -> None:
    """However the users are divided."""
    done = prepare(_files(CASCADE), *CSV, "data.k_core_user=2", "data.k_core_item=3", f"data.rows_per_partition={rows}")
    assert _core(done) == {"u": "ab", "v": "ab", "w": "ab"}
    assert {item["item_id"] for item in done.rows("items") if item["in_core"]} == {"a", "b"}
    assert len(done.rows("items")) == 5
    assert done.counts["filtered_core"] == 5


def test_users_alone(prepare: Callable[..., Prepared]) -> None:
    done = prepare(_files(CASCADE), *CSV, "data.k_core_user=3")
    assert _core(done) == {"w": "abd"}
    assert all(item["in_core"] for item in done.rows("items"))


def test_items_alone(prepare: Callable[..., Prepared]) -> None:
    done = prepare(_files(CASCADE), *CSV, "data.k_core_item=3")
    assert _core(done) == {"u": "ab", "v": "ab", "w": "ab", "x": "a"}


def test_positions_close_up_after_the_filter(prepare: Callable[..., Prepared]) -> None:
    done = prepare(_files({"u": "zab", "v": "azb"}), *CSV, "data.k_core_user=2", "data.k_core_item=2")
    assert sorted({row["position"] for row in done.rows("interactions")}) == [0, 1, 2]
    done = prepare(_files({"u": "cab", "v": "adb"}), *CSV, "data.k_core_user=2", "data.k_core_item=2", under="two")
    assert sorted({row["position"] for row in done.rows("interactions")}) == [0, 1]


def test_a_user_is_never_divided(prepare: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with more interactions than a partition, and blocks smaller than the user."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 500)
    histories = {"big": "abcde" * 30, "a": "ab", "z": "cd"}
    done = prepare(_files(histories), *CSV, "data.rows_per_partition=10", "data.drop_repeats=false")
    assert done.history("big") == list("abcde" * 30)
    assert done.counts["interactions_out"] == 154
    assert [row["interactions"] for row in done.rows("users")] == [2, 150, 2]


def test_partitions_begin_with_a_new_user() -> None:
    users = pa.table({"user_id": list("abcdef"), "count": [2, 2, 9, 1, 1, 4]})
    assert partition_firsts(users, 4) == ["a", "c", "d"]
    assert partition_firsts(users, 1000) == ["a"]
