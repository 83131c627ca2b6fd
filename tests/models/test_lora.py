"""Adapters on a CPU, against the sum over tokens written out."""

from __future__ import annotations

import pytest
import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.utils.import_utils import resolve_obj_by_qualname

from mmsrarec_ray.config import load
from mmsrarec_ray.models import lora
from mmsrarec_ray.models.load import engine_arguments

TOKENS, WIDTH, RANK, ADAPTERS = 7, 5, 3, 2


def written_out(inputs: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Nothing for tokens without an adapter."""
    each = [
        weights[adapter, 0] @ row if adapter >= 0 else 0 * (weights[0, 0] @ row)
        for row, adapter in zip(inputs, indices, strict=True)
    ]
    return torch.stack(each)


@pytest.fixture(params=[[0] * TOKENS, [1] * TOKENS, [-1] * TOKENS, [0, 1, -1, 1, 0, 0, -1]], ids=str)
def indices(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.tensor(request.param)


def test_shrinking_is_the_sum_of_each_token_s_adapter(indices: torch.Tensor) -> None:
    torch.manual_seed(0)
    inputs, weights = torch.randn(TOKENS, WIDTH), torch.randn(ADAPTERS, 1, RANK, WIDTH)
    output = torch.full((TOKENS, RANK + 2), 9.0)
    lora.bgmv_shrink(inputs, weights, output, indices, 0.5)
    torch.testing.assert_close(output[:, :RANK], 0.5 * written_out(inputs, weights, indices))
    assert (output[:, RANK:] == 9).all()


@pytest.mark.parametrize("add", [True, False])
def test_expanding_leaves_other_columns_alone(indices: torch.Tensor, add: bool) -> None:
    torch.manual_seed(0)
    inputs, weights = torch.randn(TOKENS, RANK), torch.randn(ADAPTERS, 1, WIDTH, RANK)
    output = torch.ones(TOKENS, WIDTH + 4)
    lora.bgmv_expand_slice(inputs, weights, output, indices, 3, WIDTH, add)
    torch.testing.assert_close(output[:, 3 : 3 + WIDTH], float(add) + written_out(inputs, weights, indices))
    assert (output[:, :3] == 1).all()
    assert (output[:, 3 + WIDTH :] == 1).all()


@pytest.mark.parametrize("columns", [WIDTH - 2, WIDTH + 2])
def test_widths_may_differ(indices: torch.Tensor, columns: int) -> None:
    torch.manual_seed(0)
    inputs, weights = torch.randn(TOKENS, RANK), torch.randn(ADAPTERS, 1, WIDTH, RANK)
    output = torch.zeros(TOKENS, columns)
    lora.bgmv_expand(inputs, weights, output, indices)
    common = min(WIDTH, columns)
    torch.testing.assert_close(output[:, :common], written_out(inputs, weights, indices)[:, :common])
    assert (output[:, common:] == 0).all()


def test_engines_on_a_cpu_take_them_and_others_do_not() -> None:
    for gpus, named in ((0, lora.OnCpu), (1, None)):
        config = load(None, ["run=/tmp/run", "data.format=shop", f"engine.gpus={gpus}"])
        name = engine_arguments(config, enable_lora=True).get("worker_extension_cls")
        assert (name and resolve_obj_by_qualname(name)) == named
        assert "worker_extension_cls" not in engine_arguments(config)


def test_they_take_the_places_of_vllm_s() -> None:
    for module in (lora_ops, punica_cpu):
        for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
            assert getattr(module, name) is getattr(lora, name)
