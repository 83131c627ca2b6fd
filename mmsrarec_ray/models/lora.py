"""Adapters on a CPU: a product of matrices for each adapter of a batch.

vLLM's own fallback (vllm/lora/ops/torch_ops/lora_ops.py, 0.31) gathers the weights of every token's adapter, one copy a
token: with a small model that is most of its time. And a token without an adapter has the number -1, for which it takes
the last one's weights. These functions take the places of its three in the engine's process.
"""

from __future__ import annotations

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu


class OnCpu:
    """For vLLM's `worker_extension_cls`: naming it imports this module, where the model is."""


def bgmv_shrink(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, scaling: float = 1.0
) -> None:
    """output (tokens, ≥rank) = scaling * inputs (tokens, width) @ A.T of each token's adapter. weights: A of all
    adapters, (adapters, 1, rank, width); indices: the adapter of each token, -1 for none."""
    product = _products(inputs, weights, indices, output.dtype)
    output[:, : product.shape[1]] = scaling * product


def bgmv_expand(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, add_inputs: bool = True
) -> None:
    """output (tokens, width), plus itself or not, = inputs (tokens, rank) @ B.T of each token's adapter. Adapter and
    model may fill up their widths differently."""
    width = min(weights.shape[-2], output.shape[1])
    bgmv_expand_slice(inputs, weights[..., :width, :], output, indices, 0, width, add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    indices: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """The same for some columns of the output."""
    product, place = _products(inputs, weights, indices, output.dtype), output.narrow(1, slice_offset, slice_size)
    if add_inputs:
        place += product
    else:
        place.copy_(product)


def _products(inputs: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    inputs, weights = inputs.to(dtype), weights.flatten(0, -3).to(dtype)  # a single layer of each adapter
    adapters = indices.unique().tolist()
    if len(adapters) == 1 and adapters[0] >= 0:
        return inputs @ weights[adapters[0]].T
    product = inputs.new_zeros(len(inputs), weights.shape[1])
    for adapter in adapters:
        if adapter >= 0:
            rows = indices == adapter
            product[rows] = inputs[rows] @ weights[adapter].T
    return product


for _function in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
    for _module in (lora_ops, punica_cpu):  # the second has imported them by name
        setattr(_module, _function.__name__, _function)
