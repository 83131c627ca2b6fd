"""The law of the shop is frozen, and it is what its docstring says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from mmsrarec_ray.data.shop import law

# Fixed before any recommender existed. Nobody bends the world until a method wins.
FROZEN_SOURCE = "8bbd62f93faaf8c036dd139c97a774bae04b1a4b1678a384253e4f20a93abdb2"
FROZEN_WORLD = "2092af0412c2d5f9f09c2aa819a4d1451bfb7b502581dfbcafc21890da94d7aa"


def test_the_law_is_frozen() -> None:
    assert hashlib.sha256(Path(law.__file__).read_bytes()).hexdigest() == FROZEN_SOURCE


def test_the_world_is_frozen() -> None:
    """The same law on another numpy, or another machine, must still draw the same shop and users."""
    shop = law.draw_shop(7, 1200)
    digest = hashlib.sha256()
    for name in sorted(shop.attributes):
        digest.update(shop.attributes[name].astype("<i8").tobytes())
    for history in law.draw_users(shop, 0).histories:
        digest.update(history.astype("<i8").tobytes())
    assert digest.hexdigest() == FROZEN_WORLD


@pytest.fixture(scope="module")
def shop() -> law.Shop:
    return law.draw_shop(11, 1200)


@pytest.fixture(scope="module")
def users(shop: law.Shop) -> law.Users:
    return law.draw_users(shop, 0)


def test_a_block_of_users_does_not_depend_on_the_others(shop: law.Shop, users: law.Users) -> None:
    again = law.draw_users(law.draw_shop(11, 1200), 0)
    assert all(np.array_equal(a, b) for a, b in zip(users.histories, again.histories, strict=True))
    other = law.draw_users(shop, 1)
    assert not np.array_equal(users.look, other.look)


def test_nobody_buys_twice_nor_before_the_launch(shop: law.Shop, users: law.Users) -> None:
    for history, times in zip(users.histories, users.times, strict=True):
        assert len(set(history.tolist())) == len(history)
        assert (np.diff(times) >= 0).all()
        assert (shop.launch[history] <= times).all()
        assert law.SHORTEST <= len(history) <= law.LONGEST


def test_users_choose_what_they_love_more_often(shop: law.Shop, users: law.Users) -> None:
    """Over all choices, an item's utility under the user's own taste beats that under a stranger's."""
    own = np.mean([shop.look_utility[u, h].mean() for u, h in zip(users.look, users.histories, strict=True)])
    strange = np.mean([shop.look_utility[u, h].mean() for u, h in zip(users.look[::-1], users.histories, strict=True)])
    circle = np.mean([(shop.circle[h] == c).mean() for c, h in zip(users.circle, users.histories, strict=True)])
    assert own > strange + 1.0
    assert circle > 3 / law.CIRCLES


def test_recency_by_hand(shop: law.Shop) -> None:
    first, second = 3, 8
    utility = law.recency(shop, np.array([[first, second, -1]]))[0]
    expected = np.zeros(len(shop))
    for lag, item in enumerate((first, second)):
        for companion in shop.companions[item]:
            expected[companion] += law.COMPANION * law.DECAY**lag
        expected += law.MOOD * law.DECAY**lag * (shop.attributes["use"] == shop.attributes["use"][item])
    np.testing.assert_allclose(utility, expected)


def test_an_empty_history_has_no_recency(shop: law.Shop) -> None:
    assert not law.recency(shop, np.full((1, law.LAGS), -1)).any()
