"""Memory and seconds of engines and fine-tunings, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mmsrarec_ray.estimate.machine import GIB, Engines, Trainers
from mmsrarec_ray.estimate.shapes import Shapes
from mmsrarec_ray.settings import Plan, Tuning, Utilisation

EXACT = Utilisation(prefill=0.5, decode=0.5, training=0.5, links=0.5)
PLAN = Plan(gpu="H100-80GB", utilisation=EXACT, engine_overhead_gib=4)


def engines(shapes: Shapes, **more: Any) -> Engines:
    return Engines(shapes, PLAN, **{"count": 1, "parallel": 1, "sequences": 256, **more})


def trainers(shapes: Shapes, count: int = 8, **tuning: Any) -> Trainers:
    return Trainers(shapes, PLAN, Tuning(batch_size=64, micro_batch_size=4, **tuning), count)


def test_an_engine_needs_its_weights_and_room_for_one_sequence(qwen: Shapes) -> None:
    needed = engines(qwen, parallel=2).memory(8192)
    assert list(needed.values()) == [8_292_166_656, 4 * GIB, 8192 * 57344 / 2]


def test_what_weights_leave_is_kv_cache(qwen: Shapes) -> None:
    assert engines(qwen).kv_tokens == pytest.approx((0.92 * 80e9 - 2 * 8_292_166_656 - 4 * GIB) / 57344)


def test_prompts_are_read_at_the_speed_of_arithmetic(qwen: Shapes) -> None:
    work = 989e12 * 0.5
    assert engines(qwen).prefill_seconds(work, 1000) == pytest.approx(1)
    assert engines(qwen, count=4).prefill_seconds(work, 1000) == pytest.approx(1 / 4)
    sums = 1000 * 2 * 28 * 3584 * 2 / (450e9 * 0.5)  # of two GPUs each sends as much as it holds
    assert engines(qwen, parallel=2).prefill_seconds(work, 1000) == pytest.approx(1 / 2 + sums)


def test_one_answer_is_written_at_the_speed_of_memory(qwen: Shapes) -> None:
    read = 2 * (qwen.blocks + qwen.head) + (100 + 10 / 2) * 57344
    assert engines(qwen).decode_seconds(1, 100, 10) == pytest.approx(10 * read / (3350e9 * 0.5))


def test_many_answers_at_a_time_are_bound_by_arithmetic(qwen: Shapes) -> None:
    found = engines(qwen, sequences=1024).decode_seconds(1024, 10, 2)
    flops = 1024 * 2 * (qwen.text_flops(1, 11) + qwen.head_flops(1))
    assert found == pytest.approx(flops / (989e12 * 0.5))


def test_a_full_cache_makes_batches_smaller(qwen: Shapes) -> None:
    narrow = engines(qwen, share=0.35)
    batch = narrow.kv_tokens / 8000
    assert batch < 256
    read = 2 * (qwen.blocks + qwen.head) + batch * 7500 * 57344
    assert narrow.decode_seconds(1000, 7000, 1000) == pytest.approx(1000 / batch * 1000 * read / (3350e9 * 0.5))


@pytest.mark.parametrize(
    ("deepspeed", "base", "adapter"),
    [(None, 1, 16), ("zero1", 1, 4 + 12 / 8), ("zero2", 1, 2 + 14 / 8), ("zero3", 1 / 8, 16 / 8)],
)
def test_what_zero_divides_over_eight_workers(qwen: Shapes, deepspeed: Any, base: float, adapter: float) -> None:
    """Bytes of each adapter parameter: 2 itself, 2 its gradient, 12 of AdamW."""
    found = trainers(qwen, deepspeed=deepspeed).states()
    assert list(found.values()) == pytest.approx([base * 2 * 8_292_166_656, adapter * 40_370_176])


def test_stage_3_holds_a_billion_parameters_together(qwen: Shapes, tiny: Shapes) -> None:
    assert trainers(qwen, deepspeed="zero3").gathered() == 2e9
    assert trainers(tiny, deepspeed="zero3").gathered() == tiny.weights
    assert trainers(qwen, deepspeed="zero2").gathered() == 0


def test_checkpointing_takes_time_for_memory(qwen: Shapes) -> None:
    plain, again = trainers(qwen), trainers(qwen, gradient_checkpointing=True)
    assert again.activations(500, 1024) < plain.activations(500, 1024) / 10
    adapter = 6 * 40_370_176 * 500
    text, picture = qwen.text_flops(500) + qwen.head_flops(1), qwen.picture_flops(1024)
    assert plain.flops(500, 1024, 1) == pytest.approx(2 * text + picture + adapter)
    assert again.flops(500, 1024, 1) == pytest.approx(3 * (text + picture) + adapter)


def test_blocks_of_a_checkpoint_by_hand(tiny: Shapes) -> None:
    found = trainers(tiny, gradient_checkpointing=True, lora={"dropout": 0.0}).activations(10, 36)
    layer = 4 * (7 * 160 + 3 * 160 + 3 * 160 + 4 * 416)  # float32
    assert found == 4 * (10 * (4 * 160 * 4 + layer) + 36 * 128 * (4 * 4 + 34))


def test_gathering_weights_over_links_and_over_the_network(qwen: Shapes) -> None:
    near, far = trainers(qwen, 8, deepspeed="zero3"), trainers(qwen, 16, deepspeed="zero3")
    assert near.gather_seconds() == pytest.approx(2 * 8_292_166_656 * 7 / 8 / (450e9 * 0.5))
    assert far.gather_seconds() == pytest.approx(2 * 8_292_166_656 * 15 / 16 / (50e9 * 0.5))
    assert near.passes_gathered(10, 5) == pytest.approx(25 * near.gather_seconds())
    assert trainers(qwen, 8, deepspeed="zero2").passes_gathered(10, 5) == 0
