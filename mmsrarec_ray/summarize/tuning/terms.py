"""Which rewards the settings ask for, with their weights, and what they are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmsrarec_ray.config import Config
from mmsrarec_ray.models.sentences import encoder_of
from mmsrarec_ray.models.word_model import WordModel
from mmsrarec_ray.summarize.render import grammar
from mmsrarec_ray.summarize.tuning.reference import PictureReference, Reader, TextReference
from mmsrarec_ray.summarize.tuning.rewards import (
    Copying,
    Count,
    Finite,
    Form,
    Grounding,
    Information,
    Prediction,
    Reconstruction,
    Repetition,
    Reward,
    Tokens,
)

FORM = "form"
_WORDS = "words"


def weights_of(config: Config) -> dict[str, float]:
    """The terms of the sum that is learnt from, by name; those that weigh nothing are left out."""
    s = config.tune_summarizer
    if s.reward == "paper":
        weights = {"information": s.paper.alpha, "reconstruction": s.paper.beta, "count": s.paper.gamma}
    else:
        weights = s.grounded.model_dump()
    return {name: weight for name, weight in weights.items() if weight} | {FORM: 1.0}


def terms_of(config: Config, base: Any, processor: Any, texts: Sequence[str]) -> dict[str, Reward]:
    """Every term there is, by name. base: the untuned model, frozen; texts: of the training items."""
    s, most = config.tune_summarizer, config.summarize.max_keywords
    reader = _reader(s.reference, base, processor, texts)
    terms: dict[str, Reward] = {
        "information": Information(encoder_of(s.encoder, texts)),
        "reconstruction": Reconstruction(reader),
        "count": Count(),
        "prediction": Prediction(reader),
        "grounding": Grounding(PictureReference(base, processor, most), most),
        "tokens": Tokens(s.max_tokens),
        "repetition": Repetition(),
        "copying": Copying(),
        FORM: Form(grammar(config)),
    }
    return {name: Finite(name, term) for name, term in terms.items()}


def _reader(reference: str | None, base: Any, processor: Any, texts: Sequence[str]) -> Reader:
    if reference == _WORDS:
        return WordModel(texts)
    if reference is None:

        def turn(said: str) -> str:
            content = [{"role": "user", "content": [{"type": "text", "text": said}]}]
            return processor.apply_chat_template(content, add_generation_prompt=True)

        return TextReference(base, processor.tokenizer, turn)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reference)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=base.dtype).to(base.device).eval()
    return TextReference(model, tokenizer, lambda said: _plain_turn(tokenizer, said))


def _plain_turn(tokenizer: Any, said: str) -> str:
    """A chat model's own form; of a model without one, the words alone."""
    if tokenizer.chat_template is None:
        return f"{said}\nText: "
    content = [{"role": "user", "content": said}]
    return tokenizer.apply_chat_template(content, add_generation_prompt=True, tokenize=False)
