"""Teaches a vision tower to see like a network that knows ImageNet, before it learns what a catalogue's pictures mean.

A few thousand pictures with a few labels each are too little to learn to see from; what a teacher makes of them is much
more: numbers for every place of every view. Both look at the same random crop, mirrored and tinted, each in its own
resolution, and the tower's features, through a linear layer that is thrown away, are to tell the teacher's: of every
place (FitNets, Romero et al. 2015, arXiv:1412.6550) and of the whole picture. That the views are the same and many is
what makes it work (Beyer et al. 2022, arXiv:2106.05237).

Each step's pictures and distortions follow from the seed and the number of the step, so a run that goes on from a
checkpoint is the run that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from mmsrarec_ray.models.architecture import normalise
from mmsrarec_ray.models.pretrain_vision import see
from mmsrarec_ray.models.teacher import WIDTH, Teacher
from mmsrarec_ray.summarize.catalogue import distort
from mmsrarec_ray.summarize.training import rate_share, read_state, write_state

_BATCH = 32


@dataclass(frozen=True)
class Distillation:
    """How a tower is taught. Counts are a step's, unless they say otherwise."""

    seed: int = 50_000_001
    steps: int = 1_500
    """All steps."""
    pictures: int = 24
    rate: float = 1e-3
    last_rate_share: float = 0.01
    warmup_steps: int = 100
    weight_decay: float = 0.05
    scaled_by: int = 256
    """Pictures from which the scale of the teacher's channels is taken."""
    checkpoint_every: int = 100
    report_every: int = 20

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: a warm-up and a cosine."""
        return self.rate * rate_share(step, self.steps, step, self.warmup_steps, self.last_rate_share)


SMOKE = Distillation(steps=8, pictures=4, warmup_steps=2, scaled_by=8, checkpoint_every=4, report_every=4)
"""Teaches next to nothing in seconds, to see that all parts work."""


class Scale(nn.Module):
    """Brings features to mean 0 and, over all channels together, variance 1, as they were on some pictures. One by one,
    channels that hardly ever speak would be loudest."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, features: torch.Tensor) -> None:
        """features: float32 (n, width)."""
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("deviation", features.var(0).mean().sqrt())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.deviation


