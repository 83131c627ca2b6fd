"""What the recommender said of candidates before, kept in the run folder: no question is asked twice of one model.

`mmsrarec` and its blends, the protocols of an evaluation and its seeds ask much the same; a killed scoring goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.parts import read_parts, write_part
from mmsrarec_ray.store import Folder

_KEY = np.dtype("V16")
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(_KEY.itemsize), nullable=False),  # of what was asked
        pa.field("score", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),  # its share of the time that the asking took
    ]
)
_KEPT_EVERY = 30.0  # seconds: what a killed scoring loses


class Answers:
    """The answers of one model about one catalogue. Holds 32 bytes for each while they are looked up.

    spared_seconds: what the asking of all that was found here had taken, less what was asked ahead for others.
    """

    def __init__(self, folder: Folder):
        """folder: of this model, its settings and this catalogue alone; made where it is not there."""
        self.folder, self.spared_seconds = folder, 0.0

    def find(self, keys: Sequence[np.ndarray], counted: int | None = None) -> list[np.ndarray]:
        """Scores in [0, 1], NaN where there are none: float64 (c,) for each array of keys, V16 (c,).

        counted: the first arrays, whose seconds were spared; None: all.
        """
        kept, wanted = read_parts(self.folder, _SCHEMA.names), _column(np.concatenate([np.empty(0, _KEY), *keys]))
        if not kept.num_rows or not len(wanted):
            return [np.full(len(each), np.nan) for each in keys]
        places = pc.index_in(wanted, value_set=kept["key"].combine_chunks())
        scores, seconds = (kept[name].take(places).to_numpy() for name in ("score", "seconds"))  # null becomes NaN
        edges = np.cumsum([len(each) for each in keys])[:-1]
        self.spared_seconds += sum(float(np.nansum(each)) for each in np.split(seconds, edges)[:counted])
        return np.split(scores.copy(), edges)

    def keep(self, keys: np.ndarray, scores: np.ndarray, seconds: float) -> None:
        """Add answers. keys: V16 (n,); scores: float64 (n,); seconds: that all of them took."""
        shares = np.full(len(keys), seconds / max(len(keys), 1))
        write_part(self.folder, pa.table([_column(keys), scores, shares], schema=_SCHEMA), ["key"])


class Keeper:
    """Around the asking: keeps what has arrived every half minute, and at the end, however it ends."""

    def __init__(self, answers: Answers | None):
        """answers: None where nothing is kept."""
        self.answers, self.keys, self.scores, self.ahead = answers, [np.empty(0, _KEY)], [np.empty(0)], 0

    def __enter__(self) -> Keeper:
        self.since = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._keep()

    def add(self, keys: np.ndarray, scores: np.ndarray, ahead: int = 0) -> None:
        """keys: V16 (n,); scores: float64 (n,); ahead: how many of them were asked for others."""
        self.keys.append(keys)
        self.scores.append(scores)
        self.ahead += ahead
        if time.monotonic() - self.since > _KEPT_EVERY:
            self._keep()

    def _keep(self) -> None:
        now, keys = time.monotonic(), np.concatenate(self.keys)
        if self.answers is not None:
            self.answers.keep(keys, np.concatenate(self.scores), now - self.since)
            self.answers.spared_seconds -= (now - self.since) * self.ahead / max(len(keys), 1)
        self.keys, self.scores, self.ahead, self.since = self.keys[:1], self.scores[:1], 0, now


def keys_of(
    history: np.ndarray, neighbours: np.ndarray, candidates: np.ndarray, evidence: Sequence[str], liked: Sequence[str]
) -> np.ndarray:
    """One key for each question about a user: V16 (c,). As `rank.score` takes them."""
    user = hashlib.blake2b(digest_size=_KEY.itemsize)
    for numbers in (history, neighbours):
        user.update(len(numbers).to_bytes(8, "little") + np.asarray(numbers, "<i8").tobytes())
    user.update("\n".join(liked).encode())
    digests = []
    for candidate, said in zip(candidates.tolist(), evidence, strict=True):
        question = user.copy()
        question.update(candidate.to_bytes(8, "little") + said.encode())
        digests.append(question.digest())
    return np.frombuffer(b"".join(digests), _KEY)


def _column(keys: np.ndarray) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(_KEY.itemsize), len(keys), [None, pa.py_buffer(keys)])
