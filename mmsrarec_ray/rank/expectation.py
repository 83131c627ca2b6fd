"""What the retriever's encoder holds for likely next: the item tables behind one kind of evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmsrarec_ray.retrieve.encoders import SequenceEncoder, load_encoder
from mmsrarec_ray.retrieve.moments import ALL_USERS
from mmsrarec_ray.retrieve.retriever import ENCODER, FOLDS
from mmsrarec_ray.store import Folder

_LOGITS = 1 << 22  # of all items, that are held at a time: 16 MiB


@dataclass(frozen=True)
class ItemTable:
    """The output layer of an encoder. numbers: row of each item of the catalogue, -1 where it is unknown, int64
    (n_items,); rows: float32 (v, dim)."""

    numbers: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, encoder: SequenceEncoder) -> ItemTable:
        return cls(encoder.vocabulary.numbers, encoder.item_table.detach().cpu().numpy())

    def likely(self, vectors: np.ndarray, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """P(item next) of some items, each after the history of its row, 0 of unknown ones: float64 (p,).

        vectors: float32 (n, dim), what the encoder makes of histories; rows, items: int64 (p,).
        """
        step = max(1, _LOGITS // len(self.rows))
        parts = (vectors[start : start + step] @ self.rows.T for start in range(0, len(vectors), step))
        total = np.concatenate([np.zeros(0), *(np.logaddexp.reduce(logits, axis=1) for logits in parts)])
        known = self.numbers[items] >= 0
        rows, numbers = rows[known], self.numbers[items[known]]
        found = np.zeros(len(items))
        found[known] = np.exp(np.einsum("pd,pd->p", vectors[rows], self.rows[numbers]) - total[rows])
        return found


@dataclass(frozen=True)
class FoldedTables:
    """Tables by fold, each of the encoder that learnt from the training users of the other folds, and by ALL_USERS that
    of all: what a training user chose must not be known from its own trace."""

    by_fold: Mapping[int, ItemTable]

    @classmethod
    def read(cls, retriever: Folder) -> FoldedTables:
        """Those of a published retriever."""
        folders = {int(fold): retriever / FOLDS / fold for fold in (retriever / FOLDS).folders()}
        folders[ALL_USERS] = retriever / ENCODER
        return cls({fold: ItemTable.of(load_encoder(folder)) for fold, folder in folders.items()})

    @classmethod
    def whole(cls, encoder: SequenceEncoder) -> FoldedTables:
        """That of all training users alone, for who is no training user."""
        return cls({ALL_USERS: ItemTable.of(encoder)})

    def likely(self, vectors: np.ndarray, rows: np.ndarray, items: np.ndarray, folds: np.ndarray | None) -> np.ndarray:
        """As `ItemTable.likely`. folds: int64 (n,), by which encoder each vector was made; None: that of all users."""
        fold = np.full(len(vectors), ALL_USERS) if folds is None else folds
        found = np.zeros(len(items))
        for number in np.unique(fold):
            asked = fold[rows] == number
            chosen, places = np.unique(rows[asked], return_inverse=True)
            found[asked] = self.by_fold[int(number)].likely(vectors[chosen], places, items[asked])
        return found
