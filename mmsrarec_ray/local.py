"""One Ray job on a cluster of this machine: start it, submit, follow, stop.

    python -m mmsrarec_ray.local [--num-cpus N] -- python jobs/summarize.py --config FILE run=FOLDER

does what `ray start --head` and `ray job submit --working-dir . -- …` do, and stops only what it started.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from mmsrarec_ray.progress import say

_PATIENCE_SECONDS = 120


def submit(entrypoint: list[str], num_cpus: int) -> int:
    """Run a command as a Ray job from the current folder; returns 0 if it succeeded, else 1."""
    import ray
    from ray.job_submission import JobStatus, JobSubmissionClient

    # Every stage is a few worker processes: let that many start at a time, instead of warning of each.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(num_cpus))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the job's `python`
    context = ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        log_to_driver=False,  # the job speaks for itself
    )
    try:
        client = JobSubmissionClient(f"http://{context.dashboard_url}")
        say(f"Ray dashboard while it runs: http://{context.dashboard_url}")
        job = _submit(client, shlex.join(entrypoint))
        asyncio.run(_follow(client, job))
        return 0 if client.get_job_status(job) == JobStatus.SUCCEEDED else 1
    finally:
        ray.shutdown()


def _submit(client: Any, entrypoint: str) -> str:
    """Submit as soon as the cluster can take a job: its dashboard answers some seconds before its agent does."""
    for _ in range(_PATIENCE_SECONDS):
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": "."})
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            time.sleep(1)
    raise TimeoutError(f"the cluster took no job within {_PATIENCE_SECONDS} seconds")


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mmsrarec_ray.local", description=__doc__.splitlines()[0])
    parser.add_argument("--num-cpus", type=int, default=8, help="logical CPUs of the cluster (default: 8)")
    parser.add_argument("entrypoint", nargs="+", help="the command, after --")
    options = parser.parse_args()
    return submit(options.entrypoint, options.num_cpus)


if __name__ == "__main__":
    sys.exit(main())
