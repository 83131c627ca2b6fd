"""`kill -9` of each part of the service under load: whoever asks is answered, and no accepted event is lost."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from mmsrarec_ray.serve.store import open_store
from tests.drills.conftest import Book, until
from tests.serve.conftest import Service, config, run, service

__all__ = ["config", "run", "service"]  # fixtures
_STEADY = 8  # whole answers in a row after which a part counts as back


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
        return len(self.answers) >= _STEADY and set(self.answers[-_STEADY:]) == {"ranked"}


@contextmanager
def under(service: Service) -> Iterator[Load]:
    """A load that begins steady."""
    load = Load(str(service.client.base_url))
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


def victim(name: str) -> psutil.Process:
    """The process of a deployment's only replica, or an engine's own."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:  # it has just ended
            continue
        if command.startswith((f"ray::ServeReplica:recommend:{name}", name)):
            return process
    pytest.fail(f"no process is called {name}")


# The part, and what may come instead of an answer while it is away.
PARTS = {
    "Retriever": {"503", "504"},
    "Ranker": set(),
    "VLLM::EngineCore": set(),
    "Ingress": {"500", "503", "RemoteProtocolError", "ReadError", "ConnectError"},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_killed_under_load(service: Service, book: Book, part: str) -> None:
    with under(service) as load:
        before, killed = len(load.answers), time.monotonic()
        victim(part).kill()
        until(lambda: len(load.answers) > before + 2, what="an answer")
        until(lambda: load.steady() and len(load.answers) > before + 2 * _STEADY, 120, f"the {part}")
        seconds = time.monotonic() - killed
        seen, events = Counter(load.answers[before:]), Counter(load.events)
    kept = Counter(event.event_id for _, event in open_store(service.store).events(limit=1_000_000))
    lost = len(set(load.accepted) - set(kept))
    doubled = sum(count - 1 for count in kept.values())
    failed = {name: count for name, count in seen.items() if name not in ("ranked", "degraded")}
    share = 100 * sum(failed.values()) / seen.total()
    told = f"{dict(seen)} of {seen.total()} answers ({share:.1f} % errors); events {dict(events)}"
    book.tell("serve", f"kill {part}", seconds, lost, doubled, told)
    assert set(failed) <= PARTS[part]
    assert (lost, doubled) == (0, 0)
