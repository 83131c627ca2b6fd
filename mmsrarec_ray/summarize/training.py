"""What trainings of small models share: the learning rate of a step, and checkpoints that are whole or not there."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch


def rate_share(step: int, steps: int, warmed: int, warmup: int, last: float) -> float:
    """Share of the highest learning rate at a step, in (0, 1]: a cosine from 1 to `last` over `steps`, and a warm-up of
    `warmup` steps, of which `warmed` have been taken."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (warmed + 1) / warmup) * (last + (1 - last) * cosine)


def write_state(path: Path, settings: Any, state: dict[str, Any]) -> None:
    """Put a checkpoint in place of the last one, whole or not at all. settings: a dataclass, by which it is known."""
    unfinished = path.with_name(path.name + ".part")
    torch.save({"settings": _identity(settings), **state}, unfinished)
    os.replace(unfinished, path)


def read_state(path: Path, settings: Any) -> dict[str, Any]:
    """What `write_state` wrote. Raises ValueError where it was made with other settings."""
    state = torch.load(path, weights_only=True)
    if state["settings"] != _identity(settings):
        raise ValueError(f"a run can only be resumed with its own settings. {path} has {state['settings']}.")
    return state


def _identity(settings: Any) -> str:
    return json.dumps(asdict(settings))
