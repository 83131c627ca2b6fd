"""Ray Train workers as every training here starts them: one fit, its lines shown, a Ctrl-C that still works.

Ray's registry of checkpoints is not used: it forgets one that is reported just before a worker dies, and training
starts anew without an error. Workers look into their artefact's folder instead.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmsrarec_ray.progress import say
from mmsrarec_ray.settings import Train as TrainSettings


def run(name: str, work: Callable[[dict[str, Any]], None], loop: dict[str, Any], settings: TrainSettings) -> None:
    """Call `work(loop)` on every worker of a process group, with threads and a queue for lines set.

    loop: what `work` needs; it gets `lines` as well, whose `put` says a line here. A worker that dies is replaced up to
    `settings.max_failures` times, and all begin `work` again; after that ray.train.TrainingFailedError is raised, which
    holds what went wrong. Ray must be connected.
    """
    resources = {"CPU": settings.cpus} | ({"GPU": 1} if settings.gpu else {})
    with tempfile.TemporaryDirectory(prefix="mmsrarec-train-") as scratch, _lines() as lines, _interrupts_kept():
        ray.train.torch.TorchTrainer(
            _start,
            train_loop_config={"work": work, "threads": settings.threads, "loop": loop | {"lines": lines}},
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.workers, use_gpu=settings.gpu, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            ),
        ).fit()


def resources(settings: TrainSettings, at_least: float) -> dict[str, Any]:
    """What a stage with a fit asks of Ray, for its plan. at_least: logical CPUs that the rest of the stage holds."""
    each = f"{settings.workers} worker(s) of {settings.cpus:g} CPU" + (" and 1 GPU" if settings.gpu else "")
    cpus = max(settings.workers * settings.cpus, at_least)
    return {"training": each, "CPU": cpus, "GPU": settings.workers * int(settings.gpu)}


def _start(given: dict[str, Any]) -> None:
    here = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(given["threads"] or max(1, len(os.sched_getaffinity(0)) // here))
    given["work"](given["loop"])


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
