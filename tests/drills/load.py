"""Users of the service: they ask and write all the time, and note what they see."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import get_args

import httpx

from mmsrarec_ray.serve.lanes import Reason
from mmsrarec_ray.serve.store import Store
from tests.drills.conftest import until

STEADY = 8  # whole answers in a row after which a part counts as back


@dataclass
class Load:
    """What users see. answers: of recommendations, in order: 'ranked', why one was degraded, or the status; events:
    what became of each try; sent: ids of the events that were accepted."""

    url: str
    name: str = field(default_factory=lambda: f"drill-{uuid.uuid4().hex}")
    answers: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    sent: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for number in itertools.count():
                if self.over.wait(0.1):
                    return
                wish = {"user_id": f"u{number % 100:03d}", "k": 4, "deadline_ms": 1_500}
                try:
                    answer = client.post("/v1/recommendations", json=wish)
                except httpx.HTTPError as error:
                    self.answers.append(type(error).__name__)
                    continue
                whole = answer.json() if answer.status_code == 200 else {}
                told = whole.get("degraded_reason") or "ranked"
                self.answers.append(told if whole else str(answer.status_code))

    def write(self) -> None:
        """Whoever is refused, or does not learn what became of an event, sends it again."""
        number = 0
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.over.wait(0.05):
                event = {"event_id": f"{self.name}-{number}", "user_id": self.user(number), "item_id": "item-00001"}
                try:
                    answer = client.post("/v1/events", json={"events": [event]})
                except httpx.HTTPError as error:
                    self.events[type(error).__name__] += 1
                    continue
                self.events[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    self.sent.append(event["event_id"])
                    number += 1

    def user(self, number: int) -> str:
        """Nobody else writes of these."""
        return f"{self.name}-{number % 7}"

    def steady(self) -> bool:
        return len(self.answers) >= STEADY and set(self.answers[-STEADY:]) == {"ranked"}


@contextmanager
def under(url: str) -> Iterator[Load]:
    """A load that begins steady."""
    load = Load(url)
    threads = [threading.Thread(target=work) for work in (load.ask, load.ask, load.write)]
    for thread in threads:
        thread.start()
    try:
        until(load.steady, what="a steady load")
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join()


@dataclass
class Seen:
    """What came of a load since something was done. answers, events: by kind; lost: events that were accepted and are
    not there; doubled: what users have in their histories beyond what they did; failed: answers that were none."""

    answers: Counter[str]
    events: Counter[str]
    lost: int
    doubled: int

    @classmethod
    def of(cls, load: Load, since: int, store: Store) -> Seen:
        """since: answers that do not count; store: where all accepted events must be, each once. The one that was being
        tried at the end may be there too."""
        kept = {event.event_id for _, event in store.events(limit=1_000_000)}
        lost = len(set(load.sent) - kept)
        ours = {event for event in kept if event.startswith(load.name)}
        histories = sum(len(store.history(user, len(kept))) for user in map(load.user, range(7)))
        return cls(Counter(load.answers[since:]), load.events, lost, histories - len(ours))

    @property
    def failed(self) -> dict[str, int]:
        return {name: count for name, count in self.answers.items() if name not in ("ranked", *get_args(Reason))}

    def __str__(self) -> str:
        share = 100 * sum(self.failed.values()) / self.answers.total()
        total = self.answers.total()
        return f"{dict(self.answers)} of {total} answers ({share:.1f} % errors); events {dict(self.events)}"
