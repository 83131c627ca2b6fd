"""Edits of answers: what is left out, and what the policy may learn from it."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from mmsrarec_ray.adapters import load_processor
from mmsrarec_ray.config import load
from mmsrarec_ray.summarize.tuning.trainer import trainer_class, without_one


def test_an_edit_leaves_out_one_keyword_and_no_half() -> None:
    answer = "image: red, mug; text: mug"
    assert {without_one(answer, Random(seed)) for seed in range(20)} == {
        "image: mug; text: mug",
        "image: red; text: mug",
    }
    for whole in ("image: red; text: mug", "a red mug", ""):
        assert without_one(whole, Random(0)) == whole


def test_without_edits_answers_are_those_of_trl() -> None:
    assert trainer_class(0.0)._generate_single_turn is GRPOTrainer._generate_single_turn


def test_a_resumed_epoch_sees_the_items_that_an_unbroken_run_would_see() -> None:
    def orders(*epochs: float | None) -> list[list[int]]:
        """What one trainer sees whose state says so at the begin of each epoch."""
        made = object.__new__(trainer_class(0.0))
        made.args = SimpleNamespace(seed=5, generation_batch_size=8, steps_per_generation=1)
        made.num_generations, made.num_iterations, made.shuffle_dataset = 2, 1, True
        sampler, seen = made._get_train_sampler(list(range(12))), []
        for epoch in epochs:
            made.state = SimpleNamespace(epoch=epoch)
            seen.append(list(sampler))
            assert len(seen[-1]) == len(sampler)
        return seen

    whole = orders(None, 1.0, 2.0)
    assert len({tuple(order) for order in whole}) == 3
    assert orders(2.0) == orders(2.0 + 1 / 3) == whole[2:]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An exploring trainer of which nothing but the sampling and the judging exists."""
    tokenizer = load_processor(load(None, ["data.format=shop", "run=/nowhere"])).tokenizer
    answers = ["image: red, plain, mug; text: mug", "image: red; text: mug", "image: red, plain, mug; text: bag, oak"]
    sampled = [[*tokenizer.encode(each, add_special_tokens=False), tokenizer.eos_token_id] for each in answers]
    sampled.append(tokenizer.encode(answers[0], add_special_tokens=False))  # cut off
    batch = {"advantages": torch.tensor([1.0, -1.0, -1.0, -1.0]), "completion_mask": torch.ones(4, 3, dtype=torch.long)}
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda self, *given: (sampled, None))
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", lambda self, inputs: dict(batch))
    made = object.__new__(trainer_class(0.999))
    made.model = SimpleNamespace(training=True)
    made.args, made.state = SimpleNamespace(seed=0, process_index=0), SimpleNamespace(global_step=3)
    made.eos_token_ids, made._tokenizer = [tokenizer.eos_token_id], tokenizer
    made.sampled = sampled
    return made


def test_only_whole_answers_with_several_keywords_are_edited_and_the_same_in_a_resumed_step(trainer: Any) -> None:
    tried, logs = trainer._generate_single_turn()
    assert logs is None
    assert trainer.edited.tolist() == [True, False, True, False]
    assert [new == old for new, old in zip(tried, trainer.sampled, strict=True)] == [False, True, False, True]
    assert tried[0][-1] == trainer.eos_token_ids[0]
    assert trainer._generate_single_turn()[0] == tried
    trainer.state.global_step = 4
    assert trainer._generate_single_turn()[0] != tried
    trainer.model.training = False
    assert trainer._generate_single_turn()[0] == trainer.sampled


def test_an_edit_that_earns_less_than_its_group_is_forgotten(trainer: Any) -> None:
    trainer._generate_single_turn()
    mask = trainer._generate_and_score_completions([])["completion_mask"]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1]]
