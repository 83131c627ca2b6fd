"""What each part of the recommender is worth: every row trained anew with as many steps, all on the same lists.

    python benchmarks/ablate.py --config configs/shop.yaml run=/runs/shop

A row is the configuration with one thing changed. Everything lies in the run folder, so a killed run goes on where it
was, and a row that stands there costs nothing. Writes `<run>/ablation.md` and prints it: 95 % intervals over users, and
the paired difference to the whole.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.evaluate.metrics import Ranks, per_case
from mmsrarec_ray.evaluate.stages import Scores, read_rankings
from mmsrarec_ray.intervals import interval, paired
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.rank.stage import TuneRecommender
from mmsrarec_ray.store import Run

METRICS = ("HR@5", "NDCG@5", "AUC")
WHOLE = "the whole"
ROWS: dict[str, list[str]] = {
    WHOLE: [],
    "titles for summaries": ["rank.said=titles"],
    "summaries untuned": ["summarize.tuned=false"],
    "no pictures": ["rank.said=text_keywords"],
    "no similar users": ["rank.similar_users=false", "rank.evidence=[popularity]"],
    "no evidence": ["rank.evidence=[]"],
    "no other tasks": [f"tune_recommender.tasks.{task}=0" for task in ("next_item", "item_keywords", "interests")],
    "one negative": ["tune_recommender.negatives=1"],
    "whole users for moments": ["retrieve.moments=users"],
    "GRU4Rec finds similar users": ["retrieve.encoder=gru4rec"],
}


def figures(config: Config) -> tuple[np.ndarray, dict[str, Any]]:
    """What a row reaches: float64 (cases, metrics), and the facts of its training."""
    run = Run.at(config.run)
    stage = Scores(config, "mmsrarec")
    stage.check()
    step, _, _ = execute(stage, run)
    _, trained, _ = execute(TuneRecommender(config), run)
    assert step.artefact is not None
    table = read_rankings(step.artefact.folder, config.evaluate.seeds[0])
    ranks = Ranks(*(table[column].to_numpy() for column in ("greater", "equal", "others")))
    found = per_case(ranks, (5,))
    return np.column_stack([found[name] for name in METRICS]), trained.metrics


def cells(values: np.ndarray, whole: np.ndarray, resamples: int) -> list[str]:
    """A row's values and, of another row than the whole, differences to it, in percent."""
    low, high = interval(values, resamples, 0)
    out = [
        f"{mean:.1f} [{one:.1f}, {other:.1f}]"
        for mean, one, other in zip(*(100 * each for each in (values.mean(0), low, high)), strict=True)
    ]
    if values is whole:
        return out
    test = paired(values, whole, resamples, 0)
    differences = zip(*(100 * each for each in (test.difference, test.low, test.high)), strict=True)
    return [
        f"{cell}, {d:+.1f} [{one:+.1f}, {other:+.1f}]" for cell, (d, one, other) in zip(out, differences, strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--rows", default=",".join(ROWS), help="names with commas; the whole is always measured")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.settings)
    connect(config)
    names = list(dict.fromkeys([WHOLE, *options.rows.split(",")]))
    lines = [f"| | steps | {' | '.join(METRICS)} |", "|---" * (2 + len(METRICS)) + "|"]
    whole = None
    for name in names:
        values, facts = figures(load(options.config, [*options.settings, *ROWS[name]]))
        whole = values if whole is None else whole
        lines.append(f"| {name} | {facts['steps']} | {' | '.join(cells(values, whole, config.evaluate.bootstrap))} |")
        print(lines[-1], flush=True)
        Run.at(config.run).folder.write_bytes("ablation.md", "\n".join([*lines, ""]).encode())
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
