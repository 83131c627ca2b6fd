"""`kill -9` in the middle of a summary job, on a cluster of several nodes: nothing is lost, nothing stands twice."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from mmsrarec_ray.data.shop import law
from mmsrarec_ray.data.shop.generate import item_row
from mmsrarec_ray.store import Run

ROOT = Path(__file__).parents[2]
N, BLOCK, BATCH = 320, 32, 16
ENGINE, RENDERER = "VLLM::EngineCore", "ray::MapWorker(MapBatches(_Render))"


@pytest.fixture(scope="module")
def cluster(environment: None) -> Iterator[Cluster]:
    """A head that only coordinates, and two nodes of which either can do all the work."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=4)
    cluster.add_node(num_cpus=4)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = law.draw_shop(99, 1200)
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(pa.Table.from_pylist([item_row(shop, index) for index in range(N)]), folder / "items.parquet")
    return folder


@dataclass
class Job:
    """A summary job on the cluster, as a process, and what it has written so far."""

    process: subprocess.Popen
    run: Path

    def staged(self) -> int:
        """Rows in the parts of the unfinished run."""
        parts = self.run.glob("keywords/*/staging/keywords/*.parquet")
        return sum(pq.ParquetFile(part).metadata.num_rows for part in parts)

    def wait_for(self, rows: int) -> None:
        deadline = time.monotonic() + 300
        while self.staged() < rows and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.05)
        assert self.process.poll() is None, "the job ended before anything was killed"
        assert rows <= self.staged() < N

    def write_twice(self) -> None:
        """What a task writes that outlives its driver: rows of another part once more."""
        part = next(self.run.glob("keywords/*/staging/keywords/*.parquet"))
        pq.write_table(pq.read_table(part).slice(1, 5), part.with_name("part-late.parquet"))

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, the JSON line and standard error."""
        output, error = self.process.communicate(timeout=400)
        results = [line for line in output.splitlines() if line.startswith('{"stage"')]
        return self.process.returncode, json.loads(results[-1]) if results else {}, error


@pytest.fixture
def start(cluster: Cluster, data: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(*settings: str) -> Job:
        words = [f"run={tmp_path}", f"data.path={data}", "data.format=tables", "data.interactions=null"]
        words += [f"summarize.rows_per_part={BLOCK}", f"engine.batch_size={BATCH}", f"engine.max_num_seqs={BATCH}"]
        command = [sys.executable, "jobs/summarize.py", *words, f"ray.address={cluster.address}", *settings]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        jobs.append(Job(subprocess.Popen(command, cwd=ROOT, **pipes), tmp_path))  # type: ignore[call-overload]
        return jobs[-1]

    yield start
    for job in jobs:
        job.process.kill()
        job.process.wait()


def processes(name: str) -> list[psutil.Process]:
    """Those of this test's clusters that are called so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(name):
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found


def kill(name: str) -> None:
    """As soon as there is a process that is called so."""
    deadline = time.monotonic() + 300
    while not (victims := processes(name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert victims, f"no process is called {name}"
    for victim in victims:
        victim.kill()


def kill_node(cluster: Cluster) -> None:
    """The node on which the engine runs, with SIGKILL; another one takes its place."""
    (engine,) = processes(ENGINE)
    above = {process.pid for process in engine.parents()}
    (node,) = [node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid in above]
    cluster.remove_node(node)
    cluster.add_node(num_cpus=4)


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


def test_a_job_goes_on_whatever_is_killed(cluster: Cluster, start: Callable[..., Job]) -> None:
    """The engine, then its node, then the driver; when the job is given again, a renderer."""
    before = rows_of_engines(cluster)
    job = start()
    job.wait_for(2 * BLOCK)
    kill(ENGINE)
    job.wait_for(job.staged() + 2 * BLOCK)
    kill_node(cluster)
    job.wait_for(job.staged() + 2 * BLOCK)
    job.process.kill()
    job.process.wait()
    kept = job.staged()
    job.write_twice()
    job = start()
    kill(RENDERER)
    code, last, error = job.end()
    assert code == 0, error
    reused = last["counts"]["reused"]
    assert kept <= reused < N
    assert last["counts"] == {"in": N, "out": N, "failed": 0, "reused": reused}
    assert len(keywords(job.run)) == N
    assert rows_of_engines(cluster) - before - N <= 3 * BLOCK, "a kill cost more than a block"


def test_an_engine_that_keeps_dying_ends_the_job_with_its_own_message(
    cluster: Cluster, start: Callable[..., Job]
) -> None:
    """Both engines that it asked for work, and both die."""
    job = start("engine.max_restarts=0", "engine.concurrency=2")
    job.wait_for(2 * BLOCK)
    assert len(processes(ENGINE)) == 2
    kill(ENGINE)
    code, last, error = job.end()
    assert code == 1, error
    assert last["status"] == "failed"
    assert "EngineDied: an engine died" in last["error"]
    assert "EngineDeadError: EngineCore encountered an issue" in last["error"]
    assert "\n" not in last["error"]
    assert job.staged() >= 2 * BLOCK
    assert os.listdir(job.run / "keywords"), "what was done is kept"
