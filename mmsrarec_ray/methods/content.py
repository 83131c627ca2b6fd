"""Items like those of the history, by what is said of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.methods.neighbours import popularity_tie_break
from mmsrarec_ray.models.sentences import embed

DECAY = 0.8  # weight of an item against the one that came after it


def profiles(queries: Queries, n_items: int, decay: float) -> sparse.csr_array:
    """The history as weights of items that sum to 1, a step back counting `decay`: float32 (n, n_items)."""
    histories = queries.histories
    back = histories.starts[1:][histories.rows] - 1 - np.arange(len(histories.items))
    weights = decay ** back.astype(np.float64)
    total = np.bincount(histories.rows, weights, minlength=len(histories))
    weights /= total[histories.rows]
    return sparse.csr_array(
        (weights.astype(np.float32), (histories.rows, histories.items)), shape=(len(histories), n_items)
    )


class ContentKnn(Method):
    """Cosine of an item's words to those of the history, later items counting more; popularity breaks ties.

    It knows new items as well as old ones, and no other user.
    """

    name = "content_knn"

    def __init__(self, texts: Sequence[str], encoder: str | None = None):
        """texts: what is said of each item, in the order of the catalogue; encoder: as in `embed`."""
        self.texts, self.encoder = texts, encoder

    def learn(self, dataset: Dataset) -> None:
        self.vectors = embed(self.texts, self.encoder)
        self.tie_break = popularity_tie_break(dataset)

    def score_all(self, queries: Queries) -> np.ndarray:
        profile = profiles(queries, len(self.vectors), DECAY) @ self.vectors
        return (profile @ self.vectors.T).astype(np.float64) + self.tie_break
