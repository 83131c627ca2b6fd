"""Prometheus and promtool for tests."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.programs import free_port, program

ROOT = Path(__file__).parents[1]
DEPLOYED = ROOT / "deploy/prometheus"
_PATIENCE_SECONDS = 30.0


def tools() -> Path:
    """The folder with both programs. Skips the test where they cannot be had."""
    return program("promtool", "prometheus").parent


def promtool(*arguments: str | Path, folder: Path = DEPLOYED) -> str:
    """What it says; fails with that where it finds something wrong."""
    done = subprocess.run([tools() / "promtool", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def server(folder: Path, targets: list[str]) -> Iterator[Callable[[str], list[Any]]]:
    """A Prometheus with the project's own configuration that asks these targets every second; gives a function that
    answers a query. folder: an empty one."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOYED / "alerts.yml")]
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(folder / "targets.json")]
    (folder / "targets.json").write_text(json.dumps([{"targets": targets}]))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [tools() / "prometheus", *options, f"--web.listen-address={address}"], stdout=log, stderr=log
        )
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
                _wait_for(client, process, folder / "log")
                yield lambda query: _answer(client, query)
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(client: httpx.Client, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < end, log.read_text()  # noqa: PT018
        with suppress(httpx.TransportError):
            if client.get("/-/ready").status_code == 200:
                return
        time.sleep(0.1)


def _answer(client: httpx.Client, query: str) -> list[Any]:
    told = client.get("/api/v1/query", params={"query": query}).json()
    assert told["status"] == "success", f"{query}: {told}"
    return told["data"]["result"]


def panels() -> list[tuple[str, str]]:
    """(title, query) of all panels of the dashboard, the window of rates as a minute."""
    dashboard = json.loads((ROOT / "deploy/grafana/mmsrarec.json").read_text())
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "1m"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


# Panels of these metrics show jobs, others the service or the nodes.
_OF_JOBS = re.compile("mmsrarec_(stages|items_total|items_waiting|tokens|failures|tuning)|ray_data")
# Of what tests do not do, or only before or after: KubeRay, tuning, GPUs, a shadow, most failures.
_UNSEEN = re.compile("kuberay|tuning|gpus|shadow|refused|items_put|error|unexpected_worker|ray_data_output")


def seen_panels(of_jobs: bool) -> list[tuple[str, str]]:
    """Those that a test of jobs, or of the service, fills."""
    named = [(title, query, metrics_of(query)) for title, query in panels()]
    return [
        (title, query)
        for title, query, metrics in named
        if any(map(_OF_JOBS.search, metrics)) == of_jobs and not any(map(_UNSEEN.search, metrics))
    ]


def unfilled(
    ask: Callable[[str], list[Any]], wanted: list[tuple[str, str]], meanwhile: Callable[[], object] = lambda: None
) -> list[str]:
    """Titles of those panels that show nothing, after a minute at most: processes tell their node every ten seconds."""
    end = time.monotonic() + 60
    while (missing := [title for title, query in wanted if not ask(query)]) and time.monotonic() < end:
        meanwhile()
        time.sleep(0.2)
    return missing


def alerts() -> list[tuple[str, str]]:
    """(name, query) of all alerts."""
    groups = yaml.safe_load((DEPLOYED / "alerts.yml").read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


def metrics_of(query: str) -> set[str]:
    """The names of metrics in a query: words that are no function, keyword, label or duration."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", query)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()", bare)
    return set(words) - {"and", "or", "unless", "by", "on", "offset", "bool"}
