"""Time and memory of the stages by the size of the data, and what follows for 100 million items and a billion choices.

    python benchmarks/scale.py
    python benchmarks/scale.py --sizes 200 400 --output runs/bench/scale_smoke.json
    python benchmarks/scale.py --sizes 100000 --interactions 10000000 --stages prepare retrieve evaluate

Draws a catalogue of each size and interactions (ten an item, where no numbers are given), and gives them to
`jobs/prepare.py`, `summarize.py` (the tiny model), `retrieve.py` (one epoch) and `evaluate.py` (random, popularity,
itemknn). Each point is kept as it is done, so a run that was stopped goes on; a run with other sizes adds to them.
Writes OUTPUT, and a plot on logarithmic scales beside it; prints a table, and the projection with what it assumes.

`seconds` are those of the stage; its process takes some more to start. Memory is what processes hold beside what they
share, the highest of one look a second: of the job's own process, of all that Ray starts together, of the object store.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from measure import ROOT, Measured, Report, run_job, table, write_catalogue

from mmsrarec_ray.config import load
from mmsrarec_ray.estimate.stages import Estimate
from mmsrarec_ray.estimate.table import Estimates
from mmsrarec_ray.store import Run

STAGES = {  # what each publishes
    "prepare": ("dataset",),
    "summarize": ("keywords",),
    "retrieve": ("retriever", "encoders"),
    "evaluate": ("lists", "scores/random", "scores/popularity", "scores/itemknn", "evaluation"),
}
GROWS_WITH = {"prepare": "interactions", "summarize": "items", "retrieve": "interactions", "evaluate": "interactions"}
ASKS_THE_MODEL = ["tune_summarizer", "summarize", "tune_recommender", "score mmsrarec"]
SETTINGS = (
    *("data.format=tables", "data.items=items", "data.interactions=interactions", "summarize.tuned=false"),
    *("methods.sasrec.dim=32", "methods.sasrec.heads=1", "methods.sasrec.epochs=1", "retrieve.index=ivf_pq"),
    *("evaluate.methods=[random, popularity, itemknn]", "evaluate.bootstrap=200", "ray.num_cpus=6"),
)
LENGTH = 10  # interactions of a user
ROWS_PER_FILE = 1_000_000
TARGET = {"items": 100_000_000, "interactions": 1_000_000_000}
GIB = 2**30


def write_interactions(folder: Path, items: int, count: int) -> None:
    """So many interactions, LENGTH a user, of items whose popularity falls with a power of their rank."""
    done = folder / f"interactions-{count}"
    if (done / "complete").exists():
        return
    rng, shares = np.random.default_rng(0), (np.arange(items) + items / 20 + 1) ** -0.8
    rng.shuffle(shares)
    (done / "interactions").mkdir(parents=True, exist_ok=True)
    for first in range(0, count, ROWS_PER_FILE):
        rows = np.arange(first, min(first + ROWS_PER_FILE, count))
        chosen = rng.choice(items, len(rows), p=shares / shares.sum())
        columns = {
            "user_id": np.char.mod("user-%09d", rows // LENGTH),
            "item_id": np.char.mod("item-%05d", chosen),
            "timestamp": rows % LENGTH,
        }
        pq.write_table(pa.table(columns), done / "interactions" / f"{first:010}.parquet")
    (done / "complete").touch()


def data_of(work: Path, items: int, interactions: int) -> Path:
    """The folder with both tables; the catalogue is shared by all numbers of interactions."""
    folder = work / f"{items}"
    write_catalogue(folder, items)
    write_interactions(folder, items, interactions)
    place = folder / f"interactions-{interactions}"
    if not (place / "items").exists():
        (place / "items").symlink_to(folder.absolute() / "items")
    return place


def measure(stage: str, work: Path, items: int, interactions: int, settings: list[str]) -> Measured:
    """One stage, anew, on a dataset that is there."""
    run = work / f"run-{items}-{interactions}"
    words = [*SETTINGS, f"data.path={data_of(work, items, interactions)}", f"run={run}", *settings]
    if stage != "prepare":
        run_job("prepare", words)
    for artefact in STAGES[stage]:
        shutil.rmtree(run / artefact, ignore_errors=True)
    measured = run_job(stage, words)
    made = [each.manifest for name in STAGES[stage] for each in Run.at(str(run)).published(name)]
    measured["seconds"] = sum(manifest.seconds for manifest in made)
    measured["bytes"] = sum(entry.bytes for manifest in made for entry in manifest.files.values())
    return measured | {"stage": stage, "items": items, "interactions": interactions, "counts": made[-1].counts}


def memory(point: Measured) -> dict[str, float]:
    """GiB of the job's own process, of all others that Ray starts for it, and of the object store."""
    held = {name: size / 1024 for name, size in point["memory_mib"].items()}
    own, store = held.pop("driver", 0.0), held.pop("object store", 0.0)
    return {"driver": own, "workers": sum(held.values()), "object store": store}


