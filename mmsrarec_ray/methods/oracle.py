"""The drawn shop's ceilings as methods: what the law itself would recommend."""

from __future__ import annotations

import numpy as np

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.data.shop import law, oracle
from mmsrarec_ray.data.shop.generate import clock
from mmsrarec_ray.methods.base import Dataset, Method


class HistoryOracle(Method):
    """Knows the law and the history: the best that any method can reach."""

    name = "history_oracle"

    def __init__(self, shop: law.Shop):
        self.shop = shop

    def learn(self, dataset: Dataset) -> None:
        """There is nothing to learn."""

    def moments(self, queries: Queries) -> oracle.Moments:
        """The queries in the law's own terms."""
        histories = queries.histories
        times = clock(histories.times)
        edges = histories.starts[1:-1]
        return oracle.Moments(
            [part.astype(np.int64) for part in np.split(histories.items, edges)],
            np.split(times, edges),
            clock(queries.now),
        )

    def score_all(self, queries: Queries) -> np.ndarray:
        """p(next item), float64 (n_queries, n_items)."""
        return oracle.history_oracle(self.shop, self.moments(queries))


class TasteOracle(HistoryOracle):
    """Knows each user's hidden taste besides: the best possible ranking."""

    name = "taste_oracle"

    def __init__(self, shop: law.Shop, look: np.ndarray, habit: np.ndarray, circle: np.ndarray):
        """look, habit, circle: int64 (n_users,), by the number of the user."""
        super().__init__(shop)
        self.look, self.habit, self.circle = look, habit, circle

    def score_all(self, queries: Queries) -> np.ndarray:
        users = queries.histories.users
        hidden = self.look[users], self.habit[users], self.circle[users]
        return oracle.taste_oracle(self.shop, self.moments(queries), *hidden)
