"""Places for what is worked on at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmsrarec_ray.serve.refusal import Refused


class Room:
    """So many places. Used by one event loop."""

    def __init__(self, places: int, retry_after_s: int):
        """retry_after_s: when whoever gets none is told to come again."""
        self._free, self._retry_after_s = places, retry_after_s

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises Refused (429) where all are taken."""
        if not self._free:
            raise busy(self._retry_after_s)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


def busy(retry_after_s: int) -> Refused:
    """Too many ask."""
    message = f"too many requests: come again in {retry_after_s} s."
    return Refused(429, "busy", message, {"Retry-After": str(retry_after_s)})
