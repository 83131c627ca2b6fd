"""What the service costs: an echo, retrieval and ranking over HTTP, beside the same without Ray Serve and without HTTP.

    python benchmarks/serve.py --run /runs/demo

Part by part, each with servers of its own, over loopback, from one client process; a part that stands in the output is
not measured again:

- `function`: retrieval as the retriever does it, as a function call.
- `one process`: the same HTTP application on uvicorn, its retriever called in the same process: no Ray Serve.
- `Ray Serve`, `with HAProxy`, `tuned`: `serve run serve_apps.recommend:build`, with Ray's Python proxy, with
  `RAY_SERVE_ENABLE_HA_PROXY=1`, and with all that docs/serving.md advises for speed.
- `bare engine`: vLLM's own async engine gets the same questions, drawn up before, with the same arguments.

Rows: `echo`, GET /healthz; `retrieval`, recommendations without the ranker; `ranking`, `serve.candidates` candidates
scored; `nothing`, the path of retrieval without retrieval (benchmarks/empty_graph.py) in a server of its own: what Ray
Serve takes for its two hops, whatever is done there.

No user is asked for twice, so an engine has never read a user before. Queues and the deadline are set so wide that
nothing is answered without the ranker: this measures capacity; what a deadline does is in the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from empty_graph import Nothing, create_app
from fastapi import FastAPI
from measure import ROOT, Measured, Report, alone, table

from mmsrarec_ray.data.log import read_log
from mmsrarec_ray.models.load import engine_arguments, engine_environment, source
from mmsrarec_ray.serve.bundle import Bundle
from mmsrarec_ray.serve.catalogue import LiveCatalogue
from mmsrarec_ray.serve.finder import Finder, Wish

CONCURRENCY = (1, 8, 32)
URL = "http://127.0.0.1:8000"
SETTINGS = (
    *("serve.deadline_ms=120000", "serve.ranker.max_ongoing_requests=64", "serve.ranker.max_queued_requests=64"),
    *("serve.ranker.max_replicas=1", "serve.retriever.max_replicas=1", "serve.ingress.max_replicas=1"),
)
_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
# The environment of each; None: without Ray Serve.
SERVERS: dict[str, dict[str, str] | None] = {
    "one process": None,
    "Ray Serve": {},
    "with HAProxy": _HAPROXY,
    "tuned": _HAPROXY | {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_worker_niceness": "0"},
}
_APPLICATIONS = {"service": "serve_apps.recommend:build", "nothing": "benchmarks.empty_graph:build"}
_START_SECONDS = 300


async def load(ask: Callable[[int], Awaitable[str]], concurrency: int, count: int) -> Measured:
    """So many requests, so many at a time. ask: sends one, and returns what it was answered."""
    taken: list[float] = []
    outcomes: list[str] = []
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            began = time.perf_counter()
            outcomes.append(await ask(number))
            taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    rate = count / (time.perf_counter() - began)
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    return {"concurrency": concurrency, "requests_s": round(rate, 1), **percentiles(taken), "outcomes": counts}


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(float(np.percentile(seconds, p)) * 1000, 2) for p in (50, 95, 99)}


async def over_http(users: list[str], requests: int, rows: tuple[str, ...]) -> Measured:
    """Each row at each concurrency."""
    limits = httpx.Limits(max_connections=max(CONCURRENCY))
    async with httpx.AsyncClient(base_url=URL, timeout=180, limits=limits) as client:

        async def echo(user: str) -> str:
            return str((await client.get("/healthz")).status_code)

        def recommend(ranked: bool) -> Callable[[str], Awaitable[str]]:
            async def ask(user: str) -> str:
                answer = await client.post("/v1/recommendations", json={"user_id": user, "ranked": ranked})
                if answer.status_code != 200:
                    return str(answer.status_code)
                told = answer.json()
                return "ranked" if told["ranked"] else told["degraded_reason"] or "retrieved"

            return ask

        async def nothing(user: str) -> str:
            return str((await client.post("/v1/recommendations", json={"user_id": user, "ranked": False})).status_code)

        asks = {"echo": echo, "retrieval": recommend(False), "ranking": recommend(True), "nothing": nothing}
        return {row: await levels(asks[row], users, requests if row != "ranking" else requests // 5) for row in rows}


async def levels(ask: Callable[[str], Awaitable[str]], users: list[str], count: int) -> list[Measured]:
    """At each concurrency, after some requests to warm up; each asks for other users."""
    measured, each_user = [], iter(users)
    for number, concurrency in enumerate((4, *CONCURRENCY)):
        asked = list(itertools.islice(each_user, count if number else count // 4))
        measured.append(await load(lambda at, asked=asked: ask(asked[at]), concurrency, len(asked)))
        print(json.dumps(measured[-1]), file=sys.stderr, flush=True)
    return measured[1:]


@contextmanager
def served(run: str, settings: list[str], more: dict[str, str] | None, what: str) -> Iterator[None]:
    """The service, with a store of its own, or the empty graph. more: environment; None: without Ray Serve; what: a
    name in _APPLICATIONS."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [f"serve.store=sqlite://{scratch}/store.sqlite", *settings]
        if more is None:
            command = [sys.executable, __file__, "--run", run, "--one-process", what, *words]
        else:
            words = [f"run={run}", *words] if what == "service" else []
            serve = Path(sys.executable).with_name("serve")
            command = [str(serve), "run", "--address", "local", _APPLICATIONS[what], *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | (more or {})
        with Path(scratch, "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                wait_until_ready(process, Path(scratch, "log"))
                yield
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(60)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until every part answers. The service is ready before its engine is, whose start takes both cores for a while."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):  # nobody listens yet
            told = httpx.get(f"{URL}/readyz", timeout=5)
            if told.status_code == 200 and all(told.json().get("parts", {}).values()):
                return
        time.sleep(0.5)
    raise SystemExit(f"the service did not start:\n{log.read_text()[-3000:]}")


def through_server(run: str, settings: list[str], name: str, users: list[str], requests: int) -> Measured:
    rows = ("echo", "retrieval") if SERVERS[name] is None else ("echo", "retrieval", "ranking")
    with served(run, settings, SERVERS[name], "service"):
        found = asyncio.run(over_http(users, requests, rows))
    with served(run, settings, SERVERS[name], "nothing"):
        return found | asyncio.run(over_http(users, requests, ("nothing",)))


class Direct:
    """Stands for a handle of Ray Serve: `handle.method.remote(…)` calls an object of this process."""

    def __init__(self, replica: Any):
        self._replica = replica

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._replica, name)

        class Method:
            @staticmethod
            def remote(*arguments: Any) -> asyncio.Future[Any]:
                return asyncio.ensure_future(method(*arguments))

        return Method


class NoRanker:
    """What is never asked here but whether it is there."""

    async def ready(self) -> bool:
        return True


def one_process(run: str, settings: list[str], what: str) -> None:
    """The application on uvicorn, without Ray Serve. what: a name in _APPLICATIONS."""
    import uvicorn

    app = _service(run, settings) if what == "service" else create_app(Direct(Nothing()))
    uvicorn.run(app, host="127.0.0.1", port=8000, log_level="warning", access_log=False)


def _service(run: str, settings: list[str]) -> FastAPI:
    """The service's own application, its retriever beside it."""
    from mmsrarec_ray.serve import app
    from mmsrarec_ray.serve.deployments import RetrieverReplica
    from mmsrarec_ray.serve.keys import Keys
    from mmsrarec_ray.serve.lanes import Lane
    from mmsrarec_ray.serve.metrics import Metrics
    from mmsrarec_ray.serve.pictures import Pictures
    from mmsrarec_ray.serve.service import Service
    from mmsrarec_ray.serve.store import open_store

    bundle = Bundle.of(run, settings)
    config = bundle.config.serve
    assert config.store is not None
    store = open_store(config.store)
    retriever, nobody = Direct(RetrieverReplica(bundle, config.store)), Direct(NoRanker())
    lane = Lane(config, bundle.summary(), retriever, nobody)
    service = Service(config, lane, None, None, store, nobody, Metrics())
    return app.create_app(service, Pictures(bundle.config, [bundle.folder("dataset")], store), Keys(config))


def function(run: str, settings: list[str], asked: list[str]) -> Measured:
    """Retrieval as a function call, the first twenty left out."""
    bundle = Bundle.of(run, settings)
    finder, taken = Finder.load(bundle), []
    for user in asked:
        began = time.perf_counter()
        finder.find(Wish(user, [], None, bundle.config.serve.candidates))
        taken.append(time.perf_counter() - began)
    return {"requests_s": round(1 / float(np.mean(taken[20:])), 1), **percentiles(taken[20:])}


def bare(run: str, settings: list[str], asked: list[str], count: int) -> Measured:
    """vLLM's async engine at each concurrency. A request is all questions about a user."""
    bundle = Bundle.of(run, settings)
    os.environ |= engine_environment(bundle.config) | {"OMP_NUM_THREADS": "1"}  # as Ray sets it for one CPU
    prompts, parameters = questions(bundle, asked)

    async def everything() -> Measured:
        from vllm import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.async_llm import AsyncLLM

        config = bundle.config
        lora = {"enable_lora": True, "max_lora_rank": config.tune_recommender.lora.rank}
        model, arguments = source(config.model), engine_arguments(config, **lora)
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **arguments))
        adapter = LoRARequest("recommender", 1, bundle.adapter)

        async def one(prompt: Any, name: str) -> None:
            async for _ in engine.generate(prompt, parameters, name, lora_request=adapter):
                pass

        async def ask(user: str) -> str:
            await asyncio.gather(*(one(each, f"{user} {at}") for at, each in enumerate(prompts[user])))
            return "ranked"

        return {"ranking": await levels(ask, asked, count)}

    return asyncio.run(everything())


