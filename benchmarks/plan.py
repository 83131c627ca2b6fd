"""A step of fine-tuning and a prefill on this machine's GPU, beside what `--dry-run` estimates of them (docs/plan.md).

    python benchmarks/plan.py --config configs/gpu.yaml data.path=/nowhere run=/nowhere --output plan.json

The model has the shapes of `model.source` and random weights: nothing is downloaded, and arithmetic and memory do not
depend on weights. Prompts have the lengths and pictures that the estimate assumes, out of random tokens and pixels. The
step is that of `jobs/tune_recommender.py` on one GPU: TRL's trainer, the adapter, separate sequences, a micro batch of
contexts, each with all of its choices; DeepSpeed, which divides things over workers, is left out. The prefill is a
forward pass of transformers without gradients: a lower bound of what an engine does.

Prints a row for each micro batch, with and without checkpointing: seconds a step (the median), tokens and operations a
second, the share of the GPU's peak that they are by the estimate's own count (`plan.utilisation`), and memory, measured
and estimated. A configuration without `train.gpu` runs on the CPU, where there is no peak and no memory to compare.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mmsrarec_ray.adapters import load_processor, lora_config, training_arguments
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.estimate.gpus import GPUS
from mmsrarec_ray.estimate.machine import ACTIVATIONS, BASE, GIB, STATES, Trainers
from mmsrarec_ray.estimate.shapes import Shapes, configuration, shapes_of
from mmsrarec_ray.estimate.stages import Prompt, Prompts, sequences

PARTS = (BASE, STATES, ACTIVATIONS)
HEAD = ("", "contexts x choices", "tokens", "seconds", "tokens/s", "TFLOP/s", "of peak")
HEAD = (*HEAD, *(f"{part}: GiB (estimate)" for part in PARTS))
MADE = ["train.workers=1", "tune_recommender.deepspeed=null", "tune_recommender.shared_prefix=false"]


@dataclass(frozen=True)
class Case:
    """One measurement. name: of its kind; contexts: in the micro batch; rows, tokens: of the batch."""

    name: str
    contexts: int
    rows: int
    tokens: int
    flops: float
    """Operations of a step, by the estimate."""
    memory: dict[str, float]
    """Bytes by what they are for, by the estimate."""


@dataclass(frozen=True)
class Measured:
    """seconds: of each timed step; memory: bytes, by the names of the estimate; empty on a CPU."""

    seconds: list[float]
    memory: dict[str, float]


class Bench:
    """A configuration's model and batches on one device."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.config = self.at(1, False)
        self.device = torch.device("cuda" if self.config.train.gpu else "cpu")
        self.shapes: Shapes = shapes_of(self.config.model)
        self.choice, times = sequences(self.config, Prompts(self.config, self.shapes, 1.0))[0]
        self.choices = round(times)

    def at(self, contexts: int, checkpointing: bool) -> Config:
        """The configuration with a step of so many contexts, all in one micro batch."""
        step = [f"tune_recommender.{name}={contexts}" for name in ("batch_size", "micro_batch_size")]
        kept = f"tune_recommender.gradient_checkpointing={json.dumps(checkpointing)}"
        return load(self.options.config, [*self.options.settings, *MADE, *step, kept])

    def work(self) -> Iterator[tuple[Callable[..., tuple[Case, Measured]], tuple[Any, ...]]]:
        """What to measure, with its arguments."""
        yield from ((self.prefill, (contexts,)) for contexts in self.options.prefill)
        yield from ((self.train, (contexts, True)) for contexts in self.options.checkpointed)
        yield from ((self.train, (contexts, False)) for contexts in self.options.kept)

    def model(self) -> Any:
        """Random weights, made where they are used."""
        from transformers import AutoModelForImageTextToText

        torch.manual_seed(0)
        with self.device:
            return AutoModelForImageTextToText.from_config(
                configuration(self.config.model), dtype=getattr(torch, self.config.model.dtype)
            )

    def train(self, contexts: int, checkpointing: bool) -> tuple[Case, Measured]:
        """Steps of the trainer."""
        config, rows = self.at(contexts, checkpointing), contexts * self.choices
        trainers = Trainers(self.shapes, config.plan, config.tune_recommender, 1)
        tokens, patches = round(self.choice.tokens), self.choice.patches
        case = Case(
            "training, checkpointing" if checkpointing else "training",
            contexts,
            rows,
            rows * tokens,
            rows * trainers.flops(tokens, patches, 1),
            trainers.states() | {ACTIVATIONS: trainers.activations(self.choices * tokens, self.choices * patches)},
        )
        model = self.model()
        batch = batch_of(model.config, self.choice, rows, self.shapes)
        return case, fitted(config, model, batch, self.options.warm, self.options.steps)

    def prefill(self, contexts: int) -> tuple[Case, Measured]:
        """Forward passes over the same prompts, with the logits of their last tokens."""
        rows, tokens, shapes = contexts * self.choices, round(self.choice.tokens), self.shapes
        each = shapes.text_flops(tokens) + shapes.head_flops(1) + shapes.picture_flops(self.choice.patches)
        case = Case("prefill", contexts, rows, rows * tokens, rows * each, {BASE: shapes.weights})
        model = self.model().eval()
        batch = batch_of(model.config, self.choice, rows, shapes)
        batch = {name: values.to(self.device) for name, values in batch.items() if name != "labels"}
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        seconds, clock = [], Clock(self.device)
        with torch.inference_mode():
            for _ in range(self.options.warm + self.options.steps):
                clock.start()
                model(**batch, logits_to_keep=1, use_cache=False)
                seconds.append(clock.stop())
        return case, Measured(seconds[self.options.warm :], {BASE: held(self.device)})


