"""Interactions by user: each partition holds all interactions of a range of users, ordered, ready to be filtered.

The ranges come from the users' counts, so they are the same on every cluster, and partition files in the order of
their names are sorted by user as a whole.

The k-core (the largest set in which every user and every item keeps enough interactions) is a fixpoint over the
items alone: given which items are in, a partition knows which of its users are. So each round passes once over
two columns of the partitions and joins counts per item.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mmsrarec_ray.data.frames import iter_tables, map_tables
from mmsrarec_ray.data.parts import read_part, to_parquet
from mmsrarec_ray.data.read import ORDER
from mmsrarec_ray.store import Folder

_USER_COUNTS = pa.schema([("user_id", pa.string()), ("count", pa.int64())])


@dataclass(frozen=True)
class CoreSettings:
    """Least interactions of a user and of an item within the core; 0: no filter."""

    user: int
    item: int


def by_user(checked: ray.data.Dataset, rows: int) -> ray.data.Dataset:
    """One block a partition: a range of users with about so many interactions, in the column `partition` its number.

    checked: materialized interactions, with `user_id`. A user's interactions are never divided.
    """
    firsts = partition_firsts(_count_users(checked), rows)
    checked.context.target_max_block_size = None  # a block that is cut in two would divide a user
    numbered = map_tables(checked, _number, firsts)
    if len(firsts) == 1:
        return numbered.repartition(1)
    return numbered.sort("partition", boundaries=list(range(1, len(firsts))))


def _count_users(checked: ray.data.Dataset) -> pa.Table:
    """user_id, count of each user, sorted: memory grows with the users, not with their interactions."""
    total, pending = _USER_COUNTS.empty_table(), [_USER_COUNTS.empty_table()]
    for table in iter_tables(map_tables(checked, _count_block)):
        pending.append(table.select(_USER_COUNTS.names).cast(_USER_COUNTS))
        if sum(each.num_rows for each in pending) > total.num_rows:  # so that each row is added up a few times only
            total, pending = _add_up([total, *pending]), [_USER_COUNTS.empty_table()]
    return _add_up([total, *pending]).sort_by("user_id")


def _add_up(counts: list[pa.Table]) -> pa.Table:
    added = pa.concat_tables(counts).group_by("user_id").aggregate([("count", "sum")])
    return added.rename_columns(_USER_COUNTS.names)


def _count_block(block: pa.Table) -> pa.Table:
    counted = block.group_by("user_id").aggregate([([], "count_all")])
    return counted.rename_columns(["user_id", "count"])


def partition_firsts(users: pa.Table, rows: int) -> list[str]:
    """The first user of each partition. users: user_id, count, sorted."""
    before = np.cumsum(users["count"].to_numpy()) - users["count"].to_numpy()
    firsts = np.flatnonzero(np.diff(before // rows, prepend=-1))
    return users["user_id"].take(pa.array(firsts)).to_pylist()


def _number(block: pa.Table, firsts: list[str]) -> pa.Table:
    users = block["user_id"].combine_chunks().dictionary_encode()
    numbers = np.array([bisect_right(firsts, user) - 1 for user in users.dictionary.to_pylist()], np.int64)
    return block.append_column("partition", pa.array(numbers[users.indices.to_numpy()]))


def order_user(block: pa.Table, drop_repeats: bool, min_weight: float | None, out: Folder) -> dict[str, list[int]]:
    """Write a partition, ordered by user, time and input order; returns counts of one row."""
    if block.num_rows == 0:
        return {}
    name = f"part-{block['partition'][0].as_py():05d}.parquet"
    counts = {"in": block.num_rows, "weight": 0, "repeats": 0, "ties": 0}
    if min_weight is not None:
        heavy = block.filter(pc.fill_null(pc.greater_equal(block["weight"], min_weight), True))
        counts["weight"] = block.num_rows - heavy.num_rows
        block = heavy
    block = block.sort_by([("user_id", "ascending"), ("timestamp", "ascending"), (ORDER, "ascending")])
    if drop_repeats:
        once = first_of_each(block, ["user_id", "item_id"])
        counts["repeats"] = block.num_rows - once.num_rows
        block = once
    counts["ties"] = _ties(block)
    out.write_bytes(name, to_parquet(block.drop_columns("partition")))
    return {name: [value] for name, value in counts.items()}


def first_of_each(block: pa.Table, keys: list[str]) -> pa.Table:
    """The first row of each key, in the order of the rows."""
    numbered = block.append_column("place", pa.array(np.arange(block.num_rows)))
    firsts = numbered.group_by(keys).aggregate([("place", "min")])["place_min"]
    return block.take(pa.array(np.sort(firsts.to_numpy())))


def _ties(block: pa.Table) -> int:
    if block.num_rows < 2:
        return 0
    time = block["timestamp"].to_numpy()
    return int(((time[1:] == time[:-1]) & ~user_starts(block)[1:]).sum())


def user_starts(block: pa.Table) -> np.ndarray:
    """Where a new user begins: bool (n,)."""
    codes = block["user_id"].combine_chunks().dictionary_encode()
    codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    numbers = codes.indices.to_numpy()
    return np.concatenate([[True], numbers[1:] != numbers[:-1]]) if len(numbers) else np.zeros(0, bool)


def alive(
    table: pa.Table, items: pa.Array, item_alive: np.ndarray, core: CoreSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are in the core, bool (n,), given which items are; and the item's place in `items`, int (n,)."""
    codes = pc.index_in(table["item_id"], value_set=items).to_numpy()
    kept = item_alive[codes]
    user = np.cumsum(user_starts(table)) - 1
    enough = np.bincount(user, weights=kept, minlength=user[-1] + 1 if len(user) else 0) >= max(core.user, 1)
    return kept & enough[user], codes


def _count(folder: Folder, name: str, items: pa.Array, item_alive: np.ndarray, core: CoreSettings) -> np.ndarray:
    table = read_part(folder, name, ["user_id", "item_id"])
    rows, codes = alive(table, items, item_alive, core)
    return np.bincount(codes[rows], minlength=len(items)).astype(np.int64)


def k_core(folder: Folder, items: pa.Array, core: CoreSettings) -> np.ndarray:
    """Which items are in the core of the partitions in `folder`: bool (n_items,)."""
    names = folder.files()
    item_alive = np.ones(len(items), bool)
    if core.item == 0:
        return item_alive
    count, known = ray.remote(num_cpus=1)(_count), ray.put(items)
    while True:
        state = ray.put(item_alive)
        counts = np.zeros(len(items), np.int64)
        pending = [count.remote(folder, name, known, state, core) for name in names]
        while pending:
            ready, pending = ray.wait(pending)
            counts += ray.get(ready[0])
        survivors = item_alive & (counts >= core.item)
        if survivors.sum() == item_alive.sum():
            return item_alive
        item_alive = survivors