def questions(bundle: Bundle, asked: list[str]) -> tuple[dict[str, list[Any]], Any]:
    """The prompts that the ranker would draw up for each user, and the sampling parameters of all."""
    from vllm.sampling_params import SamplingParams

    from mmsrarec_ray.rank.ask import Asker
    from mmsrarec_ray.rank.catalogue import Catalogue

    config, finder = bundle.config, Finder.load(bundle)
    dataset, keywords = bundle.folder("dataset"), bundle.folder("keywords")
    live = LiveCatalogue(Catalogue.read(dataset, keywords, config.rank.candidate, config.rank.said), config.rank.said)
    asker, found = Asker(config, live), {}
    for user in asked:
        told = finder.find(Wish(user, [], None, config.serve.candidates))
        history, neighbours = ([live.number(item) for item in items] for items in (told.history, told.neighbours))
        read = asker.user(history, neighbours, told.liked)
        drawn = [asker.question(read, live.number(each.item_id), each.evidence) for each in told.candidates]
        found[user] = [
            {"prompt_token_ids": tokens}
            | ({"multi_modal_data": {"image": each.image}} if each.image is not None else {})
            for each, tokens in zip(drawn, asker.tokens(drawn), strict=True)
        ]
    return found, SamplingParams(**asker.sampling)


