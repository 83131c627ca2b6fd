"""The service on a cluster of three nodes, by `serve deploy`, its store a PostgreSQL: load, kills, another bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.cluster_utils import Cluster

from mmsrarec_ray.config import Config
from mmsrarec_ray.serve.store import open_store
from mmsrarec_ray.store import Run
from tests.databases import PostgresServer, postgres_server
from tests.drills.another import another_bundle
from tests.drills.conftest import Book, until
from tests.drills.jobs import ROOT, kill_node
from tests.drills.load import STEADY, Seen, under
from tests.programs import free_port
from tests.serve.conftest import SERVED, run

__all__ = ["run"]  # a fixture
STORE = "MMSRAREC_DRILL_STORE"
REPLICAS = {
    "ingress": {"min_replicas": 2, "max_replicas": 2},
    "retriever": {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 1,
        "downscale_delay_s": 5,
        "health_check_period_s": 2,
    },
    "ranker": {"health_check_period_s": 2},
}
CROWD = 12


@dataclass
class Deployed:
    """Where it answers, and what it runs on."""

    cluster: Cluster
    dashboard: str
    url: str
    postgres: PostgresServer
    store: str
    folder: Path
    run: str

    def deploy(self, **arguments: str) -> None:
        """As people give it; returns when what was deployed answers."""
        file = self.folder / "recommend.yaml"
        application = {
            "name": "recommend",
            "route_prefix": "/",
            "import_path": "serve_apps.recommend:build",
            "args": {"run": self.run, **SERVED, **arguments, "serve": {"store": f"env:{STORE}", **REPLICAS}},
        }
        options = {"host": "127.0.0.1", "port": int(self.url.rpartition(":")[2])}
        whole = {"proxy_location": "HeadOnly", "http_options": options, "applications": [application]}
        file.write_text(json.dumps(whole))  # which is YAML
        serve = Path(sys.executable).with_name("serve")
        done = subprocess.run(
            [serve, "deploy", file, "--address", self.dashboard], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        until(self.answers, 300, "the service")

    def status(self) -> dict[str, Any]:
        """What Serve tells of the application; {} before it is there."""
        told = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=30).json()
        return told["applications"].get("recommend", {})

    def answers(self) -> bool:
        assert self.status().get("status") != "DEPLOY_FAILED", self.status().get("message")
        if self.status().get("status") != "RUNNING":
            return False
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def replicas(self, name: str) -> int:
        """Those that run."""
        found = self.status()["deployments"][name]["replicas"]
        return sum(each["state"] == "RUNNING" for each in found)

    def bundle(self) -> str:
        return httpx.get(f"{self.url}/v1/models", timeout=30).json()["bundle"]["version"]


@pytest.fixture(scope="module")
def deployed(pipeline: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    dashboard, port = free_port(), free_port()
    with postgres_server() as postgres:
        os.environ[STORE] = store = postgres.database("service")  # the nodes' processes inherit it
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": dashboard}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=4)
            urls = (f"http://127.0.0.1:{each}" for each in (dashboard, port))
            made = Deployed(cluster, *urls, postgres, store, tmp_path_factory.mktemp("deployed"), pipeline.run)
            made.deploy()
            yield made
        finally:
            cluster.shutdown()
            del os.environ[STORE]


@contextmanager
def crowd(url: str) -> Iterator[None]:
    """So many users who ask one request after the other."""
    over = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not over.is_set():
                client.post("/v1/recommendations", json={"user_id": f"u{number:03d}", "ranked": False})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CROWD)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_replicas_rise_and_fall_with_the_load(deployed: Deployed, book: Book) -> None:
    began, line = time.monotonic(), [(0.0, deployed.replicas("Retriever"))]

    def now() -> int:
        count = deployed.replicas("Retriever")
        if count != line[-1][1]:
            line.append((time.monotonic() - began, count))
        return count

    assert now() == 1
    with crowd(deployed.url):
        until(lambda: now() == 3, 180, "three replicas")
        busy = time.monotonic() - began
    until(lambda: now() == 1, 180, "one replica")
    told = ", ".join(f"{count} at {seconds:.0f} s" for seconds, count in line)
    book.tell("serve", f"{CROWD} at a time, until {busy:.0f} s", busy, said=f"replicas of the retriever: {told}")


def test_the_server_of_the_store_is_killed_under_load(deployed: Deployed, book: Book) -> None:
    with under(deployed.url) as load:
        before, killed = len(load.answers), time.monotonic()
        deployed.postgres.kill()
        until(lambda: len(load.answers) > before + STEADY, what="an answer")
        deployed.postgres.start()
        away = time.monotonic() - killed
        until(load.steady, 120, "the service")
        seconds = time.monotonic() - killed
    seen = Seen.of(load, before, open_store(deployed.store))
    what = f"kill PostgreSQL, and start it after {away:.1f} s"
    book.tell("serve, three nodes", what, seconds, seen.lost, seen.doubled, str(seen))
    assert set(seen.failed) == {"503"}
    assert (seen.lost, seen.doubled) == (0, 0)


def test_a_node_is_killed_under_load(deployed: Deployed, book: Book) -> None:
    """One on which an ingress runs; another takes its place."""
    with under(deployed.url) as load:
        before, killed = len(load.answers), time.monotonic()
        kill_node(deployed.cluster, "ray::ServeReplica:recommend:Ingress")
        until(lambda: len(load.answers) > before + 2, what="an answer")
        until(lambda: load.steady() and len(load.answers) > before + 2 * STEADY, 180, "the service")
        seconds = time.monotonic() - killed
        until(lambda: deployed.replicas("Ingress") == 2, 120, "the second ingress")
    seen = Seen.of(load, before, open_store(deployed.store))
    book.tell("serve, three nodes", "kill a node with an ingress", seconds, seen.lost, seen.doubled, str(seen))
    assert set(seen.failed) <= {"500", "503", "504", "RemoteProtocolError", "ReadError"}
    assert (seen.lost, seen.doubled) == (0, 0)


def test_another_bundle_goes_live_and_back_without_a_failed_request(deployed: Deployed, run: Run, book: Book) -> None:
    first, versions, taken = run.published("pipeline")[0].fingerprint, [deployed.bundle()], []
    with another_bundle(run) as other, under(deployed.url) as load:
        before = len(load.answers)
        for pipeline in (other, first):
            began = time.monotonic()
            deployed.deploy(pipeline=pipeline)
            until(lambda: deployed.bundle() != versions[-1], 300, "the other bundle")
            versions.append(deployed.bundle())
            place = len(load.answers)
            until(lambda place=place: load.steady() and len(load.answers) > place + STEADY, 180, "whole answers")
            taken.append(time.monotonic() - began)
    seen = Seen.of(load, before, open_store(deployed.store))
    assert versions[0] == versions[2] != versions[1]
    for what, seconds in zip(("another bundle goes live", "and back"), taken, strict=True):
        book.tell("serve, three nodes", f"serve deploy: {what}", seconds, seen.lost, seen.doubled, str(seen))
    assert not seen.failed
    assert (seen.lost, seen.doubled) == (0, 0)
