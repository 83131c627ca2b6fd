"""What a model in training says of some items, and what each reward gives for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmsrarec_ray.config import Config
from mmsrarec_ray.summarize.tuning.examples import Examples
from mmsrarec_ray.summarize.tuning.rewards import Reward, read, weighted


@dataclass(frozen=True)
class Judged:
    """The answers to some items. terms: every reward there is, a float an answer; tokens: with the end."""

    answers: list[str]
    tokens: list[int]
    terms: dict[str, list[float]]

    def figures(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Means over the items: the sum that is learnt from, each term, tokens; and different keywords of them all."""
        means = {f"rewards/{name}": float(np.mean(values)) for name, values in self.terms.items()}
        keywords = {word for said in read(self.answers) for word in said.all}
        total = float(np.mean(weighted(self.terms, weights)))
        return {"reward": total, **means, "tokens": float(np.mean(self.tokens)), "distinct": float(len(keywords))}


class Answerer:
    """Greedy answers of the model in training, on every worker alike."""

    def __init__(self, config: Config, processor: Any, terms: Mapping[str, Reward]):
        self.config, self.processor, self.terms = config, processor, terms

    def __call__(self, trainer: Any, examples: Examples, tuned: bool = True) -> Judged:
        """tuned: with the adapter. Answers end at `tune_summarizer.max_tokens`."""
        from trl.models import unwrap_model_for_generation

        training = trainer.model.training
        trainer.model.eval()
        with (
            unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
            nullcontext() if tuned else model.disable_adapter(),
        ):
            ids = generate(self.config, model, examples, trainer.eos_token_ids)
        trainer.model.train(training)
        answers = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        rows = [examples.columns(number) for number in range(len(examples))]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        terms = {name: term(answers, completion_ids=ids, **columns) for name, term in self.terms.items()}
        return Judged(answers, [len(each) for each in ids], terms)


def generate(
    config: Config, model: Any, examples: Examples, ends: Sequence[int], temperature: float | None = None
) -> list[list[int]]:
    """An answer to each item, in tokens with the end: greedy, or sampled at a temperature. An answer is cut at
    `tune_summarizer.max_tokens`."""
    found: dict[int, list[int]] = {}
    for batch in _batches(examples, config.tune_summarizer.micro_batch_size):
        inputs = _inputs(examples, batch).to(model.device)
        with torch.no_grad():
            output = model.generate(
                **inputs,
                max_new_tokens=config.tune_summarizer.max_tokens,
                do_sample=temperature is not None,
                temperature=temperature,
                eos_token_id=list(ends),
            )
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        found |= zip(batch, (_until(row, ends) for row in rows), strict=True)
    return [found[number] for number in range(len(examples))]


def _batches(examples: Examples, size: int) -> Iterator[list[int]]:
    """Numbers of items, those with a picture apart from those without one."""
    pictured = [examples.picture(number) is not None for number in range(len(examples))]
    for wanted in (True, False):
        numbers = [number for number, there in enumerate(pictured) if there == wanted]
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def _inputs(examples: Examples, batch: Sequence[int]) -> Any:
    pictures, processor = [examples.picture(number) for number in batch], examples.processor
    turns = [[{"role": "user", "content": examples[number].content}] for number in batch]
    return processor(
        text=[processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns],
        images=[[picture] for picture in pictures] if pictures[0] is not None else None,
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end, with it."""
    place = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: place + 1]
