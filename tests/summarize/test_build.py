"""The stage that makes small models: what a killed build goes on from, and for how long it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.errors import LeaseError
from mmsrarec_ray.job import execute
from mmsrarec_ray.lease import held
from mmsrarec_ray.store import Folder, Run
from mmsrarec_ray.summarize import build
from mmsrarec_ray.summarize.build import BuildModel
from mmsrarec_ray.summarize.build_tiny import Figures


@pytest.fixture
def config(tmp_path: Path) -> Config:
    words = ["data.format=shop", "build.smoke=true", f"run={tmp_path / 'run'}", f"build.cache={tmp_path / 'cache'}"]
    return load(None, words)


@pytest.fixture
def builds(ray_session: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Brings the model up to date; gives what the build found in its cache. killed: just before it was done."""

    def brought(config: Config, force: bool = False, killed: bool = False) -> list[str]:
        found: list[str] = []

        def build_tiny(out: Path, cache: Path, recipe: Any) -> Figures:
            cache.mkdir(parents=True, exist_ok=True)
            found.extend(path.name for path in cache.iterdir())
            (cache / f"checkpoint {len(found)}").touch()
            if killed:
                raise KeyboardInterrupt
            out.mkdir()
            (out / "config.json").write_text("{}")
            return Figures({}, {})

        monkeypatch.setattr(build, "build_tiny", build_tiny)
        try:
            execute(BuildModel(config), Run.at(config.run), force)
        except KeyboardInterrupt:
            assert killed
        return found

    return brought


def in_cache(config: Config) -> list[str]:
    return Folder.at(str(config.build.cache)).files()


def test_a_killed_build_is_gone_on_with_until_its_model_is_published(
    config: Config, builds: Callable[..., list[str]]
) -> None:
    assert builds(config, killed=True) == []
    assert in_cache(config)
    assert builds(config) == ["checkpoint 0"]
    assert in_cache(config) == []
    assert builds(config, force=True) == []


def test_a_forced_build_takes_nothing_over(config: Config, builds: Callable[..., list[str]]) -> None:
    builds(config, killed=True)
    assert builds(config, force=True, killed=True) == []
    assert builds(config) == ["checkpoint 0"], "what the forced one has done is its own"


def test_another_version_of_the_code_takes_nothing_over(
    config: Config, builds: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    builds(config, killed=True)
    monkeypatch.setattr("mmsrarec_ray.job.code_fingerprint", lambda modules: "another")
    assert builds(config) == []


def test_a_cache_that_another_job_has_is_left_alone_and_so_is_the_model(
    config: Config, builds: Callable[..., list[str]], tmp_path: Path
) -> None:
    builds(config)
    model = Run.at(config.run).published("model")[0]
    folder = Folder.at(str(tmp_path / "cache")) / model.fingerprint
    with held(folder), pytest.raises(LeaseError, match="is making it"):
        builds(config, force=True)
    assert model.published
    builds(config, force=True)
