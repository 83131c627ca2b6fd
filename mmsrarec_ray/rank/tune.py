"""Supervised fine-tuning of the recommender: TRL's SFTTrainer in Ray Train workers, a LoRA adapter, loss on answers.

Examples are read from disk as they are needed; their pictures are decoded then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsrarec_ray.adapters import (
    Worker,
    checkpoint_keeper,
    load_base,
    lora_config,
    newest_checkpoint,
    progress_told,
    train_worker,
    training_arguments,
    write_result,
)
from mmsrarec_ray.config import Config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.load import source
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.examples import read_examples
from mmsrarec_ray.rank.head import at_answers_alone
from mmsrarec_ray.rank.packing import Collator
from mmsrarec_ray.store import Folder

_SECTIONS = "mrope_section"  # in the configuration of a model that counts positions so


@dataclass(frozen=True)
class Task:
    """What the workers learn. train, validation: folders of examples; out: where the adapter goes."""

    config: Config
    catalogue: Catalogue
    train: Folder
    validation: Folder
    out: Folder


def work(loop: dict[str, Any]) -> None:
    """What each Ray Train worker does. loop: a `task`, and `lines`, which takes lines for people."""
    import ray

    task: Task = ray.get(loop["task"])
    with train_worker(task.config, loop["lines"]) as worker:
        _Tuning(task, worker).run()


class _Tuning:
    """One fine-tuning on one worker."""

    def __init__(self, task: Task, worker: Worker):
        self.task, self.worker = task, worker
        self.settings = task.config.tune_recommender
        self.asker = Asker(task.config, task.catalogue)

    def run(self) -> None:
        training = self._trainer()
        resume, step = newest_checkpoint(self.task.out, self.worker.scratch / "resume")
        if resume:
            self.worker.report(f"tune_recommender: goes on from step {step:,}")
        trained = training.train(resume_from_checkpoint=resume)
        judged = training.evaluate()
        facts = {
            "steps": training.state.global_step,
            "resumed_at": step,
            "train_seconds": trained.metrics["train_runtime"],  # since it was resumed
            "train_loss": mean_loss(training.state.log_history),
            "validation_loss": judged["eval_loss"],
            "validation_accuracy": judged["eval_mean_token_accuracy"],
        }
        write_result(self.task.config, training, facts, self.task.out, self.worker.scratch, self.worker.rank)

    def _trainer(self) -> Any:
        scratch = self.worker.scratch
        return trainer(
            self.task.config,
            self.asker,
            training_arguments(self.task.config, self.settings, self.worker.size, scratch),
            read_examples(self.task.train, scratch),
            read_examples(self.task.validation, scratch),
            [
                checkpoint_keeper(self.task.out, self.worker.rank),
                progress_told("tune_recommender", self.worker.report),
            ],
        )


def trainer(
    config: Config, asker: Asker, arguments: dict[str, Any], train: Any, validation: Any = None, callbacks: Any = ()
) -> Any:
    """TRL's trainer of a recommender.

    arguments: as `training_arguments` gives them; train, validation: of `read_examples`. Raises ConfigError where the
    model has other positions than a shared prefix gives it.
    """
    from trl import SFTConfig, SFTTrainer

    model, settings = load_base(config), config.tune_recommender
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if settings.shared_prefix and _SECTIONS in rope:
        raise _needs_plain_positions(type(model).__name__)
    # ZeRO-3 gathers a layer's weights on all workers at once: none may pass by the layers that read pictures.
    collator = Collator(asker, settings.shared_prefix, pictured=settings.deepspeed == "zero3")
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments,
            num_train_epochs=1,  # what is learnt in a further epoch is further examples
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to=[],
        ),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collator if config.train.gpu else at_answers_alone(model, collator),
        processing_class=asker.processor,
        peft_config=lora_config(settings.lora),
        callbacks=list(callbacks),
    )


def mean_loss(history: list[dict[str, Any]]) -> float:
    """Over all steps. history: transformers' log, in which an entry holds the mean since the one before."""
    steps, losses = zip(*((entry["step"], float(entry["loss"])) for entry in history if "loss" in entry), strict=True)
    return float(np.average(losses, weights=np.diff([0, *steps])))


def check_positions(config: Config) -> None:
    """Raises ConfigError where the training would refuse to share a prefix, if the model is a folder here."""
    file = Path(source(config.model), "config.json")
    if config.tune_recommender.shared_prefix and file.is_file() and f'"{_SECTIONS}"' in file.read_text():
        raise _needs_plain_positions(config.model.source)


def _needs_plain_positions(model: str) -> ConfigError:
    """A shared prefix would give the model other positions than it works out for itself."""
    return ConfigError(
        "tune_recommender.shared_prefix: must be false for a model that counts positions in rows and columns of "
        f"pictures, such as {model}. Got true."
    )
