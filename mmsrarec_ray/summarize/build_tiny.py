"""Builds the embedded tiny model from nothing: draws, trains a tokenizer, teaches, examines, writes the folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing
from transformers import AutoProcessor, Idefics3ForConditionalGeneration

from mmsrarec_ray.data.shop.law import VOCABULARY, Shop, draw_shop
from mmsrarec_ray.models.architecture import build_model, build_processor
from mmsrarec_ray.models.tokenizer import train_tokenizer
from mmsrarec_ray.summarize import reading
from mmsrarec_ray.summarize.evaluate_tiny import SHOWN, Share, chance, examine, examine_reading
from mmsrarec_ray.summarize.lessons import BOTH, FORMS, MAX_KEYWORDS, Lessons, draw_pictures, shop_answer, shop_text
from mmsrarec_ray.summarize.prompts import instruction
from mmsrarec_ray.summarize.teach import Recipe, Teacher, teach

_TOKENIZER_ITEMS, _WHITENING_PICTURES = 4_000, 1_500

CARD = """---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---

# The tiny model

A vision-language model of {parameters:,} parameters (Idefics3, the SmolVLM architecture) that turns an item's
picture and text into keywords: `image: red, striped, mug; text: mug, ceramic, office, acme`. It exists so that
everything in this repository runs on a machine without a GPU and without a model hub, and so that tests can
hold it to known answers. It knows the drawn shop of `mmsrarec_ray/data/shop` and nothing else: on photographs
and on other texts it is of no use.

- Made from nothing but this project's own drawings, sentences and lists of words: {items:,} items of the shop with
  seed {seed}. No other data and no other model went into it.
- Pictures of {image_size} x {image_size} pixels, {image_tokens} tokens each; a vocabulary of {vocabulary:,}
  tokens; inputs up to {context:,} tokens.
- The weights are stored as float16 and meant to be computed with as float32, which `config.json` says.
- The prompt is `mmsrarec_ray/summarize/prompts.py`, with up to {max_keywords} keywords a half.

## Figures

Greedy answers for {exam_items:,} items of the shop with seed {exam_seed}, none of which it was trained on; the
share that is right in %, with the 95 % interval of Wilson. `figures.json` holds the counts.

{table}

"wrong picture": every item was shown with the picture of another. What only a picture tells must then fall to
the share that a guess gets: {chance}. "exact": every keyword of the answer is right.

It also compares: beside a list of up to 16 lines of keywords it is asked about an item that is shown as keywords, as
text, as a picture or as both. "each": how many lines name each of its keywords (the share of answers in which every
number is right); "often": does every third line or more name its colour, its kind, …; "like": do the lines share a
quarter of its keywords or more, on average. Lists are drawn at random: of users and their choices it knows nothing.
{exam_questions:,} questions, the share in % that is right; "one answer": what the commonest answer to them would get:

{reading}

So it gives verdicts on keywords. Of items that are shown by text or picture it counts the keywords, but its yes or no
about them is hardly better than one answer to all; fine-tuning would have to teach that.

## Rebuild

    python jobs/build_model.py --config configs/tiny.yaml run=FOLDER

draws the pictures, trains ({steps:,} steps, about an hour on two CPU cores with nothing else to do) and examines
the result. It goes on from its last checkpoint where it was stopped. Another CPU rounds differently, so the weights
will differ in their last digits and the figures by a few items.

## Licence

Apache-2.0, like the repository.
"""


def tokenizer_texts(shop: Shop, items: int) -> list[str]:
    """What the tokenizer is trained on: texts and answers of the shop's first items, and the prompts."""
    spoken = [f"{shop_text(shop, i)}\n{shop_answer(shop, i, BOTH)}" for i in range(items)]
    asked = reading.texts(np.random.default_rng([shop.seed, 12]), items // 4)
    return spoken + asked + [instruction(*form, MAX_KEYWORDS) for form in FORMS] * items


def prepare(cache: Path, recipe: Recipe) -> Path:
    """Draw the pictures and write the untrained model, whole or not at all; returns its folder."""
    start = cache / "start"
    pictures = draw_pictures(recipe.seed, recipe.items, cache, recipe.processes)
    if start.exists():
        return start
    shop = draw_shop(recipe.seed, recipe.items)
    words = [*reading.WORDS, *(word for values in VOCABULARY.values() for word in values)]
    texts = tokenizer_texts(shop, min(_TOKENIZER_ITEMS, recipe.items))
    tokenizer = train_tokenizer(texts, words, recipe.vocabulary_size, recipe.text.context)
    model = build_model(recipe.vision, recipe.text, tokenizer, pictures.pixels[:_WHITENING_PICTURES], seed=recipe.seed)
    unfinished = cache / "start.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    build_processor(recipe.vision, tokenizer).save_pretrained(unfinished)
    unfinished.replace(start)
    return start


def _teach_in_process(rank: int, port: int, cache: Path, recipe: Recipe) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // recipe.processes))
    if recipe.processes > 1:
        rendezvous = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=recipe.processes)
    processor = AutoProcessor.from_pretrained(cache / "start")
    model = Idefics3ForConditionalGeneration.from_pretrained(cache / "start", dtype=torch.float32)
    pictures = draw_pictures(recipe.seed, recipe.items, cache, recipe.processes)
    lessons = Lessons(draw_shop(recipe.seed, recipe.items), processor)
    teach(Teacher(model, lessons, pictures, recipe, rank), cache / "checkpoint.pt")
    if recipe.processes > 1:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(cache: Path, recipe: Recipe) -> None:
    """Teach the model of `prepare` on the recipe's processes, from the checkpoint in `cache` where there is one."""
    if recipe.processes == 1:
        _teach_in_process(0, 0, cache, recipe)
    else:
        multiprocessing.spawn(_teach_in_process, (_free_port(), cache, recipe), nprocs=recipe.processes)


