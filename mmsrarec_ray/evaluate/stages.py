"""The stages before an evaluation: the candidates of every case, and each method's rankings of them."""

from __future__ import annotations

import io
import time
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import Cases, Log, read_log
from mmsrarec_ray.data.parts import read_part, to_parquet
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.evaluate.lists import cases_of, draw_negatives, lists_table, pool_of
from mmsrarec_ray.evaluate.rank import rank_lists, rank_pool, rankings_table
from mmsrarec_ray.evaluate.recipes import Recipe, recipe_of
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.methods.base import Dataset
from mmsrarec_ray.progress import Progress, say
from mmsrarec_ray.store import Artefact, Folder

_LOG = ("data/log", "data/schemas", "data/parts", "data/splits", "data/negatives")


class Lists(Stage):
    """Draw the candidates of every test case, once for all methods."""

    name: ClassVar[str] = "lists"
    artefact: ClassVar[str] = "lists"
    code: ClassVar[tuple[str, ...]] = ("evaluate/lists", *_LOG)

    def requires(self) -> list[Stage]:
        return [Prepare(self.config)]

    def settings(self) -> dict[str, Any]:
        return self.config.evaluate.model_dump(include={"protocol", "pool", "negatives", "seeds"})

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        out.clear()
        log, settings = read_log(inputs["dataset"].folder), self.config.evaluate
        cases, pool = cases_of(log), pool_of(log, settings)
        for seed in settings.seeds:
            negatives = draw_negatives(log, cases, pool, settings.negatives, seed) if sampled(self.config) else None
            out.write_bytes(f"seed-{seed}.parquet", to_parquet(lists_table(log, cases, seed, negatives)))
        repeats = log.repeats("test")
        counts = {"in": len(cases) + repeats, "out": len(cases), "repeats": repeats}
        return Outcome(counts | {"seeds": len(settings.seeds)})


def sampled(config: Config) -> bool:
    """Whether cases are ranked against sampled negatives, else against the whole pool."""
    return config.evaluate.protocol == "paper"


def read_negatives(lists: Folder, seed: int, log: Log) -> np.ndarray:
    """The negatives of every case of a seed, by number: int64 (n, c)."""
    column = read_part(lists, f"seed-{seed}.parquet", ["negatives"])["negatives"].combine_chunks()
    numbers = pc.index_in(column.flatten(), value_set=log.items).to_numpy()
    return numbers.reshape(len(column), -1).astype(np.int64)


class Scores(Stage):
    """One method, fitted and asked for its ranking of every case, once a seed."""

    code: ClassVar[tuple[str, ...]] = (
        *("evaluate/stages", "evaluate/rank", "evaluate/metrics", "evaluate/lists", "methods/base"),
        *_LOG,
    )

    def __init__(self, config: Config, method: str):
        super().__init__(config)
        self.recipe: Recipe = recipe_of(method, config, self.renew)
        self.name = f"score {method}"  # type: ignore[misc]  # a stage of its own for each method
        self.artefact = f"scores/{method}"  # type: ignore[misc]
        self.code = (*Scores.code, *self.recipe.code)  # type: ignore[misc]

    def requires(self) -> list[Stage]:
        return [Prepare(self.config), Lists(self.config), *self.recipe.requires]

    def settings(self) -> dict[str, Any]:
        e = self.config.evaluate
        return {"seeds": e.seeds, "pool": e.pool, "recommended": max(e.ks), **self.recipe.settings}

    def engine(self) -> dict[str, Any]:
        return self.recipe.engine()

    def resources(self) -> dict[str, Any]:
        return self.recipe.resources()

    def check(self) -> None:
        self.recipe.check()

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        if self.fresh:
            out.clear()
        log = read_log(inputs["dataset"].folder)
        cases, pool = cases_of(log), pool_of(log, self.config.evaluate)
        dataset = Dataset(log.n_items, log.train(), log.cases("validation"), pool)
        seconds: dict[str, list[float]] = {"seconds_fit": [], "seconds_score": []}
        for seed in self.config.evaluate.seeds:
            name = f"seed-{seed}.parquet"
            if not out.exists(name):  # what a killed run finished is kept
                negatives = read_negatives(inputs["lists"].folder, seed, log) if sampled(self.config) else None
                table = self._rank(seed, log, dataset, cases, negatives, inputs)
                out.write_bytes(name, to_parquet(table))
            for key, value in _seconds(out, name).items():
                seconds[key].append(value)
        means = {key: round(float(np.mean(values)), 3) for key, values in seconds.items()}
        return Outcome({"in": len(cases), "out": len(cases), "seeds": len(self.config.evaluate.seeds)}, means)

    def _rank(
        self,
        seed: int,
        log: Log,
        dataset: Dataset,
        cases: Cases,
        negatives: np.ndarray | None,
        inputs: dict[str, Artefact],
    ) -> pa.Table:
        """Fit and rank; the table carries the seconds of both."""
        method = self.recipe.build(seed, log, inputs)
        began = time.perf_counter()
        method.fit(dataset)
        fitted, spared = time.perf_counter(), method.spared_seconds
        say(f"{self.name}: fitted in {fitted - began:.1f} s")
        known, longest = dataset.counts > 0, max(self.config.evaluate.ks)
        if negatives is not None:
            rankings, recommended = rank_lists(method, cases, negatives, known, longest)
            took = time.perf_counter() - fitted
            table = rankings_table(log, cases, seed, rankings, recommended)
        else:
            tables, progress = [], Progress(self.name, len(cases), "cases")
            for rows, rankings in rank_pool(method, cases, dataset.pool, known, longest):
                part = cases.take(np.arange(rows.start, rows.stop))
                tables.append(rankings_table(log, part, seed, rankings, rankings.items))
                progress.update(rows.stop)
            table = pa.concat_tables(tables)
            took = time.perf_counter() - fitted
        seconds = {
            "seconds_fit": fitted - began + method.earlier_seconds + spared,
            "seconds_score": took + method.spared_seconds - spared,
        }
        return table.replace_schema_metadata({key: str(value) for key, value in seconds.items()})


def _seconds(out: Folder, name: str) -> dict[str, float]:
    metadata = pq.read_schema(io.BytesIO(out.read_bytes(name))).metadata
    return {key: float(metadata[key.encode()]) for key in ("seconds_fit", "seconds_score")}


def read_rankings(scores: Folder, seed: int) -> pa.Table:
    """Rows of RANKINGS of one seed, in the order of the cases."""
    return read_part(scores, f"seed-{seed}.parquet")
