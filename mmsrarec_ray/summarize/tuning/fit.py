"""Tuning the summaries by rewards: TRL's GRPOTrainer in Ray Train workers, a LoRA adapter (arXiv:2402.03300).

Every update samples its own answers, so a checkpoint always stands between two generations. All that is random in a
step is seeded by the step and the worker: a fit that was killed samples the same answers again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsrarec_ray.adapters import (
    Worker,
    checkpoint_keeper,
    load_base,
    load_processor,
    lora_config,
    newest_checkpoint,
    train_worker,
    training_arguments,
    write_result,
)
from mmsrarec_ray.config import Config
from mmsrarec_ray.data.splits import TEST, TRAIN, VALIDATION
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.render import grammar
from mmsrarec_ray.summarize.tuning.answers import Answerer
from mmsrarec_ray.summarize.tuning.examples import Examples
from mmsrarec_ray.summarize.tuning.judge import compare, write_report
from mmsrarec_ray.summarize.tuning.logs import Evaluations, trackers
from mmsrarec_ray.summarize.tuning.rewards import Reward
from mmsrarec_ray.summarize.tuning.terms import terms_of, weights_of
from mmsrarec_ray.summarize.tuning.trainer import trainer_class

_STEPS = 1_000_000  # more than any training has: seeds of two steps never meet


@dataclass(frozen=True)
class Task:
    """What the workers learn. examples: a folder a split; out: where the adapter goes; logs: where curves go."""

    config: Config
    examples: Folder
    out: Folder
    logs: Folder


def work(loop: dict[str, Any]) -> None:
    """What each Ray Train worker does. loop: a `task`, and `lines`, which takes lines for people."""
    task: Task = loop["task"]
    with train_worker(task.config, loop["lines"]) as worker:
        _Tuning(task, worker).run()


class _Tuning:
    """One tuning on one worker."""

    def __init__(self, task: Task, worker: Worker):
        self.task, self.worker = task, worker
        self.config, self.settings = task.config, task.config.tune_summarizer
        self.processor = load_processor(task.config)
        self.examples = {
            split: Examples(task.config, task.examples / split, self.processor) for split in (TRAIN, VALIDATION, TEST)
        }

    def run(self) -> None:
        import ray.train.torch

        frozen = load_base(self.config).eval().requires_grad_(False).to(ray.train.torch.get_device())
        terms = terms_of(self.config, frozen, self.processor, self.examples[TRAIN].texts())
        answerer = Answerer(self.config, self.processor, terms)
        trainer = trainer_of(self.config, self.examples[TRAIN], terms, self.worker.size, self.worker.scratch)
        logs = self.task.logs if self.worker.rank == 0 else None
        for callback in (
            _seeded(self.settings.seed, self.worker.rank),
            checkpoint_keeper(self.task.out, self.worker.rank),
            *trackers(self.config, self.task.logs, self.worker.rank, self.worker.report),
            Evaluations(trainer, answerer, self.examples[VALIDATION], self.settings.eval_steps, logs),
        ):
            trainer.add_callback(callback)
        resume, step = newest_checkpoint(self.task.out, self.worker.scratch / "resume")
        if resume:
            self.worker.report(f"tune_summarizer: goes on from step {step:,}")
        train(trainer, resume)
        before, after = (answerer(trainer, self.examples[TEST], tuned) for tuned in (False, True))
        report = compare(self.config, self.examples[TEST], before, after)
        if self.worker.rank == 0:
            write_report(report, self.task.out)
        facts = {"steps": trainer.state.global_step, "resumed_at": step, "test": report}
        write_result(self.config, trainer, facts, self.task.out, self.worker.scratch, self.worker.rank)


def train(trainer: Any, resume: str | None) -> None:
    """Train to the last step, from a checkpoint where there is one. Raises RuntimeError where it ended before: the
    trainer only warns of that."""
    trainer.train(resume_from_checkpoint=resume)
    done, wanted = trainer.state.global_step, trainer.args.max_steps
    if done < wanted:
        raise RuntimeError(f"the training ended after {done:,} of {wanted:,} steps")


def trainer_of(config: Config, examples: Examples, terms: Mapping[str, Reward], workers: int, scratch: Path) -> Any:
    """TRL's GRPOTrainer with a new adapter. terms: at least those that the settings give a weight."""
    from trl import GRPOConfig

    weights = weights_of(config)
    rewards: list[Any] = [terms[name] for name in weights]
    return trainer_class(config.tune_summarizer.edits)(
        model=load_base(config),
        reward_funcs=rewards,
        args=GRPOConfig(**grpo_arguments(config, workers, scratch), reward_weights=list(weights.values())),
        train_dataset=examples.dataset(),
        processing_class=_mixed(examples.processor),
        peft_config=lora_config(config.tune_summarizer.lora),
    )


def grpo_arguments(config: Config, workers: int, scratch: Path) -> dict[str, Any]:
    """TRL's arguments, but for the weights of the rewards."""
    settings = config.tune_summarizer
    return {
        **training_arguments(config, settings, workers, scratch),
        **_sampling(config),
        "max_steps": settings.steps,
        "num_generations": settings.generations,
        "temperature": settings.temperature,
        "max_completion_length": settings.max_tokens,
        "mask_truncated_completions": True,
        "beta": settings.beta,
        "entropy_coef": settings.entropy,
        "loss_type": "grpo",
        "report_to": [],
    }


def _mixed(processor: Any) -> Any:
    """The processor for batches in which some items have no picture: TRL says None of these, and it wants a list."""

    class Mixed(type(processor)):  # type: ignore[misc]
        def __call__(self, images: Any = None, **more: Any) -> Any:
            return super().__call__(images=images and [each or [] for each in images], **more)

    mixed = copy.copy(processor)
    mixed.__class__ = Mixed
    return mixed


def _sampling(config: Config) -> dict[str, Any]:
    """Who samples the answers. vLLM holds them to the grammar; transformers samples freely, and `form` charges."""
    s = config.tune_summarizer
    if s.generation == "transformers":
        return {}
    forms = [grammar(config).regex(*form) for form in ((True, True), (True, False), (False, True))]
    where: dict[str, Any] = {"vllm_mode": "server", "vllm_server_base_url": s.vllm_server}
    if s.generation == "vllm_colocate":
        where = {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": s.vllm_memory}
    regex = "|".join(f"({form})" for form in forms)
    return {
        "use_vllm": True,
        "vllm_structured_outputs_regex": regex,
        "vllm_max_model_length": config.model.max_model_len,
    } | where


def _seeded(seed: int, rank: int) -> Any:
    """A callback that seeds what is drawn in a step by the step."""
    from transformers import TrainerCallback, set_seed

    class Seeded(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            set_seed(((seed * _STEPS + state.global_step) * 1_009 + rank) % 2**32)

    return Seeded()
