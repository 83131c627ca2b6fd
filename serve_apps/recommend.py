"""Recommendations over HTTP: `serve run serve_apps.recommend:build run=/path/to/run`, docs/serving.md."""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from mmsrarec_ray.serve.graph import application


def build(args: dict[str, Any]) -> Application:
    """The application of a run. args: `run`, and settings such as `serve.deadline_ms=500`."""
    return application(args)
