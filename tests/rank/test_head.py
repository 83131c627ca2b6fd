"""The head reads answers alone, and nothing else changes: losses, gradients, what TRL counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from mmsrarec_ray.adapters import load_base
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.head import at_answers_alone
from mmsrarec_ray.rank.packing import IGNORED, Collator
from tests.rank.test_packing import contexts
from tests.rank.world import catalogue, config

WORDS = "rank.candidate=image"


@contextmanager
def tokens_read(model: Any) -> Iterator[list[int]]:
    """How many tokens each forward pass of the backbone hands on."""
    counts: list[int] = []

    def count(_module: nn.Module, _given: Any, found: Any) -> None:
        counts.append(found.last_hidden_state.shape[:2].numel())

    handle = model.base_model.register_forward_hook(count)
    yield counts
    handle.remove()


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_the_same_is_learnt_from_fewer_tokens(shared_prefix: bool) -> None:
    asker = Asker(config(WORDS), catalogue())
    collate, found = Collator(asker, shared_prefix), []
    for alone in (False, True):
        model = load_base(asker.config).eval()
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        batch = (at_answers_alone(model, collate) if alone else collate)(contexts(asker))
        with tokens_read(model) as read:
            told = model(**batch, fused_lm_head=True)
        (-told.log_probs.sum()).backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        sums = [told.log_probs.sum(), told.entropy.sum(), told.is_top1.sum().float(), told.label_mask.sum().float()]
        found.append((torch.stack(sums), gradients, read))
    (expected, all_gradients, [many]), (sums, gradients, [few]) = found
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-4)
    assert gradients.keys() == all_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, all_gradients[name], rtol=1e-3, atol=1e-4, msg=name)
    labels = collate(contexts(asker))["labels"]
    assert few == len(labels) * int((labels != IGNORED).sum(1).max()) < many / 4


def test_without_places_the_model_is_as_it_was() -> None:
    asker = Asker(config(WORDS), catalogue())
    batch = Collator(asker, True)(contexts(asker))
    labels = batch.pop("labels")
    model = load_base(asker.config).eval()
    with torch.inference_mode():
        before = model(**batch).logits
        placed = at_answers_alone(model, lambda _: batch | {"labels": labels})([])
        after = model(**batch).logits
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    answers = torch.sort(placed["shift_labels"][placed["shift_labels"] != IGNORED]).values
    assert answers.tolist() == torch.sort(labels[labels != IGNORED]).values.tolist()
