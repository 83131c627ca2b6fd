"""What is told of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from mmsrarec_ray.adapters import progress_told
from mmsrarec_ray.rank.tune import mean_loss


class Constant(torch.nn.Module):
    """A loss of its one weight, which a step of 1 makes smaller by 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(10.0))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.weight + 0 * x.sum()}


class Rows(Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(1)}


@pytest.mark.parametrize(("every", "told"), [(10, [7]), (3, [3, 6, 7]), (7, [7])])
def test_the_last_step_is_told_and_all_steps_count_alike(tmp_path: Path, every: int, told: list[int]) -> None:
    lines: list[str] = []
    arguments: dict[str, Any] = {"per_device_train_batch_size": 1, "num_train_epochs": 1, "max_grad_norm": 0}
    arguments |= {"learning_rate": 1.0, "lr_scheduler_type": "constant", "optim": "sgd", "logging_steps": every}
    arguments |= {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    trainer = Trainer(
        Constant(),
        TrainingArguments(str(tmp_path), **arguments),
        train_dataset=Rows(),
        callbacks=[progress_told("fit", lines.append)],
    )
    trainer.train()
    assert [line.split(",")[0] for line in lines] == [f"fit: step {step} of 7" for step in told]
    assert mean_loss(trainer.state.log_history) == pytest.approx(10 - 3)  # of 10, 9, …, 4
