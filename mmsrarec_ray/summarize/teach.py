"""Teaches a model the summary prompt and to compare items with lists, on drawn items and their true keywords.

First the vision tower learns to tell what a picture shows (`models.pretrain_vision`), and apart from it the text model
to compare words by tallies, and then to answer: cross-entropy on the answers' tokens, of summaries and of questions
(`summarize.reading`). Last both learn to answer together, with the vision losses kept on at a lower weight.
Some pictures stand beside the text of another item, so that neither is taken for the other. Each step's items, mirror
images and learning rate follow from the recipe's seed and the number of the step, so a run that goes on from a
checkpoint is the run that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration

from mmsrarec_ray.data.shop.law import LOOK_ATTRIBUTES
from mmsrarec_ray.models.architecture import TextSettings, VisionSettings
from mmsrarec_ray.models.pretrain_vision import VisionHeads, augment, see
from mmsrarec_ray.summarize.lessons import BOTH, IMAGE_ONLY, TEXT_ONLY, LanguageBatch, Lessons, Pictures
from mmsrarec_ray.summarize.reading import Reading, ReadingBatch, draw_sheet, draw_shown
from mmsrarec_ray.summarize.training import rate_share, read_state, write_state


@dataclass(frozen=True)
class Recipe:
    """How the tiny model is made. Counts per step are those of one process."""

    vision: VisionSettings = field(default_factory=VisionSettings)
    text: TextSettings = field(default_factory=TextSettings)
    vocabulary_size: int = 1152
    # The shops whose items are drawn to train and to examine; no other shop should have their seeds.
    seed: int = 20_000_001
    exam_seed: int = 30_000_001
    items: int = 50_000
    exam_items: int = 1_000
    processes: int = 2
    steps: int = 6_000
    vision_share: float = 0.5
    # Pictures a step looks at, and summaries of each form: those with pictures once both parts learn together.
    pictures: int = 32
    both: int = 8
    image_only: int = 4
    text_only: int = 8
    # Of the examples with picture and text, those whose text is another item's.
    mismatched: int = 2
    # Tallies a step, for so many steps; then sheets a step, questions on each, and those of them that are about items
    # of the shop.
    tallies: int = 2
    tally_steps: int = 1_000
    sheets: int = 1
    questions: int = 14
    shown: int = 5
    reading_weight: float = 1.5
    learning_rate: float = 1.2e-3
    last_rate_share: float = 0.02
    warmup_steps: int = 100
    weight_decay: float = 0.05
    label_weight_when_speaking: float = 0.5
    checkpoint_every: int = 500
    report_every: int = 50

    def __post_init__(self) -> None:
        if max(self.both + self.image_only, self.sheets * self.shown) > self.pictures:
            raise ValueError(
                "both + image_only and sheets * shown must be at most pictures, since they share them. Got "
                f"{self.both} + {self.image_only}, {self.sheets} * {self.shown} and {self.pictures}."
            )
        if self.tally_steps > self.vision_steps:
            raise ValueError(f"tally_steps must be at most the vision's. Got {self.tally_steps}, {self.vision_steps}.")
        if self.items < self.processes * self.pictures:
            raise ValueError(f"items must fill a step. Got {self.items}.")

    @property
    def vision_steps(self) -> int:
        """Steps that the vision tower and the text model train apart."""
        return round(self.vision_share * self.steps)

    def rate(self, step: int) -> float:
        """The learning rate of a step: a short warm-up at the start of each part, over one cosine."""
        since = step if step < self.vision_steps else step - self.vision_steps
        return self.learning_rate * rate_share(step, self.steps, since, self.warmup_steps, self.last_rate_share)


SMOKE = Recipe(
    vision=VisionSettings(width=64, depth=2, heads=2),
    text=TextSettings(width=64, depth=2, heads=2, inner_width=128),
    items=256,
    exam_items=16,
    processes=1,
    steps=30,
    pictures=16,
    both=8,
    image_only=4,
    text_only=2,
    tally_steps=8,
    questions=4,
    shown=2,
    warmup_steps=5,
    checkpoint_every=10,
    report_every=5,
)


def step_items(recipe: Recipe, step: int, rank: int) -> np.ndarray:
    """The items one process looks at in a step: every item once, in a new order, before any comes again."""
    together = recipe.processes * recipe.pictures
    per_epoch = recipe.items // together
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([recipe.seed, 10, epoch]).permutation(recipe.items)
    start = place * together + rank * recipe.pictures
    return order[start : start + recipe.pictures]


def answer_logits(
    model: Idefics3ForConditionalGeneration, batch: LanguageBatch | ReadingBatch, features: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits before each answer token, float32 (n_answer_tokens, vocabulary), and these tokens, int64.

    features: the vision tower's, float32 (m, patches, width), of the pictures in the order of their marks; None for
    prompts without one.
    """
    words = model.model.text_model.embed_tokens(batch.ids)
    if features is not None and len(features):
        places = (batch.ids == model.config.image_token_id)[..., None]
        words = words.masked_scatter(places, model.model.connector(features))
    layout = {"attention_mask": batch.sees, "position_ids": batch.places} if isinstance(batch, ReadingBatch) else {}
    hidden = model.model.text_model(inputs_embeds=words, use_cache=False, **layout).last_hidden_state
    asked = batch.labels >= 0
    return model.lm_head(hidden[asked]), batch.labels[asked]


