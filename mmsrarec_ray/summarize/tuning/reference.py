"""The frozen model that rewards ask: how likely is the item's text after its keywords, how likely are its keywords
before its picture.

Prompts have the model's own chat form. What they begin with alike is read once: the instruction before keywords, the
prompt with the picture before a keyword.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch.nn import functional

from mmsrarec_ray.summarize.keywords import render
from mmsrarec_ray.summarize.prompts import user_content

_WRITE = "Write the text of an item with these keywords.\nKeywords:"  # a space comes next: tokens begin with theirs
_BATCH = 32
_BESIDE_TOKENS = ("token_type_ids", "mm_token_type_ids")  # which tokens are a picture's; 0: none


class Reader(Protocol):
    """Says how likely texts are, given a line of keywords each: mean log probability of a token or word, in nats; None
    where the text is empty."""

    def log_probs(self, keywords: Sequence[str], texts: Sequence[str]) -> list[float | None]: ...


class TextReference:
    """A causal language model, frozen, that reads keywords and then a text."""

    def __init__(self, model: Any, tokenizer: Any, turn: Any):
        """turn: from the user's words to the prompt, as `chat_turn` gives it."""
        self.model, self.tokenizer = model, tokenizer
        mark = "\x1a"
        before, _, self.after = turn(f"{_WRITE}{mark}").partition(mark)
        self.shared = self._ids(before)
        self.cache: Any = None

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def log_probs(self, keywords: Sequence[str], texts: Sequence[str]) -> list[float | None]:
        """As `Reader` says. Each pair is asked once, texts of about one length together."""
        pairs = list(dict.fromkeys(zip(keywords, texts, strict=True)))
        rows = {pair: (self._ids(f" {pair[0]}{self.after}"), self._ids(pair[1])) for pair in pairs}
        order = sorted((pair for pair in pairs if rows[pair][1]), key=lambda pair: sum(map(len, rows[pair])))
        found: dict[tuple[str, str], float] = {}
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            found |= zip(batch, self._means([rows[pair] for pair in batch]), strict=True)
        return [found.get(pair) for pair in zip(keywords, texts, strict=True)]

    def _means(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        device = self.model.device
        if self.cache is None:
            self.cache = self.model(torch.tensor([self.shared], device=device), use_cache=True).past_key_values
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(rows))
        longest = max(len(line) + len(text) for line, text in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), len(self.shared) + longest, dtype=torch.long)
        mask[:, : len(self.shared)] = 1
        labels = torch.full((len(rows), longest), -100)
        for row, (line, text) in enumerate(rows):
            whole = torch.tensor(line + text)
            ids[row, : len(whole)] = whole
            mask[row, len(self.shared) : len(self.shared) + len(whole)] = 1
            labels[row, len(line) - 1 : len(whole) - 1] = whole[len(line) :]
        # Left alone, a model that counts positions in a picture goes on from those of the last picture it was shown.
        positions = torch.arange(len(self.shared), mask.shape[1], device=device).expand(len(rows), -1)
        told = {"attention_mask": mask.to(device), "position_ids": positions, "past_key_values": cache}
        logits = self.model(ids.to(device), **told).logits.float().cpu()
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        return (-losses.sum(1) / (labels >= 0).sum(1)).tolist()


class PictureReference:
    """The untuned multimodal model, frozen: how much likelier are keywords before one picture than before another?"""

    def __init__(self, model: Any, processor: Any, max_keywords: int):
        self.model, self.processor = model, processor
        turn = [{"role": "user", "content": user_content("", True, max_keywords)}]
        self.prompt = processor.apply_chat_template(turn, add_generation_prompt=True)

    def gains(
        self, keywords: Sequence[Sequence[str]], own: Sequence[Image.Image], other: Sequence[Image.Image]
    ) -> list[list[float]]:
        """log P(keyword | own picture, keywords before it) - log P(keyword | other picture, keywords before it), in
        nats, of each keyword. The prompt holds the picture alone: no text gives keywords away.

        keywords: of each item, possibly none; own, other: a picture an item. Equal rows are asked once.
        """
        rows = [
            (tuple(words), id(first), id(second)) for words, first, second in zip(keywords, own, other, strict=True)
        ]
        places = {row: place for place, row in enumerate(rows) if row[0]}
        order = sorted(places, key=lambda row: sum(map(len, row[0])))
        found: dict[Any, list[float]] = {}
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            words = [row[0] for row in batch]
            first, second = (self._said(words, [side[places[row]] for row in batch]) for side in (own, other))
            for row, mine, others in zip(batch, first, second, strict=True):
                found[row] = [a - b for a, b in zip(mine, others, strict=True)]
        return [found.get(row, []) for row in rows]

    @torch.inference_mode()
    def _said(self, keywords: Sequence[tuple[str, ...]], pictures: Sequence[Image.Image]) -> list[list[float]]:
        """Log probability of each keyword of each row, after the picture and the keywords before."""
        inputs = self.processor(
            text=[self.prompt] * len(pictures),
            images=[[picture] for picture in pictures],
            padding=True,
            padding_side="left",  # pictures of other sizes may be other numbers of tokens
            return_tensors="pt",
        )
        prompts = inputs["input_ids"]
        answers = [self._tokens(words) for words in keywords]
        longest = max(len(ids) for ids, _ in answers)
        padded = torch.zeros(len(answers), longest, dtype=torch.long)  # on the right: a causal model does not see it
        for row, (ids, _) in enumerate(answers):
            padded[row, : len(ids)] = torch.tensor(ids)
        inputs["input_ids"] = torch.cat([prompts, padded], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(padded)], 1)
        for name in inputs.keys() & _BESIDE_TOKENS:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(padded, dtype=inputs[name].dtype)], 1)
        logits = self.model(**inputs.to(self.model.device)).logits[:, prompts.shape[1] - 1 : -1].float().cpu()
        logs = logits.log_softmax(-1).gather(2, padded[:, :, None])[:, :, 0]
        return [
            [row[start:end].sum().item() for start, end in spans] for row, (_, spans) in zip(logs, answers, strict=True)
        ]

    def _tokens(self, words: tuple[str, ...]) -> tuple[list[int], list[tuple[int, int]]]:
        """The picture's half of an answer, and which of its tokens are which keyword."""
        text = render(words, ())
        encoded = self.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans, start = [], len(text) - len(", ".join(words))
        starts = [low for low, _ in encoded["offset_mapping"]]
        for word in words:
            end = start + len(word)
            inside = [n for n, low in enumerate(starts) if start - 1 <= low < end]  # a token may begin with the space
            spans.append((inside[0], inside[-1] + 1) if inside else (0, 0))
            start = end + len(", ")
        return encoded["input_ids"], spans
