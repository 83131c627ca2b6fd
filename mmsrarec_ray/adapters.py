"""What fine-tunings of the language model share: LoRA on its text model, DeepSpeed, checkpoints, the adapter's files.

The artefact's folder is the truth: checkpoints lie below it, whole ones named by a file that is written last, and a
fit that is killed goes on from the newest.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmsrarec_ray.config import Config
from mmsrarec_ray.models.load import source
from mmsrarec_ray.settings import Lora, Tuning
from mmsrarec_ray.store import Folder

ADAPTER, CHECKPOINTS, FACTS = "adapter", "checkpoints", "training.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINING = (CHECKPOINTS, FACTS)
"""What a stage that trains an adapter goes on from. Equal weights shall be an equal artefact, whatever its losses:
these are in the manifest's metrics."""
_ADAPTER_CONFIG = "adapter_config.json"
_COMPLETE = "complete"
_KEPT_CHECKPOINTS = 2
ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


@dataclass(frozen=True)
class Worker:
    """Where a fine-tuning runs: its rank among so many, a folder of its own, and what says a line for people (of the
    first worker alone)."""

    rank: int
    size: int
    scratch: Path
    report: Callable[[str], None]


@contextmanager
def train_worker(config: Config, lines: Any) -> Iterator[Worker]:
    """In a Ray Train worker: what a fine-tuning needs to know of it. lines: whose `put` says a line."""
    import ray.train

    if not config.train.gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    context = ray.train.get_context()
    rank = context.get_world_rank()
    with tempfile.TemporaryDirectory(prefix="mmsrarec-tune-") as scratch:
        yield Worker(rank, context.get_world_size(), Path(scratch), lines.put if rank == 0 else lambda line: None)


def libraries() -> dict[str, str]:
    """What computes an adapter, with versions."""
    names = ("trl", "peft", "transformers", "accelerate", "deepspeed", "torch")
    return {"name": "trl", **{name: version(name) for name in names}}


def load_base(config: Config) -> Any:
    """The model that an adapter is learnt for, in transformers."""
    import torch
    from transformers import AutoModelForImageTextToText

    model = config.model
    return AutoModelForImageTextToText.from_pretrained(
        source(model), revision=model.revision, dtype=getattr(torch, model.dtype)
    )


def load_processor(config: Config) -> Any:
    """Its processor: tokenizer, chat template and pictures."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(source(config.model), revision=config.model.revision)


def lora_config(lora: Lora) -> Any:
    """PEFT's configuration."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=adapted_modules(lora.modules),
        task_type="CAUSAL_LM",
    )


def adapted_modules(names: Sequence[str]) -> str:
    """A regular expression for these linear layers of the text model alone: vLLM ignores those of the vision tower."""
    return rf".*(text_model|language_model).*\.({'|'.join(names)})"


def training_arguments(config: Config, settings: Tuning, workers: int, scratch: Path) -> dict[str, Any]:
    """The arguments that both of TRL's trainers take. scratch: a folder of this worker."""
    each = settings.batch_size // workers
    micro = min(each, settings.micro_batch_size)
    return {
        "output_dir": str(scratch / "output"),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": each // micro,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "seed": settings.seed,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_steps,
        "logging_steps": settings.log_steps,
        "disable_tqdm": True,
        "use_cpu": not config.train.gpu,
        "bf16": config.train.gpu and config.model.dtype == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "deepspeed": _deepspeed(settings),
        "dataloader_pin_memory": config.train.gpu,
        "remove_unused_columns": False,
    }


def _deepspeed(settings: Tuning) -> dict[str, Any] | None:
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
            "stage": ZERO_STAGES[settings.deepspeed],
            "overlap_comm": False,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
    }


def checkpoint_keeper(out: Folder, rank: int) -> Any:
    """A callback of transformers' Trainer that moves each worker's checkpoints below `out`; the newest two stay."""
    import torch.distributed
    from transformers import TrainerCallback

    folder = out / CHECKPOINTS

    class Keeper(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            local = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            kept = folder / f"{state.global_step:09d}"
            if local.exists():
                kept.upload(local)
                shutil.rmtree(local)
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            if rank == 0:
                kept.write_bytes(_COMPLETE, b"")
                for name in _whole(folder)[_KEPT_CHECKPOINTS:]:
                    (folder / name).remove()

    return Keeper()


def progress_told(name: str, report: Callable[[str], None], figures: Sequence[str] = ("loss",)) -> Any:
    """A callback that says where training stands, with these figures of the log, which has an entry of the last step
    too."""
    from transformers import TrainerCallback

    class Teller(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_log = control.should_log or state.global_step >= state.max_steps

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                told = [f"{figure} {float(logs[figure]):.4f}" for figure in figures if logs.get(figure) is not None]
                report(f"{name}: step {state.global_step:,} of {state.max_steps:,}, {', '.join(told)}")

    return Teller()


def newest_checkpoint(out: Folder, local: Path) -> tuple[str | None, int]:
    """A local copy of the newest complete checkpoint, and its step; None and 0 where there is none."""
    folder = out / CHECKPOINTS
    for name in _whole(folder):
        (folder / name).download(local)
        return str(local), int(name)
    return None, 0


def _whole(folder: Folder) -> list[str]:
    """Names of the complete checkpoints, the newest first."""
    return [name for name in reversed(folder.folders()) if (folder / name).exists(_COMPLETE)]


def write_result(config: Config, trainer: Any, facts: dict[str, Any], out: Folder, scratch: Path, rank: int) -> None:
    """The adapter, then what is known of its training: `FACTS` is written last. To be called by every worker.

    Equal weights give equal bytes, wherever they were learnt.
    """
    made = scratch / ADAPTER
    trainer.save_model(str(made))
    if rank == 0:
        (out / ADAPTER).write_bytes(_ADAPTER_CONFIG, _portable((made / _ADAPTER_CONFIG).read_bytes(), config))
        (out / ADAPTER).write_bytes(ADAPTER_WEIGHTS, (made / ADAPTER_WEIGHTS).read_bytes())
        out.write_bytes(FACTS, json.dumps(facts, indent=2).encode())


def _portable(adapter_config: bytes, config: Config) -> bytes:
    """PEFT's configuration with the base model as the settings name it. PEFT writes the folder that it was loaded
    from, which for the tiny one is wherever the package lies; neither PEFT nor vLLM needs it to load the adapter."""
    settings = json.loads(adapter_config) | {"base_model_name_or_path": config.model.source}
    return json.dumps(settings, indent=2, sort_keys=True).encode()


def read_facts(out: Folder) -> dict[str, Any]:
    """What `write_result` told of the training."""
    return json.loads(out.read_bytes(FACTS))