class Clock:
    """Seconds until the device has done what it was given."""

    def __init__(self, device: torch.device):
        self.wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def start(self) -> None:
        self.wait()
        self.began = time.perf_counter()

    def stop(self) -> float:
        self.wait()
        return time.perf_counter() - self.began


def held(device: torch.device) -> float:
    """Bytes of tensors on a GPU now."""
    return float(torch.cuda.memory_allocated()) if device.type == "cuda" else 0.0


def batch_of(model: Any, prompt: Prompt, rows: int, shapes: Shapes) -> dict[str, torch.Tensor]:
    """Sequences of a prompt's length, on the CPU, in the form that the collator gives them: random tokens, behind them
    those of the picture, the answer last. model: its configuration."""
    generator = torch.Generator().manual_seed(0)
    length, pictured = round(prompt.tokens), round(prompt.patches) // shapes.merge**2
    tokens = torch.randint(model.get_text_config().vocab_size, (rows, length), generator=generator)
    tokens[tokens == model.image_token_id] = model.image_token_id - 1
    tokens[:, length - 1 - pictured : length - 1] = model.image_token_id
    labels = torch.full_like(tokens, -100)
    labels[:, -1] = tokens[:, -1]
    batch = {"input_ids": tokens, "labels": labels, "attention_mask": torch.ones_like(tokens)}
    return (
        batch
        | (pictures(model, rows, round(prompt.patches), shapes, generator) if pictured else {})
        | types(model, tokens)
    )


