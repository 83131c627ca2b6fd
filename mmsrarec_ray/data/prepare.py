"""The stage behind jobs/prepare.py: any catalogue and log, checked, filtered and split, as our tables.

    items          read -> check (pictures by their header) -> staged parts -> drop second ids -> items/
    interactions   read -> check -> hash by user -> order, drop repeats -> k-core -> split -> interactions/, users/
    events         as interactions, and impressions/ on the way

Memory is bounded by the block, plus ids and counts of items and a hash for each user. Every row that comes in
goes out, fails (failures/, with its file and row) or is filtered: the stage adds the counts up before it ends.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.check import (
    PLACES,
    ItemRules,
    Staging,
    check_interactions,
    check_items,
    duplicates,
    failures,
)
from mmsrarec_ray.data.deletions import Deletions
from mmsrarec_ray.data.frames import iter_tables, map_tables
from mmsrarec_ray.data.images import ImageLimits
from mmsrarec_ray.data.importers import open_import
from mmsrarec_ray.data.importers.base import Import
from mmsrarec_ray.data.impressions import take_impressions
from mmsrarec_ray.data.partition import CoreSettings, by_user, k_core, order_user
from mmsrarec_ray.data.parts import read_part, replace_part
from mmsrarec_ray.data.publish import InteractionRules, publish_interactions, publish_items
from mmsrarec_ray.data.read import ORDER, ROW, SOURCE
from mmsrarec_ray.data.schemas import FAILURES
from mmsrarec_ray.data.shop.generate import Shop
from mmsrarec_ray.errors import ConfigError, InputError
from mmsrarec_ray.fetch import FetchRules
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.progress import say
from mmsrarec_ray.settings import Data
from mmsrarec_ray.store import Artefact, Folder, source_fingerprint


class Prepare(Stage):
    """Import a catalogue and its interactions: check, filter, order and split them."""

    name: ClassVar[str] = "prepare"
    artefact: ClassVar[str] = "dataset"
    code: ClassVar[tuple[str, ...]] = (
        *("data/importers", "data/read", "data/check", "data/images", "data/partition", "data/splits", "data/frames"),
        *("data/prepare", "data/publish", "data/schemas", "data/parts", "data/impressions", "data/deletions", "fetch"),
    )

    def requires(self) -> list[Stage]:
        return [Shop(self.config)] if self.config.data.format == "shop" else []

    def settings(self) -> dict[str, Any]:
        return {"data": self.config.data.model_dump(), "split": self.config.split.model_dump()}

    def check(self) -> None:
        data, split = self.config.data, self.config.split
        if data.path is not None:
            source, run = Folder.at(data.path).path, Folder.at(self.config.run).path
            if f"{run}/".startswith(f"{source}/"):
                raise ConfigError(f"run: must not lie in data.path, which would change with each result. Got {run!r}.")
            found = open_import(data, Folder.at(data.path))
            if split.users == "time" and found.ordered_by != "time":
                raise ConfigError("split.users: 'time' needs interactions with timestamps. These have an order only.")
            if data.min_weight is not None and not found.weighted:
                raise ConfigError("data.min_weight: needs data.interaction_columns.weight, or a format with ratings.")
            _deletions(data, Folder.at(data.path), found)
        elif data.deletions is not None:
            raise ConfigError("data.deletions: needs data.path, below which the file lies.")

    def sources(self) -> dict[str, str]:
        if self.config.data.path is None:
            return {}
        folder = Folder.at(self.config.data.path)
        open_import(self.config.data, folder)
        return {"data": source_fingerprint(folder)}

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        out.clear()
        folder = inputs["shop"].folder if "shop" in inputs else Folder.at(str(self.config.data.path))
        source = open_import(_data(self.config), folder)
        work = _Work(self.config, source, _deletions(self.config.data, folder, source), out)
        work.items()
        work.interactions()
        counts, metrics = work.publish()
        (out / "staging").remove()
        say(_table(metrics))
        return Outcome(counts, metrics)


def _data(config: Config) -> Any:
    """The settings the importer sees: the shop comes as generic tables."""
    if config.data.format != "shop":
        return config.data
    return config.data.model_copy(update={"items": "items", "interactions": "interactions", "timestamp_unit": "ms"})


def _deletions(data: Data, folder: Folder, source: Import) -> Deletions:
    """What is to be left out. Raises InputError."""
    if data.deletions is None:
        return Deletions.none()
    return Deletions.read(folder, data.deletions, timed=source.ordered_by == "time")


def _fetch_rules(data: Data) -> FetchRules | None:
    """None where pictures on the web stay there."""
    fetch = data.fetch
    if not fetch.enabled:
        return None
    rules = fetch.model_dump(exclude={"enabled"})
    return FetchRules(max_bytes=data.max_image_bytes, content_type="image/", **rules)


class _Work:
    """One run of the stage: what it found so far."""

    def __init__(self, config: Config, source: Import, deletions: Deletions, out: Folder):
        self.config, self.source, self.out = config, source, out
        self.staging, self.gone = Staging(out), ray.put(deletions)
        self.failed, self.partitions = self.staging.failures, out / "staging" / "interactions"
        self.counts = Counter[str]()
        self.lost = np.zeros(0, np.int64)  # ORDER of items whose id stood before, sorted
        self.kept = np.zeros(0, np.int64)  # of all other items, sorted
        self.ids = pa.array([], pa.string())  # of these

    def items(self) -> None:
        """Check the items and stage them in parts; find ids that come twice."""
        data = self.config.data
        limits = ImageLimits(data.max_image_bytes, data.max_image_pixels)
        rules = ItemRules(self.source.item, limits, _fetch_rules(data), self.gone)
        checked = map_tables(self.source.items.blocks(), check_items, rules, self.staging)
        tables = (table.select(PLACES.names).cast(PLACES) for table in iter_tables(checked))
        places = pa.concat_tables([PLACES.empty_table(), *tables])
        later, first = duplicates(places)
        problems = [
            f"DuplicateId: item_id: expected an id that is new, got one that stands in {source}, row {row}"
            for source, row in zip(
                places[SOURCE].take(first).to_pylist(), places[ROW].take(first).to_pylist(), strict=True
            )
        ]
        replace_part(self.failed, "duplicates", failures("items", later["item_id"], later, problems))
        self.lost = np.sort(later[ORDER].to_numpy())
        kept = places.filter(pc.invert(pc.is_in(places[ORDER], value_set=pa.array(self.lost, pa.int64()))))
        kept = kept.sort_by(ORDER)
        self.kept, self.ids = kept[ORDER].to_numpy(), pa.array(kept["item_id"].to_pylist(), pa.string())
        if not len(self.ids):
            raise InputError(f"{self.source.items.folder.path}: no item can be used. {self._first_failure()}")

    def _first_failure(self) -> str:
        """The failure of the earliest row, in words."""
        tables = [read_part(self.failed, name) for name in self.failed.files()]
        rows = pa.concat_tables([FAILURES.empty_table(), *tables])
        rows = rows.sort_by([("source", "ascending"), ("row", "ascending")]).slice(0, 1)
        return "".join("{source}, row {row}: {error}: {message}".format(**row) for row in rows.to_pylist())

    def interactions(self) -> None:
        """Check the interactions, bring each user's together, order them and drop repeats."""
        if self.source.interactions is None:
            return
        data = self.config.data
        blocks, ids = self.source.interactions.blocks(), ray.put(self.ids)
        table = self.source.interaction_table
        checked = map_tables(blocks, check_interactions, table, ids, self.gone, self.staging).materialize()
        if checked.count() == 0:
            return
        parts = by_user(checked, data.rows_per_partition)
        if self.source.events:
            parts = map_tables(parts, take_impressions, self.staging, self.out / "impressions")
        ordered = map_tables(parts, order_user, data.drop_repeats, data.min_weight, self.partitions)
        for row in ordered.iter_rows():
            self.counts.update(row)

    def publish(self) -> tuple[dict[str, int], dict[str, Any]]:
        """Filter to the core, split, write the tables; returns the counts and the statistics."""
        settings = CoreSettings(self.config.data.k_core_user, self.config.data.k_core_item)
        in_core = k_core(self.partitions, self.ids, settings)
        rules = InteractionRules(self.config.split, settings, self.ids, in_core)
        interactions, lengths = publish_interactions(self.partitions, rules, self.out)
        core = self.kept[in_core]
        items = publish_items(self.staging.items, self.lost, core, self.ids, self.config.split, self.out)
        counts = self._sum_up(interactions, items)
        if counts["interactions_in"] and not counts["interactions_out"]:
            raise InputError(f"no interaction is left: {counts}. {self._first_failure()}")
        return counts, self._statistics(interactions, items, lengths, in_core)

    def _sum_up(self, interactions: Counter[str], items: Counter[str]) -> dict[str, int]:
        """All counts. Raises RuntimeError where a row came in and neither went out, failed nor was filtered."""
        failed, read = Counter[str](), Counter[str]()
        for name in self.failed.files():
            failed.update(read_part(self.failed, name, ["table"])["table"].to_pylist())
        for name in self.staging.tally.files():
            for row in read_part(self.staging.tally, name).to_pylist():
                read[row["table"]] += row["rows"]
        counts = {
            "items_in": read["items"],
            "items_out": items["out"],
            "items_failed": failed["items"],
            "interactions_in": read["interactions"],
            "interactions_out": interactions["out"],
            "interactions_failed": failed["interactions"],
            "filtered_weight": self.counts["weight"],
            "filtered_repeats": self.counts["repeats"],
            "filtered_core": interactions["outside"],
        }
        if self.source.events:
            counts |= {"filtered_duplicates": read["duplicates"], "filtered_impressions": read["impressions"]}
        if self.config.data.deletions is not None:
            counts |= {"filtered_deleted": read["deleted"], "items_deleted": read["deleted items"]}
        filtered = sum(count for name, count in counts.items() if name.startswith("filtered"))
        for table, left_out in (("items", read["deleted items"]), ("interactions", filtered)):
            if counts[f"{table}_in"] != counts[f"{table}_out"] + counts[f"{table}_failed"] + left_out:
                raise RuntimeError(f"the counts of {table} do not add up: {counts}")
        return counts

    def _statistics(
        self, interactions: Counter[str], items: Counter[str], lengths: Counter[int], in_core: np.ndarray
    ) -> dict[str, Any]:
        users, pairs, core_items = sum(lengths.values()), interactions["out"], int(in_core.sum())
        ordered = np.repeat(sorted(lengths), [lengths[length] for length in sorted(lengths)]) if users else np.zeros(1)
        return {
            "users": users,
            "items": items["out"],
            "core_items": core_items,
            "interactions": pairs,
            "density": round(pairs / max(users * core_items, 1), 6),
            "mean_length": round(float(ordered.mean()), 2),
            "median_length": float(np.median(ordered)),
            "max_length": int(ordered.max()),
            "missing_images": items["missing_images"],
            "unfetched_images": items["unfetched_images"],
            "missing_texts": items["missing_texts"],
            "ties_in_time": self.counts["ties"],
            "ordered_by": self.source.ordered_by,
            "first": self._moment(interactions["first"]),
            "last": self._moment(interactions["last"]),
            "split": {name: interactions[f"split_{name}"] for name in ("train", "validation", "test")},
        }

    def _moment(self, milliseconds: int) -> str | None:
        """In UTC; None where the interactions have an order only."""
        if self.source.ordered_by != "time":
            return None
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _table(metrics: dict[str, Any]) -> str:
    """The statistics for people."""
    return "\n".join(f"  {name.replace('_', ' '):16} {_number(value)}" for name, value in metrics.items())


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_number(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)
