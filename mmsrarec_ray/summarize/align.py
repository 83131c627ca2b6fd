"""Aligns a vision-language model to the summary prompt on a real catalogue, by supervised training.

First the vision tower and the connector learn alone which labels (genres, say) a picture has: the picture's tokens
are compared with the text model's own embeddings of the labels' words, so that they come to lie where the text
model can read them. Then the whole model learns to answer: cross-entropy on the answer's tokens, over prompts with
both parts, the picture alone and the text alone. After each part the state that was best on validation items is
kept. Each step's items and distortions follow from the seed and the number of the step, so a run that goes on from a
checkpoint is the run that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from mmsrarec_ray.models.architecture import VisionSettings, normalise
from mmsrarec_ray.models.pretrain_vision import see
from mmsrarec_ray.summarize import distil
from mmsrarec_ray.summarize.catalogue import TRAIN, VALIDATION, Catalogue, Fields, Item, distort, step_items
from mmsrarec_ray.summarize.lessons import BOTH, IMAGE_ONLY, TEXT_ONLY, Form, LanguageBatch
from mmsrarec_ray.summarize.training import rate_share, read_state, write_state

Precision = Literal["float32", "bfloat16"]
_TRIALS = 3


@dataclass(frozen=True)
class Alignment:
    """How the compact model is made. Counts are a step's, unless they say otherwise."""

    vision: VisionSettings = field(
        default_factory=lambda: VisionSettings(128, patch_size=16, width=192, depth=4, heads=6, scale_factor=4)
    )
    fields: Fields = field(default_factory=Fields)
    distillation: distil.Distillation | None = None
    """What the tower learns of a teacher before all this; None: nothing."""
    seed: int = 40_000_001
    items_per_split: int = 20_000
    """Items of each split that are read at most."""
    context: int = 8_192
    """Tokens of the longest input the tokenizer announces."""
    vision_steps: int = 600
    """Steps that vision tower and connector learn alone."""
    pictures: int = 32
    """Pictures of such a step."""
    speaking_steps: int = 300
    both: int = 3
    image_only: int = 2
    text_only: int = 1
    vision_rate: float = 1e-3
    speaking_vision_rate: float = 2e-4
    connector_rate_share: float = 0.03
    """Of the vision tower's rate: the connector adds up thousands of inputs into short vectors."""
    text_rate: float = 3e-4
    last_rate_share: float = 0.05
    warmup_steps: int = 10
    vision_weight_decay: float = 0.1
    label_weight_when_speaking: float = 0.3
    precision: Precision | None = None
    """None: what is faster on this machine, measured on one step of each."""
    validation_items: int = 32
    vision_validate_every: int = 100
    validate_every: int = 50
    report_every: int = 10
    exam_items: int = 200

    @property
    def steps(self) -> int:
        """All steps."""
        return self.vision_steps + self.speaking_steps

    def rate_share(self, step: int) -> float:
        """Share of the highest learning rate at a step: a warm-up and a cosine in each of the two parts."""
        alone = step < self.vision_steps
        since, length = (step, self.vision_steps) if alone else (step - self.vision_steps, self.speaking_steps)
        return rate_share(since, length, since, self.warmup_steps, self.last_rate_share)


SMOKE = Alignment(
    vision=VisionSettings(48, patch_size=8, width=32, depth=2, heads=2, scale_factor=3),
    fields=Fields(max_chars=160),
    vision_steps=8,
    speaking_steps=16,
    pictures=8,
    text_rate=3e-3,
    speaking_vision_rate=1e-3,
    warmup_steps=2,
    precision="float32",
    validation_items=4,
    vision_validate_every=4,
    validate_every=4,
    report_every=4,
    exam_items=6,
)
"""Makes a useless model in seconds, to see that all parts work."""


