"""Training of several sequence encoders by one Ray Train fit, one after the other on the same workers.

Start-up of Ray Train takes longer than a small encoder, so it is paid once. Ray's registry of checkpoints is not
used: it forgets one that is reported just before a worker dies. Workers look into the folders instead.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmsrarec_ray import config
from mmsrarec_ray.progress import say
from mmsrarec_ray.retrieve.fit import EncoderTask, Training, check, discard_checkpoints, finished, fit, read_training


def train_encoders(tasks: Sequence[EncoderTask], settings: config.Train) -> list[Training]:
    """Train each encoder into its own folder and tell how it went, in the order of the tasks.

    Encoders whose folder holds finished weights are left alone; where all are, no worker starts. Ray must be
    connected. A worker that dies is replaced up to `settings.max_failures` times, and training goes on from the
    newest checkpoint; after that ray.train.TrainingFailedError is raised, which holds what went wrong. Raises
    InputError, before any worker starts, where there is nothing to learn from or to choose on.
    """
    waiting = [task for task in tasks if not finished(task.folder)]
    for task in waiting:
        check(task)
    if waiting:
        _train(waiting, settings)
    for task in tasks:
        discard_checkpoints(task.folder)  # of a worker killed between its last write and its clearing up
    return [read_training(task.folder) for task in tasks]


def _train(tasks: Sequence[EncoderTask], settings: config.Train) -> None:
    resources = {"CPU": settings.cpus} | ({"GPU": 1} if settings.gpu else {})
    with tempfile.TemporaryDirectory(prefix="mmsrarec-train-") as scratch, _lines() as lines, _interrupts_kept():
        ray.train.torch.TorchTrainer(
            _work,
            train_loop_config={
                "tasks": [ray.put(task) for task in tasks],
                "checkpoint_steps": settings.checkpoint_steps,
                "threads": settings.threads,
                "lines": lines,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.workers, use_gpu=settings.gpu, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name="encoders",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            ),
        ).fit()


def _work(loop: dict[str, Any]) -> None:
    """What each worker does."""
    here = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(loop["threads"] or max(1, len(os.sched_getaffinity(0)) // here))
    for task in loop["tasks"]:
        fit(ray.get(task), loop["checkpoint_steps"], ray.train.torch.get_device(), loop["lines"].put)


@contextmanager
def _lines() -> Iterator[Queue]:
    """A queue whose lines are said by this process: what workers print stays in Ray's logs."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def listen() -> None:
        while (line := queue.get()) is not None:
            say(line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield queue
    finally:
        queue.put(None)
        listener.join()
        queue.shutdown()


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Ray Train takes over Ctrl-C and does not give it back: a later one would end this process with status 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
