"""Fine-tuning the recommender beside a bare SFTTrainer of TRL, with and without a shared prefix.

    python benchmarks/sft.py --config configs/shop.yaml run=/runs/sft

The same examples, model, LoRA, steps and threads, each in processes of its own: the training of
`jobs/tune_recommender.py` in a Ray Train worker, with its checkpoints, beside TRL alone. With separate sequences TRL
alone has its own preparation and collator; with a shared prefix, which it does not know, ours. Prints examples and
tokens a second; tokens are those that the model reads. Users and items are drawn; candidates are keywords unless
`rank.candidate` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import alone
from score import ITEMS, catalogue

from mmsrarec_ray.adapters import load_base, lora_config, read_facts, training_arguments
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.log import Log, Sequences
from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.contexts import Contexts
from mmsrarec_ray.rank.evidence import Scale, Signs
from mmsrarec_ray.rank.examples import EXAMPLES, Source, Writer, read_examples
from mmsrarec_ray.rank.packing import Collator
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.store import Folder

FORMS = {"separate": False, "shared prefix": True}


def write(config: Config, steps: int, out: Folder) -> None:
    """Examples of so many steps, all choices: histories and similar users at random."""
    rng, n = np.random.default_rng(0), steps * config.tune_recommender.batch_size
    length, near = config.retrieve.history, config.retrieve.neighbours
    sequences = Sequences.of([rng.choice(ITEMS, length + 1, replace=False).tolist() for _ in range(n)])
    shown, users = catalogue(config.rank.candidate), pa.array([f"u{number:06}" for number in range(n)])
    log = Log(shown.ids, np.ones(ITEMS, bool), users, sequences, np.zeros(len(sequences.items), np.uint8), True)
    signs = Signs((), sequences, Cooccurrence.of(sequences, ITEMS, 1), ITEMS)
    contexts = Contexts(
        np.arange(n),
        np.full(n, length),
        np.zeros(n, np.int64),
        np.zeros((n, 1), np.float32),
        [sequence[:-1].astype(np.int64) for sequence in sequences],
        [rng.choice(ITEMS, near, replace=False) for _ in range(n)],
        [{}] * n,
    )
    rows = Writer(Source(config, log, shown, signs, Scale({}))).rows(contexts, learnt=False)
    write_part(out / "train", pa.Table.from_pylist(rows, EXAMPLES), ["user_id", "cut", "round"])
    write_part(out / "validation", pa.Table.from_pylist(rows[:1], EXAMPLES), ["user_id", "cut", "round"])


def ours(config: Config, examples: Folder) -> float:
    """Seconds of the training of the job."""
    import ray

    from mmsrarec_ray import workers
    from mmsrarec_ray.job import connect
    from mmsrarec_ray.rank.tune import Task, work

    connect(config)
    with tempfile.TemporaryDirectory() as scratch:
        out = Folder.at(scratch)
        shown = catalogue(config.rank.candidate)
        task = Task(config, shown, examples / "train", examples / "validation", out)
        workers.run("sft", work, {"task": ray.put(task)}, config.train)
        return read_facts(out)["train_seconds"]


def bare(config: Config, examples: Folder) -> float:
    """Seconds of TRL alone."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(config.train.threads or 1)
    asker = Asker(config, catalogue(config.rank.candidate))
    with tempfile.TemporaryDirectory() as scratch:
        contexts, settings = read_examples(examples / "train", Path(scratch)), config.tune_recommender
        arguments = training_arguments(config, settings, 1, Path(scratch)) | {"save_strategy": "no"}
        more: dict[str, Any] = {"data_collator": Collator(asker, True), "train_dataset": contexts}
        if settings.shared_prefix:
            arguments["dataset_kwargs"] = {"skip_prepare_dataset": True}
        else:
            flat = [example for row in contexts for example in row["examples"]]
            rows = [{"prompt": each["prompt"], "completion": asker.spoken[each["answer"]]} for each in flat]
            more = {"train_dataset": Dataset.from_list(rows)}
            per_context = len(flat) // len(contexts)
            arguments["per_device_train_batch_size"] *= per_context
            arguments["completion_only_loss"] = True
        trainer = SFTTrainer(
            model=load_base(config),
            args=SFTConfig(**arguments, num_train_epochs=1, max_length=None, report_to=[]),
            processing_class=asker.tokenizer,
            peft_config=lora_config(settings.lora),
            **more,
        )
        return trainer.train().metrics["train_runtime"]


def lengths(config: Config, examples: Folder) -> tuple[int, int]:
    """How many examples there are, and tokens that the model reads, padding left out."""
    asker = Asker(config, catalogue(config.rank.candidate))
    collate = Collator(asker, config.tune_recommender.shared_prefix)
    with tempfile.TemporaryDirectory() as scratch:
        contexts = read_examples(examples / "train", Path(scratch))
        count = sum(len(row["examples"]) for row in contexts)
        masks = (collate([row])["attention_mask"] for row in contexts)
        tokens = sum(int(mask.sum()) if mask.ndim == 2 else mask.shape[-1] for mask in masks)
    return count, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    given = ["train.threads=1", "rank.candidate=keywords", "rank.evidence=[]", *options.settings]
    given += [f"tune_recommender.checkpoint_steps={options.steps // 2}"]
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        examples = Folder.at(scratch)
        alone(write, load(options.config, given), options.steps, examples)
        for form, shared in FORMS.items():
            config = load(options.config, [*given, f"tune_recommender.shared_prefix={str(shared).lower()}"])
            count, tokens = alone(lengths, config, examples)
            for name, measure in (("bare TRL", bare), ("ours", ours)):
                seconds = alone(measure, config, examples)
                speeds = {"examples": count / seconds, "tokens": tokens / seconds, "ms": 1000 * seconds / options.steps}
                found[f"{name}, {form}"] = speeds
                print(f"{name}, {form}: {speeds}", flush=True)
    print("\n| | examples/s | tokens/s | ms a step | of bare TRL |\n|---|---|---|---|---|")
    for name, row in found.items():
        share = row["tokens"] / found[f"bare TRL, {name.partition(', ')[2]}"]["tokens"]
        print(f"| {name} | {row['examples']:.1f} | {row['tokens']:,.0f} | {row['ms']:.0f} | {share:.2f} |")
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
