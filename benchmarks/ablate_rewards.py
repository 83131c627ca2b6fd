"""What each reward is worth: the summariser tuned anew without it, with equal steps, on the drawn shop.

    python benchmarks/ablate_rewards.py --config configs/demo.yaml run=/runs/demo
    python benchmarks/ablate_rewards.py --config configs/demo.yaml --ranking run=/runs/demo

The rows: no tuning; the default sum; the default without each of its terms; without edits (GRPO alone); the paper's
sum. All are judged on the same test items: true attributes that the answers say, those that only the picture shows
apart from those of the text, precision, tokens. With `--ranking`, the recommender is trained, with equal steps too, on
the keywords of the untuned model, of the paper's sum and of the default, and ranks the same lists. Every row is an
artefact of the run folder: what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.evaluate.stage import Evaluate
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.store import Run
from mmsrarec_ray.summarize.tuning.judge import LENGTH
from mmsrarec_ray.summarize.tuning.stage import TuneSummarizer
from mmsrarec_ray.summarize.tuning.terms import FORM, weights_of

ATTRIBUTES = ("picture recall", "text recall", "recall", "precision")
RANKED = {
    "untuned": ["summarize.tuned=false"],
    "paper": ["summarize.tuned=true", "tune_summarizer.reward=paper"],
    "grounded": ["summarize.tuned=true"],
}


def variants(config: Config) -> dict[str, list[str]]:
    """Name of a row -> the settings that differ."""
    terms = [name for name in weights_of(config) if name != FORM]
    return {
        "grounded": [],
        **{f"without {name}": [f"tune_summarizer.grounded.{name}=0"] for name in terms},
        "without edits": ["tune_summarizer.edits=0"],
        "paper": ["tune_summarizer.reward=paper"],
    }


def shown(figure: dict[str, float], scale: float = 100) -> str:
    return f"{scale * figure['value']:.1f} [{scale * figure['low']:.1f}, {scale * figure['high']:.1f}]"


def row(report: dict[str, Any], side: str) -> str:
    attributes = [shown(report["attributes"][side][name]) for name in ATTRIBUTES]
    return " | ".join([shown(report["measures"][LENGTH][side], 1), *attributes])


def tuned(options: argparse.Namespace, run: Run) -> None:
    print(f"| | tokens | {' | '.join(ATTRIBUTES)} |\n|{'---|' * (len(ATTRIBUTES) + 2)}", flush=True)
    for name, settings in variants(load(options.config, options.settings)).items():
        stage = TuneSummarizer(load(options.config, [*options.settings, *settings]))
        report = execute(stage, run)[1].metrics["test"]
        if name == "grounded":
            print(f"| untuned | {row(report, 'before')} |", flush=True)
        print(f"| {name} | {row(report, 'after')} |", flush=True)


def ranked(options: argparse.Namespace, run: Run) -> None:
    print("\n| keywords | HR@5 | AUC | NDCG@5 |\n|---|---|---|---|", flush=True)
    for name, settings in RANKED.items():
        given = [*options.settings, *settings, "evaluate.methods=[popularity, mmsrarec]"]
        artefact = execute(Evaluate(load(options.config, given)), run)[0].artefact
        assert artefact is not None
        rows = {each["method"]: each for each in json.loads(artefact.folder.read_bytes("report.json"))["rows"]}
        figures = [shown(rows["mmsrarec"][metric]) for metric in ("HR@5", "AUC", "NDCG@5")]
        print(f"| {name} | {' | '.join(figures)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--ranking", action="store_true", help="train and rank with the keywords, too")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.settings)
    connect(config)
    run = Run.at(config.run)
    tuned(options, run)
    if options.ranking:
        ranked(options, run)


if __name__ == "__main__":
    main()
