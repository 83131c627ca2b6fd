"""The main command as people give it: `ray job submit` on a running cluster, from pictures to keywords."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mmsrarec_ray.store import Folder, Run

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).parent / "ray"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of its own, started by `ray start`; the address of its dashboard."""
    log = tmp_path_factory.mktemp("cluster") / "log"
    address = f"http://127.0.0.1:{(dashboard := free_port())}"
    words = ["--head", "--block", "--num-cpus=8", f"--port={free_port()}", f"--dashboard-port={dashboard}"]
    # Two clusters of one machine must not ask for the same ports: an agent without its own can take no job.
    words += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    path = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"  # the job's `python` is ours
    with log.open("w") as output:
        process = subprocess.Popen(
            [RAY, "start", *words, "--object-store-memory=300000000"],
            stdout=output,
            stderr=output,
            env=os.environ | {"PATH": path},
            start_new_session=True,
        )
    try:
        wait_for(address, process, log)
        yield address
    finally:  # stops what was started here, and no other Ray of this machine
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise TimeoutError(log.read_text())


def submit(address: str, *command: str) -> tuple[int, dict[str, Any], str]:
    """Submit a job and follow it; gives the exit code, the JSON line and all output."""
    words = ["job", "submit", "--address", address, "--working-dir", ".", "--", *command]
    for _ in range(10):  # the dashboard answers some seconds before its agent does; each attempt waits for ten
        done = subprocess.run([RAY, *words], capture_output=True, text=True, cwd=ROOT, check=False)
        if "No available agent" not in done.stderr:
            break
    results = [line for line in done.stdout.splitlines() if line.startswith('{"stage"')]
    return done.returncode, json.loads(results[-1]) if results else {}, done.stdout + done.stderr


def table(folder: Folder, name: str) -> list[dict[str, Any]]:
    files = [file for file in folder.files() if file.startswith(f"{name}/")]
    return [row for file in files for row in pq.read_table(io.BytesIO(folder.read_bytes(file))).to_pylist()]


def test_the_drawn_shop_becomes_keywords_as_one_ray_job(cluster: str, tmp_path: Path) -> None:
    command = ("python", "jobs/summarize.py", "--config", "configs/demo.yaml", f"run={tmp_path}", "shop.users=1000")
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

    code, last, output = submit(cluster, *command)
    assert code == 0, output
    assert last["status"] == "up to date"


def test_a_refused_job_says_why_and_fails(cluster: str) -> None:
    code, last, output = submit(cluster, "python", "jobs/summarize.py", "--config", "configs/demo.yaml", "run=out")
    assert code != 0
    assert last["status"] == "refused"
    assert "inside a Ray job a relative path would land in Ray's temporary copy" in output
