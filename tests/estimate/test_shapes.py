"""Parameters, KV cache, adapters and arithmetic: by hand, and as the libraries count them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from mmsrarec_ray.adapters import lora_config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.estimate.shapes import Shapes, shapes_of
from mmsrarec_ray.models.load import TINY
from mmsrarec_ray.settings import Lora, Model

SMALL = Lora(rank=8, alpha=16, modules=("q_proj", "v_proj"))


def test_the_tiny_models_parameters_are_those_of_its_file(tiny: Shapes) -> None:
    with safe_open(TINY / "model.safetensors", "pt") as file:
        there = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert tiny.parameters == there
    # 4 blocks: q, k, v, o of 160 x 160, three matrices of 160 x 416, two norms; then a norm.
    assert tiny.blocks == 4 * (4 * 160 * 160 + 3 * 160 * 416 + 2 * 160) + 160
    assert tiny.embedding == tiny.head == 1088 * 160
    assert tiny.merger == 9 * 128 * 160


def test_the_parameters_of_the_7b_model_by_hand(qwen: Shapes) -> None:
    attention = (3584 + 1) * 3584 + 2 * (3584 + 1) * 512 + 3584 * 3584  # q, k and v with biases, o without
    assert qwen.blocks == 28 * (attention + 3 * 3584 * 18944 + 2 * 3584) + 3584
    assert qwen.embedding == qwen.head == 152064 * 3584
    network = 2 * (1280 + 1) * 3420 + (3420 + 1) * 1280
    block = (1280 + 1) * 3 * 1280 + (1280 + 1) * 1280 + network + 2 * 1280
    assert qwen.tower == 3 * 2 * 14 * 14 * 1280 + 32 * block
    assert qwen.merger == 1280 + (5120 + 1) * 5120 + (5120 + 1) * 3584
    assert qwen.parameters == 8_292_166_656


def _small_qwen(tied: bool) -> Qwen2_5_VLConfig:
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 200}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    return Qwen2_5_VLConfig(text_config=text | heads, vision_config=vision, tie_word_embeddings=tied)


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_counted_as_the_model_that_it_makes(tied: bool, tmp_path: Path) -> None:
    config = _small_qwen(tied)
    config.save_pretrained(tmp_path)
    found = shapes_of(Model(source=str(tmp_path), dtype="bfloat16"))
    model = AutoModelForImageTextToText.from_config(config)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.head == (0 if tied else 200 * 64)
    assert found.weights == 2 * found.parameters


def test_a_tokens_keys_and_values(qwen: Shapes, tiny: Shapes) -> None:
    assert qwen.kv_bytes() == 2 * 28 * 4 * 128 * 2  # keys and values, layers, heads, width, bytes
    assert qwen.kv_bytes(2) == qwen.kv_bytes() / 2
    assert qwen.kv_bytes(8) == qwen.kv_bytes() / 4, "a head cannot be divided"
    assert tiny.kv_bytes() == 2 * 4 * 5 * 32 * 4


@pytest.mark.parametrize("lora", [Lora(), SMALL], ids=["all", "queries and values"])
def test_adapters_are_as_large_as_pefts(lora: Lora, tiny: Shapes) -> None:
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(TINY), lora_config(lora))
    assert tiny.lora_parameters(lora) == model.get_nb_trainable_parameters()[0]


def test_an_adapter_of_the_7b_model_by_hand(qwen: Shapes) -> None:
    pairs = (3584 + 3584) * 2 + (3584 + 512) * 2 + (3584 + 18944) * 3
    assert qwen.lora_parameters(Lora(rank=16)) == 28 * 16 * pairs


@pytest.mark.parametrize("size", [96, 300, 448, 900])
def test_a_pictures_patches_are_those_of_the_models_processor(size: int, qwen: Shapes) -> None:
    height, width = smart_resize(size, size, 28)
    assert qwen.patches(size) == height * width / 14**2


def test_the_tiny_model_sees_four_tokens_whatever_the_picture(tiny: Shapes) -> None:
    processor = AutoProcessor.from_pretrained(TINY)
    assert tiny.patches(96) / tiny.merge**2 == tiny.patches(500) / tiny.merge**2 == processor.image_seq_len


def _counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return counter.get_total_flops()


def test_a_pass_costs_what_torch_counts(tiny: Shapes) -> None:
    model = AutoModelForImageTextToText.from_pretrained(TINY, attn_implementation="eager").eval()
    tokens = 64
    text = _counted(lambda: model(input_ids=torch.full((1, tokens), 9), attention_mask=torch.ones(1, tokens)))
    # torch counts attention without its causal half
    unseen = 4 * tiny.layers * tiny.heads * tiny.head_width * tokens * tokens / 2
    assert tiny.text_flops(tokens) + unseen + tiny.head_flops(tokens) == pytest.approx(text, rel=0.01)
    picture = _counted(lambda: model.get_image_features(torch.rand(1, 1, 3, 96, 96)))
    assert tiny.picture_flops(36) == pytest.approx(picture, rel=0.1)  # attention is left out, positions are not


def test_reading_in_two_parts_costs_the_same(qwen: Shapes) -> None:
    assert qwen.text_flops(300) + qwen.text_flops(100, 300) == pytest.approx(qwen.text_flops(400))


def test_a_model_that_this_machine_does_not_know_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^model\.source: the shapes of 'nobody/nothing' are not known"):
        shapes_of(Model(source="nobody/nothing", revision="main"))
