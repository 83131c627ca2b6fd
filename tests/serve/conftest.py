"""A small run of the whole pipeline, the service on top of it, and servers of its store."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.job import execute
from mmsrarec_ray.pipeline import Pipeline
from mmsrarec_ray.store import Run
from tests.databases import PostgresServer, RedisServer, Server, postgres_server, redis_server

ITEMS, USERS = 40, 120
SETTINGS = (
    *("data.format=tables", "split.validation=0.2", "split.test=0.2", "train.threads=1"),
    *("methods.sasrec.dim=16", "methods.sasrec.epochs=2", "methods.sasrec.heads=1"),
    *("tune_recommender.batch_size=8", "tune_recommender.epochs=1", "tune_recommender.log_steps=1"),
    *("tune_recommender.lora.rank=8", "rank.shortlist=6", "rank.candidate=image"),
    *("rank.evidence=[cooccurrence, moments, popularity]", "retrieve.voters=20"),
    *("evaluate.methods=[mmsrarec]", "evaluate.bootstrap=200", "evaluate.ks=[1, 5]"),
)
SERVED = {
    "serve.candidates": "6",  # as rank.shortlist
    "serve.deadline_ms": "20000",  # whoever tests deadlines asks for a shorter one
    "serve.ranker_pause_ms": "200",
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["postgres", "redis"])
def server(request: pytest.FixtureRequest) -> Server:
    """One of each kind of server."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder, shop, rng = tmp_path_factory.mktemp("serve"), shop_of(3, 1200), np.random.default_rng(0)
    (folder / "data").mkdir()
    rows = [item_row(shop, index) for index in range(ITEMS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "items.parquet")
    histories = [rng.permutation(ITEMS)[: rng.integers(4, 9)] for _ in range(USERS)]
    log = [
        {"user_id": f"u{user:03d}", "item_id": f"item-{item:05d}", "timestamp": place}
        for user, history in enumerate(histories)
        for place, item in enumerate(history)
    ]
    pq.write_table(pa.Table.from_pylist(log), folder / "data" / "interactions.parquet")
    return load(None, [f"data.path={folder / 'data'}", f"run={folder / 'run'}", *SETTINGS])


@pytest.fixture(scope="module")
def run(ray_session: str, config: Config) -> Run:
    """The pipeline's run."""
    found = Run.at(config.run)
    execute(Pipeline(config), found)
    return found


@dataclass(frozen=True)
class Service:
    """Where it answers, and where its store lies."""

    client: httpx.Client
    store: str


@pytest.fixture(scope="module")
def service(run: Run, config: Config) -> Iterator[Service]:
    """The service, by HTTP through Ray Serve's proxy."""
    from ray import serve

    from serve_apps.recommend import build

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(build({"run": config.run, **SERVED}), name="recommend", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Service(client, f"sqlite://{Path(config.run) / 'online' / 'store.sqlite'}")
    finally:
        serve.shutdown()
