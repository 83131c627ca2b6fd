"""From measured values to the report: report.json, report.md, pictures, and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from mmsrarec_ray.evaluate.metrics import main_k
from mmsrarec_ray.evaluate.plots import plot_methods, plot_slices
from mmsrarec_ray.evaluate.words import Report, Row, markdown, slices_of
from mmsrarec_ray.intervals import LEVEL, interval, paired
from mmsrarec_ray.store import Folder

# HR@5, AUC, NDCG@5 on MicroLens from the tables of arXiv 2512.20916. None of them was measured by this project.
_PUBLISHED = {
    "SASRec": (0.6664, 0.7402, 0.3120),
    "BERT4Rec": (0.5447, 0.7255, 0.2899),
    "HLLM": (0.7123, 0.7654, 0.3052),
    "LLM-ESR": (0.6825, 0.7781, 0.6267),
    "MLLM-MSR": (0.7742, 0.8317, 0.5426),
    "MLLMRec": (0.8132, 0.8325, 0.6825),
    "MMSRARec": (0.8509, 0.8436, 0.6612),
}
_DIGITS = 10  # the last bits of a sum depend on the number of threads: equal rankings must give equal reports


@dataclass(frozen=True)
class Setting:
    """What was compared on what. All values are JSON values, and each has a key of its name in the report."""

    dataset: str
    protocol: str
    pool: str
    split: str
    cases: int
    negatives: int | None
    """null: a full ranking."""
    seeds: Sequence[int]
    n_items: int
    statistics: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 0
    """Test users that are no case, since their positive stands in the history."""


@dataclass(frozen=True)
class MethodResult:
    """What one method did.

    per_case: metric -> float64 (cases,), means over the seeds, fractions; spread: metric -> standard deviation over
    the seeds, of several; lists: coverage, novelty, popularity; unknown: how items without training interactions are
    ranked, numbers by name; seconds are means over the seeds; settings: JSON values.
    """

    method: str
    kind: Literal["baseline", "oracle", "ours"]
    per_case: Mapping[str, np.ndarray]
    seconds_fit: float
    seconds_score: float
    spread: Mapping[str, float] = field(default_factory=dict)
    lists: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def build(
    setting: Setting,
    results: Sequence[MethodResult],
    slices: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
    command: str,
) -> Report:
    """The report as JSON values; all metrics are fractions.

    results: at least one, all with the same metrics; slices: name -> bool (cases,), left out where no case is in;
    resamples and seed: of the intervals and tests; command: what repeats the report.

    Rows are in the order of NDCG@k, oracles first, k being `metrics.main_k` of the ks. The best baseline is the one
    with the highest NDCG@k; all others are tested against it. Raises ValueError where a value is NaN.
    """
    names = list(results[0].per_case)
    ks = sorted(int(name[3:]) for name in names if name.startswith("HR@"))
    k = main_k(ks)
    order = f"NDCG@{k}"
    results = sorted(results, key=lambda one: (one.kind != "oracle", -one.per_case[order].mean()))
    best = next((one for one in results if one.kind == "baseline"), None)
    values = np.stack([np.stack([one.per_case[name] for name in names], 1) for one in results], 1)
    overall = _measure(values, names, resamples, seed)
    rows = [_row(one, measured) for one, measured in zip(results, overall, strict=True)]
    for name, mask in slices.items():
        if mask.any():
            for row, measured in zip(rows, _measure(values[mask], names, resamples, seed), strict=True):
                row["slices"][name] = {"cases": int(mask.sum()), **measured}
    if best is not None:
        tested = [f"HR@{k}", order, "AUC"]
        columns = values[:, :, [names.index(name) for name in tested]]
        _compare(rows, best.method, columns, tested, resamples, seed)
    return {
        **asdict(setting),
        "seeds": list(setting.seeds),
        "ks": ks,
        "main_k": k,
        "best_baseline": best.method if best else None,
        "intervals": {"level": LEVEL, "resamples": resamples, "seed": seed},
        "command": command,
        "rows": rows,
        "published": _published(setting),
    }


def _measure(values: np.ndarray, names: list[str], resamples: int, seed: int) -> list[dict[str, dict[str, float]]]:
    """Means with intervals of each method, metric by metric. values: float64 (n, methods, metrics)."""
    n, methods, metrics = values.shape
    bounds = (each.reshape(methods, metrics) for each in interval(values.reshape(n, -1), resamples, seed))
    table = np.stack([values.mean(0), *bounds], 2).round(_DIGITS).tolist()
    return [
        {name: dict(zip(("value", "low", "high"), cell, strict=True)) for name, cell in zip(names, row, strict=True)}
        for row in table
    ]


def _row(result: MethodResult, measured: dict[str, dict[str, float]]) -> Row:
    for name, deviation in result.spread.items():
        measured[name]["std_over_seeds"] = float(deviation)
    return {
        "method": result.method,
        "kind": result.kind,
        **measured,
        "seconds_fit": result.seconds_fit,
        "seconds_score": result.seconds_score,
        **result.lists,
        "unknown": dict(result.unknown),
        "settings": dict(result.settings),
        "slices": {},
    }


def _compare(rows: list[Row], best: str, values: np.ndarray, names: list[str], resamples: int, seed: int) -> None:
    """Put `against_best_baseline` into the rows of all other methods. values: float64 (n, methods, metrics)."""
    at = [row["method"] for row in rows].index(best)
    n, methods, metrics = values.shape
    found = paired(values.reshape(n, -1), np.tile(values[:, at], methods), resamples, seed)
    for place, row in enumerate(rows):
        if place != at:
            row["against_best_baseline"] = {"baseline": best} | {
                name: {
                    key: round(float(column[place * metrics + metric]), _DIGITS) for key, column in vars(found).items()
                }
                for metric, name in enumerate(names)
            }


def _published(setting: Setting) -> list[Row]:
    if (setting.dataset, setting.protocol) != ("microlens", "paper"):
        return []
    source = {"measured_by_us": False, "source": "arXiv 2512.20916"}
    names = ("HR@5", "AUC", "NDCG@5")
    return [{"method": name, **dict(zip(names, row, strict=True)), **source} for name, row in _PUBLISHED.items()]


def write(report: Report, folder: Folder) -> None:
    """Write report.json, report.md, plots/methods.png and, where there are slices, plots/slices.png."""
    folder.write_bytes("report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False).encode())
    folder.write_bytes("report.md", markdown(report).encode())
    folder.write_bytes("plots/methods.png", plot_methods(report))
    if slices_of(report):
        folder.write_bytes("plots/slices.png", plot_slices(report))
