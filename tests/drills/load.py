"""Users of the service: they ask and write all the time, and note what they see."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from mmsrarec_ray.serve.store import Store
from tests.drills.conftest import until

STEADY = 8  # whole answers in a row after which a part counts as back


@dataclass
class Load:
    """What users see. answers: of recommendations, in order: 'ranked', 'degraded', or the status; accepted: events."""

    url: str
    answers: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
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
                told = "degraded" if whole.get("degraded") else "ranked"
                self.answers.append(told if whole else str(answer.status_code))

    def write(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for number in itertools.count():
                if self.over.wait(0.05):
                    return
                event = {"event_id": f"drill-{number}", "user_id": f"d{number % 7}", "item_id": "item-00001"}
                try:
                    answer = client.post("/v1/events", json={"events": [event]})
                except httpx.HTTPError as error:
                    self.events[type(error).__name__] += 1
                    continue
                self.events[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    self.accepted.append(event["event_id"])

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
    """What came of a load since something was done. answers, events: by kind; failed: answers that were none."""

    answers: Counter[str]
    events: Counter[str]
    lost: int
    doubled: int

    @classmethod
    def of(cls, load: Load, since: int, store: Store) -> Seen:
        """since: answers that do not count; store: where all accepted events must be, each once."""
        kept = Counter(event.event_id for _, event in store.events(limit=1_000_000))
        lost = len(set(load.accepted) - set(kept))
        return cls(Counter(load.answers[since:]), load.events, lost, sum(kept.values()) - len(kept))

    @property
    def failed(self) -> dict[str, int]:
        return {name: count for name, count in self.answers.items() if name not in ("ranked", "degraded")}

    def __str__(self) -> str:
        share = 100 * sum(self.failed.values()) / self.answers.total()
        total = self.answers.total()
        return f"{dict(self.answers)} of {total} answers ({share:.1f} % errors); events {dict(self.events)}"
