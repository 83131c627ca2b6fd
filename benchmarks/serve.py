"""What the service adds: an echo, retrieval alone and ranking over HTTP, beside retrieval as a function call.

    serve run serve_apps.recommend:build run=/data/runs/shop &
    python benchmarks/serve.py --run /data/runs/shop --url http://127.0.0.1:8000 --output runs/bench/serve.json

Rows: `echo`, GET /healthz, the floor of HTTP and Ray Serve; `retrieval`, recommendations without
the ranker; `ranking`, `serve.candidates` candidates scored; `in process`, retrieval as a function call.
Latency in milliseconds, over loopback, from one client process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from mmsrarec_ray.serve.bundle import Bundle
from mmsrarec_ray.serve.finder import Finder, Wish

_CONCURRENCY = (1, 8, 32)


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(float(np.percentile(seconds, p)) * 1000, 2) for p in (50, 95, 99)}


async def load(ask: Callable[[int], Any], concurrency: int, requests: int) -> dict[str, Any]:
    """So many requests, so many at a time. ask: sends one, and returns what it was answered."""
    taken: list[float] = []
    outcomes: list[str] = []
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            began = time.perf_counter()
            outcomes.append(await ask(number))
            taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    rate = requests / (time.perf_counter() - began)
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    return {"concurrency": concurrency, "requests_s": round(rate, 1), **percentiles(taken), "outcomes": counts}


async def measure(url: str, users: list[str], requests: int) -> dict[str, list[dict[str, Any]]]:
    """Each row at each concurrency."""
    limits = httpx.Limits(max_connections=max(_CONCURRENCY))
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def echo(number: int) -> str:
            return str((await client.get("/healthz")).status_code)

        def recommend(**more: Any) -> Callable[[int], Any]:
            async def ask(number: int) -> str:
                wish = {"user_id": users[number % len(users)], **more}
                answer = await client.post("/v1/recommendations", json=wish)
                if answer.status_code != 200:
                    return str(answer.status_code)
                told = answer.json()
                return "ranked" if told["ranked"] else told["degraded_reason"] or "retrieved"

            return ask

        rows = {
            "echo": (echo, requests),
            "retrieval": (recommend(ranked=False), requests),
            "ranking": (recommend(), requests // 4),
        }
        found = {}
        for name, (ask, count) in rows.items():
            await load(ask, 4, count // 4)  # warm
            found[name] = [await load(ask, concurrency, count) for concurrency in _CONCURRENCY]
            for row in found[name]:
                print(f"{name:12} {json.dumps(row)}", file=sys.stderr)
        return found


def in_process(run: str, users: list[str], count: int) -> dict[str, Any]:
    """Retrieval as the retriever does it, as a function call."""
    bundle = Bundle.of(run)
    finder, taken = Finder.load(bundle), []
    for number in range(count + 20):
        began = time.perf_counter()
        finder.find(Wish(users[number % len(users)], [], None, bundle.config.serve.candidates))
        taken.append(time.perf_counter() - began)
    return {"requests_s": round(1 / float(np.mean(taken[20:])), 1), **percentiles(taken[20:])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="the run folder that is served")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    users = httpx.get(f"{options.url}/v1/users?limit=200").json()["users"]
    live = httpx.get(f"{options.url}/v1/models").json()
    rows = {"in process": in_process(options.run, users, options.requests // 2)}
    rows |= asyncio.run(measure(options.url, users, options.requests))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"bundle": live["bundle"], "rows": rows}, indent=2))
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
