"""How the service says no."""

from __future__ import annotations

from collections.abc import Mapping


class Refused(Exception):
    """An answer with a status other than 200. code: for programs; message: for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})
