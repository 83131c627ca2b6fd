"""Summaries tuned by rewards on Ray Train: a killed worker changes nothing, and the summary job uses the adapter."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from peft import get_peft_model
from tensorboardX.proto.event_pb2 import Event

from mmsrarec_ray.adapters import ADAPTER, ADAPTER_WEIGHTS, CHECKPOINTS, load_base, load_processor, lora_config
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.parts import read_parts, write_part
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.job import execute, plan
from mmsrarec_ray.metrics import Metrics
from mmsrarec_ray.store import Artefact, Folder, Run
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.keywords import Keywords, parse
from mmsrarec_ray.summarize.pipeline import KEYWORD_PARTS, Recipe, summarise
from mmsrarec_ray.summarize.render import grammar
from mmsrarec_ray.summarize.reuse import Items, index
from mmsrarec_ray.summarize.stage import Summarize
from mmsrarec_ray.summarize.tuning.answers import generate
from mmsrarec_ray.summarize.tuning.examples import Examples
from mmsrarec_ray.summarize.tuning.stage import TuneSummarizer

ITEMS = 40
SETTINGS = (
    *("data.format=tables", "data.interactions=null", "split.item_validation=0.2", "split.item_test=0.2"),
    *("train.threads=1", "summarize.tuned=true", "tune_summarizer.reference=words", "tune_summarizer.steps=6"),
    *("tune_summarizer.batch_size=16", "tune_summarizer.generations=4", "tune_summarizer.lora.rank=8"),
    *("tune_summarizer.learning_rate=0.003", "tune_summarizer.temperature=2", "tune_summarizer.checkpoint_steps=2"),
    *("tune_summarizer.eval_steps=3", "tune_summarizer.eval_items=4", "tune_summarizer.test_items=6"),
    *("tune_summarizer.log_steps=1", "tune_summarizer.max_tokens=40"),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Items of the shop; one has no picture, one a damaged one."""
    folder, shop = tmp_path_factory.mktemp("tuning"), shop_of(3, 1200)
    rows = [item_row(shop, index) for index in range(ITEMS)]
    rows[3]["image"], rows[7]["image"] = None, rows[7]["image"][:200]
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "items.parquet")
    return load(None, [f"data.path={folder / 'data'}", f"run={folder / 'run'}", *SETTINGS])


@pytest.fixture(scope="module")
def done(ray_session: str, config: Config) -> dict[str, Artefact]:
    """All artefacts, the keywords by the tuned model."""
    run = Run.at(config.run)
    execute(Summarize(config), run)
    return {name: run.published(name)[0] for name in ("dataset", "summarizer", "keywords")}


def test_every_item_that_was_drawn_is_used_or_a_failure(done: dict[str, Artefact]) -> None:
    counts = done["summarizer"].manifest.counts
    assert counts["failed"] == 1
    assert counts["train_items"] in (23, 24)  # 24 are train, and one of all is damaged
    assert counts["validation_items"] <= 4
    assert counts["test_items"] <= 6
    failures = read_parts(done["summarizer"].folder / "failures", ["id", "stage", "error"]).to_pylist()
    assert failures == [{"id": "item-00007", "stage": "tune_summarizer", "error": "UnreadableImage"}]


def test_the_report_compares_before_and_after(done: dict[str, Artefact]) -> None:
    folder = done["summarizer"].folder
    report: dict[str, Any] = json.loads(folder.read_bytes("report.json"))
    assert report["items"] == done["summarizer"].manifest.counts["test_items"]
    terms = {"information", "reconstruction", "count", "prediction", "grounding", "tokens", "repetition", "copying"}
    assert set(report["measures"]) == terms | {"reward", "answer_tokens", "form"}
    for row in report["measures"].values():
        gap = row["after"]["value"] - row["before"]["value"]
        assert row["difference"]["value"] == pytest.approx(gap, abs=1e-9)
        assert row["before"]["low"] <= row["before"]["value"] <= row["before"]["high"]
    assert folder.read_bytes("report.md").startswith(b"# Summaries before and after tuning")
    assert done["summarizer"].manifest.metrics["steps"] == 6
    assert CHECKPOINTS not in folder.folders()


def test_curves_and_answers_can_be_watched(done: dict[str, Artefact], config: Config) -> None:
    logs = Path(config.run) / "logs" / "summarizer" / done["summarizer"].fingerprint
    curves = _curves(logs)
    assert curves["train/reward"] == curves["train/kl"] == [1, 2, 3, 4, 5, 6]  # also where answers are looked at
    assert curves["eval/reward"] == [0, 3, 6]
    samples = sorted(path.name for path in (logs / "samples").iterdir())
    assert samples == ["step-000000.md", "step-000003.md", "step-000006.md"]
    assert "image: " in (logs / "samples" / "step-000000.md").read_text()


