"""One Ray job on a cluster of this machine: start it, submit, follow, stop.

    python -m mmsrarec_ray.local [--num-cpus N] -- python jobs/summarize.py --config FILE run=FOLDER

does what `ray start --head` and `ray job submit --working-dir . -- …` do, and stops only what it started.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mmsrarec_ray.progress import say

_HERE = "127.0.0.1"
_PATIENCE_SECONDS = 120
_TRIES = 3
_SLOW = "timed out during startup"  # what `ray start` says
_PORTS = range(20_000, 32_768)  # above those of Ray's workers, below those that Linux gives to any process


@contextmanager
def local_cluster(num_cpus: int, *options: str) -> Iterator[str]:
    """A cluster of one node on this machine; gives the address of its dashboard.

    All its ports are free ones, so it stands beside any other Ray of the machine: `ray.init` asks for fixed ones, and
    a node whose agent finds its port taken can run no job. It has a folder of its own below Ray's as well: a job joins
    the cluster whose address was last noted in the folder, which may be another one's. options: further words for
    `ray start`. Raises RuntimeError with what Ray said where it does not come up.
    """
    process, address = _come_up(num_cpus, options)
    try:
        yield address
    finally:
        _stop(process)


def _come_up(num_cpus: int, options: tuple[str, ...]) -> tuple[subprocess.Popen, str]:
    """The cluster's process, and the address of its dashboard. Ray gives a node half a minute to start, and a busy
    machine needs longer at times: then it is tried again."""
    for left in reversed(range(_TRIES)):
        with tempfile.TemporaryFile("w+") as log:
            process, address, agent = _start(num_cpus, options, log)
            try:
                # The dashboard answers some seconds before the agent does, and it is the agent that runs jobs.
                _wait_for(f"{agent}/api/healthz", process, log)
                _wait_for(f"{address}/api/gcs_healthz", process, log)
            except BaseException as error:
                _stop(process)
                if not left or _SLOW not in str(error):
                    raise
            else:
                return process, address
    raise AssertionError("the last try returns or raises")


def _start(num_cpus: int, options: tuple[str, ...], log: IO[str]) -> tuple[subprocess.Popen, str, str]:
    """`ray start`, and the addresses of the dashboard and of its agent."""
    tools = Path(sys.executable).parent
    ports = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    chosen = dict(zip(ports, _free_ports(len(ports)), strict=True))
    words = ["--head", "--block", f"--num-cpus={num_cpus}", "--disable-usage-stats"]
    words += [f"--temp-dir={_folder()}", *(f"--{name}={port}" for name, port in chosen.items())]
    environment = os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",  # the job's `python`
        # Every stage is a few worker processes: let that many start at a time, instead of warning of each.
        "RAY_worker_maximum_startup_concurrency": str(num_cpus),
        # Its job has ended when it is stopped: nothing is left to wait half a minute for.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    process = subprocess.Popen(
        [tools / "ray", "start", *words, *options], stdout=log, stderr=log, env=environment, start_new_session=True
    )
    dashboard, agent = (f"http://{_HERE}:{chosen[name]}" for name in ("dashboard-port", "dashboard-agent-listen-port"))
    return process, dashboard, agent


def _folder() -> str:
    """A new folder below Ray's own, for sessions and logs; its path is short, since sockets lie below it."""
    from ray._common.utils import get_default_ray_temp_dir

    Path(get_default_ray_temp_dir()).mkdir(mode=0o777, exist_ok=True)
    return tempfile.mkdtemp(dir=get_default_ray_temp_dir())


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and that are not handed out to whoever asks for any: Ray binds them later."""
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind((_HERE, port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop - 1}.")


def _wait_for(url: str, process: subprocess.Popen, log: IO[str]) -> None:
    """Until somebody answers there."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (OSError, http.client.HTTPException):  # the latter: somebody else has the port
            time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(f"Ray did not come up:\n{log.read()[-3000:]}")


def _stop(process: subprocess.Popen) -> None:
    # `ray start` stops what it started in order. Told all at once, the node would wait half a minute for a control
    # store that is gone.
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # nothing of its session is left, mostly
        os.killpg(process.pid, signal.SIGKILL)


def _require_token() -> None:
    """Where there is no token yet, as on a new machine, `ray start` refuses to make one: Ray's own command does, in
    ~/.ray/auth_token, where the dashboard's users find it."""
    words = [str(Path(sys.executable).parent / "ray"), "get-auth-token", "--generate"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, umask=0o077)  # nobody else may read it
    if done.returncode:
        raise RuntimeError(f"Ray has no token to protect the cluster with:\n{done.stderr[-3000:]}")


def submit(entrypoint: list[str], num_cpus: int) -> int:
    """Run a command as a Ray job from the current folder; returns 0 if it succeeded, else 1."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's default for clusters; its clients have to be told
    if os.environ["RAY_AUTH_MODE"] == "token":
        _require_token()
    from ray.job_submission import JobStatus, JobSubmissionClient

    with local_cluster(num_cpus) as address:
        client = JobSubmissionClient(address)
        say(f"Ray dashboard while it runs: {address}")
        job = client.submit_job(entrypoint=shlex.join(entrypoint), runtime_env={"working_dir": "."})
        asyncio.run(_follow(client, job))
        return 0 if client.get_job_status(job) == JobStatus.SUCCEEDED else 1


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mmsrarec_ray.local", description=__doc__.splitlines()[0])
    parser.add_argument("--num-cpus", type=int, default=8, help="logical CPUs of the cluster (default: 8)")
    parser.add_argument("entrypoint", nargs="+", help="the command, after --")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cluster is stopped too
    return submit(options.entrypoint, options.num_cpus)


if __name__ == "__main__":
    sys.exit(main())
