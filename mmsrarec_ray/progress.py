"""Progress that people can read in a terminal and in a job's log: one line now and then, on standard error.

For programs that collect logs each line can be a JSON object instead, which tells the run and the stage it is about.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

_EVERY_SECONDS = 10.0
_as_json = False
_about: dict[str, str] = {}


def say(message: str, **more: str) -> None:
    """A line on standard error: standard output ends with the job's result. more: further fields of a JSON line."""
    line = message
    if _as_json:
        fields = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **_about, "message": message, **more}
        line = json.dumps(fields, ensure_ascii=False)
    print(line, file=sys.stderr, flush=True)


@contextmanager
def said_as(encoding: str, **about: str) -> Iterator[None]:
    """Lines as TEXT or as JSON. about: fields of every JSON line."""
    global _as_json
    before, _as_json = _as_json, encoding == "JSON"
    try:
        with said_about(**about):
            yield
    finally:
        _as_json = before


@contextmanager
def said_about(**about: str) -> Iterator[None]:
    """With these fields in JSON lines."""
    global _about
    before, _about = _about, _about | about
    try:
        yield
    finally:
        _about = before


class Progress:
    """Counts up to a known total and says where it stands, at most every ten seconds and at the end."""

    def __init__(self, stage: str, total: int, unit: str):
        self.stage, self.total, self.unit = stage, total, unit
        self.began: float | None = None
        self.first = 0
        self.said = 0.0

    def update(self, done: int) -> None:
        now = time.monotonic()
        if self.began is None:  # what is done by now includes the start of engines: no measure of speed
            self.began, self.first = now, done
        if now - self.said < _EVERY_SECONDS and done < self.total:
            return
        self.said = now
        say(f"{self.stage}: {done:,} of {self.total:,} {self.unit}{self._speed(done, now - self.began)}")

    def _speed(self, done: int, seconds: float) -> str:
        if seconds < 1 or done <= self.first:
            return ""
        rate = (done - self.first) / seconds
        return f", {rate:.0f}/s, {(self.total - done) / rate:.0f} s left"
