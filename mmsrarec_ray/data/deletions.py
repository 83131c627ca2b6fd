"""Who and what our service was told to forget: what a training must leave out.

A line of JSON each, as `mmsrarec_ray.serve.export deletions` writes them:

    {"kind": "user", "id": "…", "timestamp": 1700000000000}

`kind` is `user` or `item`; `timestamp`, in milliseconds, is when it was deleted. Of a user what happened up to then is
left out, so one that came back begins anew; where interactions have an order and no time, all. Of an item, all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.importers.base import RowError, clean_id, parse_json
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.store import Folder

_KINDS = ("user", "item")
_EVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Deletions:
    """users: their ids, string; until: int64 (n_users,), ms, the last moment that is left out; items: ids, string."""

    users: pa.Array
    until: np.ndarray
    items: pa.Array

    @classmethod
    def read(cls, folder: Folder, name: str, timed: bool) -> Deletions:
        """The lines of a file below a folder, all held. timed: whether interactions have a time.

        Raises InputError for a file that cannot be read, and for any line that is wrong: to go on without it would
        train on what was to be forgotten.
        """
        where, users, items = folder.file(name), dict[str, int](), set[str]()
        try:
            with folder.filesystem.open_input_stream(where) as stream:
                lines = stream.read().splitlines()
        except OSError as error:  # not there, a folder, packed and cut off, out of reach
            raise InputError(
                f"{where}: data.deletions must be a file of JSON lines that can be read: {error}"
            ) from None
        for number, line in enumerate(lines, 1):
            try:
                kind, which, moment = _deletion(line)
            except RowError as error:
                raise InputError(f"{where}, row {number}: {error}") from None
            if kind == "item":
                items.add(which)
            else:
                users[which] = max(users.get(which, 0), moment if timed else _EVER)
        return cls(pa.array(users, pa.string()), np.array([*users.values()], np.int64), pa.array(items, pa.string()))

    @classmethod
    def none(cls) -> Deletions:
        """Where nothing was deleted."""
        return cls(pa.array([], pa.string()), np.zeros(0, np.int64), pa.array([], pa.string()))

    def of_interactions(self, rows: pa.Table) -> pa.ChunkedArray:
        """Which of these are left out: bool (n,).

        rows: user_id, item_id, timestamp (null where it is wrong: nobody knows then that it was later).
        """
        user = pc.index_in(rows["user_id"], value_set=self.users)
        later = pc.greater(rows["timestamp"], pc.take(pa.array(self.until), user))  # null of who was not deleted
        gone = pc.and_(pc.is_valid(user), pc.invert(pc.fill_null(later, False)))
        return pc.or_(gone, pc.is_in(rows["item_id"], value_set=self.items))


def _deletion(line: bytes) -> tuple[str, str, int]:
    """Raises RowError."""
    try:
        row: dict[str, Any] = parse_json(line.decode())
    except UnicodeDecodeError as error:
        raise RowError(f"BrokenEncoding: line: expected UTF-8: {error}") from None
    kind, moment = row.get("kind"), row.get("timestamp")
    if kind not in _KINDS:
        raise RowError(f"WrongType: kind: expected {' or '.join(_KINDS)}, got {kind!a:.80}")
    if isinstance(moment, bool) or not isinstance(moment, int) or not 0 <= moment < _EVER:
        raise RowError(f"WrongType: timestamp: expected milliseconds since 1970, got {moment!a:.80}")
    return str(kind), clean_id(row.get("id"), "id"), moment