def types(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What tells a model with positions in rows and columns where its pictures stand."""
    there = model.model_type.startswith("qwen")
    return {"mm_token_type_ids": (tokens == model.image_token_id).int()} if there else {}


def pictures(
    model: Any, rows: int, patches: int, shapes: Shapes, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """A square picture of random pixels for each row, as the processors of Qwen-VL and of Idefics 3 give them."""
    side, pixels = round(patches**0.5), shapes.patch
    if model.model_type.startswith("qwen"):
        values = 3 * model.vision_config.temporal_patch_size * pixels**2
        return {
            "pixel_values": torch.randn(rows * patches, values, generator=generator),
            "image_grid_thw": torch.tensor([[1, side, side]] * rows),
        }
    return {"pixel_values": torch.randn(rows, 1, 3, side * pixels, side * pixels, generator=generator)}


def fitted(config: Config, model: Any, batch: dict[str, torch.Tensor], warm: int, steps: int) -> Measured:
    """Time the trainer's steps on one batch. Batches are not made anew: what CPUs do for them is left out."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings, device = config.tune_recommender, model.device
    base = held(device)
    watch = watcher(device)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(config, settings, 1, Path(scratch)) | {"save_strategy": "no"}
        count = (warm + steps) * settings.batch_size
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **arguments,
                num_train_epochs=1,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                report_to=[],
            ),
            train_dataset=Dataset.from_dict({"context": list(range(count))}),
            data_collator=lambda contexts: dict(batch),
            # Any will do: it prepares nothing here. That of the model may not be on this machine.
            processing_class=load_processor(config.model_copy(update={"model": type(config.model)()})),
            peft_config=lora_config(settings.lora),
            callbacks=[watch],
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    if device.type != "cuda":
        return Measured(watch.seconds[warm:], {})
    peak = float(torch.cuda.max_memory_allocated())
    memory = {
        BASE: base,
        STATES: watch.between - base,
        ACTIVATIONS: peak - watch.between,
    }
    return Measured(watch.seconds[warm:], memory)


def watcher(device: torch.device) -> Any:
    """A callback of the trainer that times its steps, and notes what lies on the GPU between two of them."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.clock, self.seconds, self.between = Clock(device), [], 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.clock.start()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.between = held(device)  # activations are gone and gradients still there

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.seconds.append(self.clock.stop())

    return Watch()


def told(case: Case, measured: Measured, peak: float | None) -> dict[str, Any]:
    """A case as JSON. peak: operations a second that the GPU can do at best, None on a CPU."""
    seconds = median(measured.seconds)
    return asdict(case) | {
        "seconds": seconds,
        "all_seconds": measured.seconds,
        "tokens_per_second": case.tokens / seconds,
        "flops_per_second": case.flops / seconds,
        "share_of_peak": case.flops / seconds / peak if peak else None,
        "measured_memory": measured.memory,
    }


def row(found: dict[str, Any]) -> str:
    """A case as a line of the table."""
    share = "" if found["share_of_peak"] is None else f"{found['share_of_peak']:.1%}"
    memory = [
        f"{found['measured_memory'][part] / GIB:.1f} ({found['memory'][part] / GIB:.1f})"
        if part in found["measured_memory"]
        else ""
        for part in PARTS
    ]
    size = f"{found['contexts']} x {found['rows'] // found['contexts']} | {found['tokens']:,}"
    speed = f"{found['seconds']:.3f} | {found['tokens_per_second']:,.0f} | {found['flops_per_second'] / 1e12:.1f}"
    return f"| {found['name']} | {size} | {speed} | {share} | {' | '.join(memory)} |"


def numbers(said: str) -> list[int]:
    """Numbers with commas between them."""
    return [int(number) for number in said.split(",") if number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--checkpointed", type=numbers, default="4,8", help="contexts in a micro batch, with commas")
    parser.add_argument("--kept", type=numbers, default="1,2", help="the same without checkpointing")
    parser.add_argument("--prefill", type=numbers, default="8", help="the same for the prefill")
    parser.add_argument("--warm", type=int, default=2, help="steps that are left out")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed")
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    bench = Bench(options)
    gpu = bench.device.type == "cuda"
    peak = GPUS[bench.config.plan.gpu].flops if gpu else None
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "assumed": bench.config.plan.gpu if gpu else None,
        "torch": torch.__version__,
        "parameters": bench.shapes.parameters,
        "tokens_a_sequence": bench.choice.tokens,
        "patches_a_sequence": bench.choice.patches,
        "cases": [],
    }
    print(json.dumps(found, indent=1))
    print(f"\n| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|", flush=True)
    for measure, arguments in bench.work():
        try:
            found["cases"].append(told(*measure(*arguments), peak))
            print(row(found["cases"][-1]), flush=True)
        except torch.OutOfMemoryError as error:
            found["cases"].append({"case": [measure.__name__, *arguments], "out of memory": str(error)})
            print(f"| {measure.__name__} {arguments}: out of memory |", flush=True)
        if options.output:
            options.output.write_text(json.dumps(found, indent=1) + "\n")
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
