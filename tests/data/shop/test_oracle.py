"""The oracles: probabilities, exact where they can be worked out another way, and a ceiling."""

from __future__ import annotations

import numpy as np
import pytest

from mmsrarec_ray.data.shop import law, oracle


@pytest.fixture(scope="module")
def shop() -> law.Shop:
    return law.draw_shop(5, 1200)


@pytest.fixture(scope="module")
def users(shop: law.Shop) -> law.Users:
    return law.draw_users(shop, 0)


def last_choice(users: law.Users, rows: range) -> oracle.Moments:
    return oracle.Moments(
        [users.histories[u][:-1] for u in rows],
        [users.times[u][:-1] for u in rows],
        np.array([users.times[u][-1] for u in rows]),
    )


def test_both_oracles_give_probabilities_over_what_can_be_bought(shop: law.Shop, users: law.Users) -> None:
    rows = range(100)
    moments = last_choice(users, rows)
    hidden = (users.look[:100], users.habit[:100], users.circle[:100])
    for p in (oracle.taste_oracle(shop, moments, *hidden), oracle.history_oracle(shop, moments)):
        np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-9)
        for row, history in enumerate(moments.histories):
            assert (p[row, history] == 0).all()
            assert (p[row, shop.launch > moments.now[row]] == 0).all()


def test_the_history_oracle_is_bayes_rule(shop: law.Shop, users: law.Users) -> None:
    """Against a slow, direct sum over every hidden state, for one user with three choices."""
    history, times = users.histories[0][:4], users.times[0][:4]
    moments = oracle.Moments([history[:3]], [times[:3]], times[3:4])
    states = [(a, b, c) for a in range(law.LOOKS) for b in range(law.HABITS) for c in range(law.CIRCLES)]
    taste = np.array(
        [shop.look_utility[a] + shop.habit_utility[b] + law.CIRCLE * (shop.circle == c) for a, b, c in states]
    )

    def choice(step: int) -> np.ndarray:
        owned = np.zeros((1, len(shop)), bool)
        owned[0, history[:step]] = True
        on_sale = law.available(shop, owned, times[step : step + 1])[0]
        recent = np.full((1, law.LAGS), -1)
        recent[0, :step] = history[:step][::-1][: law.LAGS]
        mass = np.exp(taste + shop.appeal + law.recency(shop, recent)) * on_sale
        return (1 - law.WANDER) * mass / mass.sum(1, keepdims=True) + law.WANDER * on_sale / on_sale.sum()

    belief = np.ones(len(states))
    for step in range(3):
        belief *= choice(step)[:, history[step]]
    expected = belief @ choice(3) / belief.sum()
    np.testing.assert_allclose(oracle.history_oracle(shop, moments)[0], expected, rtol=1e-8)


def test_knowing_more_predicts_better(shop: law.Shop, users: law.Users) -> None:
    rows = range(300)
    moments = last_choice(users, rows)
    chosen = np.array([users.histories[u][-1] for u in rows])
    hidden = (users.look[:300], users.habit[:300], users.circle[:300])
    taste = oracle.taste_oracle(shop, moments, *hidden)[rows, chosen]
    history = oracle.history_oracle(shop, moments)[rows, chosen]
    popular = np.exp(shop.appeal) / np.exp(shop.appeal).sum()
    assert np.log(taste).mean() > np.log(history).mean() > np.log(popular[chosen]).mean() + 0.5


def test_an_empty_history_is_the_prior(shop: law.Shop) -> None:
    moments = oracle.Moments([np.array([], int)], [np.array([])], np.array([1.0]))
    p = oracle.history_oracle(shop, moments)
    np.testing.assert_allclose(p.sum(), 1.0)
    assert (p > 0).all()
