"""From an item to what the engine reads: prompt tokens, a picture of bounded size, a grammar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.images import ImageLimits, load_image
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.load import source
from mmsrarec_ray.models.pictures import picture_tokens
from mmsrarec_ray.store import fingerprint
from mmsrarec_ray.summarize.keywords import Grammar
from mmsrarec_ray.summarize.prompts import PROMPT_VERSION, item_text, user_content


class NothingToSummarise(ValueError):
    """The item has neither a picture nor a text."""


class PromptTooLong(ValueError):
    """The prompt and the longest answer do not fit the model's context."""


def grammar(config: Config) -> Grammar:
    """The keyword grammar of these settings."""
    s = config.summarize
    return Grammar(s.max_keywords, s.max_words, s.max_word_chars)


def require_room(config: Config) -> None:
    """Raises ConfigError where the longest answer leaves a prompt no room in the model's context: all items would
    fail."""
    needed, room, s = grammar(config).max_tokens(), config.model.max_model_len, config.summarize
    if needed >= room:
        raise ConfigError(
            f"summarize.max_keywords: an answer may take {needed} tokens, and model.max_model_len, {room}, must hold "
            f"the prompt too. Make it larger, or summarize.max_keywords ({s.max_keywords}), max_words ({s.max_words}) "
            f"or max_word_chars ({s.max_word_chars}) smaller."
        )


def prompt_version(config: Config) -> str:
    """Names everything but the weights that decides an item's keywords: prompt, limits, decoding."""
    s, model = config.summarize, config.model
    limits = [s.max_keywords, s.max_words, s.max_word_chars, s.max_text_chars, s.temperature, s.seed]
    return f"{PROMPT_VERSION}-{fingerprint([*limits, model.dtype, model.image_size])[:8]}"


@dataclass(frozen=True)
class Rendered:
    """One request: `tokens` of the prompt, the picture or None, and what the answer may look like."""

    tokens: list[int]
    image: Image.Image | None
    has_text: bool
    sampling: dict[str, Any]
    """vLLM's sampling parameters."""


class Renderer:
    """Turns items into requests. Holds the model's tokenizer and chat template, not its weights."""

    def __init__(self, config: Config):
        from transformers import AutoProcessor

        self.settings, self.model = config.summarize, config.model
        self.grammar = grammar(config)
        self.limits = ImageLimits(config.data.max_image_bytes, config.data.max_image_pixels)
        self.processor = AutoProcessor.from_pretrained(source(config.model), revision=config.model.revision)
        self.control_tokens = tuple(self.processor.tokenizer.get_added_vocab())

    def __call__(self, item: Mapping[str, Any]) -> Rendered:
        """item: a row of the items table (title, text, image, image_uri).

        Raises NothingToSummarise, PromptTooLong, ImageError or FileNotFoundError.
        """
        image = load_image(item, self.limits, self.model.image_size)
        text = item_text(item["title"], item["text"], self.settings.max_text_chars, self.control_tokens)
        if image is None and not text:
            raise NothingToSummarise("expected a picture or a text, got neither")
        content = user_content(text, image is not None, self.settings.max_keywords)
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        tokens = self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        length = len(tokens) + (self.picture_tokens if image is not None else 0)
        return Rendered(tokens, image, bool(text), self._sampling(length, image is not None, bool(text)))

    @cached_property
    def picture_tokens(self) -> int:
        """By how many tokens a picture of the largest size makes a prompt longer than its mark."""
        return picture_tokens(self.processor, user_content("", True, self.settings.max_keywords), self.model.image_size)

    def _sampling(self, prompt_tokens: int, has_image: bool, has_text: bool) -> dict[str, Any]:
        room = self.model.max_model_len - prompt_tokens
        needed = self.grammar.max_tokens()
        if room < needed:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens and an answer may take {needed}, "
                f"more than model.max_model_len {self.model.max_model_len}"
            )
        return {
            "max_tokens": needed,
            "temperature": self.settings.temperature,
            "seed": self.settings.seed,
            "structured_outputs": {"regex": self.grammar.regex(has_image, has_text)},
        }
