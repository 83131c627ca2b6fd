"""What a stage tells of itself while it works."""

from __future__ import annotations

import time

import pytest

from mmsrarec_ray import metrics


def test_what_is_left_is_told_while_nothing_gets_done(ray_session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets gauges that are not set: a stage that hangs would vanish, and with it the alert that it hangs."""
    monkeypatch.setattr(metrics, "_REPEAT_SECONDS", 0.01)
    told: list[float] = []
    stage = metrics.Metrics("summarize")
    monkeypatch.setattr(stage._waiting, "set", told.append)
    stage.known(reused=1, waiting=7)
    with stage.repeated():
        time.sleep(0.3)
    assert told[:3] == [7, 7, 7]
    count = len(told)
    time.sleep(0.05)
    assert len(told) == count
