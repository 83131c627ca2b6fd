"""The candidates of every case."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.data.log import Log, Sequences
from mmsrarec_ray.errors import ConfigError, InputError
from mmsrarec_ray.evaluate.lists import cases_of, draw_negatives, lists_table, pool_of
from mmsrarec_ray.settings import Evaluate

N_ITEMS = 60


def world(users: int = 300, split: int = 2) -> Log:
    rng = np.random.default_rng(0)
    sequences = Sequences.of([rng.permutation(40)[:6].tolist() for _ in range(users)])
    items, people = pa.array([f"i{n:02d}" for n in range(N_ITEMS)]), pa.array([f"u{n:03d}" for n in range(users)])
    return Log(items, np.arange(N_ITEMS) < 50, people, sequences, np.full(6 * users, split, np.uint8), True)


def test_negatives_are_uniform_over_what_the_user_never_touched() -> None:
    log = world()
    cases, pool = cases_of(log), pool_of(log, Evaluate(pool="core"))
    negatives = draw_negatives(log, cases, pool, 20, 0)
    for row, drawn in enumerate(negatives):
        assert len(set(drawn)) == 20
        assert not set(drawn) & set(log.sequences[row].tolist())  # the positive and the future included
    counts = np.bincount(negatives.ravel(), minlength=N_ITEMS)
    assert (counts[50:] == 0).all()
    free = 300 - np.bincount(log.sequences.items, minlength=N_ITEMS)[:50]
    np.testing.assert_allclose(counts[:50], free * 20 / 44, rtol=0.25)
    assert (draw_negatives(log, cases, pool_of(log, Evaluate(pool="catalogue")), 20, 0) >= 50).any()


def test_a_user_s_list_does_not_depend_on_other_users() -> None:
    log = world()
    cases, pool = cases_of(log), np.ones(N_ITEMS, bool)
    some = np.array([7, 3])
    drawn = draw_negatives(log, cases, pool, 20, 1)
    assert (draw_negatives(log, cases.take(some), pool, 20, 1) == drawn[some]).all()
    assert (draw_negatives(log, cases, pool, 20, 2) != drawn).any()


def test_a_pool_that_is_too_small_is_refused() -> None:
    log = world()
    with pytest.raises(ConfigError, match=r"evaluate\.negatives: 20 items .* pool of 21 .*"):
        draw_negatives(log, cases_of(log), np.arange(N_ITEMS) < 21, 20, 0)


def test_a_split_without_test_users_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        cases_of(world(split=0))


def test_lists_are_rows_of_ids() -> None:
    log = world(users=2)
    cases = cases_of(log)
    table = lists_table(log, cases, 4, np.array([[0, 1], [2, 3]]))
    row = table.to_pylist()[1]
    assert row == {
        "seed": 4,
        "user_id": "u001",
        "cut": 5,
        "positive": log.items[int(cases.positives[1])].as_py(),
        "negatives": ["i02", "i03"],
    }
    assert lists_table(log, cases, 0, None)["negatives"].null_count == 2
