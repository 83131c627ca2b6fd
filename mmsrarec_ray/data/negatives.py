"""Items that a user never touched."""

from __future__ import annotations

import numpy as np


def untouched(pool: np.ndarray, touched: np.ndarray, count: int, key: int) -> np.ndarray:
    """So many items of the pool that are not among the touched, drawn uniformly without repetition; fewer where there
    are fewer. pool, touched: int (n,), items by number; key: decides the draw, with the pool."""
    drawn = min(len(pool), count + len(touched))
    tried = pool[np.random.default_rng(key).choice(len(pool), drawn, replace=False)]
    return tried[~np.isin(tried, touched)][:count]