def _curves(logs: Path) -> dict[str, list[int]]:
    """The steps of each curve in TensorBoard's files: records of a length, its checksum, an event, its checksum."""
    steps: dict[str, list[int]] = defaultdict(list)
    for path in logs.glob("events.out.tfevents.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            [length] = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                steps[value.tag].append(event.step)
    return steps


def test_keywords_name_the_adapter_and_other_weights_make_them_stale(done: dict[str, Artefact], config: Config) -> None:
    keywords, adapter = done["keywords"].manifest, done["summarizer"].manifest.files[f"{ADAPTER}/{ADAPTER_WEIGHTS}"]
    assert keywords.counts == {"in": ITEMS, "out": ITEMS - 1, "failed": 1, "reused": 0}
    assert keywords.metrics["model"].endswith(f"+{adapter.sha256[:20]}")
    assert {step.status for step in plan(Summarize(config), Run.at(config.run))} == {"up to date"}
    words = [f"data.path={config.data.path}", f"run={config.run}", *SETTINGS]
    longer = load(None, [*words, "tune_summarizer.steps=7"])
    assert [step.status for step in plan(Summarize(longer), Run.at(config.run))] == [
        "up to date",
        "to run",
        "to run after tune_summarizer",
    ]
    untuned = load(None, [*words, "summarize.tuned=false"])
    assert [step.stage.name for step in plan(Summarize(untuned), Run.at(config.run))] == ["prepare", "summarize"]


class Killer(threading.Thread):
    """Kills a training worker as soon as a whole checkpoint is in the folder."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.killed_after = folder, 0

    def run(self) -> None:
        while not (whole := sorted((self.folder / CHECKPOINTS).glob("*/complete"))):
            time.sleep(0.02)
        ours = psutil.Process(os.getpid()).children(recursive=True)
        workers = [process for process in ours if "RayTrainWorker" in " ".join(process.cmdline())]
        self.killed_after = int(whole[-1].parent.name)
        workers[-1].kill()


def test_a_killed_worker_goes_on_from_its_checkpoint_and_ends_with_the_very_weights(
    done: dict[str, Artefact], config: Config, tmp_path: Path
) -> None:
    """It samples the same answers again: all that is drawn in a step is seeded by the step."""
    stage = TuneSummarizer(load(None, [f"data.path={config.data.path}", f"run={config.run}", *SETTINGS]))
    killer, out = Killer(tmp_path / "out"), Folder.at(str(tmp_path / "out"))
    killer.start()
    facts = stage.run(out, {"dataset": done["dataset"]}).metrics
    assert facts["resumed_at"] >= killer.killed_after >= 2
    assert facts["steps"] == 6
    learnt, expected = _weights(out), _weights(done["summarizer"].folder)
    for name, values in learnt.items():
        np.testing.assert_array_equal(values, expected[name], name)
    assert any(np.abs(values).max() > 0 for name, values in learnt.items() if "lora_B" in name)


def _weights(folder: Folder) -> dict[str, np.ndarray]:
    return safetensors.numpy.load((folder / ADAPTER).read_bytes(ADAPTER_WEIGHTS))


def test_keywords_are_those_of_the_adapter(done: dict[str, Artefact], config: Config, tmp_path: Path) -> None:
    """They are what PEFT's model says with it, which is not what it says without. The adapter is a random one: a short
    training changes few answers."""
    dataset, kept = done["dataset"].folder, Folder.at(str(tmp_path / "kept"))
    columns = ["item_id", "title", "text", "image", "image_uri", "content_hash"]
    table = read_parts(dataset / "items", columns).sort_by("item_id")
    table = table.append_column("has_image", pc.is_valid(table["image"]))
    write_part(kept, table.filter(pc.not_equal(table["item_id"], "item-00007")), ["item_id"])
    examples = Examples(config, kept, load_processor(config))
    model = _randomly_adapted(config)
    model.save_pretrained(tmp_path / ADAPTER)
    recipe, out = Recipe("tiny", "1", str(tmp_path / ADAPTER)), Folder.at(str(tmp_path / "out"))
    items = Items(kept, parquet_files(kept))
    summarise(config, items, index([]), len(examples), recipe, out, Metrics("summarize"))
    rows = read_parts(out / KEYWORD_PARTS, ["item_id", "image_keywords", "text_keywords"]).to_pylist()
    found = {row["item_id"]: Keywords(tuple(row["image_keywords"]), tuple(row["text_keywords"])) for row in rows}
    tuned = _said(config, model, examples)
    with model.disable_adapter():
        untuned = _said(config, model, examples)
    changed = [item for item, keywords in tuned.items() if keywords not in (None, untuned[item])]
    assert len(changed) >= 3
    assert {item: found[item] for item in changed} == {item: tuned[item] for item in changed}


def _randomly_adapted(config: Config) -> Any:
    """PEFT's model with random weights, small enough that most answers keep their form."""
    torch.manual_seed(0)
    lora = lora_config(config.tune_summarizer.lora)
    lora.init_lora_weights = False
    model = get_peft_model(load_base(config), lora).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights *= 0.35
    return model


def _said(config: Config, model: Any, examples: Examples) -> dict[str, Keywords | None]:
    """Greedy answers by the item's id, None where one has not the form that the engine holds answers to."""
    tokenizer, said = examples.processor.tokenizer, {}
    answers = generate(config, model, examples, [tokenizer.eos_token_id])
    for number, answer in enumerate(tokenizer.batch_decode(answers, skip_special_tokens=True)):
        asked = examples[number]
        formed = grammar(config).allows(answer, asked.has_image, bool(asked.text))
        said[asked.item_id] = parse(answer, asked.has_image, bool(asked.text)) if formed else None
    return said