def answer_loss(
    model: Idefics3ForConditionalGeneration, batch: LanguageBatch | ReadingBatch, features: torch.Tensor | None
) -> torch.Tensor:
    """Cross-entropy of each answer token, float32 (n_answer_tokens,); features: as for `answer_logits`."""
    return functional.cross_entropy(*answer_logits(model, batch, features), reduction="none")


class Teacher:
    """One process of the training: its model, heads and optimiser, and the step it stands at."""

    def __init__(
        self,
        model: Idefics3ForConditionalGeneration,
        lessons: Lessons,
        pictures: Pictures,
        recipe: Recipe,
        rank: int = 0,
    ) -> None:
        self.model, self.lessons, self.pictures = model, lessons, pictures
        self.reading = Reading(lessons.shop, lessons.processor)
        self.recipe, self.rank, self.step = recipe, rank, 0
        # The share of kind, colour and pattern told right in the last step.
        self.right = torch.zeros(len(LOOK_ATTRIBUTES))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.heads = VisionHeads(recipe.vision)
        named = [*model.named_parameters(), *self.heads.named_parameters()]
        matrices = [value for name, value in named if value.dim() >= 2 and "embed" not in name]
        others = [value for name, value in named if value.dim() < 2 or "embed" in name]
        self.parameters = [*matrices, *others]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """The losses of a step, weighted as they are summed, under the names they are reported by."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, 11, step, self.rank])
        items = step_items(recipe, step, self.rank)
        pixels, silhouettes = augment(rng, self.pictures.pixels[items], self.pictures.silhouettes[items])
        features = see(self.model, pixels)
        labels, self.right = self.heads.label_loss(features, torch.from_numpy(self.lessons.labels[items]))
        losses = {"labels": labels, "silhouette": self.heads.silhouette_loss(features, silhouettes)}
        if step < recipe.tally_steps:
            tallies = self.reading.tallies(rng, recipe.tallies)
            return losses | {"tally": answer_loss(self.model, tallies, None).mean()}
        together = step >= recipe.vision_steps
        if together:
            losses["labels"] = recipe.label_weight_when_speaking * labels
        return losses | {
            "answer": self._summaries(rng, items, features if together else None),
            "reading": self._questions(rng, items, features if together else None),
        }

    def _summaries(self, rng: np.random.Generator, items: np.ndarray, features: torch.Tensor | None) -> torch.Tensor:
        """The loss of summaries: of other items' texts, and of the step's first pictures where there are features."""
        recipe, lessons = self.recipe, self.lessons
        unseen = rng.integers(recipe.items, size=recipe.text_only)
        losses = [answer_loss(self.model, lessons.batch(unseen, TEXT_ONLY), None)]
        if features is not None:
            first, last = recipe.both, recipe.both + recipe.image_only
            told = np.concatenate(
                [rng.integers(recipe.items, size=recipe.mismatched), items[recipe.mismatched : first]]
            )
            losses += [
                answer_loss(self.model, lessons.batch(items[:first], BOTH, told), features[:first]),
                answer_loss(self.model, lessons.batch(items[first:last], IMAGE_ONLY), features[first:last]),
            ]
        return torch.cat(losses).mean()

    def _questions(self, rng: np.random.Generator, items: np.ndarray, features: torch.Tensor | None) -> torch.Tensor:
        """The loss of questions; some of each sheet are about the step's last items, shown as texts alone where there
        are no features. Each question weighs alike, however long its answer is."""
        recipe, shop = self.recipe, self.lessons.shop
        asked = items[recipe.pictures - recipe.sheets * recipe.shown :].reshape(recipe.sheets, recipe.shown)
        shown = [draw_shown(shop, rng, each, pictures=features is not None) for each in asked]
        sheets = [draw_sheet(rng, each, recipe.questions - recipe.shown) for each in shown]
        batch = self.reading.batch(sheets, {int(item): place for place, item in enumerate(items)})
        loss = answer_loss(self.model, batch, None if features is None else features[batch.features])
        return recipe.reading_weight * (loss * batch.weights).sum()

    def take_step(self) -> dict[str, float]:
        """Learn from one step's items on all processes together; returns this process's losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        losses = self.losses(self.step)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        _share_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        return {name: value.item() for name, value in losses.items()}

    def run(self, until: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Take steps until `until` have been taken in all; gives the number and the losses of each."""
        self.model.train()
        while self.step < until:
            losses = self.take_step()
            yield self.step, losses

    def save(self, path: Path) -> None:
        """Write a checkpoint in place of the last one, whole or not at all."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_state(path, self.recipe, state)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ValueError where it was made with another recipe."""
        state = read_state(path, self.recipe)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])


