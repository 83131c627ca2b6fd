"""Supervised fine-tuning of the recommender: TRL's SFTTrainer in Ray Train workers, a LoRA adapter, loss on the answer.

The folder is the truth: checkpoints lie below it, whole ones named by a file that is written last, and a fit that is
killed goes on from the newest. Examples are read from disk as they are needed; a candidate's picture is decoded then.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsrarec_ray.config import Config, TuneRecommender
from mmsrarec_ray.models.load import source
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.examples import read_examples
from mmsrarec_ray.store import Folder

ADAPTER, CHECKPOINTS, FACTS = "adapter", "checkpoints", "training.json"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # equal weights give equal bytes
_COMPLETE = "complete"
_KEPT_CHECKPOINTS = 2
_ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


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
    import ray.train

    task: Task = ray.get(loop["task"])
    if not task.config.train.gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    context = ray.train.get_context()
    with tempfile.TemporaryDirectory(prefix="mmsrarec-tune-") as scratch:
        _Tuning(task, Path(scratch), context.get_world_rank(), context.get_world_size(), loop["lines"].put).run()


class _Tuning:
    """One fine-tuning on one worker."""

    def __init__(self, task: Task, scratch: Path, rank: int, size: int, report: Callable[[str], None]):
        self.task, self.scratch, self.rank, self.size = task, scratch, rank, size
        self.settings = task.config.tune_recommender
        self.report = report if rank == 0 else lambda line: None
        self.asker = Asker(task.config, task.catalogue)

    def run(self) -> None:
        trainer = self._trainer()
        resume, step = _newest(self.task.out / CHECKPOINTS, self.scratch / "resume")
        if resume:
            self.report(f"tune_recommender: goes on from step {step:,}")
        trainer.train(resume_from_checkpoint=resume)
        judged = trainer.evaluate()
        trainer.save_model(str(self.scratch / ADAPTER))
        if self.rank == 0:
            for name in _ADAPTER_FILES:
                (self.task.out / ADAPTER).write_bytes(name, (self.scratch / ADAPTER / name).read_bytes())
            losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
            facts = {
                "steps": trainer.state.global_step,
                "resumed_at": step,
                "train_loss": sum(losses) / max(1, len(losses)),
                "validation_loss": judged["eval_loss"],
                "validation_accuracy": judged["eval_mean_token_accuracy"],
            }
            self.task.out.write_bytes(FACTS, json.dumps(facts, indent=2).encode())

    def _trainer(self) -> Any:
        import torch
        from peft import LoraConfig
        from transformers import AutoModelForImageTextToText
        from trl import SFTTrainer

        model_settings, lora = self.task.config.model, self.settings.lora
        model = AutoModelForImageTextToText.from_pretrained(
            source(model_settings), revision=model_settings.revision, dtype=getattr(torch, model_settings.dtype)
        )
        return SFTTrainer(
            model=model,
            args=self._arguments(),
            train_dataset=self._examples(self.task.train),
            eval_dataset=self._examples(self.task.validation),
            processing_class=self.asker.processor,
            peft_config=LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=adapted_modules(lora.modules),
                task_type="CAUSAL_LM",
            ),
            callbacks=[self._keeper()],
        )

    def _arguments(self) -> Any:
        from trl import SFTConfig

        s, train = self.settings, self.task.config.train
        each = s.batch_size // self.size
        micro = min(each, s.micro_batch_size)
        return SFTConfig(
            output_dir=str(self.scratch / "output"),
            per_device_train_batch_size=micro,
            per_device_eval_batch_size=micro,
            gradient_accumulation_steps=each // micro,
            num_train_epochs=s.epochs,
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            warmup_steps=s.warmup,
            lr_scheduler_type="cosine",
            optim="adamw_torch",
            seed=s.seed,
            max_length=None,
            completion_only_loss=True,
            save_strategy="steps",
            save_steps=s.checkpoint_steps,
            logging_steps=s.log_steps,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not train.gpu,
            bf16=train.gpu and self.task.config.model.dtype == "bfloat16",
            gradient_checkpointing=s.gradient_checkpointing,
            deepspeed=deepspeed(s),
            dataloader_pin_memory=train.gpu,
            remove_unused_columns=False,
        )

    def _examples(self, folder: Folder) -> Any:
        """Examples whose pictures are decoded on demand."""
        return read_examples(folder, self.scratch).with_transform(self._completed)

    def _completed(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pictures = [self.asker.picture(number) for number in batch["number"]]
        return {
            "prompt": batch["prompt"],
            "completion": [self.asker.spoken[answer] for answer in batch["answer"]],
            "images": [[picture] if picture is not None else [] for picture in pictures],
        }

    def _keeper(self) -> Any:
        """Uploads checkpoints and says where training stands."""
        import torch.distributed
        from transformers import TrainerCallback

        tuning = self

        class Keeper(TrainerCallback):
            def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                local = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                kept = tuning.task.out / CHECKPOINTS / f"{state.global_step:09d}"
                if local.exists():
                    kept.upload(local)
                    shutil.rmtree(local)
                if torch.distributed.is_initialized():
                    torch.distributed.barrier()
                if tuning.rank == 0:
                    kept.write_bytes(_COMPLETE, b"")
                    for name in _whole(tuning.task.out / CHECKPOINTS)[_KEPT_CHECKPOINTS:]:
                        (tuning.task.out / CHECKPOINTS / name).remove()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
                if logs and "loss" in logs:
                    where = f"step {state.global_step:,} of {state.max_steps:,}"
                    tuning.report(f"tune_recommender: {where}, loss {float(logs['loss']):.4f}")

        return Keeper()


def adapted_modules(names: Sequence[str]) -> str:
    """A regular expression for these linear layers of the text model alone: vLLM ignores those of the vision tower."""
    return rf".*(text_model|language_model).*\.({'|'.join(names)})"


def deepspeed(settings: TuneRecommender) -> dict[str, Any] | None:
    """DeepSpeed's configuration (Rajbhandari et al. 2020, arXiv:1910.02054), None without it."""
    if settings.deepspeed is None:
        return None
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": _ZERO_STAGES[settings.deepspeed],
            "overlap_comm": False,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
    }


def _whole(folder: Folder) -> list[str]:
    """Names of the complete checkpoints, the newest first."""
    return [name for name in reversed(folder.folders()) if (folder / name).exists(_COMPLETE)]


def _newest(folder: Folder, local: Path) -> tuple[str | None, int]:
    """A local copy of the newest complete checkpoint, and its step; None and 0 where there is none."""
    for name in _whole(folder):
        (folder / name).download(local)
        return str(local), int(name)
    return None, 0