def tell(parts: dict[str, Any]) -> None:
    """The tables, in Markdown."""
    rows = [
        [name, row, *_figures(each)]
        for name in (*SERVERS, "bare engine")
        for row, found in parts[name].items()
        for each in found
    ]
    call = parts["function"]
    shown = [f"{call['requests_s']:.0f}", *(f"{call[f'p{p}_ms']:.1f}" for p in (50, 95, 99)), ""]
    table(
        "server | row | at a time | requests/s | p50 ms | p95 | p99 | not ranked",
        [["function", "retrieval", "1", *shown], *rows],
    )
    whole = {each["concurrency"]: each["requests_s"] for each in parts["bare engine"]["ranking"]}
    reference = parts["one process"]["retrieval"][0]
    for name in (name for name, more in SERVERS.items() if more is not None):
        first = parts[name]["retrieval"][0]
        shares = [f"{each['requests_s'] / whole[each['concurrency']]:.2f}" for each in parts[name]["ranking"]]
        more = [f"{first[key] - reference[key]:+.1f} ms ({key[:3]})" for key in ("p50_ms", "p99_ms")]
        hops = parts[name]["nothing"][0]["p50_ms"] - parts["one process"]["nothing"][0]["p50_ms"]
        print(
            f"\n{name}: retrieval, one request at a time: {', '.join(more)} beside one process, of which "
            f"{hops:+.1f} ms (p50) with nothing done there; ranking gives "
            f"{', '.join(shares)} of the bare engine's candidates/s at {', '.join(map(str, CONCURRENCY))} at a time."
        )


def _figures(each: Measured) -> list[str]:
    good = {"200", "ranked", "retrieved"}
    others = sum(count for outcome, count in each["outcomes"].items() if outcome not in good)
    times = [f"{each[f'p{p}_ms']:.1f}" for p in (50, 95, 99)]
    return [str(each["concurrency"]), f"{each['requests_s']:.0f}", *times, str(others or "")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", required=True, help="the run folder that is served")
    add("--requests", type=int, default=500, help="of each row at each concurrency; of ranking a fifth")
    add("--output", type=Path, default=Path("runs/bench/serve.json"), help="where the figures are written")
    add("--one-process", choices=_APPLICATIONS, help=argparse.SUPPRESS)
    add("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    if options.one_process:
        one_process(options.run, options.settings, options.one_process)
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is ignored, by children too
    settings, count = [*SETTINGS, *options.settings], options.requests
    bundle = Bundle.of(options.run, settings)
    of = {"bundle": bundle.version, "requests": options.requests, "settings": options.settings}
    report = Report(options.output, of)
    everybody = read_log(bundle.folder("dataset")).users.to_pylist()
    most = (len(CONCURRENCY) + 1) * count
    if len(everybody) < most:
        parser.error(f"--requests: {most} users are needed, each asked for once a row; the run has {len(everybody)}")
    users = [everybody[place] for place in np.random.default_rng(0).permutation(len(everybody))[:most]]
    report.part("machine", lambda: {"cpus": os.cpu_count(), "bundle": bundle.version})
    report.part("function", alone, function, options.run, settings, users[:count])
    for name in SERVERS:
        report.part(name, through_server, options.run, settings, name, users, count)
    report.part("bare engine", alone, bare, options.run, settings, users[: most // 5], count // 5)
    tell(report.parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
