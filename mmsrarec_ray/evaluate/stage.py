"""The stage behind jobs/evaluate.py: all methods on the same cases, in one report."""

from __future__ import annotations

import json
import shlex
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.config import Config, overrides_of
from mmsrarec_ray.data.log import Cases, Log, read_log
from mmsrarec_ray.data.parts import read_part
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.evaluate import metrics, report, words
from mmsrarec_ray.evaluate.lists import cases_of, pool_of
from mmsrarec_ray.evaluate.metrics import Ranks
from mmsrarec_ray.evaluate.recipes import ORACLES, OURS
from mmsrarec_ray.evaluate.stages import Scores, sampled
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.progress import say
from mmsrarec_ray.store import Artefact, Folder, Run

_DATA_SETS = ("shop", "movies", "microlens")  # formats that one data set has; those of the others go by their path


class Evaluate(Stage):
    """Compare methods on the same cases: a table, intervals, paired tests, slices."""

    name: ClassVar[str] = "evaluate"
    artefact: ClassVar[str] = "evaluation"
    code: ClassVar[tuple[str, ...]] = (
        *("evaluate", "intervals", "methods/base"),
        *("data/log", "data/parts", "data/schemas", "data/splits", "data/negatives"),
    )

    def requires(self) -> list[Stage]:
        return [Prepare(self.config), *self._scores()]

    def _scores(self) -> list[Scores]:
        return [Scores(self.config, method) for method in dict.fromkeys(self.config.evaluate.methods)]

    def settings(self) -> dict[str, Any]:
        return {"evaluate": self.config.evaluate.model_dump(), "data": self.config.data.format}

    def engine(self) -> dict[str, Any]:
        return {"name": "numpy", "version": np.__version__}

    def check(self) -> None:
        protocol, split = self.config.evaluate.protocol, self.config.split.users
        needed = {"paper": ("ratio",), "full": ("leave_one_out", "ratio"), "time": ("time",)}[protocol]
        if split not in needed:
            raise ConfigError(
                f"split.users: evaluate.protocol '{protocol}' needs {' or '.join(map(repr, needed))}. Got {split!r}."
            )

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        out.clear()
        log = read_log(inputs["dataset"].folder)
        cases = cases_of(log)
        results = [_result(self.config, log, stage, inputs[stage.artefact]) for stage in self._scores()]
        statistics = inputs["dataset"].manifest.metrics
        made = report.build(
            _setting(self.config, cases, log, statistics),
            results,
            slices(self.config, log, cases),
            self.config.evaluate.bootstrap,
            self.config.evaluate.seeds[0],
            _command(self.config),
        )
        report.write(made, out)
        order = f"NDCG@{made['main_k']}"
        headline = {row["method"]: round(row[order]["value"], 4) for row in made["rows"]}
        return Outcome({"in": len(cases), "out": len(cases), "methods": len(results)}, {order: headline})

    def announce(self, artefact: Artefact, run: Run) -> None:
        """The newest report stands at `<run>/evaluation/report.json`, with what belongs to it; its table is said."""
        place, files = run.folder / self.artefact, artefact.manifest.files
        for plot in (place / "plots").files():
            if f"plots/{plot}" not in files:  # of the report before
                place.filesystem.delete_file(place.file(f"plots/{plot}"))
        for name in sorted(files, key="report.json".__eq__):  # last: programs read it
            place.write_bytes(name, artefact.folder.read_bytes(name))
        say(words.table(json.loads(artefact.folder.read_bytes("report.json"))))


def _setting(config: Config, cases: Cases, log: Log, statistics: dict[str, Any]) -> report.Setting:
    told = ("users", "items", "core_items", "interactions", "mean_length")
    settings = config.evaluate
    return report.Setting(
        dataset=config.data.format if config.data.format in _DATA_SETS else str(config.data.path),
        protocol=settings.protocol,
        pool=settings.pool,
        split=config.split.users,
        cases=len(cases),
        negatives=settings.negatives if sampled(config) else None,
        seeds=settings.seeds,
        n_items=log.n_items,
        statistics={name: statistics[name] for name in told},
        repeats=log.repeats("test"),
    )


