"""What GPUs can do at best, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU. A GB is 10^9 bytes, as on data sheets, so memory is told with care: nvidia-smi shows up to 7 % more."""

    memory: float
    """Bytes."""
    flops: float
    """Floating point operations a second on 16-bit matrices, without sparsity."""
    bandwidth: float
    """Bytes a second from its memory."""
    link: float
    """Bytes a second from its neighbours in a node, one way."""


# NVIDIA's data sheets. Some tell the peak with sparsity, which is twice these; NVLink and PCIe are told both ways.
GPUS = {
    "L4-24GB": Gpu(24e9, 121e12, 300e9, 32e9),  # PCIe 4.0 x16
    "L40S-48GB": Gpu(48e9, 362e12, 864e9, 32e9),  # PCIe 4.0 x16
    "A100-80GB": Gpu(80e9, 312e12, 2039e9, 300e9),  # SXM: NVLink 3
    "H100-80GB": Gpu(80e9, 989e12, 3350e9, 450e9),  # SXM: NVLink 4
    "H200-141GB": Gpu(141e9, 989e12, 4800e9, 450e9),  # SXM: NVLink 4
}
