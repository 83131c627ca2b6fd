"""A retriever and a ranker of the same bundle take the place of those before, by Ray Serve: the ranker takes longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from mmsrarec_ray.serve.deployments import in_step
from mmsrarec_ray.serve.graph import _deployed
from mmsrarec_ray.settings import Replicas
from tests.drills.conftest import until

NAME = "in-step"
WATCHED = 5.0  # seconds; a retriever that waited for nobody would answer sooner


class Ranker:
    """Its engine has loaded when there is a file of its version."""

    def __init__(self, version: str, folder: Path):
        self._version = version
        while not (folder / version).exists():
            time.sleep(0.05)

    async def bundle(self) -> str:
        return self._version


class Retriever:
    """Leaves a file when all else is done."""

    async def __init__(self, version: str, folder: Path, ranker: DeploymentHandle):  # type: ignore[misc]  # Serve awaits
        self._version = version
        (folder / f"{version} waits").touch()
        await in_step(ranker, version)

    async def bundle(self) -> str:
        return self._version


class Front:
    def __init__(self, retriever: DeploymentHandle, ranker: DeploymentHandle):
        self._retriever, self._ranker = retriever, ranker

    async def bundles(self) -> tuple[str, str]:
        return await self._retriever.bundle.remote(), await self._ranker.bundle.remote()


def deploy(version: str, folder: Path) -> None:
    """Returns when all run."""

    def deployed(replica: type) -> serve.Deployment:
        return _deployed(replica, replica.__name__, Replicas(), {"num_cpus": 0.1})

    ranker = deployed(Ranker).bind(version, folder)
    retriever = deployed(Retriever).bind(version, folder, ranker)
    serve.run(deployed(Front).bind(retriever, ranker), name=NAME, route_prefix=None)


@contextmanager
def meanwhile(version: str, folder: Path) -> Iterator[None]:
    """Deploys it beside; at the end its engine loads, and all of it runs."""
    thread = threading.Thread(target=deploy, args=(version, folder))
    thread.start()
    try:
        yield
    finally:
        (folder / version).touch()
        thread.join()


def states() -> dict[str, str]:
    """Of the application's deployments, as far as there are."""
    found = serve.status().applications.get(NAME)
    return {name: each.status.value for name, each in found.deployments.items()} if found else {}


@pytest.fixture
def serving(ray_session: str) -> Iterator[None]:
    serve.start(http_options={"location": "NoServer"})
    yield
    serve.shutdown()


def test_a_new_bundles_retriever_waits_for_its_ranker_unless_there_is_none(serving: None, tmp_path: Path) -> None:
    with meanwhile("first", tmp_path):
        until(lambda: states().get("Retriever") == "HEALTHY", what="the first retriever")
        assert states()["Ranker"] == "UPDATING"
    handle = serve.get_app_handle(NAME)
    with meanwhile("second", tmp_path):
        until(lambda: (tmp_path / "second waits").exists(), what="the second retriever")
        seen, since = set[Any](), time.monotonic()
        while time.monotonic() < since + WATCHED:
            seen.add(tuple(handle.bundles.remote().result(timeout_s=60)))
        assert seen == {("first", "first")}
    until(lambda: handle.bundles.remote().result(timeout_s=60) == ("second", "second"), what="the second bundle")