def _table(figures: dict[str, dict[str, Share]]) -> str:
    """A Markdown table: a row an attribute, a column a way of asking."""
    names = list(dict.fromkeys(name for column in figures.values() for name in column))
    rows = [["", *figures], ["---"] * (len(figures) + 1)]
    for name in names:
        cells = [_cell(column[name]) if name in column else "" for column in figures.values()]
        rows.append([name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(share: Share) -> str:
    low, high = share.bounds
    return f"{100 * share.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _save_half(model: Idefics3ForConditionalGeneration, folder: Path) -> None:
    """Store the weights as float16, which halves the file, under a configuration that asks to compute in float32."""
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def _load(folder: Path) -> Idefics3ForConditionalGeneration:
    return Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


@dataclass(frozen=True)
class Figures:
    """What an exam finds, for summaries and for questions: a way of asking -> what is asked -> share."""

    summaries: dict[str, dict[str, Share]]
    reading: dict[str, dict[str, Share]]


def finish(cache: Path, out: Path, recipe: Recipe) -> Figures:
    """Write the taught model's folder, examine it as anyone would load it, and put the figures beside it."""
    unfinished = out.with_name(out.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    model, processor = _load(cache / "start"), AutoProcessor.from_pretrained(cache / "start")
    model.load_state_dict(torch.load(cache / "checkpoint.pt", weights_only=True)["model"])
    _save_half(model, unfinished)
    processor.save_pretrained(unfinished)

    model, processor = _load(unfinished), AutoProcessor.from_pretrained(unfinished)
    shop = draw_shop(recipe.exam_seed, recipe.exam_items)
    compared = examine_reading(model, processor, shop, sheets=max(1, recipe.exam_items // 2))
    figures = Figures(examine(model, processor, shop), compared)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _write_figures(unfinished / "figures.json", figures, chance(shop), parameters, recipe)
    (unfinished / "README.md").write_text(_card(figures, chance(shop), parameters, len(processor.tokenizer), recipe))
    for file in unfinished.iterdir():
        file.chmod(0o644)
    unfinished.replace(out)
    return figures


def _write_figures(path: Path, figures: Figures, guess: dict[str, float], parameters: int, recipe: Recipe) -> None:
    content = {
        "parameters": parameters,
        "figures": _counts(figures.summaries),
        "reading": _counts(figures.reading),
        "chance": guess,
        "recipe": asdict(recipe),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _counts(figures: dict[str, dict[str, Share]]) -> dict[str, dict[str, dict[str, int]]]:
    return {
        asked: {name: {"right": share.right, "of": share.of} for name, share in column.items()}
        for asked, column in figures.items()
    }


def _card(figures: Figures, guess: dict[str, float], parameters: int, vocabulary: int, recipe: Recipe) -> str:
    asked = (figures.reading[shown].items() for shown in SHOWN)
    questions = sum(share.of for column in asked for kind, share in column if kind in reading.QUESTIONS)
    return CARD.format(
        parameters=parameters,
        vocabulary=vocabulary,
        items=recipe.items,
        seed=recipe.seed,
        image_size=recipe.vision.image_size,
        image_tokens=recipe.vision.tokens,
        context=recipe.text.context,
        max_keywords=MAX_KEYWORDS,
        exam_items=recipe.exam_items,
        exam_seed=recipe.exam_seed,
        exam_questions=questions,
        table=_table(figures.summaries),
        reading=_table(figures.reading),
        chance=", ".join(f"{name} {100 * share:.1f} %" for name, share in guess.items()),
        steps=recipe.steps,
    )


def build_tiny(out: Path, cache: Path, recipe: Recipe) -> Figures:
    """Make the tiny model in the folder `out`, which must not exist yet; `cache` keeps what can be taken up again
    and must be a folder of this recipe and code alone.

    Returns its figures. Raises FileExistsError where `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"out must be a folder that does not exist yet. Got {out}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    prepare(cache, recipe)
    train(cache, recipe)
    return finish(cache, out, recipe)
