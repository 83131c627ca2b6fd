"""Ray metrics of the stages: every node of the cluster offers them to Prometheus, as `ray_mmsrarec_…`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.util import metrics

_REPEAT_SECONDS = 5.0


@contextmanager
def counted(stage: str) -> Iterator[None]:
    """Around a stage: `mmsrarec_stages_total` by outcome, done or failed. Ray must be connected.

    A node keeps what a process counted when the process has ended.
    """
    stages = metrics.Counter("mmsrarec_stages", "Stages by how they ended.", ("stage", "outcome"))
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        stages.inc(1, {"stage": stage, "outcome": outcome})


class Metrics:
    """What a stage has done and has yet to do. Ray must be connected.

    `mmsrarec_items_total` by outcome (done, failed, reused: known from before), `mmsrarec_failures_total` by error
    class, `mmsrarec_tokens_total` generated, and `mmsrarec_items_waiting`; all with the name of the stage.
    """

    def __init__(self, stage: str) -> None:
        self._items = metrics.Counter("mmsrarec_items", "Items of a stage by outcome.", ("stage", "outcome"))
        self._failures = metrics.Counter("mmsrarec_failures", "Failed rows by class of error.", ("stage", "error"))
        self._tokens = metrics.Counter("mmsrarec_tokens", "Tokens that a stage's engines generated.", ("stage",))
        self._waiting = metrics.Gauge("mmsrarec_items_waiting", "Items a stage has yet to do.", ("stage",))
        for each in (self._items, self._failures, self._tokens, self._waiting):
            each.set_default_tags({"stage": stage})
        self._left = 0

    def known(self, reused: int, waiting: int) -> None:
        """What a stage begins with: results taken over, and what is left to do."""
        _add(self._items, reused, outcome="reused")
        self._set_left(waiting)

    def done(self, done: int, errors: Iterable[str], tokens: int, waiting: int) -> None:
        """Further items, the error classes of further failures, further tokens, and what is left."""
        failed = Counter(errors)
        _add(self._items, done, outcome="done")
        _add(self._items, failed.total(), outcome="failed")
        for error, count in failed.items():
            _add(self._failures, count, error=error)
        _add(self._tokens, tokens)
        self._set_left(waiting)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Around the work: what is left is told again and again, also while nothing gets done.

        Ray forgets a gauge that is not set for two of its reports, twenty seconds.
        """
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(_REPEAT_SECONDS):
                self._waiting.set(self._left)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _set_left(self, waiting: int) -> None:
        self._left = waiting
        self._waiting.set(waiting)


class TuningMetrics:
    """Figures of a training: `mmsrarec_tuning`, by stage and figure (a reward's mean, KL, entropy, lengths), and
    `mmsrarec_tuning_step`. Ray must be connected."""

    def __init__(self, stage: str) -> None:
        self._figures = metrics.Gauge("mmsrarec_tuning", "Figures of a training.", ("stage", "figure"))
        self._step = metrics.Gauge("mmsrarec_tuning_step", "Updates that a training has made.", ("stage",))
        for each in (self._figures, self._step):
            each.set_default_tags({"stage": stage})

    def figures(self, step: int, figures: Mapping[str, Any]) -> None:
        """Those that are numbers."""
        self._step.set(step)
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._figures.set(value, {"figure": name})


def _add(counter: metrics.Counter, count: int, **tags: str) -> None:
    if count:  # Ray refuses to count nothing
        counter.inc(count, tags)