def grown(sizes: list[int], values: list[float], target: int) -> tuple[float, float]:
    """A value at another size, and the exponent of the size by which it grows (1: in proportion).

    What the smallest point has is taken as what starting takes; the rest grows by the exponent of the last three
    points, at least 1, from the largest on. A single size grows in proportion; what does not grow stays (exponent 0).
    """
    if len(set(sizes)) == 1:
        return values[-1] * target / sizes[-1], 1.0
    size, value = np.array(sizes) - sizes[0], np.array(values) - values[0]
    if value[-1] <= 0:
        return values[-1], 0.0
    rising = np.flatnonzero((size > 0) & (value > 0))[-3:]
    fitted = np.polyfit(np.log(size[rising]), np.log(value[rising]), 1)[0] if len(set(size[rising])) > 1 else 1.0
    exponent = max(1.0, float(fitted))
    return values[0] + float(value[-1]) * ((target - sizes[0]) / float(size[-1])) ** exponent, exponent


def carried_on(sizes: list[int], values: list[float], target: int) -> float:
    """Memory at another size: on by the line through the last two points, or as it is where it does not grow there.

    What processes take to fill their buffers shows in the first points, and is not to be multiplied.
    """
    if len(set(sizes[-2:])) == 1:
        return grown(sizes[-1:], values[-1:], target)[0]
    slope = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
    return values[-1] + max(0.0, slope) * (target - sizes[-1])


def project(points: dict[str, list[Measured]], target: dict[str, int]) -> list[dict[str, Any]]:
    """What each measured stage would take at another size; from the points with as many interactions an item as there
    are in `target`, or, of a stage without such, from all."""
    rows = []
    for stage, every in points.items():
        axis = GROWS_WITH[stage]
        alike = [
            each for each in every if each["interactions"] * target["items"] == each["items"] * target["interactions"]
        ]
        measured = alike or every
        sizes, row = [each[axis] for each in measured], {"stage": stage, "from": measured[-1][axis], "of": axis}
        cpu = [sum(each["cpu_seconds"].values()) / 3600 for each in measured]
        row["cpu_hours"], row["exponent"] = grown(sizes, cpu, target[axis])
        row["driver_gib"] = carried_on(sizes, [memory(each)["driver"] for each in measured], target[axis])
        row["storage_gib"], _ = grown(sizes, [each["bytes"] / GIB for each in measured], target[axis])
        rows.append(row)
    return rows


