"""What the vision tower learns before it learns to speak: labels of the picture, and where the object is.

Two linear heads on the tower's patch features, thrown away after training: one tells kind, colour and pattern
from the mean over the patches, the other tells of each patch which cells of it the object covers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from mmsrarec_ray.data.shop.law import LOOK_ATTRIBUTES, VOCABULARY
from mmsrarec_ray.models.architecture import VisionSettings, normalise

# Pixels on a side of a silhouette's cell; pictures are shifted by whole cells so that the two stay in step.
CELL = 4
_LABELS = [len(VOCABULARY[name]) for name in LOOK_ATTRIBUTES]
_LARGEST_SHIFT = 1
_BRIGHTNESS = (0.93, 1.05)


class VisionHeads(nn.Module):
    """The two heads for a tower of these settings."""

    def __init__(self, vision: VisionSettings) -> None:
        super().__init__()
        self.cells = vision.patch_size // CELL
        self.labels = nn.Linear(vision.width, sum(_LABELS))
        self.silhouette = nn.Linear(vision.width, self.cells**2)

    def label_loss(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross-entropy of the attributes, and the share told right, float32 (n_attributes,).

        features: float32 (n, patches, width); labels: int64 (n, n_attributes), in the order of LOOK_ATTRIBUTES.
        """
        logits = self.labels(features.mean(1)).split(_LABELS, 1)
        losses = [functional.cross_entropy(each, labels[:, i]) for i, each in enumerate(logits)]
        right = torch.stack([(each.argmax(1) == labels[:, i]).float().mean() for i, each in enumerate(logits)])
        return torch.stack(losses).sum(), right

    def silhouette_loss(self, features: torch.Tensor, silhouettes: torch.Tensor) -> torch.Tensor:
        """Mean binary cross-entropy of the cells. silhouettes: float32 (n, cells, cells) of the whole picture."""
        target = functional.unfold(silhouettes[:, None], self.cells, stride=self.cells).transpose(1, 2)
        return functional.binary_cross_entropy_with_logits(self.silhouette(features), target)


def see(model: Idefics3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """The vision tower's patch features: float32 (n, 3, height, width) to (n, patches, width)."""
    return model.model.vision_model(pixel_values=pixels).last_hidden_state


def augment(
    rng: np.random.Generator, pictures: np.ndarray, silhouettes: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror half of the pictures, shift all of them a little, and change their brightness.

    pictures: uint8 (n, size, size, 3); silhouettes: uint8 (n, size / CELL, size / CELL), 255 where the object is.
    Returns the pixels, float32 (n, 3, size, size), and the silhouettes, float32 in [0, 1].
    """
    pixels = normalise(pictures)
    masks = torch.from_numpy(silhouettes).float().div_(255)
    mirrored = torch.from_numpy(rng.random(len(pixels)) < 0.5)
    pixels[mirrored] = pixels[mirrored].flip(-1)
    masks[mirrored] = masks[mirrored].flip(-1)
    down, right = (int(cells) for cells in rng.integers(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, 2))
    pixels = pixels.roll((down * CELL, right * CELL), (2, 3))
    masks = masks.roll((down, right), (1, 2))
    light = torch.from_numpy(rng.uniform(*_BRIGHTNESS, (len(pixels), 1, 1, 1))).float()
    return pixels * light, masks
