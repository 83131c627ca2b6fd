"""From a user, the similar users and a candidate to what a model reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
from PIL import Image

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.images import ImageError, ImageLimits, load_image
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.models.load import source
from mmsrarec_ray.models.pictures import picture_tokens
from mmsrarec_ray.rank.catalogue import Shown
from mmsrarec_ray.rank.evidence import EXPLAINED
from mmsrarec_ray.rank.prompts import (
    INSTRUCTIONS,
    Task,
    bullet,
    choice_lines,
    content,
    spoken_answers,
    unmarked,
    user_lines,
)
from mmsrarec_ray.summarize.prompts import item_text, plain


@dataclass(frozen=True)
class Question:
    """A prompt, whole, and the candidate's picture or None."""

    prompt: str
    image: Image.Image | None


class Asker:
    """Writes questions. Holds the model's tokenizer and chat template, not its weights."""

    def __init__(self, config: Config, catalogue: Shown):
        from transformers import AutoProcessor

        self.config, self.catalogue = config, catalogue
        self.form = config.rank.candidate
        self.limits = ImageLimits(config.data.max_image_bytes, config.data.max_image_pixels)
        self.processor = AutoProcessor.from_pretrained(source(config.model), revision=config.model.revision)
        self.tokenizer = self.processor.tokenizer
        self.image_token = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        self.control_tokens = tuple(self.tokenizer.get_added_vocab())
        self.spoken = spoken_answers(self.tokenizer)
        self.answers = tuple(self.tokenizer.encode(each, add_special_tokens=False)[0] for each in self.spoken.values())

    @property
    def sampling(self) -> dict[str, Any]:
        """vLLM's sampling parameters: one forward pass, that tells the logarithms of p(yes) and p(no)."""
        return {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": list(self.answers)}

    @cached_property
    def picture_tokens(self) -> int:
        """By how many tokens a picture of the largest size makes a question longer than its mark."""
        return picture_tokens(self.processor, content("", "", True), self.config.model.image_size)

    def user(
        self,
        history: np.ndarray | Sequence[int],
        neighbours: np.ndarray | Sequence[int],
        liked: Sequence[str] = (),
    ) -> str:
        """The part that all questions about a user share. history, neighbours: numbers of items, the newest last;
        liked: what users of the same segments like, as `FoldedSegments.liked` gives it."""
        shown = neighbours if self.config.rank.similar_users else ()
        return user_lines(self._lines(history), self._lines(shown), liked)

    def question(self, user: str, candidate: int, evidence: str = "", wording: int = 0) -> Question:
        """Whether the user chooses a candidate. user: as `user` gives it; evidence: what `Scale.lines` says of the
        candidate."""
        before = user + choice_lines(wording, EXPLAINED if self.config.rank.evidence else "")
        said = "\n".join(filter(None, [self._said(candidate), bullet(evidence) if evidence else ""]))
        return self._question(before, said, self.picture(candidate) if self.form == "image" else None)

    def instruction(self, task: Task, user: str, wording: int) -> Question:
        """What is asked of a user without a candidate. user: as `user` gives it."""
        return self._question(user + INSTRUCTIONS[task][wording], "", None)

    def description(self, number: int, wording: int) -> Question:
        """An item's keywords asked for, picture and text shown whatever form candidates have."""
        return self._question(INSTRUCTIONS["item_keywords"][wording] + "\n", self._text(number), self.picture(number))

    def blank(self) -> Question:
        """A picture on which there is nothing, and nothing asked of it."""
        size = self.config.model.image_size
        return self._question("", "", Image.new("RGB", (size, size), "white"))

    def _question(self, before: str, item: str, image: Image.Image | None) -> Question:
        turn = [{"role": "user", "content": content(before, item, image is not None)}]
        return Question(self.processor.apply_chat_template(turn, add_generation_prompt=True), image)

    def tokens(self, questions: Sequence[Question]) -> list[list[int]]:
        """As the engine reads them; what questions about one user share is worked out once.

        Raises InputError where one does not fit the model with an answer."""
        return [self._fitting(*each) for each in zip(self._read(questions), questions, strict=True)]

    def _read(self, questions: Sequence[Question]) -> list[list[int]]:
        prompts = [question.prompt for question in questions]
        shared = _shared(prompts) if len(prompts) > 1 else 0
        if shared:
            before, *after = self._encode([prompts[0][:shared], *(prompt[shared:] for prompt in prompts)])
            # Whether a token spans the cut is told by what is around it, which is the same in all of them.
            if before + after[0] == self._encode(prompts[:1])[0]:
                return [before + each for each in after]
        return self._encode(prompts)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _fitting(self, tokens: list[int], question: Question) -> list[int]:
        length = len(tokens) + (self.picture_tokens if question.image is not None else 0)
        if length >= self.config.model.max_model_len:
            raise InputError(
                f"a question has {length} tokens: model.max_model_len, {self.config.model.max_model_len}, must be "
                "larger, or retrieve.history, retrieve.neighbours or rank.max_text_chars smaller."
            )
        return tokens

    def picture(self, number: int) -> Image.Image | None:
        """An item's picture; None as well where it cannot be used, which the failures of `summarize` tell: a candidate
        must have a score."""
        try:
            return load_image(self.catalogue.item(number), self.limits, self.config.model.image_size)
        except (ImageError, FileNotFoundError):
            return None

    def _lines(self, numbers: np.ndarray | Sequence[int]) -> list[str]:
        """What stands for some items, which may be their titles."""
        return [plain(line, self.control_tokens) for line in self.catalogue.lines(numbers)]

    def _said(self, number: int) -> str:
        if self.form == "keywords":
            [words] = self._lines([number])
            return bullet(words) if words else ""
        return self._text(number)

    def _text(self, number: int) -> str:
        item = self.catalogue.item(number)
        return unmarked(item_text(item["title"], item["text"], self.config.rank.max_text_chars, self.control_tokens))


def _shared(prompts: Sequence[str]) -> int:
    """Characters of the lines that all begin with, but for the last of these: so all go on alike."""
    lines = takewhile(lambda line: len(set(line)) == 1, zip(*(prompt.split("\n") for prompt in prompts), strict=False))
    return sum(len(line) + 1 for line, *_ in [*lines][:-1])


def p_yes(yes: float, no: float) -> float:
    """p(yes) / (p(yes) + p(no)) from their logarithms."""
    return 1 / (1 + math.exp(no - yes))
