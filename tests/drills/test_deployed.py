"""The service on a cluster of three nodes, by `serve deploy`, its store a PostgreSQL: load, kills, another bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
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
MOST_USERS = 30
MIXED = 200  # answers in the two changes of bundles: of two users for some seconds, ten a second at most
REPORT_MS = "RAY_metrics_report_interval_ms"
ANSWERED = "ray_serve_deployment_request_counter_total"


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

    def deploy(self, rankers: int = 1, **arguments: str) -> None:
        """As people give it; returns when what was deployed answers."""
        ranker = {"ranker": REPLICAS["ranker"] | {"min_replicas": rankers, "max_replicas": rankers}}
        file = self.folder / "recommend.yaml"
        application = {
            "name": "recommend",
            "route_prefix": "/",
            "import_path": "serve_apps.recommend:build",
            "args": {"run": self.run, **SERVED, **arguments, "serve": {"store": f"env:{STORE}", **REPLICAS, **ranker}},
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

    def pids(self, name: str) -> set[int]:
        """Processes of a deployment's replicas that run."""
        found = self.status()["deployments"][name]["replicas"]
        return {each["pid"] for each in found if each["state"] == "RUNNING"}

    def ranked_by(self, pids: set[int]) -> Counter[int]:
        """How many questions each ranker has answered, by process; a second old."""
        told = httpx.get(f"{self.url}/metrics", timeout=30).text
        names = {each["replica_id"]: each["pid"] for each in self.status()["deployments"]["Ranker"]["replicas"]}
        counts: Counter[int] = Counter()
        for family in text_string_to_metric_families(told):
            for sample in family.samples:
                pid = names.get(sample.labels.get("replica", ""))
                if sample.name == ANSWERED and pid in pids:
                    counts[pid] += int(sample.value)
        return counts

    def bundle(self) -> str:
        return httpx.get(f"{self.url}/v1/models", timeout=30).json()["bundle"]["version"]


@pytest.fixture(scope="module")
def deployed(pipeline: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    dashboard, port = free_port(), free_port()
    with postgres_server() as postgres:
        os.environ[STORE] = store = postgres.database("service")  # the nodes' processes inherit it
        os.environ[REPORT_MS] = "1000"  # and this, so that counts are fresh
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
            del os.environ[STORE], os.environ[REPORT_MS]


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
    began, line = time.monotonic(), [(0.0, len(deployed.pids("Retriever")))]

    def now() -> int:
        count = len(deployed.pids("Retriever"))
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
        until(lambda: len(deployed.pids("Ingress")) == 2, 120, "the second ingress")
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
    assert set(seen.events) == {"200"}
    assert seen.answers["changing"] <= MIXED  # the old bundle answers while the engine of the new one loads
    assert (seen.lost, seen.doubled) == (0, 0)


def test_two_rankers_divide_the_users_and_stand_in_for_each_other(deployed: Deployed, book: Book) -> None:
    deployed.deploy(rankers=2)
    until(lambda: len(deployed.pids("Ranker")) == 2, 300, "the second ranker")
    rankers = deployed.pids("Ranker")
    whose: dict[str, int] = {}
    for user in (f"u{number:03d}" for number in range(1, MOST_USERS + 1)):
        share = +asked_by_one(deployed, rankers, user)
        assert len(share) == 1, (user, share)  # all at one of them
        [whose[user]] = share
        if len(whose) >= 6 and set(whose.values()) == rankers:
            break  # where a user's are is drawn by chance, so it can take more than six to see both
    assert set(whose.values()) == rankers
    with under(deployed.url) as load:
        before, killed = len(load.answers), time.monotonic()
        psutil.Process(whose["u001"]).kill()
        until(lambda: len(load.answers) > before + 2, what="an answer")
        until(lambda: load.steady() and len(load.answers) > before + 2 * STEADY, 120, "the other ranker")
        seconds = time.monotonic() - killed
        assert len(deployed.pids("Ranker") - {whose["u001"]}) == 1  # the other, alone: a new one takes longer
        until(lambda: len(deployed.pids("Ranker") - {whose["u001"]}) == 2, 300, "a new ranker")
        until(load.steady, 120, "whole answers")
    seen = Seen.of(load, before, open_store(deployed.store))
    book.tell("serve, three nodes", "kill one of two rankers", seconds, seen.lost, seen.doubled, str(seen))
    assert not seen.failed
    assert (seen.lost, seen.doubled) == (0, 0)


def asked_by_one(deployed: Deployed, rankers: set[int], user: str) -> Counter[int]:
    """How many of a user's requests each ranker answers."""
    before, many = deployed.ranked_by(rankers), 4
    for _ in range(many):
        answer = httpx.post(f"{deployed.url}/v1/recommendations", json={"user_id": user, "k": 4}, timeout=60).json()
        assert answer["ranked"], answer
    until(lambda: (deployed.ranked_by(rankers) - before).total() >= many, 60, "counts")
    return deployed.ranked_by(rankers) - before
