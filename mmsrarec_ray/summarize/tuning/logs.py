"""What people can watch while summaries are tuned: curves, Ray's metrics, and the answers themselves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mmsrarec_ray.adapters import progress_told
from mmsrarec_ray.config import Config
from mmsrarec_ray.metrics import TuningMetrics
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.tuning.answers import Answerer, Judged
from mmsrarec_ray.summarize.tuning.examples import Examples
from mmsrarec_ray.summarize.tuning.terms import weights_of

SAMPLES = "samples"
_TOLD = ("reward", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio")
_SHOWN = 10  # answers in a file of samples


def trackers(config: Config, logs: Folder, rank: int, report: Callable[[str], None]) -> list[TrainerCallback]:
    """Callbacks of transformers' Trainer: lines, Ray's metrics, and those that the settings name.

    logs: the folder of TensorBoard's files.
    """
    callbacks = [progress_told("tune_summarizer", report, _TOLD)]
    if rank:
        return callbacks
    callbacks.append(_RayMetrics())
    if "tensorboard" in config.tune_summarizer.trackers:
        callbacks.append(_tensorboard(logs))
    if "mlflow" in config.tune_summarizer.trackers:
        from transformers.integrations import MLflowCallback

        callbacks.append(MLflowCallback())
    return callbacks


def _tensorboard(logs: Folder) -> TrainerCallback:
    """Writes where the run folder lies, or, on an object store, beside it and uploads with each checkpoint."""
    from tensorboardX import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    local = Path(logs.path) if not logs.scheme else Path(tempfile.mkdtemp(prefix="mmsrarec-curves-"))

    class Curves(TensorBoardCallback):
        def on_save(self, *arguments: Any, **more: Any) -> None:
            self._keep()

        def on_train_end(self, *arguments: Any, **more: Any) -> None:
            super().on_train_end(*arguments, **more)
            self._keep()

        def _keep(self) -> None:
            if logs.scheme:
                logs.upload(local)

    return Curves(SummaryWriter(str(local)))


class _RayMetrics(TrainerCallback):
    """Every figure of the log as a Ray metric."""

    def __init__(self) -> None:
        self.metrics = TuningMetrics("tune_summarizer")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        self.metrics.figures(state.global_step, logs or {})


class Evaluations(TrainerCallback):
    """Answers the validation items greedily before the first step and every so many: figures go to all trackers, the
    answers to a file that people can read."""

    def __init__(self, trainer: Any, answerer: Answerer, examples: Examples, every: int, logs: Folder | None):
        """logs: where samples go; None on all workers but one."""
        self.trainer, self.answerer, self.examples, self.every, self.logs = trainer, answerer, examples, every, logs

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 0:
            self._evaluate(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._evaluate(state)

    def _evaluate(self, state: Any) -> None:
        judged = self.answerer(self.trainer, self.examples)
        if self.logs is None:
            return
        figures = judged.figures(weights_of(self.answerer.config))
        # A copy: a log takes back the wish to log, and this worker alone would leave out what all gather at this step.
        handler, arguments, control = self.trainer.callback_handler, self.trainer.args, copy(self.trainer.control)
        handler.on_log(arguments, state, control, {f"eval_{name}": value for name, value in figures.items()})
        name = f"{SAMPLES}/step-{state.global_step:06d}.md"
        self.logs.write_bytes(name, _page(state.global_step, figures, judged, self.examples).encode())


def _page(step: int, figures: dict[str, float], judged: Judged, examples: Examples) -> str:
    lines = [
        f"# Validation items after step {step}",
        "",
        f"`{json.dumps(figures)}`",
        "",
        "| item | answer |",
        "|---|---|",
    ]
    for number, said in enumerate(judged.answers[:_SHOWN]):
        example = examples[number]
        lines.append(f"| {_cell(example.title) or example.item_id} | {_cell(said)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