def _share_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over the processes, in one message. What no process used in this step has none."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    message /= dist.get_world_size()
    for gradient, mean in zip(gradients, message.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


class _Progress:
    """Prints a line every `every` steps: mean losses, the share of labels told right, the time left."""

    def __init__(self, recipe: Recipe, first: int) -> None:
        self.recipe, self.first, self.start = recipe, first, time.monotonic()
        self.sums: dict[str, list[float]] = {}

    def tell(self, teacher: Teacher, losses: dict[str, float]) -> None:
        right = dict(zip(LOOK_ATTRIBUTES, teacher.right.tolist(), strict=True))
        for name, value in (losses | right).items():
            self.sums.setdefault(name, []).append(value)
        step = teacher.step
        if step % self.recipe.report_every and step != self.recipe.steps:
            return
        pace = (time.monotonic() - self.start) / (step - self.first)
        means = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in self.sums.items())
        left = pace * (self.recipe.steps - step) / 60
        print(f"step {step}/{self.recipe.steps}  {means}  {1000 * pace:.0f} ms/step  {left:.1f} min left", flush=True)
        self.sums.clear()


def teach(teacher: Teacher, checkpoint: Path, until: int | None = None) -> None:
    """Run the recipe, from `checkpoint` where it exists, and leave the last state there.

    until: stop after so many steps in all, with a checkpoint; by default the recipe's `steps`.
    """
    recipe = teacher.recipe
    if checkpoint.exists():
        teacher.resume(checkpoint)
    progress = _Progress(recipe, teacher.step)
    last = recipe.steps if until is None else until
    for step, losses in teacher.run(last):
        if teacher.rank == 0:
            progress.tell(teacher, losses)
            if step % recipe.checkpoint_every == 0 or step == last:
                teacher.save(checkpoint)
