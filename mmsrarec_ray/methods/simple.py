"""Methods that know no order: chance and counting."""

from __future__ import annotations

import numpy as np

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.methods.base import Dataset, Method


class Random(Method):
    """A number drawn for each user and item."""

    name = "random"

    def __init__(self, seed: int = 0):
        self.seed = seed

    def learn(self, dataset: Dataset) -> None:
        self.n_items = dataset.n_items

    def score_all(self, queries: Queries) -> np.ndarray:
        """Uniform on [0, 1): float64 (n_queries, n_items)."""
        user = _mix(queries.histories.users.astype(np.uint64) + np.uint64(self.seed * 1_000_003))
        return _mix(user[:, None] + np.arange(self.n_items, dtype=np.uint64)) / 2.0**64


def _mix(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014): a well-spread uint64 for each."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Popularity(Method):
    """How often an item was chosen in training."""

    name = "popularity"

    def learn(self, dataset: Dataset) -> None:
        self.counts = dataset.counts.astype(np.float64)

    def score_all(self, queries: Queries) -> np.ndarray:
        return np.tile(self.counts, (len(queries), 1))
