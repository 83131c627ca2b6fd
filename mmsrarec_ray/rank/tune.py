"""Supervised fine-tuning of the recommender: TRL's SFTTrainer in Ray Train workers, a LoRA adapter, loss on the answer.

Examples are read from disk as they are needed; a candidate's picture is decoded then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.examples import read_examples
from mmsrarec_ray.store import Folder


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
        trainer = self._trainer()
        resume, step = newest_checkpoint(self.task.out, self.worker.scratch / "resume")
        if resume:
            self.worker.report(f"tune_recommender: goes on from step {step:,}")
        trainer.train(resume_from_checkpoint=resume)
        judged = trainer.evaluate()
        losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        facts = {
            "steps": trainer.state.global_step,
            "resumed_at": step,
            "train_loss": sum(losses) / max(1, len(losses)),
            "validation_loss": judged["eval_loss"],
            "validation_accuracy": judged["eval_mean_token_accuracy"],
        }
        write_result(trainer, facts, self.task.out, self.worker.scratch, self.worker.rank)

    def _trainer(self) -> Any:
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(
            model=load_base(self.task.config),
            args=SFTConfig(
                **training_arguments(self.task.config, self.settings, self.worker.size, self.worker.scratch),
                num_train_epochs=self.settings.epochs,
                max_length=None,
                completion_only_loss=True,
                report_to=[],
            ),
            train_dataset=self._examples(self.task.train),
            eval_dataset=self._examples(self.task.validation),
            processing_class=self.asker.processor,
            peft_config=lora_config(self.settings.lora),
            callbacks=[
                checkpoint_keeper(self.task.out, self.worker.rank),
                progress_told("tune_recommender", self.worker.report),
            ],
        )

    def _examples(self, folder: Folder) -> Any:
        """Examples whose pictures are decoded on demand."""
        return read_examples(folder, self.worker.scratch).with_transform(self._completed)

    def _completed(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pictures = [self.asker.picture(number) for number in batch["number"]]
        return {
            "prompt": batch["prompt"],
            "completion": [self.asker.spoken[answer] for answer in batch["answer"]],
            "images": [[picture] if picture is not None else [] for picture in pictures],
        }
