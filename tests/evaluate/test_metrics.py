"""Metrics: worked by hand, and ties against all orders of the tied ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsrarec_ray.evaluate.metrics import Ranks, coverage, novelty, per_case, popularity

NAN, NONE = float("nan"), -float("inf")


def one(scores: list[float], positive: int = 0) -> Ranks:
    return Ranks.of(np.array([scores]), np.array([positive]))


def values(scores: list[float], positive: int = 0, ks: tuple[int, ...] = (1, 2, 3)) -> dict[str, float]:
    return {name: float(each[0]) for name, each in per_case(one(scores, positive), ks).items()}


def test_ranks_by_hand() -> None:
    scores = np.array([[3.0, 5.0, 3.0, 1.0, NONE], [2.0, 2.0, 2.0, 2.0, 2.0], [NONE, NONE, 0.0, NONE, NONE]])
    ranks = Ranks.of(scores, np.array([0, 4, 2]))
    assert ranks.greater.tolist() == [1, 0, 0]
    assert ranks.equal.tolist() == [1, 4, 0]
    assert ranks.others.tolist() == [3, 4, 0]
    assert ranks.greater.dtype == ranks.equal.dtype == ranks.others.dtype == np.int64


def test_ranks_do_not_depend_on_how_many_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, positives = np.random.default_rng(0).integers(0, 4, (50, 7)).astype(np.float32), np.arange(50) % 7
    whole = Ranks.of(scores, positives)
    monkeypatch.setattr("mmsrarec_ray.evaluate.metrics._BLOCK", 20)
    parts = Ranks.of(scores, positives)
    for name in ("greater", "equal", "others"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_a_nan_is_refused_by_row() -> None:
    with pytest.raises(ValueError, match=r"must not be NaN\. Row 1 has one"):
        Ranks.of(np.array([[1.0, 2.0], [1.0, NAN], [NAN, 1.0]]), np.array([0, 0, 0]))


def test_a_positive_that_is_no_candidate_is_refused_by_row() -> None:
    with pytest.raises(ValueError, match="In row 2 it is -inf"):
        Ranks.of(np.array([[1.0, 2.0], [1.0, NONE], [NONE, 1.0]]), np.array([0, 0, 0]))


def test_metrics_of_the_third_of_five() -> None:
    found = values([3.0, 5.0, 4.0, 2.0, 1.0])
    for name in ("HR", "NDCG", "Recall", "MRR"):
        assert found[f"{name}@1"] == found[f"{name}@2"] == 0
    assert found["HR@3"] == found["Recall@3"] == 1
    assert found["NDCG@3"] == pytest.approx(1 / 2)  # log2(1 + 3) = 2
    assert found["MRR@3"] == found["MRR"] == pytest.approx(1 / 3)
    assert found["AUC"] == 0.5


def test_two_tied_around_the_cut() -> None:
    found = values([3.0, 5.0, 3.0, 1.0])  # rank 2 or 3
    assert found["HR@2"] == 0.5
    assert found["NDCG@2"] == pytest.approx(0.5 / np.log2(3))
    assert found["MRR@2"] == pytest.approx(0.25)
    assert found["MRR"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["AUC"] == pytest.approx(1.5 / 3)


def test_constant_scores_are_chance() -> None:
    found = values([0.0] * 21, positive=13, ks=(5,))
    assert found["AUC"] == 0.5
    assert found["HR@5"] == pytest.approx(5 / 21)
    assert found["NDCG@5"] == pytest.approx(sum(1 / np.log2(1 + rank) for rank in range(1, 6)) / 21)
    assert found["MRR"] == pytest.approx(sum(1 / rank for rank in range(1, 22)) / 21)


def test_without_others_every_metric_is_chance() -> None:
    found = values([1.0, NONE])
    assert found.pop("AUC") == 0.5
    assert set(found.values()) == {1.0}


def test_a_huge_tie() -> None:
    n = 1_000_000
    ranks = Ranks(np.array([3]), np.array([n - 1]), np.array([2 * n]))
    found = per_case(ranks, (5,))
    assert found["HR@5"][0] == pytest.approx(2 / n, rel=1e-12)
    assert found["MRR"][0] == pytest.approx((1 / np.arange(4, n + 4)).sum() / n, rel=1e-12)


def test_names_are_in_a_fixed_order() -> None:
    names = list(per_case(one([1.0, 0.0]), (10, 5)))
    assert names == [
        *("HR@5", "NDCG@5", "Recall@5", "MRR@5"),
        *("HR@10", "NDCG@10", "Recall@10", "MRR@10"),
        *("MRR", "AUC"),
    ]


def test_no_cases() -> None:
    found = per_case(Ranks.of(np.zeros((0, 4)), np.zeros(0, np.int64)), (5,))
    assert {len(each) for each in found.values()} == {0}


def by_enumeration(scores: list[float], positive: int, k: int) -> dict[str, float]:
    """The mean over all orders of the candidates that have descending scores."""
    columns = [column for column, score in enumerate(scores) if score > NONE]
    orders = [
        order
        for order in itertools.permutations(columns)
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    ranks = np.array([order.index(positive) + 1 for order in orders])
    within, others = ranks <= k, len(columns) - 1
    return {
        f"HR@{k}": within.mean(),
        f"NDCG@{k}": (within / np.log2(1 + ranks)).mean(),
        f"Recall@{k}": within.mean(),
        f"MRR@{k}": (within / ranks).mean(),
        "MRR": (1 / ranks).mean(),
        "AUC": ((others + 1 - ranks) / others).mean(),
    }


small_lists = st.lists(st.sampled_from([NONE, 0.0, 1.0, 2.0]), min_size=1, max_size=6)


@given(small_lists, st.sampled_from([0.0, 1.0, 2.0]), st.integers(1, 7))
def test_ties_are_the_mean_over_all_orders(others: list[float], mine: float, k: int) -> None:
    scores = [mine, *others]
    if all(score == NONE for score in others):
        return
    assert values(scores, ks=(k,)) == pytest.approx(by_enumeration(scores, 0, k), abs=1e-12)


@given(st.permutations(range(6)), small_lists.map(lambda scores: [1.0, *(scores * 6)[:5]]))
def test_the_order_of_the_candidates_does_not_matter(order: list[int], scores: list[float]) -> None:
    assert values([scores[column] for column in order], order.index(0)) == values(scores)


POOL = np.array([True, True, True, True, False])
COUNTS = np.array([6, 1, 1, 0, 9])


def test_coverage_counts_each_item_of_the_pool_once() -> None:
    assert coverage(np.array([[0, 1], [0, -1]]), POOL) == 0.5
    assert coverage(np.array([[-1, -1]]), POOL) == 0
    assert coverage(np.array([[4, 0]]), POOL) == 0.25


def test_novelty_by_hand() -> None:
    # 8 interactions within the pool of 4: an item with 6 has (6 + 1) / 12, one with none 1 / 12.
    found = novelty(np.array([[0, 3], [1, -1]]), COUNTS, POOL)
    assert found == pytest.approx(-(np.log2(7 / 12) + np.log2(1 / 12) + np.log2(2 / 12)) / 3)


def test_popularity_by_hand() -> None:
    # Percentiles in the pool: 0 -> 1/8, the two with 1 -> 4/8, 6 -> 7/8.
    assert popularity(np.array([[0]]), COUNTS, POOL) == 7 / 8
    assert popularity(np.array([[1, 2, 3, -1]]), COUNTS, POOL) == pytest.approx((4 + 4 + 1) / 24)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_the_whole_pool_has_popularity_one_half(counts: list[int]) -> None:
    pool = np.ones(len(counts), bool)
    assert popularity(np.arange(len(counts))[None, :], np.array(counts), pool) == pytest.approx(0.5)


def test_nothing_recommended_has_no_novelty() -> None:
    for measure in (novelty, popularity):
        with pytest.raises(ValueError, match="All are -1"):
            measure(np.array([[-1]]), COUNTS, POOL)
