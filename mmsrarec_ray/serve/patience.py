"""When to give up on a ranker that does not answer, and when to try again."""

from __future__ import annotations

_FAILURES = 5


class Patience:
    """Whether to wait for the ranker. After five failures in a row nobody does for a while, but for one request each
    time the pause is over: so a ranker that is down costs a deadline now and then, not always."""

    def __init__(self, pause: float):
        """pause: seconds."""
        self._pause, self._failures, self._until = pause, 0, 0.0

    def try_it(self, now: float) -> bool:
        if self._failures < _FAILURES:
            return True
        if now < self._until:
            return False
        self._until = now + self._pause
        return True

    def failed(self, now: float) -> None:
        self._failures, self._until = self._failures + 1, now + self._pause

    def succeeded(self) -> None:
        self._failures = 0
