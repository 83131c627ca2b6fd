"""The language model's head at the answers alone.

TRL projects through the head, on a GPU, the tokens that have labels; elsewhere all of them, of which in a training of
answers nearly all are thrown away: with a vocabulary of 49,000 that is a quarter of all the work. So here the backbone
hands on what it made of the tokens before answers, and the labels are those of these tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmsrarec_ray.rank.packing import IGNORED

_PLACES = "answer_places"

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]


def at_answers_alone(model: Any, collate: Collate) -> Collate:
    """Change the model, and give the collator that goes with it.

    model: a causal language model of transformers, to which TRL adds its head afterwards; collate: gives labels, int64
    (rows, n). Beside them the new one gives shift_labels, int64 (rows, m), those of the answers' tokens (-100 where a
    row has fewer), and answer_places, int64 (rows, m), which token comes before each.
    """
    places: list[torch.Tensor] = []

    def before(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        places[:] = [named[_PLACES]] if _PLACES in named else []
        return given, {name: value for name, value in named.items() if name != _PLACES}

    def after(_module: nn.Module, _given: tuple[Any, ...], found: Any) -> Any:
        for place in places:
            states = found.last_hidden_state
            found.last_hidden_state = states.gather(1, place[:, :, None].expand(-1, -1, states.shape[-1]))
        return found

    model.base_model.register_forward_pre_hook(before, with_kwargs=True)
    model.base_model.register_forward_hook(after)
    return lambda contexts: _placed(collate(contexts))


def _placed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    after = batch["labels"][:, 1:]
    told = after != IGNORED
    places = told.int().argsort(dim=1, descending=True, stable=True)[:, : int(told.sum(1).max())]
    return batch | {"shift_labels": after.gather(1, places), _PLACES: places}