def slices(config: Config, log: Log, cases: Cases) -> dict[str, np.ndarray]:
    """Cases that deserve a look of their own: bool (n,) each, some of which may be empty."""
    settings = config.evaluate
    counts = np.bincount(log.train().items, minlength=log.n_items)
    known = np.flatnonzero(counts)
    head = np.zeros(log.n_items, bool)
    head[known[np.argsort(-counts[known], kind="stable")][: round(settings.head_share * len(known))]] = True
    lengths, positives = cases.queries.histories.lengths, cases.positives
    short = lengths <= settings.short_history
    return {
        "new items": counts[positives] == 0,
        "tail": (counts[positives] > 0) & ~head[positives],
        "head": head[positives],
        f"history up to {settings.short_history}": short,
        f"history over {settings.short_history}": ~short,
    }


def _result(config: Config, log: Log, stage: Scores, scores: Artefact) -> report.MethodResult:
    """What one method did, over all seeds."""
    tables = [read_part(scores.folder, f"seed-{seed}.parquet") for seed in config.evaluate.seeds]
    measured = [metrics.per_case(_ranks(table), config.evaluate.ks) for table in tables]
    names = list(measured[0])
    every = {name: np.stack([each[name] for each in measured]) for name in names}
    spread = {name: float(values.mean(1).std(ddof=1)) for name, values in every.items()} if len(tables) > 1 else {}
    return report.MethodResult(
        method=stage.recipe.name,
        kind=_kind(stage.recipe.name),
        per_case={name: values.mean(0) for name, values in every.items()},
        seconds_fit=scores.manifest.metrics["seconds_fit"],
        seconds_score=scores.manifest.metrics["seconds_score"],
        spread=spread,
        lists=_lists(config, log, tables),
        unknown=_unknown(tables),
        settings=stage.recipe.settings,
    )


def _kind(method: str) -> Literal["baseline", "oracle", "ours"]:
    return "oracle" if method in ORACLES else "ours" if method in OURS else "baseline"


def _ranks(table: pa.Table) -> Ranks:
    return Ranks(*(table[name].to_numpy() for name in ("greater", "equal", "others")))


def _lists(config: Config, log: Log, tables: list[pa.Table]) -> dict[str, float]:
    """Of what is recommended out of the whole pool: coverage, novelty and popularity of the first k, k as in the main
    table; means over the seeds."""
    k, pool = metrics.main_k(config.evaluate.ks), pool_of(log, config.evaluate)
    counts = np.bincount(log.train().items, minlength=log.n_items)
    first = [pc.list_slice(table["recommended"].combine_chunks(), 0, k).flatten() for table in tables]
    lists = [pc.index_in(names, value_set=log.items).to_numpy()[:, None] for names in first]
    return {
        "coverage": float(np.mean([metrics.coverage(items, pool) for items in lists])),
        "novelty": float(np.mean([metrics.novelty(items, counts, pool) for items in lists])),
        "popularity": float(np.mean([metrics.popularity(items, counts, pool) for items in lists])),
    }


def _unknown(tables: list[pa.Table]) -> dict[str, float]:
    """Candidates without a training interaction: their share, and how many of them stand above the positive, beside
    the same share of the known ones."""
    unknown, above, others, better = (
        sum(float(pc.sum(table[name]).as_py() or 0) for table in tables)
        for name in ("unknown", "unknown_above", "others", "greater")
    )
    better += sum(float(pc.sum(table["equal"]).as_py() or 0) for table in tables) / 2
    shares = {"share_of_candidates": unknown / others if others else 0.0}
    if unknown:
        shares["above_positive"] = above / unknown
    if others > unknown:
        shares["known_above_positive"] = (better - above) / (others - unknown)
    return shares


def _command(config: Config) -> str:
    """What repeats the report."""
    return " ".join(["python jobs/evaluate.py", *map(shlex.quote, overrides_of(config))])
