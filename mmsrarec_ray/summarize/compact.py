"""Builds the compact model: SmolLM2-135M with a small vision tower, aligned to the summary prompt on a catalogue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoProcessor,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mmsrarec_ray.errors import InputError
from mmsrarec_ray.models.architecture import build_model, build_processor, normalise
from mmsrarec_ray.models.smollm2 import find_gguf, load_text_model, load_tokenizer
from mmsrarec_ray.models.teacher import STRIDE, Teacher
from mmsrarec_ray.store import Folder, fingerprint
from mmsrarec_ray.summarize import distil
from mmsrarec_ray.summarize.align import Aligner, Alignment, align, start_connector
from mmsrarec_ray.summarize.catalogue import TEST, TRAIN, VALIDATION, Catalogue, draw_on, read_rows
from mmsrarec_ray.summarize.examine import examine
from mmsrarec_ray.summarize.lessons import IMAGE_ONLY
from mmsrarec_ray.summarize.probe import compare

_WHITENING_PICTURES = 400

CARD = """---
pipeline_tag: image-text-to-text
library_name: transformers
---

# A compact model

A vision-language model (Idefics3) of {parameters:,} parameters that turns an item's picture and text into keywords,
aligned by mmsrarec_ray on {items:,} items of one catalogue. It was started from a text model that may have a licence
of its own (SmolLM2-135M-Instruct: Apache-2.0), and it has learnt from the catalogue, whose terms apply to it too.

`figures.json` holds its figures on items it was not trained on, sample answers and the settings of the training.
Pictures are {image_size} pixels a side: set `model.image_size={image_size}`. Prompts held up to {max_chars}
characters of title and text while it was trained.
"""


def _load(folder: Path) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(folder)


def _catalogue(dataset: Folder, processor: Idefics3Processor, settings: Alignment, cache: Path) -> Catalogue:
    rows = read_rows(dataset, settings.items_per_split, settings.seed)
    pictures, places = draw_on(rows, processor, cache)
    return Catalogue(rows, pictures, places, processor, settings.fields)


def start_model(
    catalogue: Catalogue, text: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Alignment
) -> Idefics3ForConditionalGeneration:
    """The model before any training: the text model as it is, a new vision tower that starts well."""
    seen = catalogue.fitting(TRAIN, IMAGE_ONLY)[:_WHITENING_PICTURES]
    pictures = catalogue.pixels(seen)
    model = build_model(settings.vision, text, tokenizer, pictures, settings.seed)
    start_connector(model, normalise(pictures[:64]))
    return model


def align_on(
    out: Path,
    dataset: Folder,
    text: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: Alignment,
    cache: Path,
) -> dict[str, Any]:
    """Give this text model sight and align it on a published dataset; the folder `out` must not exist yet.

    `cache` keeps pictures and checkpoints, from which a run that was stopped goes on; it must be a folder of this
    dataset, text model and code alone. Returns the figures on test items. Raises FileExistsError where `out` exists,
    ArtefactError or InputError where the dataset does not serve.
    """
    if out.exists():
        raise FileExistsError(f"out must be a folder that does not exist yet. Got {out}.")
    processor = build_processor(settings.vision, tokenizer)
    catalogue = _catalogue(dataset, processor, settings, cache)
    model = start_model(catalogue, text, tokenizer, settings)
    taught = _taught(model, catalogue, dataset, tokenizer, settings, cache)
    aligner = Aligner(model, catalogue, settings)
    align(aligner, cache / f"aligned-{fingerprint(asdict(settings))}.pt")
    unfinished = out.with_name(out.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    aligner.model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    figures = finish(unfinished, dataset, settings, cache, taught)
    unfinished.replace(out)
    return figures


def _taught(
    model: Idefics3ForConditionalGeneration,
    catalogue: Catalogue,
    dataset: Folder,
    tokenizer: PreTrainedTokenizerFast,
    settings: Alignment,
    cache: Path,
) -> dict[str, Any]:
    """Let the tower learn from the teacher where there is one; what it knows then, on pictures it has not seen.

    `explained`: shares of the teacher's variance, on test pictures. `probe`: how well labels can be told from features
    of the tower before and after, and from the teacher's own (`summarize.probe`).
    """
    if settings.distillation is None:
        return {}
    side = settings.vision.side
    large = build_processor(replace(settings.vision, image_size=side * STRIDE, patch_size=STRIDE), tokenizer)
    pictures, _ = draw_on(read_rows(dataset, settings.items_per_split, settings.seed), large, cache)
    items = {
        split: [item for item in catalogue.fitting(split, IMAGE_ONLY) if {*item.image_keywords} & {*catalogue.labels}]
        for split in (TRAIN, VALIDATION, TEST)
    }
    missing = [split for split, each in items.items() if not each]
    if missing:
        raise InputError(f"build.teacher: no {missing[0]} items with a picture and a label that training items have.")
    rows = {split: np.array([item.picture for item in each], np.int64) for split, each in items.items()}
    distiller = distil.Distiller(model, Teacher(side), pictures, rows[TRAIN], settings.distillation)
    before = {split: distiller.sees(each) for split, each in rows.items()}
    name = fingerprint([asdict(settings.vision), asdict(settings.distillation), settings.seed])
    distil.distil(distiller, rows[VALIDATION], cache / f"distilled-{name}.pt")
    figures = cache / f"distilled-{name}.json"
    if not figures.exists():
        features = {
            "tower before": before,
            "tower": {split: distiller.sees(each) for split, each in rows.items()},
            "teacher": {split: distiller.teacher_sees(each) for split, each in rows.items()},
        }
        marks = {split: catalogue.marks(each).bool().numpy() for split, each in items.items()}
        told = {"explained": distiller.explained(rows[TEST]), "probe": compare(features, marks, settings.seed)}
        _write(figures, told)
    return json.loads(figures.read_text())


def finish(
    folder: Path, dataset: Folder, settings: Alignment, cache: Path, taught: Mapping[str, Any]
) -> dict[str, Any]:
    """Examine a model folder as anyone would load it, and put the figures beside the weights. taught: those of what the
    tower learnt before."""
    model, processor = _load(folder)
    catalogue = _catalogue(dataset, processor, settings, cache)
    figures = examine(model, processor, catalogue, settings.exam_items, settings.seed)
    if taught:
        figures["picture by itself"] = dict(taught)
    _write(folder / "figures.json", figures | {"settings": asdict(settings)})
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        items=len(catalogue.items[TRAIN]),
        image_size=settings.vision.image_size,
        max_chars=settings.fields.max_chars,
    )
    (folder / "README.md").write_text(card)
    return figures


def _write(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    unfinished.replace(path)


def build_compact(
    out: Path, dataset: Folder | Path, gguf: Path | None, settings: Alignment, cache: Path
) -> dict[str, Any]:
    """`align_on` for SmolLM2-135M-Instruct.

    dataset: the published `dataset` artefact of `jobs/prepare.py`. gguf: the GGUF file or a folder that holds it;
    None: that of the installed package.
    """
    file = find_gguf(gguf)
    folder = dataset if isinstance(dataset, Folder) else Folder.at(str(dataset))
    return align_on(out, folder, load_text_model(file), load_tokenizer(file, settings.context), settings, cache)