def _head(width: int) -> nn.Linear:
    """It begins by telling the mean."""
    head = nn.Linear(width, WIDTH)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class Distiller:
    """A training: the tower of a model, its linear layers and optimiser, and the step it stands at."""

    def __init__(
        self,
        model: Idefics3ForConditionalGeneration,
        teacher: Teacher,
        pictures: np.ndarray,
        rows: np.ndarray,
        settings: Distillation,
    ) -> None:
        """pictures: uint8 (all, size, size, 3) in the teacher's resolution; rows: int (n,), of those to learn from."""
        self.model, self.teacher, self.settings, self.step = model, teacher, settings, 0
        self.pictures, self.rows = pictures, rows
        tower = model.model.vision_model
        self.size = tower.config.image_size
        known = torch.cat([teacher(each) for each in self._views(rows[: settings.scaled_by])])
        self.heads = nn.ModuleDict({name: _head(tower.config.hidden_size) for name in ("place", "whole")})
        self.scales = nn.ModuleDict({"place": Scale(known.flatten(0, 1)), "whole": Scale(known.mean(1))})
        self.taught = nn.ModuleDict({"tower": tower, "heads": self.heads, "scales": self.scales})
        self.parameters = [*tower.parameters(), *self.heads.parameters()]
        matrices = [each for each in self.parameters if each.dim() >= 2]
        others = [each for each in self.parameters if each.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )

    def errors(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean squared error of each place and of the whole, as a share of the variance; 0-dimensional.

        pixels: float32 (n, 3, size, size) in the teacher's resolution.
        """
        wanted, features = self.teacher(pixels), see(self.model, self.shrunk(pixels))
        return {
            "place": functional.mse_loss(self.heads["place"](features), self.scales["place"](wanted)),
            "whole": functional.mse_loss(self.heads["whole"](features.mean(1)), self.scales["whole"](wanted.mean(1))),
        }

    def shrunk(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same pictures in the tower's resolution."""
        return functional.interpolate(pixels, size=self.size, mode="area")

    def take_step(self) -> dict[str, float]:
        """Learn from one step's views; returns the errors."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate_at(self.step)
        rng = np.random.default_rng([s.seed, 0, self.step])
        self.model.train()
        errors = self.errors(distort(rng, self.pictures[self._seen()]))
        self.optimizer.zero_grad()
        torch.stack(list(errors.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        return {name: value.item() for name, value in errors.items()}

    def _seen(self) -> np.ndarray:
        """The rows of this step: all before any comes again."""
        count = min(self.settings.pictures, len(self.rows))
        epoch, place = divmod(self.step, len(self.rows) // count)
        order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(self.rows)
        return order[place * count : (place + 1) * count]

    def _views(self, rows: np.ndarray) -> Iterator[torch.Tensor]:
        """Pictures as they are, some at a time: float32 (some, 3, size, size)."""
        for start in range(0, len(rows), _BATCH):
            yield normalise(self.pictures[rows[start : start + _BATCH]])

    @torch.no_grad()
    def explained(self, rows: np.ndarray) -> dict[str, float]:
        """The share of the variance of the teacher's features that the tower tells, 1 at most; of pictures as they
        are."""
        self.model.eval()
        sums = dict.fromkeys(self.heads, 0.0)
        for pixels in self._views(rows):
            for name, value in self.errors(pixels).items():
                sums[name] += value.item() * len(pixels) / len(rows)
        return {name: 1 - value for name, value in sums.items()}

    @torch.no_grad()
    def sees(self, rows: np.ndarray) -> np.ndarray:
        """Whole pictures as the tower sees them: float32 (n, width)."""
        self.model.eval()
        return torch.cat([see(self.model, self.shrunk(each)).mean(1) for each in self._views(rows)]).numpy()

    def teacher_sees(self, rows: np.ndarray) -> np.ndarray:
        """Whole pictures as the teacher sees them: float32 (n, WIDTH)."""
        return torch.cat([self.teacher(each).mean(1) for each in self._views(rows)]).numpy()

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        state = {"step": self.step, "taught": self.taught.state_dict(), "optimizer": self.optimizer.state_dict()}
        write_state(path, self.settings, state)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ValueError where it was made with other settings."""
        state = read_state(path, self.settings)
        self.step = state["step"]
        self.taught.load_state_dict(state["taught"])
        self.optimizer.load_state_dict(state["optimizer"])


def distil(distiller: Distiller, held_out: np.ndarray, checkpoint: Path, until: int | None = None) -> None:
    """Run the training, from `checkpoint` where it exists, to its end, and leave the last state there.

    held_out: rows of pictures that are not learnt from, for the log. until: stop after so many steps in all; by default
    all of them.
    """
    settings = distiller.settings
    if checkpoint.exists():
        distiller.resume(checkpoint)
    last = settings.steps if until is None else until
    begun, first, sums = time.monotonic(), distiller.step, dict[str, list[float]]()
    while distiller.step < last:
        for name, value in distiller.take_step().items():
            sums.setdefault(name, []).append(1 - value)
        step = distiller.step
        if step == last or step % settings.checkpoint_every == 0:
            told = distiller.explained(held_out)
            sums |= {f"held out, {name}": [value] for name, value in told.items()}
            distiller.save(checkpoint)
        if step == last or step % settings.report_every == 0:
            _report(step, settings.steps, sums, (time.monotonic() - begun) / (step - first))
            sums.clear()


def _report(step: int, steps: int, sums: Mapping[str, Sequence[float]], pace: float) -> None:
    told = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in sums.items())
    left = pace * (steps - step) / 60
    print(f"distil {step}/{steps}  explained: {told}  {pace:.2f} s/step  {left:.1f} min left", flush=True)
