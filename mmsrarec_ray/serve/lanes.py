"""Bundles that are live side by side, and which of them answers whom."""

from __future__ import annotations

import hashlib
from typing import Any

from mmsrarec_ray.serve.patience import Patience
from mmsrarec_ray.settings import Serve


class Lane:
    """A bundle's retriever and ranker. bundle: its summary; the others: handles of Ray Serve."""

    def __init__(self, settings: Serve, bundle: dict[str, Any], retriever: Any, ranker: Any):
        self.bundle, self.retriever, self.ranker = bundle, retriever, ranker
        self.patience = Patience(settings.ranker_pause_ms / 1000)


def in_trial(who: str, share: float) -> bool:
    """Whether this one is among the share of all that the trial answers: always the same. who: a user's id, or what
    stands for somebody without one."""
    digest = hashlib.sha256(f"trial {who}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share
