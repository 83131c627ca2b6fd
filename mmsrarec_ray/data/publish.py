"""Writes the dataset's tables from what was staged: one task a part, so that no part waits for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mmsrarec_ray.data import splits
from mmsrarec_ray.data.images import WEB_ADDRESS
from mmsrarec_ray.data.partition import CoreSettings, alive, user_starts
from mmsrarec_ray.data.parts import read_part, to_parquet, write_part
from mmsrarec_ray.data.read import ORDER
from mmsrarec_ray.data.schemas import INTERACTIONS, ITEMS, USERS
from mmsrarec_ray.settings import Split
from mmsrarec_ray.store import Folder

_GROUP = 64  # items that are read together: who wants one picture reads as many
_TIME_BINS = 1_000_000


@dataclass(frozen=True)
class InteractionRules:
    """What decides which interactions stay and which split they get."""

    split: Split
    core: CoreSettings
    items: pa.Array
    in_core: np.ndarray
    users: splits.RatioSplit | None = None
    moments: tuple[int, int] | None = None
    """From when on an interaction is validation, and test."""


def publish_interactions(partitions: Folder, rules: InteractionRules, out: Folder) -> tuple[Counter[str], Counter[int]]:
    """Write interactions/ and users/. Returns counts, and how many users have how many interactions."""
    names = partitions.files()
    shared = ray.put(rules)
    facts = _each(_survey, names, partitions, shared)
    totals, lengths = Counter[str](), Counter[int]()
    for fact in facts:
        totals.update(out=fact["out"], outside=fact["outside"])
        lengths.update(fact["lengths"])
    if totals["out"]:
        totals["first"] = min(fact["first"] for fact in facts if fact["out"])
        totals["last"] = max(fact["last"] for fact in facts if fact["out"])
        shared = ray.put(_edges(rules, facts, names, partitions, totals))
        for counts in _each(_write, names, partitions, shared, out):
            totals.update(counts)
    return totals, lengths


def _each(task: Callable, names: list[str], *arguments: Any) -> list[Any]:
    """Run a task for every part, as many at a time as there is room; results in the order of the parts."""
    remote = ray.remote(num_cpus=1)(task)
    return ray.get([remote.remote(name, *arguments) for name in names])


def _surviving(name: str, partitions: Folder, rules: InteractionRules) -> pa.Table:
    table = read_part(partitions, name)
    rows, _ = alive(table, rules.items, rules.in_core, rules.core)
    return table.filter(pa.array(rows))


def _survey(name: str, partitions: Folder, rules: InteractionRules) -> dict[str, Any]:
    """What the edges of the splits are made from: hashes of users, first and last moment, lengths."""
    everything = read_part(partitions, name, ["user_id"]).num_rows
    table = _surviving(name, partitions, rules)
    starts = np.flatnonzero(user_starts(table))
    time = table["timestamp"].to_numpy()
    users = table["user_id"].take(pa.array(starts)).to_pylist()
    return {
        "out": len(time),
        "outside": everything - len(time),
        "first": int(time.min()) if len(time) else None,
        "last": int(time.max()) if len(time) else None,
        "lengths": Counter(np.diff(np.append(starts, len(time))).tolist()),
        "hashes": splits.hashes(users, rules.split.seed, "user"),
    }


def _edges(
    rules: InteractionRules, facts: list[dict], names: list[str], partitions: Folder, totals: Counter[str]
) -> InteractionRules:
    """The rules with the edges of their split filled in."""
    split = rules.split
    if split.users == "ratio":
        hashes = np.concatenate([fact["hashes"] for fact in facts])
        return replace(rules, users=splits.RatioSplit.of(hashes, split.validation, split.test))
    if split.users == "leave_one_out":
        return rules
    span = totals["last"] - totals["first"] + 1
    edges = np.linspace(totals["first"], totals["last"] + 1, min(span, _TIME_BINS) + 1)
    histogram = np.zeros(len(edges) - 1, np.int64)
    shared, bins = ray.put(rules), ray.put(edges)
    pending = [_histogram.remote(name, partitions, shared, bins) for name in names]
    while pending:  # one at a time: together they may be gigabytes
        ready, pending = ray.wait(pending)
        histogram += ray.get(ready[0])
    return replace(rules, moments=splits.time_edges(histogram, edges, split.validation, split.test))


@ray.remote(num_cpus=1)
def _histogram(name: str, partitions: Folder, rules: InteractionRules, edges: np.ndarray) -> np.ndarray:
    return np.histogram(_surviving(name, partitions, rules)["timestamp"].to_numpy(), edges)[0]


def _write(name: str, partitions: Folder, rules: InteractionRules, out: Folder) -> Counter[str]:
    table = _surviving(name, partitions, rules)
    starts = np.flatnonzero(user_starts(table))
    lengths = np.diff(np.append(starts, table.num_rows))
    users = table["user_id"].take(pa.array(starts))
    user_split, split = _split(table, users, lengths, rules)
    position = np.arange(table.num_rows) - np.repeat(starts, lengths)
    columns = {name: table[name] for name in ("user_id", "item_id", "timestamp", "weight")}
    interactions = pa.table(columns | {"position": position.astype(np.int32), "split": pa.array(split, pa.string())})
    people = pa.table({"user_id": users, "interactions": lengths, "split": user_split})
    if table.num_rows:
        (out / "interactions").write_bytes(name, to_parquet(interactions.cast(INTERACTIONS)))
        (out / "users").write_bytes(name, to_parquet(people.cast(USERS)))
    return Counter(f"split_{name}" for name in split)


def _split(
    table: pa.Table, users: pa.ChunkedArray, lengths: np.ndarray, rules: InteractionRules
) -> tuple[pa.Array, np.ndarray]:
    """The split of each user (null where the split is not by user) and of each interaction."""
    nobody = pa.nulls(len(users), pa.string())
    if rules.users is not None:
        names = rules.users.names(splits.hashes(users.to_pylist(), rules.split.seed, "user"))
        return pa.array(names, pa.string()), np.repeat(names, lengths)
    if rules.moments is not None:
        return nobody, splits.by_time(table["timestamp"].to_numpy(), *rules.moments)
    return nobody, splits.leave_one_out(lengths)


def publish_items(
    staged: Folder, lost: np.ndarray, core: np.ndarray, ids: pa.Array, split: Split, out: Folder
) -> Counter[str]:
    """Write items/. lost, core: ORDER of rows to leave out, and of those in the core, int64, sorted; ids: of all items
    that go out. Returns counts."""
    hashes = splits.hashes(ids.to_pylist(), split.seed, "item")
    ratio = splits.RatioSplit.of(hashes, split.item_validation, split.item_test)
    totals = Counter[str]()
    for counts in _each(_write_items, staged.files(), staged, ray.put(lost), ray.put(core), ratio, split.seed, out):
        totals.update(counts)
    return totals


def _write_items(
    name: str, staged: Folder, lost: np.ndarray, core: np.ndarray, ratio: splits.RatioSplit, seed: int, out: Folder
) -> Counter[str]:
    table = read_part(staged, name)
    table = table.filter(pa.array(~_among(table, lost)))
    names = ratio.names(splits.hashes(table["item_id"].to_pylist(), seed, "item"))
    table = table.append_column("split", pa.array(names, pa.string()))
    table = table.append_column("in_core", pa.array(_among(table, core)))
    items = table.select(ITEMS.names).cast(ITEMS)
    write_part(out / "items", items, ["item_id"], _GROUP)
    on_the_web = pc.match_substring_regex(items["image_uri"], WEB_ADDRESS)
    counted = {
        "missing_images": pc.and_(pc.is_null(items["image"]), pc.is_null(items["image_uri"])),
        "unfetched_images": pc.and_(pc.is_null(items["image"]), on_the_web),
        "missing_texts": pc.and_(pc.is_null(items["title"]), pc.is_null(items["text"])),
    }
    return Counter(out=items.num_rows, **{name: pc.sum(rows).as_py() or 0 for name, rows in counted.items()})


def _among(table: pa.Table, orders: np.ndarray) -> np.ndarray:
    """Which rows have one of these ORDERs: bool (n,). orders: int64, sorted; looked up where they lie, since parts of
    fetched pictures are small and many, and a hash table of the catalogue for each would cost its square."""
    wanted = table[ORDER].to_numpy()
    if not len(orders):
        return np.zeros(len(wanted), bool)
    return orders[np.minimum(np.searchsorted(orders, wanted), len(orders) - 1)] == wanted
