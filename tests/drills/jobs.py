"""Jobs of the drills: processes of their own, as people give them, and the processes that Ray starts for them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.drills.conftest import until

ROOT = Path(__file__).parents[2]
ENGINE, RENDERER = "VLLM::EngineCore", "ray::MapWorker(MapBatches(_Render))"
TRAINER = "ray::RayTrainWorker"


@dataclass
class Job:
    """A job as a process."""

    process: subprocess.Popen

    @classmethod
    def start(cls, name: str, *settings: str) -> Job:
        command = [sys.executable, f"jobs/{name}.py", *settings]
        return cls(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, the JSON line and standard error."""
        output, error = self.process.communicate(timeout=400)
        results = [line for line in output.splitlines() if line.startswith('{"stage"')]
        return self.process.returncode, json.loads(results[-1]) if results else {}, error

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def processes(name: str) -> list[psutil.Process]:
    """Those of this test's clusters that are called so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(name):
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found


def kill(name: str, most: int | None = None) -> None:
    """As soon as there is a process that is called so; so many of them, all by default."""
    until(lambda: processes(name), what=name)
    for victim in processes(name)[:most]:
        victim.kill()


def kill_node(cluster: Cluster, of: str) -> None:
    """The node on which a process runs that is called so, with SIGKILL; another one takes its place."""
    until(lambda: processes(of), what=of)
    above = {process.pid for process in processes(of)[0].parents()}
    (node,) = [node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid in above]
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=4)