def alignment(taught: bool, smoke: bool = False) -> Alignment:
    """How the compact model is made. taught: by a teacher first, whose lessons a high rate would undo; smoke: in
    seconds, of no use."""
    settings = SMOKE if smoke else Alignment()
    if not taught:
        return settings
    return replace(settings, distillation=distil.SMOKE if smoke else distil.Distillation(), vision_rate=3e-4)


class LabelHead(nn.Module):
    """Tells a picture's labels by comparing the mean of its tokens with the embeddings of the labels' words."""

    words: torch.Tensor

    def __init__(self, model: Idefics3ForConditionalGeneration, catalogue: Catalogue) -> None:
        super().__init__()
        table = model.model.text_model.embed_tokens.weight.detach()
        spelt = catalogue.tokenizer([f" {label}" for label in catalogue.labels], add_special_tokens=False)["input_ids"]
        means = torch.stack([table[ids].mean(0) for ids in spelt]) - table.mean(0)
        self.register_buffer("words", functional.normalize(means, dim=1), persistent=False)
        self.length = table.norm(dim=1).mean().item()
        share = catalogue.marks(catalogue.fitting(TRAIN, IMAGE_ONLY)).mean(0).clamp(0.001, 0.999)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(share.logit())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: float32 (n, tokens, width) of the connector; returns logits, float32 (n, n_labels)."""
        return self.scale * (tokens.float().mean(1) / self.length) @ self.words.T + self.bias


@torch.no_grad()
def start_connector(model: Idefics3ForConditionalGeneration, pixels: torch.Tensor) -> None:
    """Scale the connector so that a picture's tokens are about as long as the text model's embeddings."""
    tokens = model.model.connector(see(model, pixels))
    wanted = model.model.text_model.embed_tokens.weight.norm(dim=1).mean()
    model.model.connector.modality_projection.proj.weight.mul_(wanted / tokens.norm(dim=-1).mean())


def answer_loss(
    model: Idefics3ForConditionalGeneration, batch: LanguageBatch, tokens: torch.Tensor | None
) -> torch.Tensor:
    """Cross-entropy of each answer token, float32 (n_answer_tokens,).

    tokens: the connector's, (n, tokens, width), one picture a row; None for prompts without one.
    """
    words = model.model.text_model.embed_tokens(batch.ids)
    if tokens is not None:
        places = (batch.ids == model.config.image_token_id)[..., None]
        words = words.masked_scatter(places, tokens.to(words.dtype))
    hidden = model.model.text_model(inputs_embeds=words, use_cache=False).last_hidden_state
    asked = batch.labels >= 0
    return functional.cross_entropy(model.lm_head(hidden[asked]).float(), batch.labels[asked], reduction="none")


class Aligner:
    """A training: its model, label head and optimiser, the step it stands at, and the best state so far."""

    def __init__(self, model: Idefics3ForConditionalGeneration, catalogue: Catalogue, settings: Alignment) -> None:
        self.model, self.catalogue, self.settings, self.step = model, catalogue, settings, 0
        self.whole = nn.ModuleDict({"model": model, "head": LabelHead(model, catalogue)})
        self.precision: Precision = settings.precision or "float32"
        self.best: tuple[float, dict[str, torch.Tensor]] | None = None
        self.train = {form: catalogue.fitting(TRAIN, form) for form in (BOTH, IMAGE_ONLY, TEXT_ONLY)}
        held_out = {form: catalogue.fitting(VALIDATION, form) for form in (BOTH, TEXT_ONLY, IMAGE_ONLY)}
        self.validated: Form = next(form for form, items in held_out.items() if items)
        self.asked_in_validation = held_out[self.validated][: settings.validation_items]
        self.seen_in_validation = held_out[IMAGE_ONLY]
        connector = list(model.model.connector.parameters())
        tower = [*model.model.vision_model.parameters(), *self.whole["head"].parameters()]
        self._text = [each for name, each in model.named_parameters() if self._of_text(name)]
        self.parameters = [*tower, *connector, *self._text]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": tower, "weight_decay": settings.vision_weight_decay},
                {"params": connector, "weight_decay": 0.0},
                {"params": self._text, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        )

    @staticmethod
    def _of_text(name: str) -> bool:
        return "text_model" in name or "lm_head" in name

    @property
    def speaking(self) -> bool:
        """Whether the next step is of the second part."""
        return self.step >= self.settings.vision_steps

    def casting(self, precision: Precision | None = None) -> AbstractContextManager:
        """The arithmetic of the forward pass; weights and their updates are float32 in any case."""
        return torch.autocast("cpu", torch.bfloat16, enabled=(precision or self.precision) == "bfloat16")

    def _see(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.model.connector(see(self.model, pixels))

    def _label_loss(self, tokens: torch.Tensor, items: Sequence[Item]) -> torch.Tensor:
        logits = self.whole["head"](tokens)
        return functional.binary_cross_entropy_with_logits(logits, self.catalogue.marks(items)) * logits.shape[1]

    def speaking_items(self, step: int) -> dict[Form, list[Item]]:
        """Which examples a step of the second part has."""
        s = self.settings
        counts = {BOTH: s.both, IMAGE_ONLY: s.image_only, TEXT_ONLY: s.text_only}
        return {
            form: step_items(self.train[form], count, step - s.vision_steps, [s.seed, 1 + number])
            for number, (form, count) in enumerate(counts.items())
            if count and self.train[form]
        }

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """The losses of a step, weighted as they are summed, under the names they are reported by."""
        s = self.settings
        rng = np.random.default_rng([s.seed, 0, step])
        if step < s.vision_steps:
            seen = step_items(self.train[IMAGE_ONLY], s.pictures, step, [s.seed, 9])
            return {"labels": self._label_loss(self._see(distort(rng, self.catalogue.pixels(seen))), seen)}
        items = self.speaking_items(step)
        seen = [item for form, each in items.items() if form.has_image for item in each]
        tokens = self._see(distort(rng, self.catalogue.pixels(seen)))
        each, first = [], 0
        for form, batch in items.items():
            last = first + (len(batch) if form.has_image else 0)
            shown = tokens[first:last] if form.has_image else None
            each.append(answer_loss(self.model, self.catalogue.batch(batch, form), shown))
            first = last
        labels = s.label_weight_when_speaking * self._label_loss(tokens, seen)
        return {"labels": labels, "answer": torch.cat(each).mean()}

    def take_step(self) -> dict[str, float]:
        """Learn from one step's items; returns the losses."""
        s = self.settings
        if self.step == s.vision_steps:
            self.take_best()
        for parameter in self._text:
            parameter.requires_grad_(self.speaking)
        tower, text = (s.speaking_vision_rate, s.text_rate) if self.speaking else (s.vision_rate, 0.0)
        rates = (tower, tower * s.connector_rate_share, text)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * s.rate_share(self.step)
        self.model.train()
        with self.casting():
            losses = self.losses(self.step)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        return {name: value.item() for name, value in losses.items()}

    @torch.no_grad()
    def validate(self, speaking: bool) -> float:
        """Mean loss on validation items: of the labels, or of the answer to prompts with both parts; with one where no
        item has both."""
        self.model.eval()
        form = self.validated
        items = self.asked_in_validation if speaking else self.seen_in_validation
        sums, count = 0.0, 0
        for start in range(0, len(items), 16):
            batch = items[start : start + 16]
            with self.casting():
                pixels = normalise(self.catalogue.pixels(batch)) if form.has_image or not speaking else None
                tokens = None if pixels is None else self._see(pixels)
                if speaking:
                    each = answer_loss(self.model, self.catalogue.batch(batch, form), tokens)
                else:
                    assert tokens is not None
                    each = self._label_loss(tokens, batch).expand(len(batch))
            sums, count = sums + each.sum().item(), count + len(each)
        return sums / count

    def _state(self) -> dict[str, torch.Tensor]:
        """All that training has changed so far, without copies."""
        speaking = self.step > self.settings.vision_steps
        return {n: p.detach() for n, p in self.whole.named_parameters() if speaking or not self._of_text(n)}

    def keep_if_best(self) -> float:
        """Validate, and keep the state where it is the best of its part."""
        loss = self.validate(self.step > self.settings.vision_steps)
        if self.best is None or loss < self.best[0]:
            self.best = loss, {name: value.clone() for name, value in self._state().items()}
        return loss

    def take_best(self) -> None:
        """Go back to the best state of this part, and forget it."""
        if self.best is not None:
            self.whole.load_state_dict(self.best[1], strict=False)
        self.best = None

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        state = {
            "step": self.step,
            "precision": self.precision,
            "weights": self._state(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
        }
        write_state(path, self.settings, state)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ValueError where it was made with other settings."""
        state = read_state(path, self.settings)
        self.step, self.precision, self.best = state["step"], state["precision"], state["best"]
        self.whole.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])


def measure_precision(aligner: Aligner) -> dict[Precision, float]:
    """Tokens a second of a step's forward and backward pass in either arithmetic, the best of three in turn.

    bfloat16 is left out where the processor computes it no faster (no AVX-512 or AMX).
    """
    tried: list[Precision] = ["float32"]
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        tried.append("bfloat16")
    step = aligner.settings.vision_steps
    batches = [aligner.catalogue.batch(items, form) for form, items in aligner.speaking_items(step).items()]
    tokens = sum(batch.ids.numel() for batch in batches)
    speeds: dict[Precision, float] = dict.fromkeys(tried, 0.0)
    for precision in tried * _TRIALS:
        start = time.monotonic()
        with aligner.casting(precision):
            loss = aligner.losses(step)["answer"]
        loss.backward()
        aligner.optimizer.zero_grad()
        speeds[precision] = max(speeds[precision], tokens / (time.monotonic() - start))
    return speeds


def align(aligner: Aligner, checkpoint: Path, until: int | None = None) -> None:
    """Run the training, from `checkpoint` where it exists, to its end, and leave the model in its best state.

    until: stop after so many steps in all, with a checkpoint and as it stands; by default all of them.
    """
    settings = aligner.settings
    if checkpoint.exists():
        aligner.resume(checkpoint)
    elif settings.precision is None:
        speeds = measure_precision(aligner)
        aligner.precision = max(speeds, key=lambda each: speeds[each])
        said = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
        print(f"tokens a second: {said}; training in {aligner.precision}", flush=True)
    last = settings.steps if until is None else until
    begun, first, sums = time.monotonic(), aligner.step, dict[str, list[float]]()
    while aligner.step < last:
        part = aligner.speaking
        for name, value in aligner.take_step().items():
            sums.setdefault(name, []).append(value)
        step = aligner.step
        every = settings.validate_every if part else settings.vision_validate_every
        if step in (last, settings.vision_steps) or step % every == 0:
            sums["validation"] = [aligner.keep_if_best()]
            aligner.save(checkpoint)
        if step % settings.report_every == 0 or "validation" in sums:
            _report(aligner, sums, (time.monotonic() - begun) / (step - first))
            if step == settings.vision_steps:
                begun, first = time.monotonic(), step
            sums.clear()
    if aligner.step == settings.steps:
        aligner.take_best()


def _report(aligner: Aligner, sums: dict[str, list[float]], pace: float) -> None:
    s, step = aligner.settings, aligner.step
    end = s.vision_steps if step <= s.vision_steps else s.steps
    means = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in sums.items())
    part = "speak" if step > s.vision_steps else "see"
    print(f"{part} {step}/{end}  {means}  {pace:.2f} s/step  {pace * (end - step) / 60:.1f} min left", flush=True)
