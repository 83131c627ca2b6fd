"""An index of moments from which users can be taken out while it serves."""

from __future__ import annotations

import numpy as np

from mmsrarec_ray.retrieve.index import MomentIndex, Neighbours

_SPARE = 16  # moments fetched beyond k, where some are hidden


class VisibleMoments(MomentIndex):
    """The same index; moments of hidden users are nobody's neighbours."""

    def __init__(self, base: MomentIndex):
        super().__init__(base.index, base.moments, read_only=True)
        self._hidden = np.zeros(len(base), bool)
        self._hides = False

    def hide(self, user: int) -> None:
        """user: its number."""
        self._hidden |= self.moments.users == user
        self._hides = bool(self._hidden.any())

    def search(
        self, vectors: np.ndarray, k: int, users: np.ndarray | None = None, before: np.ndarray | None = None
    ) -> Neighbours:
        if not self._hides:
            return super().search(vectors, k, users, before)
        fetched = k + _SPARE
        while True:
            found = super().search(vectors, fetched, users, before)
            seen = (found.rows >= 0) & ~self._hidden[found.rows]
            if fetched >= len(self) or (seen.sum(1) >= np.minimum(k, (found.rows >= 0).sum(1))).all():
                return _kept(found, seen, k)
            fetched *= 4


def _kept(found: Neighbours, seen: np.ndarray, k: int) -> Neighbours:
    """The first k of each row that are seen, -1 and -inf where there are fewer. seen: bool (n, fetched)."""
    order = np.argsort(~seen, axis=1, kind="stable")[:, :k]
    there = np.take_along_axis(seen, order, 1)
    rows = np.where(there, np.take_along_axis(found.rows, order, 1), -1)
    similarity = np.where(there, np.take_along_axis(found.similarity, order, 1), np.float32(-np.inf))
    return Neighbours(rows, similarity)
