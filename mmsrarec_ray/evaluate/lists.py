"""Which candidates each test case ranks: drawn once, stored, the same for every method."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mmsrarec_ray.data.log import Cases, Log
from mmsrarec_ray.data.negatives import untouched
from mmsrarec_ray.data.schemas import LISTS
from mmsrarec_ray.data.splits import hashes
from mmsrarec_ray.errors import ConfigError, InputError
from mmsrarec_ray.settings import Evaluate


def pool_of(log: Log, settings: Evaluate) -> np.ndarray:
    """The items that can be candidates: bool (n_items,)."""
    return log.in_core if settings.pool == "core" else np.ones(log.n_items, bool)


def cases_of(log: Log) -> Cases:
    """Raises InputError where the split left none."""
    cases = log.cases("test")
    if not len(cases):
        raise InputError(
            "no user has a test interaction with an item that is new to it: there is nothing to evaluate. The split "
            "leaves too few."
        )
    return cases


def draw_negatives(log: Log, cases: Cases, pool: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many items of the pool that the user never touched, uniformly, without repetition: int64 (n, count).

    They depend on the seed, the user and the pool alone. Raises ConfigError where the pool is too small.
    """
    items, out = np.flatnonzero(pool), np.empty((len(cases), count), np.int64)
    users = cases.queries.histories.users
    keys = hashes(log.users.take(pa.array(users)).to_pylist(), seed, "negatives")
    for row, user in enumerate(users):
        fresh = untouched(items, log.sequences[user], count, int(keys[row]))
        if len(fresh) < count:
            raise ConfigError(
                f"evaluate.negatives: {count} items that a user never touched are needed; the pool of "
                f"{len(items)} has {len(fresh)} for user {log.users[user]}."
            )
        out[row] = fresh
    return out


def lists_table(log: Log, cases: Cases, seed: int, negatives: np.ndarray | None) -> pa.Table:
    """The cases of a seed as rows of LISTS."""
    histories = cases.queries.histories
    drawn = pa.nulls(len(cases), pa.list_(pa.string()))
    if negatives is not None:
        flat = log.items.take(pa.array(negatives.ravel()))
        drawn = pa.ListArray.from_arrays(np.arange(len(cases) + 1, dtype=np.int32) * negatives.shape[1], flat)
    return pa.table(
        {
            "seed": np.full(len(cases), seed, np.int32),
            "user_id": log.users.take(pa.array(histories.users)),
            "cut": histories.lengths.astype(np.int32),
            "positive": log.items.take(pa.array(cases.positives)),
            "negatives": drawn,
        },
        schema=LISTS,
    )
