"""The main command as people give it: `ray job submit` on a running cluster, from pictures to keywords."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.util.state import list_tasks

from mmsrarec_ray.local import local_cluster
from mmsrarec_ray.store import Folder, Run

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).parent / "ray"


@pytest.fixture(scope="module")
def cluster(environment: None) -> Iterator[str]:
    """A cluster of its own, started by `ray start`; the address of its dashboard."""
    with local_cluster(8, "--object-store-memory=300000000") as address:
        yield address


def submit(address: str, *command: str) -> tuple[int, dict[str, Any], str]:
    """Submit a job and follow it; gives the exit code, the JSON line and all output."""
    words = ["job", "submit", "--address", address, "--working-dir", ".", "--", *command]
    done = subprocess.run([RAY, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith('{"stage"')]
    return done.returncode, json.loads(results[-1]) if results else {}, done.stdout + done.stderr


def table(folder: Folder, name: str) -> list[dict[str, Any]]:
    files = [file for file in folder.files() if file.startswith(f"{name}/")]
    return [row for file in files for row in pq.read_table(io.BytesIO(folder.read_bytes(file))).to_pylist()]


def until_shown(address: str, name: str, states: dict[str, int]) -> bool:
    """Wait until the dashboard tells that so many tasks of this name ended so: it hears of them some seconds later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        tasks = list_tasks(address=address, filters=[("name", "=", name)])
        if Counter(task.state for task in tasks) == states:
            return True
        time.sleep(1)
    return False


def test_the_drawn_shop_becomes_keywords_as_one_ray_job(cluster: str, tmp_path: Path) -> None:
    command = ("python", "jobs/summarize.py", "--config", "configs/demo.yaml", f"run={tmp_path}", "shop.users=1000")
    command += ("summarize.tuned=false",)
    code, last, output = submit(cluster, *command)
    assert code == 0, output
    assert last["status"] == "done"
    assert last["counts"] == {"in": 1200, "out": 1200, "failed": 0, "reused": 0}

    run = Run.at(str(tmp_path))
    keywords = {row["item_id"]: row for row in table(run.published("keywords")[0].folder, "items")}
    truth = table(run.published("shop")[0].folder, "truth_items")
    assert len(keywords) == len(truth) == 1200
    for half, names in (
        ("image_keywords", ("colour", "pattern", "kind")),
        ("text_keywords", ("material", "use", "brand")),
    ):
        for name in names:
            right = sum(row[name] in keywords[row["item_id"]][half] for row in truth)
            assert right >= 0.96 * len(truth), name
    assert b"contact" in run.published("keywords")[0].folder.read_bytes("contact_sheet.html").lower()

    assert until_shown(cluster, "stage: summarize", {"FINISHED": 1})

    code, last, output = submit(cluster, *command)
    assert code == 0, output
    assert last["status"] == "up to date"

    code, last, output = submit(cluster, *command, "engine.cpus=100", "summarize.attempt=1")
    assert (code, last["status"]) == (1, "refused"), output
    assert "hold 102 logical CPUs and the cluster has 8" in output
    assert until_shown(cluster, "stage: summarize", {"FINISHED": 1, "FAILED": 1})


def test_a_refused_job_says_why_and_fails(cluster: str) -> None:
    code, last, output = submit(cluster, "python", "jobs/summarize.py", "--config", "configs/demo.yaml", "run=out")
    assert code != 0
    assert last["status"] == "refused"
    assert "inside a Ray job a relative path would land in Ray's temporary copy" in output


def test_clusters_of_one_machine_stand_side_by_side(cluster: str, ray_session: str) -> None:
    """Beside the fixtures' clusters, one more runs a command to its end and tells that it failed."""
    words = [sys.executable, "-m", "mmsrarec_ray.local", "--num-cpus", "1", "--", "sh", "-c", "echo done; exit 3"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT / "configs", check=False)
    assert done.returncode == 1, done.stderr
    assert "done" in done.stdout.splitlines()


def test_a_new_machine_needs_no_token_of_ours(tmp_path: Path) -> None:
    """Ray asks for one by default, and nobody has made any."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    words = [sys.executable, "-m", "mmsrarec_ray.local", "--num-cpus", "1", "--", "echo", "done"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT / "configs", env=environment | {"HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout.splitlines()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o77 == 0, "nobody else may read it"


def test_a_job_joins_its_own_cluster_beside_a_newer_one(cluster: str) -> None:
    ask = "import ray; ray.init(); print(int(ray.cluster_resources()['CPU']), 'CPUs')"
    with local_cluster(1):
        words = [RAY, "job", "submit", "--address", cluster, "--", "python", "-c", ask]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "8 CPUs" in done.stdout, done.stdout + done.stderr


def test_a_node_that_is_slow_to_start_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives up after half a minute. The first `ray start` says so, as on a busy machine; the next is the real."""
    slow = "echo 'Exception: The current node timed out during startup.'; exit 1"
    (tmp_path / "ray").write_text(f'#!/bin/sh\nmkdir {tmp_path}/tried && {{ {slow}; }}\nexec {RAY} "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with local_cluster(1) as address, urllib.request.urlopen(f"{address}/api/gcs_healthz", timeout=60) as answer:
        assert answer.status == 200


def test_a_local_job_that_is_stopped_takes_its_cluster_along() -> None:
    words = [sys.executable, "-m", "mmsrarec_ray.local", "--num-cpus", "1", "--", "sleep", "600"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT / "configs")
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith("Ray dashboard while it runs: "))
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{line.split()[-1]}/api/gcs_healthz", timeout=5)
