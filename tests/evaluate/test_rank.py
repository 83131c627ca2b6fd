"""Rankings of lists and of the whole pool."""

from __future__ import annotations

import numpy as np
import pytest

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.evaluate.rank import rank_lists, rank_pool
from mmsrarec_ray.methods.base import Dataset, Method

SCORES = np.array([[5.0, 4, 3, 2, 1, 0], [1.0, 1, 1, 1, 1, 1]])
KNOWN = np.array([True, True, True, True, False, False])
POOL = np.array([True, True, True, True, True, False])
CASES = Cases(Queries(Sequences.of([[0], [1]]), np.zeros(2, np.int64)), np.array([2, 0], np.int32))


class Fixed(Method):
    """Scores given beforehand, a row a user."""

    name = "fixed"

    def __init__(self, scores: np.ndarray):
        self.scores, self.pool = scores, np.ones(scores.shape[1], bool)

    def learn(self, dataset: Dataset) -> None:
        """Nothing."""

    def score_all(self, queries: Queries) -> np.ndarray:
        return self.scores[queries.histories.users]


def test_a_list_is_the_positive_and_its_negatives() -> None:
    found, recommended = rank_lists(Fixed(SCORES), CASES, np.array([[1, 3, 4], [2, 4, 5]]), KNOWN, 2)
    np.testing.assert_array_equal(recommended, Fixed(SCORES).recommend(CASES.queries, 2)[0])
    assert found.ranks.greater.tolist() == [1, 0]
    assert found.ranks.equal.tolist() == [0, 3]
    assert found.ranks.others.tolist() == [3, 3]
    assert found.unknown.tolist() == [1, 2]
    assert found.unknown_above.tolist() == [0, 1]  # two at the positive's score count half each
    assert found.items.tolist() == [[1, 2, 3, 4], [0, 2, 4, 5]]


def test_the_pool_without_the_history() -> None:
    ((rows, found),) = rank_pool(Fixed(SCORES), CASES, POOL, KNOWN, 2)
    assert rows == slice(0, 2)
    assert found.ranks.greater.tolist() == [1, 0]  # item 1 alone: item 0 is in the history
    assert found.ranks.others.tolist() == [3, 3]
    assert found.items[0, :4].tolist() == [1, 2, 3, 4]
    assert (found.items[0, 4:] == -1).all()


def test_a_positive_outside_the_pool_is_ranked() -> None:
    case = Cases(CASES.queries.take(np.array([0])), np.array([5], np.int32))
    ((_, found),) = rank_pool(Fixed(SCORES), case, POOL, KNOWN, 2)
    assert (found.ranks.greater.tolist(), found.ranks.others.tolist()) == ([4], [4])


def test_the_pool_as_a_list_gives_the_same_ranks() -> None:
    scores = np.random.default_rng(0).random((2, 6))
    ((_, pool),) = rank_pool(Fixed(scores), CASES, np.ones(6, bool), KNOWN, 2)
    lists, _ = rank_lists(Fixed(scores), CASES, np.array([[1, 3, 4, 5], [2, 3, 4, 5]]), KNOWN, 2)
    for name in ("greater", "equal", "others"):
        np.testing.assert_array_equal(getattr(pool.ranks, name), getattr(lists.ranks, name))
    np.testing.assert_array_equal(pool.unknown_above, lists.unknown_above)


def test_as_many_of_the_best_are_kept_as_are_asked_for() -> None:
    scores = np.random.default_rng(0).random((2, 300))
    everything = np.ones(300, bool)
    for k, kept in ((5, 100), (100, 100), (150, 150)):
        ((_, found),) = rank_pool(Fixed(scores), CASES, everything, everything, k)
        assert found.items.shape == found.scores.shape == (2, kept)
        np.testing.assert_array_equal(found.items, Fixed(scores).recommend(CASES.queries, kept)[0])


def test_scores_that_are_not_finite_are_refused() -> None:
    broken = np.where(SCORES == 3, np.nan, SCORES)
    with pytest.raises(ValueError, match="1 scores that are not finite"):
        list(rank_pool(Fixed(broken), CASES, POOL, KNOWN, 2))
