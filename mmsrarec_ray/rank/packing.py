"""Examples of a context as tensors: one sequence that holds what they begin with alike once, or a sequence for each.

With a shared prefix the tokens of every example stand behind it, at the positions they would have alone, and see the
prefix and themselves: a mask of blocks. The logits are those of separate sequences. TRL's own packing does not take
vision models and knows no prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad

from mmsrarec_ray.rank.ask import Asker

IGNORED = -100
_TYPES = "mm_token_type_ids"
_PADDED = -1
_PREFIX = 0


@dataclass(frozen=True)
class _Example:
    """tokens: int64 (n,), prompt, then answer; asked: how many of them are the prompt; shareable: how many of the first
    may stand for those of another example: all before a picture, whose tokens look alike and are not; types: int64
    (n,), what the processor says a token is, text (0) or of a picture."""

    tokens: np.ndarray
    asked: int
    shareable: int
    types: np.ndarray


@dataclass(frozen=True)
class _Row:
    """A sequence of the batch. tokens, labels, positions, types: int64 (n,); block: int64 (n,), 0 for the prefix, which
    all see, else the number of the example."""

    tokens: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    types: np.ndarray
    block: np.ndarray


class Collator:
    """From rows of EXAMPLES to what the model takes.

    Gives input_ids and labels (-100 but for answers), int64 (rows, n), what the processor makes of the pictures, in the
    order of their tokens, and attention_mask: of separate sequences int64 (rows, n), 0 for padding; with a shared
    prefix bool (rows, 1, n, n), true where a token sees another, with position_ids, int64 (rows, n). Separate sequences
    with pictures have mm_token_type_ids, int64 (rows, n), where the processor gives them: models that count positions
    in rows and columns work them out from these, and count plainly without. pictured: a batch without a picture gets a
    row that has a blank one and no label.
    """

    def __init__(self, asker: Asker, shared_prefix: bool, pictured: bool = False):
        self.asker, self.shared_prefix, self.pictured = asker, shared_prefix, pictured
        tokenizer = asker.tokenizer
        self.padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def __call__(self, contexts: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        groups = [group for context in contexts for group in _groups(context["examples"])]
        if not self.shared_prefix:
            groups = [[example] for group in groups for example in group]
        pictures: dict[str, list[torch.Tensor]] = {}
        rows = [_laid([self._read(example, pictures) for example in group]) for group in groups]
        if self.pictured and not pictures:
            blank = self.asker.blank()
            rows.append(_laid([self._example(blank.prompt, blank.image, [], pictures)]))
        typed = pictures.pop(_TYPES, None) is not None and not self.shared_prefix
        batch = _batch(rows, self.padding, self.shared_prefix, typed)
        return batch | {name: _joined(values) for name, values in pictures.items()}

    def _read(self, example: dict[str, Any], pictures: dict[str, list[torch.Tensor]]) -> _Example:
        """An example's tokens; what the processor makes of its picture is added to `pictures`."""
        tokenizer = self.asker.tokenizer
        if example["task"] == "choice":
            answer = tokenizer.encode(self.asker.spoken[example["answer"]], add_special_tokens=False)
        else:
            answer = [*tokenizer.encode(example["answer"], add_special_tokens=False), tokenizer.eos_token_id]
        picture = None if example["picture"] is None else self.asker.picture(example["picture"])
        return self._example(example["prompt"], picture, answer, pictures)

    def _example(
        self, prompt: str, picture: Image.Image | None, answer: list[int], pictures: dict[str, list[torch.Tensor]]
    ) -> _Example:
        if picture is None:
            asked = self.asker.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            shareable, types = len(asked), np.zeros(len(asked), np.int64)
        else:
            read = self.asker.processor(
                text=[prompt], images=[[picture]], add_special_tokens=False, return_tensors="pt"
            )
            asked = read.pop("input_ids")[0].tolist()
            shareable = self._before_picture(prompt)
            types = np.array(read[_TYPES][0] if _TYPES in read else np.zeros(len(asked)), np.int64)
            for name, values in read.items():
                if name not in ("attention_mask", "token_type_ids"):
                    pictures.setdefault(name, []).append(values)
        types = np.pad(types, (0, len(answer)))
        return _Example(np.array([*asked, *answer], np.int64), len(asked), shareable, types)

    def _before_picture(self, prompt: str) -> int:
        """How many tokens stand before the first that a picture brings in."""
        plain = self.asker.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return plain.index(self.asker.image_token)


