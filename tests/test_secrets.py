"""What is secret stands in the environment alone: not in settings, artefacts, logs, messages or the dashboard."""

from __future__ import annotations

import logging
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mmsrarec_ray.addresses import without_secrets
from mmsrarec_ray.config import load
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.local import local_cluster
from mmsrarec_ray.serve.store import StoreUnavailable, check_store
from mmsrarec_ray.store import Run
from tests.serve.test_app import Served, serve  # noqa: F401 - the fixture

ROOT = Path(__file__).parents[1]
VARIABLES = {
    **dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "VLLM_API_KEY"), "{}"),
    **dict.fromkeys(("MLFLOW_TRACKING_PASSWORD", "WRITERS", "READERS"), "{}"),
    "MLFLOW_TRACKING_URI": "http://me:{}@127.0.0.1:9",
    "STORE": "postgresql://me:{}@127.0.0.1:9/db?connect_timeout=2",
}


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Secrets in every variable that is read by us or by what we start."""
    values = []
    for name, form in VARIABLES.items():
        values.append(secrets.token_hex(12))
        monkeypatch.setenv(name, form.format(values[-1]))
    return values


@pytest.fixture
def folder() -> Iterator[Path]:
    """For a cluster's sockets the path must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name:
        yield Path(name)


def found_in(place: Path, values: list[str]) -> list[str]:
    """The files below that hold one of the values. Fails where there are no files."""
    files = [file for file in place.rglob("*") if file.is_file() and not file.is_symlink()]
    assert files
    contents = {str(file): file.read_bytes() for file in files}
    return [name for name, content in contents.items() if any(value.encode() in content for value in values)]


def test_a_job_leaves_no_secret_anywhere(hidden: list[str], folder: Path, tmp_path: Path) -> None:
    """A job that ends well and one that fails, on a cluster whose every process has the secrets."""
    (tmp_path / "data").mkdir()
    items = [{"item_id": f"i{number}", "title": "a mug"} for number in range(9)]
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "data" / "items.parquet")
    words = ["data.format=tables", "data.interactions=null", f"data.path={tmp_path}/data"]
    words += ["data.item_columns.text=null", "data.item_columns.image=null"]
    words += ["serve.store=env:STORE", "serve.write_keys_env=WRITERS", "serve.read_keys_env=READERS"]
    ray = Path(sys.executable).parent / "ray"
    with local_cluster(3, "--object-store-memory=200000000", f"--temp-dir={folder}") as address:
        said = ""
        for run, expected in ((f"{tmp_path}/run", 0), ("/dev/null/run", 1)):
            command = ["job", "submit", "--address", address, "--working-dir", ".", "--"]
            command += ["python", "jobs/prepare.py", *words, f"run={run}"]
            done = subprocess.run([ray, *command], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == expected, done.stdout + done.stderr
            said += done.stdout + done.stderr
        for path in (
            "api/jobs/",
            "api/v0/tasks?detail=1",
            "api/v0/actors?detail=1",
            "api/v0/runtime_envs",
            "nodes?view=summary",
        ):
            with urllib.request.urlopen(f"{address}/{path}", timeout=30) as answer:
                said += answer.read().decode()
    assert "jobs/prepare.py" in said
    assert "Not a directory" in said
    assert not [value for value in hidden if value in said]
    [manifest] = Run.at(f"{tmp_path}/run").published("dataset")
    assert manifest.manifest.config["serve"]["store"] == "env:STORE"
    assert found_in(tmp_path / "run", hidden) == []
    assert found_in(folder, hidden) == [], "Ray's logs"


def test_the_service_tells_no_secret(
    hidden: list[str],
    serve: Callable[..., None],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async def scenario(s: Served) -> None:
        key = {"Authorization": "Bearer wrong"}
        for path in ("/v1/models", "/openapi.json", "/readyz", "/v1/users/u", "/v1/items/i0"):
            for headers in ({}, key, {"Authorization": f"Bearer {hidden[6]}"}):
                answer = await s.client.get(path, headers=headers)
                said.extend([answer.text, str(answer.headers)])
        assert sum("no_key" in text for text in said) >= 4

    serve(scenario, "serve.write_keys_env=WRITERS", "serve.read_keys_env=READERS")
    with pytest.raises(StoreUnavailable) as told:
        check_store("env:STORE")
    said.append(str(told.value))
    assert "127.0.0.1:9" in said[-1]
    assert not [value for value in hidden if value in "".join(said) + caplog.text]


@pytest.mark.parametrize(
    "word",
    [
        "run=s3://key:hidden@bucket/run",
        "data.path=s3://key:hidden/=@bucket/shop?region=eu",
        "data.path=https://bucket.example.com/shop?X-Amz-Signature=hidden",
        "data.path=abfs://shop@account.dfs.core.windows.net/a?sas_token=hidden",
        "serve.store=postgresql://me:hidden@host/db",
        "tune_summarizer.vllm_server=http://me:hidden@host:8000",
        "engine.env={HF_TOKEN: hidden}",
        "engine.env={PGPASSWORD: hidden}",
        "serve.store=postgresql://host/db?sslpassword=hidden",
        "engine.env={PLACE: 'redis://:hidden@host'}",
        "data.format=postgresql://me:hidden@host/db",
        "data.items_=postgresql://me:hidden@host/db",
        "postgresql://me:hidden@host/db",
        "data.path=[postgresql://me:hidden@host/db",
    ],
)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        load(None, ["run=/r", "data.format=tables", "data.path=/d", word])
    assert "hidden" not in str(told.value)
    key, _, value = word.partition("=")
    if "." in key and "[" not in value:
        file = tmp_path / "settings.yaml"
        group, name = key.split(".")
        file.write_text(yaml.safe_dump({"run": "/r", group: {"format": "tables", name: yaml.safe_load(value)}}))
        with pytest.raises(ConfigError) as told:
            load(file)
        assert "hidden" not in str(told.value)


def test_a_message_keeps_what_is_not_secret() -> None:
    told = "cannot open 'redis://me:a@b@host:6379/1?db=2&password=x': s3://bucket/shop?region=eu, http://h/a and me@b"
    kept = "cannot open 'redis://…@host:6379/1?db=2&password=…': s3://bucket/shop?region=eu, http://h/a and me@b"
    assert without_secrets(told) == kept
