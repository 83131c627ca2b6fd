"""`kill -9` in the middle of both trainings: a worker, its node, the driver. The weights are those of a whole run."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from ray.cluster_utils import Cluster

from mmsrarec_ray.adapters import ADAPTER, ADAPTER_WEIGHTS, CHECKPOINTS
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.store import Artefact, Run
from tests.drills.conftest import Book, until
from tests.drills.jobs import TRAINER, Job, kill, kill_node

ITEMS, USERS = 40, 120
SETTINGS = (
    *("data.format=tables", "split.item_validation=0.2", "split.item_test=0.2", "split.validation=0.2"),
    *("split.test=0.2", "train.threads=1", "tune_summarizer.reference=words", "tune_summarizer.steps=12"),
    # Six items are three steps: it is killed in later epochs, whose order is another.
    *("tune_summarizer.items=6", "tune_summarizer.batch_size=8", "tune_summarizer.generations=4"),
    *("tune_summarizer.lora.rank=8", "tune_summarizer.learning_rate=0.003", "tune_summarizer.temperature=2"),
    *("tune_summarizer.checkpoint_steps=2", "tune_summarizer.eval_steps=12", "tune_summarizer.eval_items=2"),
    *("tune_summarizer.test_items=2", "tune_summarizer.log_steps=1", "tune_summarizer.max_tokens=40"),
    *("methods.sasrec.dim=16", "methods.sasrec.epochs=2", "methods.sasrec.heads=1", "rank.candidate=keywords"),
    *("tune_recommender.batch_size=4", "tune_recommender.epochs=2", "tune_recommender.checkpoint_steps=3"),
    *("tune_recommender.lora.rank=8", "tune_recommender.lora.dropout=0", "tune_recommender.log_steps=1"),
)
TWO = ("train.workers=2", "tune_summarizer.deepspeed=zero2", "tune_recommender.deepspeed=zero2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, shop, rng = tmp_path_factory.mktemp("tuning"), shop_of(3, 1200), np.random.default_rng(0)
    pq.write_table(pa.Table.from_pylist([item_row(shop, index) for index in range(ITEMS)]), folder / "items.parquet")
    rows = [
        {"user_id": f"u{user:03d}", "item_id": f"item-{item:05d}", "timestamp": place}
        for user in range(USERS)
        for place, item in enumerate(rng.permutation(ITEMS)[: rng.integers(4, 9)].tolist())
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "interactions.parquet")
    return folder


def whole(run: Path, artefact: str) -> int:
    """The step of the newest complete checkpoint of an unfinished training."""
    return max((int(path.parent.name) for path in run.glob(f"{artefact}/*/{CHECKPOINTS}/*/complete")), default=0)


def learnt(run: Path, artefact: str) -> tuple[Artefact, dict[str, np.ndarray]]:
    [made] = Run.at(str(run)).published(artefact)
    return made, safetensors.numpy.load((made.folder / ADAPTER).read_bytes(ADAPTER_WEIGHTS))


@pytest.mark.parametrize(
    ("job", "artefact", "workers"),
    [
        pytest.param("tune_summarizer", "summarizer", (), id="tune_summarizer"),
        pytest.param("tune_summarizer", "summarizer", TWO, id="tune_summarizer, two workers under ZeRO-2"),
        pytest.param("tune_recommender", "recommender", TWO, id="tune_recommender, two workers under ZeRO-2"),
    ],
)
def test_training_ends_with_the_weights_of_an_unbroken_run(
    cluster: Cluster, data: Path, tmp_path: Path, book: Book, job: str, artefact: str, workers: tuple[str, ...]
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    words = [f"data.path={data}", f"ray.address={cluster.address}", *SETTINGS, *workers]
    for earlier in ("retrieve", "summarize") if job == "tune_recommender" else ("prepare",):
        code, last, error = Job.start(earlier, *words, f"run={unbroken}").end()
        assert code == 0, (last, error)
    shutil.copytree(unbroken, broken)
    code, last, error = Job.start(job, *words, f"run={unbroken}").end()
    assert code == 0, (last, error)

    def goes_on(beyond: int) -> float:
        return until(lambda: whole(broken, artefact) > beyond, what=f"a checkpoint after step {beyond}")

    running = Job.start(job, *words, f"run={broken}")
    goes_on(0)
    kill(TRAINER, most=1)
    back = {"a worker": goes_on(whole(broken, artefact))}
    kill_node(cluster, TRAINER)
    back["the worker's node"] = goes_on(whole(broken, artefact))
    running.kill()
    step, given = whole(broken, artefact), time.monotonic()
    code, last, error = Job.start(job, *words, f"run={broken}").end()
    assert code == 0, (last, error)
    assert last["metrics"]["resumed_at"] == step >= 6
    (_, expected), (made, found) = learnt(unbroken, artefact), learnt(broken, artefact)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], name)
    assert any(np.abs(values).max() > 0 for name, values in found.items() if "lora_B" in name)
    assert json.loads(made.folder.read_bytes("manifest.json"))["metrics"]["steps"] == last["metrics"]["steps"]
    during = f"{job}, two workers" if workers else job
    for what, seconds in back.items():
        book.tell(during, f"kill {what}", seconds, said="goes on from the newest checkpoint; nothing to do")
    told = f"goes on from step {step}; weights equal to the bit (the job given again: {time.monotonic() - given:.0f} s)"
    book.tell(during, "kill the driver", said=told)
