"""`kill -9` of each part of the service under load: whoever asks is answered, and no accepted event is lost."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from mmsrarec_ray.serve.store import open_store
from tests.drills.conftest import Book, until
from tests.drills.load import STEADY, Seen, under
from tests.serve.conftest import Service, service

__all__ = ["service"]  # a fixture


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
    with under(str(service.client.base_url)) as load:
        before, killed = len(load.answers), time.monotonic()
        victim(part).kill()
        until(lambda: len(load.answers) > before + 2, what="an answer")
        until(lambda: load.steady() and len(load.answers) > before + 2 * STEADY, 120, f"the {part}")
        seconds = time.monotonic() - killed
    seen = Seen.of(load, before, open_store(service.store))
    book.tell("serve", f"kill {part}", seconds, seen.lost, seen.doubled, str(seen))
    assert set(seen.failed) <= PARTS[part]
    assert (seen.lost, seen.doubled) == (0, 0)
