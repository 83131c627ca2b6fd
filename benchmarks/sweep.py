"""One setting over several values, everything else as it is: a table and a plot, as in the paper's figure 3.

    python benchmarks/sweep.py --config configs/microlens.yaml --out sweep_k \
        --setting methods.retrieval.neighbours --values 1,3,10,30,100,300 \
        data.path=… run=… 'evaluate.methods=[itemknn, retrieval]'

n, how much of a history is looked at, is `methods.sasrec.max_length`. Each value is an evaluation of its own in the run
folder, so a sweep that was killed goes on. Writes OUT.json, OUT.md and OUT.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mmsrarec_ray.config import load
from mmsrarec_ray.evaluate.stage import Evaluate
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.store import Run


def evaluate(file: str, settings: list[str]) -> dict[str, Any]:
    """The report of one evaluation."""
    config = load(file, settings)
    stage = Evaluate(config)
    stage.check()
    step, _, _ = execute(stage, Run.at(config.run))
    assert step.artefact is not None
    return json.loads(step.artefact.folder.read_bytes("report.json"))


def table(setting: str, found: dict[str, dict[str, Any]], metrics: list[str]) -> str:
    """A row for each value and method, in percent with intervals."""
    lines = [f"| {setting} | method | " + " | ".join(metrics) + " |", "|---" * (2 + len(metrics)) + "|"]
    for value, report in found.items():
        for row in report["rows"]:
            cells = (
                f"{100 * row[m]['value']:.1f} [{100 * row[m]['low']:.1f}, {100 * row[m]['high']:.1f}]" for m in metrics
            )
            lines.append(f"| {value} | {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(setting: str, found: dict[str, dict[str, Any]], metrics: list[str], file: Path) -> None:
    """A panel for each metric, a line for each method, with intervals."""
    figure = Figure(figsize=(4 * len(metrics), 3.2), layout="constrained")
    methods = sorted({row["method"] for report in found.values() for row in report["rows"]})
    places = range(len(found))
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for method in methods:
            rows = [next(row for row in report["rows"] if row["method"] == method) for report in found.values()]
            low, mid, high = ([100 * row[metric][key] for row in rows] for key in ("low", "value", "high"))
            axes.plot(places, mid, marker="o", label=method)
            axes.fill_between(places, low, high, alpha=0.15)
        axes.set(title=f"{metric}, %", xlabel=setting)
        axes.set_xticks(list(places), list(found))
    figure.legend(methods, loc="outside lower center", ncols=len(methods))
    figure.savefig(file, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--setting", required=True, help="a dotted key")
    parser.add_argument("--values", required=True, type=lambda words: words.split(","), help="1,3,10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    connect(load(options.config, options.settings))
    found = {v: evaluate(options.config, [*options.settings, f"{options.setting}={v}"]) for v in options.values}
    k = next(iter(found.values()))["main_k"]
    metrics = [f"HR@{k}", f"NDCG@{k}", "AUC"]
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1))
    options.out.with_suffix(".md").write_text(table(options.setting, found, metrics))
    plot(options.setting, found, metrics, options.out.with_suffix(".png"))
    print(table(options.setting, found, metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
