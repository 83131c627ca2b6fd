"""Progress that people can read in a terminal and in a job's log: one line now and then, on standard error."""

from __future__ import annotations

import sys
import time

_EVERY_SECONDS = 10.0


def say(message: str) -> None:
    """A line on standard error: standard output ends with the job's result."""
    print(message, file=sys.stderr, flush=True)


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
