"""The service on top of the small run that all tests share, and servers of its store."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mmsrarec_ray.config import Config
from mmsrarec_ray.store import Run
from tests.databases import PostgresServer, RedisServer, Server, postgres_server, redis_server

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


@pytest.fixture(scope="session")
def run(pipeline: Config) -> Run:
    """The pipeline's run."""
    return Run.at(pipeline.run)


@dataclass(frozen=True)
class Service:
    """Where it answers, and where its store lies."""

    client: httpx.Client
    store: str


@pytest.fixture(scope="module")
def service(pipeline: Config) -> Iterator[Service]:
    """The service, by HTTP through Ray Serve's proxy."""
    from ray import serve

    from serve_apps.recommend import build

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(build({"run": pipeline.run, **SERVED}), name="recommend", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Service(client, f"sqlite://{Path(pipeline.run) / 'online' / 'store.sqlite'}")
    finally:
        serve.shutdown()
