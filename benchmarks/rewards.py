"""What each reward says: how far apart it puts the answers of the untuned model, and whether cheating pays.

    python benchmarks/rewards.py --config configs/demo.yaml run=/runs/rewards

For training items, the untuned model's greedy answers (taken as honest) are compared with answers that cheat
(`summarize.tuning.hacks`), under the default sum of rewards and under the paper's. And it samples as many answers an
item as the tuning does, of which a share loses a keyword there too (`tune_summarizer.edits`): a term moves the policy
by how much it differs within such a group, so the spread says what weights give terms an equal say.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from mmsrarec_ray.adapters import load_base, load_processor
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.data.splits import TEST, TRAIN
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.store import Run
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.keywords import Keywords, parse
from mmsrarec_ray.summarize.reuse import Items
from mmsrarec_ray.summarize.tuning.answers import generate
from mmsrarec_ray.summarize.tuning.examples import Examples, write_examples
from mmsrarec_ray.summarize.tuning.hacks import HACKS
from mmsrarec_ray.summarize.tuning.rewards import weighted
from mmsrarec_ray.summarize.tuning.terms import terms_of, weights_of
from mmsrarec_ray.summarize.tuning.trainer import without_one


def examples_of(config: Config) -> tuple[Examples, list[str]]:
    """Items that nobody learns from, and the texts of the training items."""
    import ray

    connect(config)
    run = Run.at(config.run)
    dataset = execute(Prepare(config), run)[0].artefact.folder  # type: ignore[union-attr]
    folder = run.folder / "benchmark_rewards"
    folder.clear()
    write_examples(config, Items(dataset, parquet_files(dataset / "items")), folder)
    ray.shutdown()
    processor = load_processor(config)
    return Examples(config, folder / TEST, processor), Examples(config, folder / TRAIN, processor).texts()


class Judge:
    """Values of every term for answers to the items."""

    def __init__(self, config: Config):
        self.config = config
        self.examples, texts = examples_of(config)
        self.processor, self.model = self.examples.processor, load_base(config).eval()
        self.terms = terms_of(config, self.model, self.processor, texts)
        rows = [self.examples.columns(number) for number in range(len(self.examples))]
        self.columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}

    def values(self, answers: list[str]) -> dict[str, np.ndarray]:
        end = self.processor.tokenizer.eos_token_id
        ids = [[*self.processor.tokenizer(each, add_special_tokens=False)["input_ids"], end] for each in answers]
        return {name: np.array(term(answers, completion_ids=ids, **self.columns)) for name, term in self.terms.items()}

    def answers(self, temperature: float | None) -> list[str]:
        """One answer an item, greedy without a temperature."""
        tokenizer = self.processor.tokenizer
        ids = generate(self.config, self.model, self.examples, [tokenizer.eos_token_id], temperature)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)


def cheating(judge: Judge, greedy: list[str], paper: Config) -> None:
    parsed = [
        _parsed(answer, example)
        for answer, example in zip(greedy, map(judge.examples.__getitem__, range(len(greedy))), strict=True)
    ]
    honest = judge.values(greedy)
    names, sums = list(honest), {"grounded": weights_of(judge.config), "paper": weights_of(paper)}
    answers = {"honest": greedy} | {name: hack(parsed, judge.columns["title"]) for name, hack in HACKS.items()}
    print(f"\n| answers | {' | '.join(names)} | grounded | honest wins | paper | honest wins |")
    print("|---" * (len(names) + 5) + "|")
    for name, said in answers.items():
        values = judge.values(said)
        cells = [f"{values[term].mean():.2f}" for term in names]
        for weights in sums.values():
            mine, theirs = np.array(weighted(values, weights)), np.array(weighted(honest, weights))
            cells += [f"{mine.mean():.2f}", "" if name == "honest" else f"{np.mean(theirs > mine):.0%}"]
        print(f"| {name} | {' | '.join(cells)} |")


def _parsed(answer: str, example: Any) -> Keywords:
    try:
        return parse(answer, example.has_image, bool(example.text))
    except ValueError:
        return Keywords((), ())


def spreads(judge: Judge) -> None:
    s = judge.config.tune_summarizer
    set_seed(s.seed)
    draw = Random(s.seed)
    sampled = [judge.answers(s.temperature) for _ in range(s.generations)]
    tried = [[without_one(each, draw) if draw.random() < s.edits else each for each in said] for said in sampled]
    drawn = [judge.values(said) for said in tried]
    spread = {name: float(np.stack([each[name] for each in drawn]).std(0).mean()) for name in drawn[0]}
    print(f"\n{s.generations} answers an item at temperature {s.temperature:g}, {s.edits:.0%} without a keyword:\n")
    print("| term | mean | spread within an item's answers | weight for an equal say |\n|---|---|---|---|")
    for name, value in spread.items():
        mean = np.mean([each[name].mean() for each in drawn])
        equal = f"{spread['information'] / value:.3f}" if value else ""
        print(f"| {name} | {mean:.3f} | {value:.4f} | {equal} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    judge = Judge(load(options.config, options.settings))
    greedy = judge.answers(None)
    cheating(judge, greedy, load(options.config, [*options.settings, "tune_summarizer.reward=paper"]))
    spreads(judge)


if __name__ == "__main__":
    main()
