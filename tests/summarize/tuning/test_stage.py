"""Summaries tuned by rewards on Ray Train: a killed worker changes nothing, and the summary job uses the adapter."""

from __future__ import annotations

import io
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
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from tensorboardX.proto.event_pb2 import Event

from mmsrarec_ray.adapters import ADAPTER, ADAPTER_WEIGHTS, CHECKPOINTS
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.parts import read_parts
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.job import execute, plan
from mmsrarec_ray.store import Artefact, Folder, Run
from mmsrarec_ray.summarize.stage import Summarize
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


def test_published_keywords_are_those_of_the_engine_with_the_adapter(done: dict[str, Artefact]) -> None:
    files = [name for name in done["keywords"].folder.files() if name.startswith("items/")]
    rows = [pq.read_table(io.BytesIO(done["keywords"].folder.read_bytes(name))).to_pylist() for name in files]
    assert all(row["image_keywords"] or row["text_keywords"] for part in rows for row in part)
