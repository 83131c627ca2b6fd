"""A dataset's interactions as arrays: what sequence encoders, retrieval, methods and evaluation work on.

About 13 bytes an interaction, 12 more where training sequences are asked for, and the ids: a billion interactions are
25 GB, and more than twice that while they are read. Items and users are numbered in the order of their ids, so equal
datasets give equal numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.parts import read_part, read_parts
from mmsrarec_ray.data.splits import TEST, TRAIN, VALIDATION
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.store import Folder

_SPLITS = {TRAIN: 0, VALIDATION: 1, TEST: 2}


@dataclass(frozen=True)
class Sequences:
    """Items of some users, each user's in the order they were chosen, one user after the other.

    users: int64 (n,), numbers of users; starts: int64 (n + 1,); items: int32 (m,); times: int64 (m,), milliseconds
    or positions. Those of row r are items[starts[r]:starts[r + 1]].
    """

    users: np.ndarray
    starts: np.ndarray
    items: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, histories: list[list[int]], users: np.ndarray | None = None) -> Sequences:
        """From lists of items; times are positions."""
        lengths = np.array([len(history) for history in histories], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        items = np.array([item for history in histories for item in history], np.int32)
        times = np.arange(len(items)) - np.repeat(starts[:-1], lengths)
        return cls(np.arange(len(histories)) if users is None else users, starts, items, times)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """int64 (n,)."""
        return np.diff(self.starts)

    @property
    def rows(self) -> np.ndarray:
        """The row of each item: int64 (m,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.items[self.starts[row] : self.starts[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: np.ndarray) -> Sequences:
        """The sequences of some rows, in that order. rows: int64 (r,) or bool (n,)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.asarray(rows)
        return self.beginnings(rows, self.lengths[rows])

    def beginnings(self, rows: np.ndarray, lengths: np.ndarray) -> Sequences:
        """The first so many items of some rows, in that order. rows, lengths: int64 (r,), not above the row's own."""
        starts = np.concatenate([[0], np.cumsum(lengths)])
        source = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return Sequences(self.users[rows], starts, self.items[source], self.times[source])

    def of_users(self, users: np.ndarray) -> Sequences:
        """The sequences of some users, in that order, an empty one for who has none here. users: int64 (n,); the users
        of the rows must rise."""
        if not len(self):
            return Sequences.of([[]] * len(users), users)
        rows = np.minimum(np.searchsorted(self.users, users), len(self) - 1)
        lengths = np.where(self.users[rows] == users, self.lengths[rows], 0)
        return replace(self.beginnings(rows, lengths), users=users)

    def chunks(self, size: int) -> Iterator[tuple[slice, Sequences]]:
        """So many rows at a time, with their place."""
        for start in range(0, len(self), size):
            rows = np.arange(start, min(start + size, len(self)))
            yield slice(start, start + len(rows)), self.take(rows)

    def last(self, length: int, padding: int) -> np.ndarray:
        """The last items of each row, right-aligned: int64 (n, length), `padding` where the row is shorter."""
        out = np.full((len(self), length), padding, np.int64)
        back = self.starts[1:][self.rows] - np.arange(len(self.items))  # 1 is the newest
        near = back <= length
        out[self.rows[near], length - back[near]] = self.items[near]
        return out


@dataclass(frozen=True)
class Queries:
    """Users at a moment, with what is known of them.

    histories: one row a query, possibly empty; now: int64 (n,), milliseconds or positions like the times.
    """

    histories: Sequences
    now: np.ndarray

    def __len__(self) -> int:
        return len(self.now)

    def take(self, rows: np.ndarray) -> Queries:
        return Queries(self.histories.take(rows), self.now[rows])

    def chunks(self, size: int) -> Iterator[tuple[slice, Queries]]:
        """So many queries at a time, with their place."""
        for rows, histories in self.histories.chunks(size):
            yield rows, Queries(histories, self.now[rows])


@dataclass(frozen=True)
class Cases:
    """Questions with known answers: what these users chose next. positives: int32 (n,)."""

    queries: Queries
    positives: np.ndarray

    def __len__(self) -> int:
        return len(self.positives)

    @property
    def repeats(self) -> np.ndarray:
        """Whether the positive stands in the history already: bool (n,)."""
        histories = self.queries.histories
        same = histories.items == np.repeat(self.positives, histories.lengths)
        return np.bincount(histories.rows[same], minlength=len(self)) > 0

    def without_repeats(self) -> Cases:
        """Those whose positive is new to the user. Other candidates are items that the user never touched: a positive
        of the history would be the only one that stands there, and be known by that."""
        repeats = self.repeats
        return self.take(~repeats) if repeats.any() else self

    def take(self, rows: np.ndarray) -> Cases:
        return Cases(self.queries.take(rows), self.positives[rows])


@dataclass(frozen=True)
class Log:
    """All of a dataset that is about ids.

    items: string ids of the catalogue, sorted; in_core: bool (n_items,); users: string ids, sorted; sequences: one
    row a user, in that order; split: uint8 (m,), 0 train, 1 validation, 2 test, of each interaction; by_user:
    the split is of whole users.
    """

    items: pa.Array
    in_core: np.ndarray
    users: pa.Array
    sequences: Sequences
    split: np.ndarray
    by_user: bool

    @property
    def n_items(self) -> int:
        return len(self.items)

    def train(self) -> Sequences:
        """What may be learnt from: interactions of the training split, users without any left out."""
        everybody = self.training
        return everybody.take(everybody.lengths > 0)

    def train_of(self, users: np.ndarray) -> Sequences:
        """Training interactions of these users, none of one that is not a training user. users: int64 (n,)."""
        return self.training.take(users)

    @cached_property
    def training(self) -> Sequences:
        """Training interactions: a row for each user, by number, an empty one for who is no training user."""
        kept = self.split == 0
        counts = np.bincount(self.sequences.rows[kept], minlength=len(self.sequences))
        starts = np.concatenate([[0], np.cumsum(counts)])
        return Sequences(self.sequences.users, starts, self.sequences.items[kept], self.sequences.times[kept])

    def cases(self, split: Literal["validation", "test"]) -> Cases:
        """One case a user of the split: the last item of a held-out user, or the first held-out interaction.

        All that came before is the history; it may be empty. A user without a positive is no case, nor is one whose
        positive stands in the history.
        """
        return self._held_out(split).without_repeats()

    def repeats(self, split: Literal["validation", "test"]) -> int:
        """How many users of the split are no case because their positive stands in the history."""
        return int(self._held_out(split).repeats.sum())

    def _held_out(self, split: str) -> Cases:
        """Cases, with those whose positive stands in the history."""
        sequences, number = self.sequences, _SPLITS[split]
        held_out = self.split == number
        rows = sequences.rows
        if self.by_user:
            held_out = held_out & (np.arange(len(rows)) == sequences.starts[1:][rows] - 1)
        places = np.flatnonzero(held_out)
        _, firsts = np.unique(rows[places], return_index=True)
        places = places[firsts]
        chosen = rows[places]
        histories = sequences.beginnings(chosen, places - sequences.starts[chosen])
        return Cases(Queries(histories, sequences.times[places]), sequences.items[places])


def read_log(dataset: Folder) -> Log:
    """The interactions of a published dataset. Raises InputError where there are none."""
    items = read_parts(dataset / "items", ["item_id", "in_core"]).sort_by("item_id")
    people = read_parts(dataset / "users", ["user_id", "split"]).sort_by("user_id")
    ids, users = items["item_id"].combine_chunks(), people["user_id"].combine_chunks()
    folder = dataset / "interactions"
    parts = [_numbers(folder, name, users, ids) for name in folder.files()]
    if not sum(len(part["user"]) for part in parts):
        raise InputError(f"{dataset.path}: the dataset has no interactions to learn from or to evaluate on.")
    user, position = _joined(parts, "user"), _joined(parts, "position")
    order = np.lexsort([position, user])
    del position
    starts = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))])
    del user
    return Log(
        items=ids,
        in_core=items["in_core"].combine_chunks().to_numpy(zero_copy_only=False),
        users=users,
        sequences=Sequences(
            np.arange(len(users)), starts, _joined(parts, "item")[order], _joined(parts, "timestamp")[order]
        ),
        split=_joined(parts, "split")[order],
        by_user=people.num_rows > 0 and people["split"].null_count == 0,
    )


def _numbers(folder: Folder, name: str, users: pa.Array, items: pa.Array) -> dict[str, np.ndarray]:
    """A part with numbers for its ids, which take much more memory: of a large log they are never there at once."""
    part = read_part(folder, name, ["user_id", "item_id", "timestamp", "position", "split"])
    splits = pa.array(list(_SPLITS))
    return {
        "user": pc.index_in(part["user_id"], value_set=users).to_numpy(),
        "item": pc.index_in(part["item_id"], value_set=items).to_numpy(),
        "split": pc.index_in(part["split"], value_set=splits).to_numpy().astype(np.uint8),
        "timestamp": part["timestamp"].to_numpy(),
        "position": part["position"].to_numpy(),
    }


def _joined(parts: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """A column of all parts, which give it up."""
    return np.concatenate([part.pop(name) for part in parts])
