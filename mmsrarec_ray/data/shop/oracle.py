"""The best possible rankings of the drawn shop, computed from its law.

`TasteOracle` knows each user's hidden look, habit and circle: nobody can do better. `HistoryOracle` knows the
law and sees only the history, like any recommender: it weighs all LOOKS x HABITS x CIRCLES hidden states by
Bayes' rule, exactly. It is the honest ceiling: the best a method could reach with unlimited training data.

Both give p(next item = i | what is known, the clock), float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmsrarec_ray.data.shop import law

_CHUNK = 64  # users at a time: their hidden-state grids, 24 x 1600 float64 a step, stay below a few hundred MB


@dataclass(frozen=True)
class Moments:
    """Known beginnings of histories and the moments to predict.

    histories[u]: int64 items so far, oldest first; times[u]: float64, when each was chosen (fractions of the
    year); now: float64 (n_users,), the clock at the choice to predict.
    """

    histories: list[np.ndarray]
    times: list[np.ndarray]
    now: np.ndarray

    def chunks(self) -> Iterator[tuple[slice, Moments]]:
        for start in range(0, len(self.now), _CHUNK):
            rows = slice(start, start + _CHUNK)
            yield rows, Moments(self.histories[rows], self.times[rows], self.now[rows])


def _recent(histories: list[np.ndarray]) -> np.ndarray:
    """The last LAGS items of each history, the newest first, -1 where there is none."""
    recent = np.full((len(histories), law.LAGS), -1)
    for row, history in enumerate(histories):
        last = history[::-1][: law.LAGS]
        recent[row, : len(last)] = last
    return recent


def _state(shop: law.Shop, histories: list[np.ndarray], now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of each item apart from the hidden taste, exp(appeal + recency) or 0 where it is not available,
    and the probability each available item has by wandering. float64 (n, n_items) and (n,)."""
    owned = np.zeros((len(histories), len(shop)), bool)
    for row, history in enumerate(histories):
        owned[row, history] = True
    on_sale = law.available(shop, owned, now)
    weight = np.exp(shop.appeal + law.recency(shop, _recent(histories))) * on_sale
    return weight, law.WANDER / on_sale.sum(1)


def taste_oracle(
    shop: law.Shop, moments: Moments, look: np.ndarray, habit: np.ndarray, circle: np.ndarray
) -> np.ndarray:
    """p(next item) when the hidden state is known, float64 (n_users, n_items).

    look, habit, circle: int64 (n_users,).
    """
    out = np.empty((len(moments.now), len(shop)))
    for rows, part in moments.chunks():
        weight, wander = _state(shop, part.histories, part.now)
        taste = shop.look_utility[look[rows]] + shop.habit_utility[habit[rows]]
        taste = taste + law.CIRCLE * (shop.circle[None, :] == circle[rows, None])
        mass = weight * np.exp(taste)
        out[rows] = (1 - law.WANDER) * mass / mass.sum(1, keepdims=True) + wander[:, None] * (weight > 0)
    return out


def history_oracle(shop: law.Shop, moments: Moments) -> np.ndarray:
    """p(next item) given the law and the history alone, float64 (n_users, n_items)."""
    grid = _Grid(shop)
    out = np.empty((len(moments.now), len(shop)))
    for rows, part in moments.chunks():
        belief = _posterior(grid, part)
        weight, wander = _state(shop, part.histories, part.now)
        choice = grid.predict(weight, belief / grid.normaliser(weight))
        out[rows] = (1 - law.WANDER) * choice + wander[:, None] * (weight > 0)
    return out


class _Grid:
    """Sums over items for every hidden state at once.

    exp(taste) factorises: exp(look) * exp(habit) * (1 + gain * [same circle]), so the normaliser of every
    state is one product of matrices per circle instead of one sum per state.
    """

    def __init__(self, shop: law.Shop):
        self.shop = shop
        self.n_items = len(shop)
        self.look, self.habit = np.exp(shop.look_utility), np.exp(shop.habit_utility)
        self.circle = shop.circle
        self.members = [np.flatnonzero(shop.circle == c) for c in range(law.CIRCLES)]
        self.gain = np.exp(law.CIRCLE) - 1

    def normaliser(self, weight: np.ndarray) -> np.ndarray:
        """Sum of item weights under every state: (n, n_items) -> (n, CIRCLES, LOOKS, HABITS)."""
        within = np.stack(
            [(self.look[:, items] * weight[:, None, items]) @ self.habit[:, items].T for items in self.members], 1
        )
        return within.sum(1, keepdims=True) + self.gain * within

    def likelihood(self, weight: np.ndarray, wander: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """p(chosen item | state): chosen int64 (n,) -> (n, CIRCLES, LOOKS, HABITS)."""
        rows = np.arange(len(chosen))
        mass = self.look[:, chosen].T[:, None, :, None] * self.habit[:, chosen].T[:, None, None, :]
        same = self.circle[chosen][:, None] == np.arange(law.CIRCLES)
        mass = mass * (1 + self.gain * same)[:, :, None, None] * weight[rows, chosen][:, None, None, None]
        return (1 - law.WANDER) * mass / self.normaliser(weight) + wander[:, None, None, None]

    def predict(self, weight: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Sum over states of share * exp(taste_i) * weight_i: (n, n_items)."""
        everywhere = share.sum(1)
        out = np.empty((len(weight), self.n_items))
        for circle, items in enumerate(self.members):
            states = everywhere + self.gain * share[:, circle]
            out[:, items] = (self.look[:, items] * (states @ self.habit[:, items])).sum(1)
        return out * weight


def _posterior(grid: _Grid, moments: Moments) -> np.ndarray:
    """Belief over hidden states after the history: (n, CIRCLES, LOOKS, HABITS), each row sums to 1."""
    n = len(moments.now)
    log_belief = np.zeros((n, law.CIRCLES, law.LOOKS, law.HABITS))
    for step in range(max(map(len, moments.histories), default=0)):
        rows = np.array([u for u in range(n) if len(moments.histories[u]) > step])
        so_far = [moments.histories[u][:step] for u in rows]
        clock = np.array([moments.times[u][step] for u in rows])
        chosen = np.array([moments.histories[u][step] for u in rows])
        weight, wander = _state(grid.shop, so_far, clock)
        log_belief[rows] += np.log(grid.likelihood(weight, wander, chosen))
    log_belief -= log_belief.max((1, 2, 3), keepdims=True)
    belief = np.exp(log_belief)
    return belief / belief.sum((1, 2, 3), keepdims=True)
