"""A bundle that scores again what another has answered, after the answer: nobody is shown what it says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmsrarec_ray.serve.finder import Found, Wish
from mmsrarec_ray.serve.lanes import Lane, in_share, reason_of, within
from mmsrarec_ray.serve.metrics import Metrics
from mmsrarec_ray.serve.schemas import Recommended
from mmsrarec_ray.settings import Serve

_LOG = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Answered:
    """What the shadow needs to know of an answer. scores: of the ranker, item id -> score, in the order of retrieval;
    shown: the ids that were answered, the best first; session, position: as the answer's own lane was asked with."""

    wish: Wish
    scores: dict[str, float]
    shown: list[str]
    session: str
    position: int

    @classmethod
    def of(
        cls,
        wish: Wish,
        found: Found,
        scores: Sequence[float],
        items: Sequence[Recommended],
        session: str,
        position: int,
    ) -> Answered:
        """scores: of the candidates that were found; items: the answer's."""
        by_item = {each.item_id: score for each, score in zip(found.candidates, scores, strict=True)}
        return cls(wish, by_item, [item.item_id for item in items], session, position)


class Shadow:
    """Has its own retriever and ranker. Every answer it is told of is counted once, by what became of it."""

    def __init__(self, settings: Serve, lane: Lane, metrics: Metrics):
        self.lane, self._metrics = lane, metrics
        self._settings, self._seconds = settings.shadow, settings.deadline_ms / 1000
        self._at_work: set[asyncio.Task[None]] = set()

    def follows(self, who: str) -> bool:
        """who: as for `in_share`."""
        return in_share("shadow", who, self._settings.share)

    async def follow(self, answered: Answered) -> None:
        """Score the same candidates in the background; returns at once."""
        if len(self._at_work) >= self._settings.max_in_flight:
            self._count("dropped")
            return
        task = asyncio.create_task(self._follow(answered))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _follow(self, answered: Answered) -> None:
        try:
            outcome = await self._compared(answered)
        except Exception as error:  # whatever it is: its text may hold a history
            _LOG.warning("the shadow failed with %s", type(error).__name__)
            outcome = "failed"
        self._count(outcome)

    async def _compared(self, answered: Answered) -> str:
        """What became of it: `compared`, or why it was not."""
        began = time.monotonic()
        # By its own keywords the shadow could find others unfit than the first did.
        wish = replace(answered.wish, candidates=list(answered.scores), exclude=(), keywords=())
        try:
            asked = self.lane.retriever.find.remote(wish, answered.position)
            found: Found = await within(asked, self._seconds)
        except Exception as error:
            return reason_of(error, "shadow's retriever")
        if len(found.candidates) < 2:
            return "unknown"
        deadline = began + self._seconds
        scores, reason = await self.lane.scores(found, answered.session, answered.position, deadline)
        if scores is None:
            return reason or "failed"
        own = {each.item_id: score for each, score in zip(found.candidates, scores, strict=True)}
        there = {item: score for item, score in answered.scores.items() if item in own}
        agreement = concordance(list(there.values()), [own[item] for item in there])
        shown = [item for item in answered.shown if item in own]
        same = overlap(shown, sorted(own, key=lambda item: -own[item]))
        self._metrics.shadow_compared(self._version, time.monotonic() - began, agreement, same)
        return "compared"

    @property
    def _version(self) -> str:
        return self.lane.bundle["version"]

    def _count(self, outcome: str) -> None:
        self._metrics.shadow(self._version, outcome)


def concordance(one: Sequence[float], other: Sequence[float]) -> float:
    """Share of the pairs of items that two scorings put in the same order, a pair that one of them ties counting half:
    1 the same order, 0 the reverse, 1/2 what chance gives. Both hold scores of the same items, at least two."""
    first, second = (np.sign(np.subtract.outer(each, each)) for each in (one, other))
    agree = (1 + first * second)[np.triu_indices(len(one), 1)] / 2
    return float(agree.mean())


def overlap(shown: Sequence[str], order: Sequence[str]) -> float:
    """Share of the shown items that are among as many of the first of another order; 1 where none is shown."""
    return len(set(shown) & set(order[: len(shown)])) / len(shown) if shown else 1.0
