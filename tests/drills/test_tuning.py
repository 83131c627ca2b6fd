"""`kill -9` in the middle of both trainings, of two workers under ZeRO-2: a worker, its node, the driver."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from ray.cluster_utils import Cluster

from mmsrarec_ray.adapters import ADAPTER, ADAPTER_WEIGHTS, CHECKPOINTS
from mmsrarec_ray.config import Config
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.store import Artefact, Run
from tests.chain import SETTINGS as CHAIN
from tests.drills.conftest import Book, until
from tests.drills.jobs import TRAINER, Job, kill, kill_node

SUMMARIZER = (
    *("data.format=tables", "data.interactions=null", "split.item_validation=0.2", "split.item_test=0.2"),
    *("train.threads=1", "tune_summarizer.reference=words", "tune_summarizer.steps=12"),
    # Six items are three steps: it is killed in later epochs, whose order is another.
    *("tune_summarizer.items=6", "tune_summarizer.batch_size=8", "tune_summarizer.generations=4"),
    *("tune_summarizer.lora.rank=8", "tune_summarizer.learning_rate=0.003", "tune_summarizer.temperature=2"),
    *("tune_summarizer.checkpoint_steps=2", "tune_summarizer.eval_steps=12", "tune_summarizer.eval_items=2"),
    *("tune_summarizer.test_items=2", "tune_summarizer.log_steps=1", "tune_summarizer.max_tokens=40"),
)
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed compiles its communication")


@dataclass(frozen=True)
class Tuning:
    """A training of two workers. words: its settings but for the run; run: where it works."""

    job: str
    artefact: str
    words: list[str]
    run: Path

    def start(self) -> Job:
        return Job.start(self.job, *self.words, f"run={self.run}")

    def whole(self) -> int:
        """The step of the newest complete checkpoint."""
        found = self.run.glob(f"{self.artefact}/*/{CHECKPOINTS}/*/complete")
        return max((int(path.parent.name) for path in found), default=0)

    def goes_on(self, beyond: int) -> float:
        """Seconds until there is a later checkpoint."""
        return until(lambda: self.whole() > beyond, what=f"a checkpoint after step {beyond}")


def two_workers(cluster: Cluster, job: str, *settings: str) -> list[str]:
    return [*settings, f"ray.address={cluster.address}", "train.workers=2", f"{job}.deepspeed=zero2"]


def learnt(run: str | Path, artefact: str) -> tuple[Artefact, dict[str, np.ndarray]]:
    [made] = Run.at(str(run)).published(artefact)
    return made, safetensors.numpy.load((made.folder / ADAPTER).read_bytes(ADAPTER_WEIGHTS))


def killed(cluster: Cluster, tuning: Tuning, book: Book) -> dict[str, np.ndarray]:
    """Kill one after the other; gives the weights that it ends with all the same."""
    running = tuning.start()
    tuning.goes_on(0)
    kill(TRAINER, most=1)
    back = {"a worker": tuning.goes_on(tuning.whole())}
    kill_node(cluster, TRAINER)
    back["the worker's node"] = tuning.goes_on(tuning.whole())
    running.kill()
    step, given = tuning.whole(), time.monotonic()
    code, last, error = tuning.start().end()
    assert code == 0, (last, error)
    assert last["metrics"]["resumed_at"] == step >= 6
    made, weights = learnt(tuning.run, tuning.artefact)
    assert made.manifest.metrics["steps"] == last["metrics"]["steps"] > step
    assert any(np.abs(values).max() > 0 for name, values in weights.items() if "lora_B" in name)
    during = f"{tuning.job}, two workers under ZeRO-2"
    for what, seconds in back.items():
        book.tell(during, f"kill {what}", seconds, said="goes on from the newest checkpoint; nothing to do")
    told = f"goes on from step {step} (the job given again: {time.monotonic() - given:.0f} s)"
    book.tell(during, "kill the driver", said=told)
    return weights


def both(cluster: Cluster, job: str, artefact: str, tmp_path: Path, *settings: str) -> tuple[Tuning, Tuning]:
    """One that nobody kills, run to its end, and one that is still to run."""
    words = two_workers(cluster, job, *settings)
    unbroken, broken = (Tuning(job, artefact, words, tmp_path / name) for name in ("unbroken", "broken"))
    for each in (unbroken, broken):
        each.run.mkdir()
    return unbroken, broken


def differences(cluster: Cluster, unbroken: Tuning, broken: Tuning, book: Book) -> list[str]:
    """Names of the weights that differ in the end."""
    code, last, error = unbroken.start().end()
    assert code == 0, (last, error)
    found, (_, expected) = killed(cluster, broken, book), learnt(unbroken.run, unbroken.artefact)
    assert found.keys() == expected.keys()
    return [name for name, values in found.items() if not np.array_equal(values, expected[name])]


def test_the_summarizer_ends_with_the_very_weights_of_an_unbroken_run(
    cluster: Cluster, tmp_path: Path, book: Book
) -> None:
    shop, data = shop_of(3, 1200), tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.Table.from_pylist([item_row(shop, index) for index in range(40)]), data / "items.parquet")
    tunings = both(cluster, "tune_summarizer", "summarizer", tmp_path, *SUMMARIZER, f"data.path={data}")
    assert differences(cluster, *tunings, book) == []


def test_the_recommender_ends_with_the_very_weights_of_an_unbroken_run(
    cluster: Cluster, pipeline: Config, tmp_path: Path, book: Book
) -> None:
    settings = (*CHAIN, f"data.path={pipeline.data.path}")
    unbroken, broken = both(cluster, "tune_recommender", "recommender", tmp_path, *settings)
    for earlier in ("dataset", "keywords", "retriever"):
        for each in (unbroken, broken):
            shutil.copytree(Path(pipeline.run) / earlier, each.run / earlier)
    assert differences(cluster, unbroken, broken, book) == []
    # One worker learns the same but for the order of sums, of which Adam makes much where gradients are almost nothing.
    alone, together = (learnt(run, "recommender")[0].manifest.metrics for run in (pipeline.run, broken.run))
    assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=5e-3)
