"""`kill -9` in the middle of a summary job, on a cluster of several nodes: nothing is lost, nothing stands twice."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from mmsrarec_ray.data.shop import law
from mmsrarec_ray.data.shop.generate import item_row
from mmsrarec_ray.store import Run
from tests.drills.conftest import Book, until
from tests.drills.jobs import ENGINE, RENDERER, Job, kill, kill_node, processes

N, BLOCK, BATCH = 320, 32, 16


def write_items(folder: Path, count: int) -> None:
    shop = law.draw_shop(99, 1200)
    pq.write_table(pa.Table.from_pylist([item_row(shop, index) for index in range(count)]), folder / "items.parquet")


@dataclass
class Summary(Job):
    """A summary job on the cluster, and what it has written so far. items: how many it is to summarise."""

    run: Path
    items: int

    def staged(self) -> int:
        """Rows in the parts of the unfinished run."""
        parts = self.run.glob("keywords/*/staging/keywords/*.parquet")
        return sum(pq.ParquetFile(part).metadata.num_rows for part in parts)

    def wait_for(self, rows: int) -> float:
        """Seconds until so many rows stand there."""
        waited = until(lambda: self.staged() >= rows or self.process.poll() is not None, what=f"{rows} rows")
        assert self.process.poll() is None, "the job ended before anything was killed"
        assert rows <= self.staged() < self.items
        return waited

    def write_twice(self) -> None:
        """What a task writes that outlives its driver: rows of another part once more."""
        part = next(self.run.glob("keywords/*/staging/keywords/*.parquet"))
        pq.write_table(pq.read_table(part).slice(1, 5), part.with_name("part-late.parquet"))


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Summary]]:
    jobs: list[Summary] = []
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()

    def start(*settings: str, items: int = N) -> Summary:
        write_items(data, items)
        words = [f"run={run}", f"data.path={data}", "data.format=tables", "data.interactions=null"]
        words += [f"summarize.rows_per_part={BLOCK}", f"engine.batch_size={BATCH}", f"engine.max_num_seqs={BATCH}"]
        job = Job.start("summarize", *words, f"ray.address={cluster.address}", *settings)
        jobs.append(Summary(job.process, run, items))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


def rows_of_engines(cluster: Cluster) -> int:
    """Rows of all batches that engines of the cluster have finished, from what they log."""
    logs = Path(cluster.head_node.get_logs_dir_path()).glob("worker-*.err")
    return sum(
        int(size) for log in logs for size in re.findall(r"Elapsed time for batch \w+ with size (\d+)", log.read_text())
    )


def keywords(run: Path) -> dict[str, dict[str, Any]]:
    """The published rows by item; fails where an item stands twice."""
    (artefact,) = Run.at(str(run)).published("keywords")
    files = [name for name in artefact.folder.files() if name.startswith("items/")]
    rows = [row for name in files for row in pq.read_table(io.BytesIO(artefact.folder.read_bytes(name))).to_pylist()]
    by_item = {row["item_id"]: row for row in rows}
    assert len(by_item) == len(rows)
    return by_item


def test_a_job_goes_on_whatever_is_killed(cluster: Cluster, start: Callable[..., Summary], book: Book) -> None:
    """The engine, then its node, then the driver; when the job is given again, a renderer."""
    before, back = rows_of_engines(cluster), {}
    job = start()
    job.wait_for(2 * BLOCK)
    kill(ENGINE)
    back["the engine"] = job.wait_for(job.staged() + 2 * BLOCK)
    kill_node(cluster, ENGINE)
    back["the engine's node"] = job.wait_for(job.staged() + 2 * BLOCK)
    job.kill()
    kept = job.staged()
    job.write_twice()
    job, given = start(), time.monotonic()
    kill(RENDERER)
    code, last, error = job.end()
    assert code == 0, error
    reused = last["counts"]["reused"]
    assert kept <= reused < N
    assert last["counts"] == {"in": N, "out": N, "failed": 0, "reused": reused}
    found = keywords(job.run)
    assert len(found) == N
    assert rows_of_engines(cluster) - before - N <= 3 * BLOCK, "a kill cost more than a block"
    for what, seconds in back.items():
        book.tell("summarize", f"kill {what}", seconds, N - len(found), said="goes on; nothing to do")
    told = f"{reused} of {N} rows kept, the rest done"
    book.tell("summarize", "kill the driver", None, N - len(found), said=f"the job, given again: {told}")
    seconds = time.monotonic() - given
    book.tell("summarize", "kill a renderer", seconds, N - len(found), said="goes on (seconds: the whole job)")


def test_an_engine_that_keeps_dying_ends_the_job_with_its_own_message(
    cluster: Cluster, start: Callable[..., Summary], book: Book
) -> None:
    """Both engines that it asked for work, and both die. Either may be there long before the other: so many items."""
    job = start("engine.max_restarts=0", "engine.concurrency=2", items=1200)
    until(lambda: len(processes(ENGINE)) == 2, what="the second engine")
    job.wait_for(2 * BLOCK)
    kill(ENGINE)
    code, last, error = job.end()
    assert code == 1, error
    assert last["status"] == "failed"
    assert "EngineDied: an engine died" in last["error"]
    assert "EngineDeadError: EngineCore encountered an issue" in last["error"]
    assert "\n" not in last["error"]
    assert job.staged() >= 2 * BLOCK
    assert os.listdir(job.run / "keywords"), "what was done is kept"
    book.tell("summarize", "an engine that always dies", said=last["error"])
