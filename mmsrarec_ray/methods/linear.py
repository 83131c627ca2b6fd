"""EASE: a linear autoencoder with a closed form, hard to beat on interactions alone."""

from __future__ import annotations

import numpy as np
from scipy import linalg

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.methods.neighbours import incidence, popularity_tie_break
from mmsrarec_ray.settings import Ease as EaseSettings

_MOST_ITEMS = 40_000  # two dense float32 matrices of that size are 13 GB


class Ease(Method):
    """B = I - P diag(1/P),  P = (X'X + lambda I)^-1   (Steck 2019, arXiv:1905.03375, equation 8).

    Over the items with a training interaction; the others score just below the lowest of these. Weights may be
    negative: an item can speak against another. With `negative` off a sum below zero is none, and popularity orders
    what nothing speaks for. Memory grows with the square of the number of items. Raises ConfigError above 40,000.
    """

    name = "ease"

    def __init__(self, settings: EaseSettings):
        self.settings = settings

    def learn(self, dataset: Dataset) -> None:
        self.known = np.flatnonzero(dataset.counts)
        if len(self.known) > _MOST_ITEMS:
            raise ConfigError(
                f"evaluate.methods: ease inverts a matrix of all items: at most {_MOST_ITEMS:,}. "
                f"Got {len(self.known):,}."
            )
        users = incidence(dataset.train, dataset.n_items)[:, self.known].astype(np.float32)
        gram = (users.T @ users).toarray()
        gram[np.diag_indices_from(gram)] += self.settings.regularisation
        inverse = linalg.inv(gram, overwrite_a=True, check_finite=False)
        inverse /= -np.diag(inverse)[None, :]
        inverse[np.diag_indices_from(inverse)] = 0
        self.weights, self.tie_break = inverse, popularity_tie_break(dataset)

    def score_all(self, queries: Queries) -> np.ndarray:
        histories = incidence(queries.histories, len(self.tie_break))[:, self.known]
        known = histories.astype(np.float32) @ self.weights  # else SciPy copies the weights as float64
        if not self.settings.negative:
            known = np.maximum(known, 0)
        known += self.tie_break[self.known]
        scores = np.tile(np.nextafter(known.min(1, keepdims=True), np.float32(-np.inf)), (1, len(self.tie_break)))
        scores[:, self.known] = known
        return scores
