"""Methods on data small enough to work out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.methods.base import Dataset, Method, best
from mmsrarec_ray.methods.content import ContentKnn, profiles
from mmsrarec_ray.methods.linear import Ease
from mmsrarec_ray.methods.neighbours import ItemKnn, SessionKnn
from mmsrarec_ray.methods.simple import Popularity, Random
from mmsrarec_ray.settings import ContentKnn as ContentKnnSettings
from mmsrarec_ray.settings import Ease as EaseSettings
from mmsrarec_ray.settings import ItemKnn as ItemKnnSettings
from mmsrarec_ray.settings import SessionKnn as SessionKnnSettings


def query(*histories: list[int]) -> Queries:
    """Queries of users who are not in training."""
    users = np.arange(100, 100 + len(histories))
    return Queries(Sequences.of(list(histories), users), np.zeros(len(histories), np.int64))


def fit(method: Method, *histories: list[int], n_items: int = 4) -> Method:
    nobody = Cases(query(), np.zeros(0, np.int32))
    method.fit(Dataset(n_items, Sequences.of(list(histories)), nobody, np.ones(n_items, bool)))
    return method


def test_ease_ranks_what_nobody_chose_below_what_it_knows() -> None:
    """Item 2 shares no user with item 0, which speaks against it; item 4 was never chosen."""
    histories = [0, 1], [0, 1], [1, 2], [1, 2], [3]
    [both] = fit(Ease(EaseSettings(regularisation=1)), *histories, n_items=5).score_all(query([0]))
    assert both[1] > both[3] > both[2] > both[4]
    assert both[2] < -0.1
    [alone] = fit(Ease(EaseSettings(regularisation=1, negative=False)), *histories, n_items=5).score_all(query([0]))
    assert alone[1] > alone[2] > alone[3] > alone[4]  # by popularity, where nothing speaks for them
    assert alone[2] == pytest.approx(0, abs=1e-5)


def test_popularity_counts_training_interactions() -> None:
    method = fit(Popularity(), [0, 1], [1, 2], [1])
    assert method.score_all(query([3])).tolist() == [[1, 3, 1, 0]]


def test_itemknn_is_the_cosine_of_shared_users() -> None:
    method = fit(ItemKnn(ItemKnnSettings()), [0, 1], [0, 1, 2], [2])
    # item 0 has users {a, b}, item 1 {a, b}, item 2 {b, c}
    scores = method.score_all(query([0], [1, 2]))
    np.testing.assert_allclose(scores, [[0, 1, 0.5, 0], [1 + 0.5, 0.5, 0.5, 0]], atol=1e-6)


def test_itemknn_breaks_ties_by_popularity_alone() -> None:
    method = fit(ItemKnn(ItemKnnSettings()), [0, 1], [2], [2], [3])
    scores = method.score_all(query([0]))[0]
    assert scores[1] > scores[2] > scores[3]
    assert scores[2] < 1e-6


def test_itemknn_keeps_the_nearest_and_shrinks_the_rare() -> None:
    histories = [[0, 1], [0, 1, 2], [2]]
    nearest = fit(ItemKnn(ItemKnnSettings(neighbours=1)), *histories).score_all(query([0]))[0]
    np.testing.assert_allclose(nearest, [0, 1, 0, 0], atol=1e-6)
    shrunk = fit(ItemKnn(ItemKnnSettings(shrink=2)), *histories).score_all(query([0]))[0]
    np.testing.assert_allclose(shrunk, [0, 2 / 4, 1 / 4, 0], atol=1e-6)


def test_session_knn_prefers_users_who_share_the_newest_item() -> None:
    method = fit(SessionKnn(SessionKnnSettings(neighbours=2)), [0, 2], [1, 3])
    scores = method.score_all(query([0, 1]))[0]
    rarity = np.log1p(2)
    np.testing.assert_allclose(scores[[2, 3]], [0.5 / np.sqrt(2) * rarity, 1 / np.sqrt(2) * rarity], atol=1e-6)
    assert fit(SessionKnn(SessionKnnSettings(neighbours=1)), [0, 2], [1, 3]).score_all(query([0, 1]))[0][2] < 1e-6
    assert fit(SessionKnn(SessionKnnSettings(last=1)), [0, 2], [1, 3]).score_all(query([0, 1]))[0][2] < 1e-6


def test_session_knn_does_not_ask_the_user_itself() -> None:
    method = fit(SessionKnn(SessionKnnSettings()), [0, 2], [1, 3])
    own = Queries(Sequences.of([[0, 1]]), np.zeros(1, np.int64))  # user 0, who trained
    scores = method.score_all(own)[0]
    assert scores[2] < 1e-6 < scores[3]


def test_content_finds_what_is_said_alike() -> None:
    method = fit(ContentKnn(ContentKnnSettings(), ["red wool hat", "red wool scarf", "steel pan", ""]), [0])
    scores = method.score_all(query([0], [3], []))
    assert scores[0, 1] > scores[0, 2] + 0.2
    assert np.abs(scores[1:]).max() < 1e-6  # nothing is known of the history


def test_content_follows_the_newest_item_where_the_others_decay_to_nothing() -> None:
    texts = ["red hat", "blue pan", "red scarf", "blue pot"]
    last, mean = (fit(ContentKnn(ContentKnnSettings(decay=decay), texts), [0]) for decay in (0.0, 1.0))
    asked = query([1, 1, 0])
    assert last.score_all(asked)[0, 2] > last.score_all(asked)[0, 3]
    assert mean.score_all(asked)[0, 2] < mean.score_all(asked)[0, 3]


def test_profiles_decay_from_the_newest_item() -> None:
    np.testing.assert_allclose(profiles(query([2, 0], []), 3, 0.5).toarray(), [[2 / 3, 0, 1 / 3], [0, 0, 0]])
    np.testing.assert_allclose(profiles(query([2, 0]), 3, 0.0).toarray(), [[1, 0, 0]])


def test_random_is_uniform_seeded_and_differs_between_users() -> None:
    method = fit(Random(1), [0], n_items=5000)
    one, other = method.score_all(query([0], [0]))
    assert np.abs(np.corrcoef(one, other)[0, 1]) < 0.05
    np.testing.assert_allclose([one.mean(), one.std()], [0.5, 12**-0.5], atol=0.02)
    assert not np.array_equal(one, fit(Random(2), [0], n_items=5000).score_all(query([0]))[0])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_best_takes_the_highest_and_the_first_of_equals(k: int) -> None:
    items, scores = best(np.array([[1.0, 3, 3], [-np.inf, 2, -np.inf]]), k)
    assert items[:, :3].tolist() == [[1, 2, 0][:k], [1, -1, -1][:k]]
    assert scores.shape == (2, k)
    assert (items[:, 3:] == -1).all()
