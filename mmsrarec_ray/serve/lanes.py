"""Bundles that are live side by side, which of them is asked for whom, and what becomes of asking."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from typing import Any, Literal

from mmsrarec_ray.serve.finder import Found
from mmsrarec_ray.serve.patience import Patience
from mmsrarec_ray.settings import Serve

Reason = Literal["late", "down", "busy", "changing", "unfit"]
_LOG = logging.getLogger("ray.serve")
LEAST_SECONDS = 0.001
"""With less left, nobody is asked any more."""


class Lane:
    """A bundle's retriever and ranker. bundle: its summary; the others: handles of Ray Serve."""

    def __init__(self, settings: Serve, bundle: dict[str, Any], retriever: Any, ranker: Any):
        self.bundle, self.retriever, self.ranker = bundle, retriever, ranker
        self.patience = Patience(settings.ranker_pause_ms / 1000)
        self._deadline_seconds = settings.deadline_ms / 1000

    async def scores(
        self, found: Found, session: str, position: int, deadline: float
    ) -> tuple[list[float] | None, Reason | None]:
        """The ranker's scores of all candidates, or why there are none. session: what one user's requests share;
        deadline: by `time.monotonic`."""
        left = deadline - time.monotonic()
        if left <= LEAST_SECONDS:
            return None, "late"
        if not self.patience.try_it(time.monotonic()):
            return None, "down"
        ids, told = [each.item_id for each in found.candidates], [each.evidence for each in found.candidates]
        # One user's requests go to one replica: its engine has read the user's part already.
        ranker = self.ranker.options(session_id=session)
        try:
            user = found.history, found.neighbours, found.liked
            asked = ranker.score.remote(found.bundle, *user, ids, told, position)
            scores: list[float] | Reason = await within(asked, left)
        except Exception as error:
            reason = reason_of(error, "ranker")
            # A deadline that the caller made short tells nothing of the ranker.
            if reason == "down" or (reason == "late" and left >= self._deadline_seconds / 2):
                self.patience.failed(time.monotonic())
            return None, reason
        self.patience.succeeded()
        if isinstance(scores, str):
            return None, scores
        return scores, None


def in_share(purpose: str, who: str, share: float) -> bool:
    """Whether this one is among the share of all that something is for: always the same, and others for each purpose.
    who: a user's id, or what stands for somebody without one."""
    digest = hashlib.sha256(f"{purpose} {who}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share


async def within(response: Any, seconds: float) -> Any:
    """A deployment's answer; taken back where it does not come in time. Raises TimeoutError."""
    try:
        async with asyncio.timeout(seconds):
            return await response
    except BaseException:
        response.cancel()
        raise


def reason_of(error: Exception, whom: str) -> Reason:
    """Why a deployment did not answer. Whatever is raised while one is asked is its own: which class it comes as hangs
    on how Ray Serve carries calls, and with gRPC it is that of the error itself."""
    from ray.serve.exceptions import BackPressureError

    if isinstance(error, BackPressureError):
        return "busy"
    if isinstance(error, TimeoutError):
        return "late"
    _LOG.warning("the %s failed with %s", whom, type(error).__name__)  # no more: its text may hold a history
    return "down"
