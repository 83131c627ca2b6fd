"""What a model in training says of some items, and what each reward gives for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

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

    def __init__(self, config: Config, processor: Any, terms: dict[str, Reward]):
        self.config, self.processor, self.terms = config, processor, terms

    def __call__(self, trainer: Any, examples: Examples, tuned: bool = True) -> Judged:
        """tuned: with the adapter. Answers end at `tune_summarizer.max_tokens`."""
        import torch
        from trl.models import unwrap_model_for_generation

        found: dict[int, list[int]] = {}
        training = trainer.model.training
        trainer.model.eval()
        with (
            torch.no_grad(),
            unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
            nullcontext() if tuned else model.disable_adapter(),
        ):
            for batch in self._batches(examples):
                found |= zip(batch, self._generate(model, examples, batch, trainer.eos_token_ids), strict=True)
        trainer.model.train(training)
        ids = [found[number] for number in range(len(examples))]
        answers = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        rows = [examples.columns(number) for number in range(len(examples))]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        terms = {name: term(answers, completion_ids=ids, **columns) for name, term in self.terms.items()}
        return Judged(answers, [len(each) for each in ids], terms)

    def _batches(self, examples: Examples) -> Iterable[list[int]]:
        """Items with a picture apart from those without one."""
        size = self.config.tune_summarizer.micro_batch_size
        pictured = [examples.picture(number) is not None for number in range(len(examples))]
        for wanted in (True, False):
            numbers = [number for number, there in enumerate(pictured) if there == wanted]
            yield from (numbers[start : start + size] for start in range(0, len(numbers), size))

    def _generate(self, model: Any, examples: Examples, batch: list[int], ends: Sequence[int]) -> list[list[int]]:
        pictures = [examples.picture(number) for number in batch]
        turns = [[{"role": "user", "content": examples[number].content}] for number in batch]
        inputs = self.processor(
            text=[self.processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns],
            images=[[picture] for picture in pictures] if pictures[0] is not None else None,
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(model.device)
        output = model.generate(
            **inputs, max_new_tokens=self.config.tune_summarizer.max_tokens, do_sample=False, eos_token_id=list(ends)
        )
        return [_until(row, ends) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end, with it."""
    place = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: place + 1]
