"""Shapes that estimates are made from, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.estimate.shapes import Shapes, shapes_of
from mmsrarec_ray.settings import Model

ROOT = Path(__file__).parents[2]


def gpu(*words: str) -> Config:
    """configs/gpu.yaml with some settings."""
    return load(ROOT / "configs" / "gpu.yaml", ["run=/tmp/run", "data.path=/tmp/data", *words])


@pytest.fixture(scope="session")
def qwen() -> Shapes:
    return shapes_of(gpu().model)


@pytest.fixture(scope="session")
def tiny() -> Shapes:
    return shapes_of(Model())
