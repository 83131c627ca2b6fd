"""Training of several sequence encoders by one Ray Train fit, one after the other on the same workers.

Start-up of Ray Train takes longer than a small encoder, so it is paid once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray
import ray.train.torch

from mmsrarec_ray import workers
from mmsrarec_ray.lease import held
from mmsrarec_ray.retrieve.fit import EncoderTask, Training, check, discard_checkpoints, finished, fit, read_training
from mmsrarec_ray.settings import Train as TrainSettings


def train_encoders(tasks: Sequence[EncoderTask], settings: TrainSettings) -> list[Training]:
    """Train each encoder into its own folder and tell how it went, in the order of the tasks.

    Encoders whose folder holds finished weights are left alone; where all are, no worker starts. Ray must be
    connected. A worker that dies is replaced up to `settings.max_failures` times, and training goes on from the
    newest checkpoint; after that ray.train.TrainingFailedError is raised, which holds what went wrong. Raises
    InputError, before any worker starts, where there is nothing to learn from or to choose on, and LeaseError where
    another job trains one of them.
    """
    waiting = [task for task in tasks if not finished(task.folder)]
    for task in waiting:
        check(task)
    with ExitStack() as leases:
        for task in waiting:
            leases.enter_context(held(task.folder))
        if waiting:  # workers leave alone what another job finished before it was ours
            loop = {"tasks": [ray.put(task) for task in waiting], "checkpoint_steps": settings.checkpoint_steps}
            workers.run("encoders", _work, loop, settings)
    for task in tasks:
        discard_checkpoints(task.folder)  # of a worker killed between its last write and its clearing up
    return [read_training(task.folder) for task in tasks]


def _work(loop: dict[str, Any]) -> None:
    """What each worker does."""
    for task in loop["tasks"]:
        fit(ray.get(task), loop["checkpoint_steps"], ray.train.torch.get_device(), loop["lines"].put)