def tell_projection(rows: list[dict[str, Any]], target: dict[str, int]) -> None:
    """The projection with its assumptions, and what the planner says of the stages that ask the model."""
    users = target["interactions"] // LENGTH
    words = ["data.path=/nowhere", "run=/nowhere", f"plan.items={target['items']}", f"plan.users={users}"]
    config = load(ROOT / "configs" / "gpu.yaml", words)
    shards = {
        "prepare": target["interactions"] / config.data.rows_per_partition,
        "summarize": target["items"] / config.summarize.rows_per_part,
    }
    print(f"\nProjection to {target['items']:,} items and {target['interactions']:,} interactions:")
    table(
        "stage | measured up to | exponent | shards | CPU hours | GiB of the driver | GiB stored",
        [
            [
                row["stage"],
                f"{row['from']:,} {row['of']}",
                f"{row['exponent']:.2f}",
                f"{shards.get(row['stage'], 1):,.0f}",
                *(f"{row[name]:,.1f}" for name in ("cpu_hours", "driver_gib", "storage_gib")),
            ]
            for row in rows
        ],
    )
    print(
        "\nAssumed: beyond what its smallest point takes, which is starting, a stage grows with its interactions"
        " (summarize: with its items) by the exponent of its last three points, at least 1, from the largest point on;"
        " the exponent shown is that of CPU hours. The driver's memory goes on by the line through the last two points."
        " Points with as many interactions an item count. Nothing else limits it. CPU hours are processor"
        " time, so hours on n cores are these over n where a stage has as many shards; a stage of one shard is one"
        " process, whose memory must fit a node. summarize's CPU hours are those of the tiny model: for the model that"
        " counts see below."
        f" {LENGTH} interactions a user, pictures of the drawn shop, methods random, popularity and itemknn."
    )
    estimates = Estimates.of(config, ASKS_THE_MODEL, None)
    print("\n" + estimates.text())
    known = [each for each in estimates.stages.values() if isinstance(each, Estimate) and each.fits]
    total = sum(each.hours * each.gpus for each in known)
    print(f"\nGPU hours of configs/gpu.yaml: {total:,.0f}; twice the GPUs take half as long where nothing is gathered.")


def plot(points: dict[str, list[Measured]], file: Path) -> None:
    """Seconds, and memory, against size, on logarithmic scales."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (stage, measured) in enumerate(points.items()):
        sizes, colour = [point[GROWS_WITH[stage]] for point in measured], f"C{number}"
        left.loglog(sizes, [point["seconds"] for point in measured], "o-", color=colour, label=stage)
        for style, name in (("o-", "driver"), ("s--", "workers"), ("^:", "object store")):
            held = [max(memory(point)[name], 1e-3) for point in measured]
            right.loglog(sizes, held, style, color=colour, markersize=4, label=name if number == 0 else None)
    left.set(xlabel="interactions (summarize: items)", ylabel="seconds")
    right.set(xlabel="interactions (summarize: items)", ylabel="GiB")
    left.legend()
    right.legend()
    figure.savefig(file, dpi=150)


def points_of(parts: dict[str, Any]) -> dict[str, list[Measured]]:
    """Of each stage, its points by size."""
    found = [part for part in parts.values() if "stage" in part]
    named = {stage: [part for part in found if part["stage"] == stage] for stage in STAGES}
    return {stage: sorted(each, key=lambda point: point[GROWS_WITH[stage]]) for stage, each in named.items() if each}


def tell(points: dict[str, list[Measured]]) -> None:
    rows = []
    for stage, measured in points.items():
        for point in measured:
            sizes = (f"{point['items']:,}", f"{point['interactions']:,}", f"{point['seconds']:,.1f}")
            rows.append([stage, *sizes, *(f"{held:.2f}" for held in memory(point).values())])
    table("stage | items | interactions | seconds | driver, GiB | workers | object store", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[1_000, 3_000, 10_000, 30_000, 100_000], help="items", metavar="N")
    add("--interactions", type=int, nargs="+", metavar="N", help="of each size (ten an item)")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what is measured (all)")
    add("--output", type=Path, default=Path("runs/bench/scale.json"), help="where the figures are written")
    add("settings", nargs="*", metavar="key=value", help="settings of all jobs, after --")
    options = parser.parse_args()
    interactions = options.interactions or [10 * size for size in options.sizes]
    if len(interactions) != len(options.sizes):
        parser.error("--interactions: expected as many numbers as --sizes")
    report = Report(options.output, {"settings": options.settings})
    work = options.output.absolute().with_suffix("")
    report.part("machine", lambda: {"machine": platform.machine(), "cpus": os.cpu_count()})
    for items, count in zip(options.sizes, interactions, strict=True):
        for stage in options.stages:
            report.part(f"{stage} {items} {count}", measure, stage, work, items, count, options.settings)
    points = points_of(report.parts)
    tell(points)
    plot(points, options.output.with_suffix(".png"))
    tell_projection(project(points, TARGET), TARGET)


if __name__ == "__main__":
    main()