def _groups(examples: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Examples that begin with a user together, others alone."""
    of_user = [example for example in examples if example["task"] != "item_keywords"]
    return [of_user, *([example] for example in examples if example["task"] == "item_keywords")]


def _laid(examples: list[_Example]) -> _Row:
    """Examples behind their longest common prefix, but for the last token of a prompt: what comes before an answer is
    its own, else of two prompts that read alike one answer would follow the other. Of a lone one all of the prompt that
    could be shared is the prefix."""
    shared = min(min(example.asked - (len(examples) > 1), example.shareable) for example in examples)
    first = examples[0].tokens[:shared]
    for example in examples[1:]:
        same = first == example.tokens[:shared]
        shared = min(shared, shared if same.all() else int(np.argmin(same)))
        first = first[:shared]
    parts = [example.tokens[shared:] for example in examples]
    labels = [np.where(np.arange(shared, len(e.tokens)) < e.asked, IGNORED, e.tokens[shared:]) for e in examples]
    lengths = [shared, *map(len, parts)]
    return _Row(
        np.concatenate([first, *parts]),
        np.concatenate([np.full(shared, IGNORED), *labels]),
        np.concatenate([np.arange(shared), *(shared + np.arange(len(part)) for part in parts)]),
        np.concatenate([examples[0].types[:shared], *(example.types[shared:] for example in examples)]),
        np.repeat(np.arange(len(lengths)), lengths),
    )


def _joined(values: list[torch.Tensor]) -> torch.Tensor:
    """What the processor makes of some pictures, along the first axis. It cuts pictures of one form into more tiles
    than those of another (Idefics3): tiles of zeros, which it knows for none, follow those of the others."""
    if values[0].ndim == 1:
        return torch.cat(values)
    most = max(value.shape[1] for value in values)
    more = ([0, 0] * (value.ndim - 2) + [0, most - value.shape[1]] for value in values)
    return torch.cat([pad(value, missing) for value, missing in zip(values, more, strict=True)])


def _batch(rows: list[_Row], padding: int, shared_prefix: bool, typed: bool) -> dict[str, torch.Tensor]:
    """Rows of equal length, padded behind. typed: with the types of tokens."""
    length = max(len(row.tokens) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        values = (getattr(row, name) for row in rows)
        return torch.from_numpy(np.stack([np.pad(v, (0, length - len(v)), constant_values=value) for v in values]))

    batch = {"input_ids": padded("tokens", padding), "labels": padded("labels", IGNORED)}
    batch |= {_TYPES: padded("types", 0)} if typed else {}
    block = padded("block", _PADDED)
    if not shared_prefix:
        return batch | {"attention_mask": (block != _PADDED).long()}
    return batch | {"position_ids": padded("positions", 0), "attention_mask": _seen(block)}


def _seen(block: torch.Tensor) -> torch.Tensor:
    """Which token sees which: bool (rows, 1, n, n). block: int64 (rows, n).

    A padding token sees itself, since softmax over nothing is not a number.
    """
    here, there = block[:, :, None], block[:, None, :]
    order = torch.arange(block.shape[1])
    seen = ((there == _PREFIX) | (there == here)) & (order[None, :] <= order[:, None]) & (here != _PADDED)
    return (seen | torch.eye(len(order), dtype=torch.bool))[:, None]
