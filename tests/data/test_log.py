"""Interactions as arrays, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.data.log import Log, Sequences, read_log
from mmsrarec_ray.errors import InputError
from tests.data.conftest import CSV, ITEMS_CSV, Prepared

SEQUENCES = Sequences.of([[3, 1, 2], [], [0, 4]])


def log(split: list[int], by_user: bool) -> Log:
    items = pa.array([f"i{n}" for n in range(5)])
    return Log(items, np.ones(5, bool), pa.array(["a", "b", "c"]), SEQUENCES, np.array(split, np.uint8), by_user)


def lists(sequences: Sequences) -> list[list[int]]:
    return [row.tolist() for row in sequences]


def test_pieces_of_sequences() -> None:
    assert lists(SEQUENCES) == [[3, 1, 2], [], [0, 4]]
    assert lists(SEQUENCES.take(np.array([2, 0, 2]))) == [[0, 4], [3, 1, 2], [0, 4]]
    assert SEQUENCES.take(np.array([2, 0])).users.tolist() == [2, 0]
    assert lists(SEQUENCES.take(np.array([False, True, True]))) == [[], [0, 4]]
    assert lists(SEQUENCES.beginnings(np.arange(3), np.array([2, 0, 1]))) == [[3, 1], [], [0]]
    assert [lists(part) for _, part in SEQUENCES.chunks(2)] == [[[3, 1, 2], []], [[0, 4]]]
    assert SEQUENCES.last(2, -1).tolist() == [[1, 2], [-1, -1], [0, 4]]
    assert SEQUENCES.last(4, -1).tolist() == [[-1, 3, 1, 2], [-1] * 4, [-1, -1, 0, 4]]
    assert SEQUENCES.rows.tolist() == [0, 0, 0, 2, 2]


def test_sequences_of_users_some_of_whom_have_none() -> None:
    some = SEQUENCES.take(np.array([0, 2]))
    asked = np.array([2, -1, 1, 0, 7, 2])
    assert lists(some.of_users(asked)) == [[0, 4], [], [], [3, 1, 2], [], [0, 4]]
    assert some.of_users(asked).users.tolist() == asked.tolist()
    assert lists(SEQUENCES.take(np.zeros(0, np.int64)).of_users(asked)) == [[]] * 6
    assert lists(some.of_users(asked[:0])) == []


def test_a_split_by_user_asks_for_each_held_out_user_s_last_item() -> None:
    held_out = log([2, 2, 2, 0, 0], by_user=True)
    assert lists(held_out.train()) == [[0, 4]]
    assert held_out.train().users.tolist() == [2]
    cases = held_out.cases("test")
    assert lists(cases.queries.histories) == [[3, 1]]
    assert cases.positives.tolist() == [2]
    assert cases.queries.now.tolist() == [2]
    assert len(held_out.cases("validation")) == 0


def test_a_split_by_interaction_asks_for_the_first_that_is_held_out() -> None:
    held_out = log([0, 1, 2, 2, 2], by_user=False)
    assert lists(held_out.train()) == [[3]]
    assert lists(held_out.cases("validation").queries.histories) == [[3]]
    test = held_out.cases("test")
    assert lists(test.queries.histories) == [[3, 1], []]  # the third user has no history
    assert test.positives.tolist() == [2, 0]


def test_a_positive_that_the_history_has_already_is_no_case() -> None:
    """It would be the only candidate that stands there."""
    sequences = Sequences.of([[3, 1, 3], [0, 3, 4], [2, 2]])
    split = np.array([2, 2, 2, 2, 2, 2, 1, 1], np.uint8)
    repeated = replace(log([0] * 5, by_user=True), sequences=sequences, split=split)
    cases = repeated.cases("test")
    assert lists(cases.queries.histories) == [[0, 3]]
    assert (cases.queries.histories.users.tolist(), cases.positives.tolist()) == ([1], [4])
    assert len(repeated.cases("validation")) == 0
    assert (repeated.repeats("test"), repeated.repeats("validation")) == (1, 1)
    assert log([2, 2, 2, 0, 0], by_user=True).repeats("test") == 0


def test_a_dataset_is_read_in_the_order_of_its_ids(prepare: Callable[..., Prepared]) -> None:
    rows = "user_id,item_id,timestamp\nu2,b,5\nu1,c,1\nu2,a,2\nu1,a,9\n"
    done = prepare({"items.csv": ITEMS_CSV, "interactions.csv": rows}, *CSV, "split.users=leave_one_out")
    read = read_log(done.folder)
    assert read.items.to_pylist() == ["a", "b", "c"]
    assert read.users.to_pylist() == ["u1", "u2"]
    assert lists(read.sequences) == [[2, 0], [0, 1]]
    assert read.sequences.times.tolist() == [1000, 9000, 2000, 5000]
    assert not read.by_user
    assert lists(read.train()) == [[2, 0], [0, 1]]  # too short to hold out


def test_a_catalogue_without_interactions_says_so(prepare: Callable[..., Prepared]) -> None:
    done = prepare({"items.csv": ITEMS_CSV}, *CSV, "data.interactions=null")
    with pytest.raises(InputError, match="has no interactions"):
        read_log(done.folder)
