"""What rewards cost in a step of GRPO, beside a bare GRPOTrainer of TRL with the same settings and a free reward.

    python benchmarks/grpo.py --config configs/demo.yaml run=/runs/grpo

Items, pictures, prompts, sampling, LoRA and steps are the same; the bare trainer gets them as a plain list and pays
nothing for its reward. Each trainer runs in a process of its own, and its first steps, which warm caches, are left out.
Prints seconds and tokens a second of a step, what each term takes of it, and the paper's three terms together.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import alone

from mmsrarec_ray.adapters import load_base, load_processor, lora_config
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.data.splits import TRAIN
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.store import Folder, Run
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.reuse import Items
from mmsrarec_ray.summarize.tuning.examples import Examples, write_examples
from mmsrarec_ray.summarize.tuning.fit import grpo_arguments, trainer_of
from mmsrarec_ray.summarize.tuning.terms import terms_of

PAPER = ("information", "reconstruction", "count")
WARM = 3  # steps that are left out


class Clock:
    """A reward that counts the seconds it takes."""

    def __init__(self, name: str, reward: Callable[..., list[float]], spent: dict[str, list[float]]):
        self.__name__, self.reward, self.spent = name, reward, spent

    def __call__(self, *arguments: Any, **more: Any) -> list[float]:
        began = time.perf_counter()
        values = self.reward(*arguments, **more)
        self.spent[self.__name__].append(time.perf_counter() - began)
        return values


def free(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that costs nothing and differs between answers."""
    return [float(len(each[0]["content"])) for each in completions]


def bare(config: Config, examples: Examples, scratch: Path) -> Any:
    """TRL alone."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = [examples.columns(number) for number in range(len(examples))]
    kept = [{name: row[name] for name in ("prompt", "images")} for row in rows]
    numbers = Dataset.from_dict({"number": list(range(len(kept)))})
    dataset = numbers.with_transform(lambda batch: {n: [kept[i][n] for i in batch["number"]] for n in kept[0]})
    return GRPOTrainer(
        model=load_base(config),
        reward_funcs=[free],
        args=GRPOConfig(**grpo_arguments(config, 1, scratch)),
        train_dataset=dataset,
        processing_class=examples.processor,
        peft_config=lora_config(config.tune_summarizer.lora),
    )


def measure(config: Config, folder: Folder, ours: bool, threads: int) -> dict[str, Any]:
    """Median seconds and tokens of a step, and of each term in it."""
    import torch

    torch.set_num_threads(threads)
    examples, spent = Examples(config, folder / TRAIN, load_processor(config)), defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as scratch:
        if ours:
            terms = terms_of(config, load_base(config).eval(), examples.processor, examples.texts())
            clocks = {name: Clock(name, term, spent) for name, term in terms.items()}
            trainer = trainer_of(config, examples, clocks, 1, Path(scratch))
        else:
            trainer = bare(config, examples, Path(scratch))
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "step_time" in entry][WARM:]
    tokens = np.diff([entry["num_tokens"] for entry in log])
    seconds = np.array([entry["step_time"] for entry in log])
    return {
        "seconds": float(np.median(seconds)),
        "tokens_per_second": float(tokens.sum() / seconds[1:].sum()),
        "terms": {name: float(np.median(values[WARM:])) for name, values in spent.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    fixed = [f"tune_summarizer.steps={options.steps}", "tune_summarizer.log_steps=1"]
    config = load(options.config, [*options.settings, *fixed])
    connect(config)
    run = Run.at(config.run)
    dataset = execute(Prepare(config), run)[0].artefact.folder  # type: ignore[union-attr]
    folder = run.folder / "benchmark_grpo"
    folder.clear()
    write_examples(config, Items(dataset, parquet_files(dataset / "items")), folder)
    import ray

    ray.shutdown()
    paper = load(options.config, [*options.settings, *fixed, "tune_summarizer.reward=paper"])
    found = {
        "bare TRL, free reward": alone(measure, config, folder, False, options.threads),
        "paper": alone(measure, paper, folder, True, options.threads),
        "grounded": alone(measure, config, folder, True, options.threads),
    }
    tell(found)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def tell(found: dict[str, dict[str, Any]]) -> None:
    """The tables, in Markdown."""
    whole = found["bare TRL, free reward"]["tokens_per_second"]
    print("\n| trainer | seconds a step | tokens/s | of the bare trainer |\n|---|---|---|---|")
    for name, row in found.items():
        rate = row["tokens_per_second"]
        print(f"| {name} | {row['seconds']:.2f} | {rate:,.0f} | {rate / whole:.2f} |")
    print("\n| term | seconds a step | of a step |\n|---|---|---|")
    steps = {"paper": found["paper"]["seconds"], "grounded": found["grounded"]["seconds"]}
    for name in ("paper", "grounded"):
        for term, seconds in found[name]["terms"].items():
            print(f"| {term} ({name}) | {seconds:.3f} | {seconds / steps[name]:.1%} |")
    together = sum(found["paper"]["terms"][term] for term in PAPER)
    print(f"| the paper's three | {together:.3f} | {together / steps['paper']:.1%} |")


if __name__ == "__main__":
    main()
