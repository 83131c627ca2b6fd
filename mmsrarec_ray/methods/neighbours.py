"""Methods of the nearest neighbours: items by the users they share, users by the items they share."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from mmsrarec_ray.data.log import Queries, Sequences
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.settings import ItemKnn as ItemKnnSettings
from mmsrarec_ray.settings import SessionKnn as SessionKnnSettings

_ITEMS = 2_000  # whose cosines to all others are worked out at a time
_TIE_BREAK = 1e-7  # of the most popular item: below the differences between similarities of all but huge items
DECAY = 0.8  # weight of an item against the one that came after it


def incidence(sequences: Sequences, n_items: int, weights: np.ndarray | None = None) -> sparse.csr_array:
    """Which row has which item: float64 (n, n_items), 1 or the largest of its weights, float64 (m,)."""
    values = np.ones(len(sequences.items)) if weights is None else weights
    order = np.lexsort([-values, sequences.items, sequences.rows])
    rows, items = sequences.rows[order], sequences.items[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (items[1:] != items[:-1])
    return sparse.csr_array(
        (values[order][first], (rows[first], items[first])), shape=(len(sequences), n_items), dtype=np.float64
    )


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


def keep_largest(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """The k largest values of each row, ties by column."""
    matrix = matrix.tocsr()
    matrix.sort_indices()
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(matrix.shape[0]), lengths)
    order = np.lexsort([matrix.indices, -matrix.data, rows])
    rank = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], lengths)
    kept = order[rank < k]
    return sparse.csr_array((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)


def popularity_tie_break(dataset: Dataset) -> np.ndarray:
    """A term too small to matter but between equal scores: float64 (n_items,)."""
    counts = dataset.counts
    return _TIE_BREAK * counts / (counts.max() + 1)


class ItemKnn(Method):
    """Cosine between the sets of users of two items, summed over the history; popularity breaks ties.

    cos(i, j) = |U_i and U_j| / (sqrt(|U_i| |U_j|) + shrink)   (Sarwar et al. 2001)
    """

    name = "itemknn"

    def __init__(self, settings: ItemKnnSettings):
        self.settings = settings

    def learn(self, dataset: Dataset) -> None:
        users = incidence(dataset.train, dataset.n_items).tocsc()
        firsts = range(0, dataset.n_items, _ITEMS)
        self.similar = sparse.vstack([self._similar(users, first, first + _ITEMS) for first in firsts], format="csr")
        self.tie_break = popularity_tie_break(dataset)

    def _similar(self, users: sparse.csc_array, first: int, end: int) -> sparse.csr_array:
        """Rows of the matrix of cosines."""
        counts = np.asarray(users.sum(0))
        together = (users[:, first:end].T @ users).tocoo()
        row, column = together.coords
        cosine = together.data / (np.sqrt(counts[first:end][row] * counts[column]) + self.settings.shrink)
        other = row + first != column
        similar = sparse.csr_array((cosine[other], (row[other], column[other])), shape=together.shape)
        return similar if self.settings.neighbours is None else keep_largest(similar, self.settings.neighbours)

    def score_all(self, queries: Queries) -> np.ndarray:
        return (incidence(queries.histories, len(self.tie_break)) @ self.similar).toarray() + self.tie_break


class SessionKnn(Method):
    """What the users with the most similar recent items chose, after V-SKNN (Ludewig and Jannach 2018,
    arXiv:1803.09587).

    The last items of the history count the more the later they came, 1/L to 1; a training user's similarity is the
    sum over the items it shares. Beyond the paper it is divided by the root of how many items the user has, and an
    item's score, the sum of its users' similarities among the nearest, is weighted by the item's rarity; all training
    users are compared, none is sampled, and never the query's own user. Popularity breaks ties.
    """

    name = "session_knn"

    def __init__(self, settings: SessionKnnSettings):
        self.settings = settings

    def learn(self, dataset: Dataset) -> None:
        users = incidence(dataset.train, dataset.n_items)
        counts = np.asarray(users.sum(0))
        rarity = np.log1p(len(dataset.train) / np.maximum(counts, 1))
        self.by_item = (sparse.diags_array(1 / np.sqrt(np.maximum(users.sum(1), 1))) @ users).T.tocsr()
        self.items = (users @ sparse.diags_array(rarity)).tocsr()
        self.users = dataset.train.users
        self.tie_break = popularity_tie_break(dataset)

    def score_all(self, queries: Queries) -> np.ndarray:
        histories, last = queries.histories, self.settings.last
        back = histories.starts[1:][histories.rows] - np.arange(len(histories.items))  # 1 is the newest
        length = np.minimum(histories.lengths, last)[histories.rows]
        weights = np.maximum(length + 1 - back, 0) / np.maximum(length, 1)
        similar = incidence(histories, len(self.tie_break), weights) @ self.by_item
        similar = similar.tocsr()
        own = self.users[similar.indices] == np.repeat(histories.users, np.diff(similar.indptr))
        similar.data[own] = 0
        similar.eliminate_zeros()
        return (keep_largest(similar, self.settings.neighbours) @ self.items).toarray() + self.tie_break
