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


def test_a_stage_counts_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []
    monkeypatch.setattr(metrics.metrics.Counter, "inc", lambda self, count, tags: told.append(tags))
    with metrics.counted("prepare"):
        pass
    with pytest.raises(ValueError, match="broken"), metrics.counted("summarize"):
        raise ValueError("broken")
    assert told == [{"stage": "prepare", "outcome": "done"}, {"stage": "summarize", "outcome": "failed"}]
