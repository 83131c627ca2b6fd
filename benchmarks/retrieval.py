"""What the three kinds of index cost and miss, and what MomentIndex costs beside bare FAISS.

Each index is built and searched in a process of its own, so that its memory is its own. The bare search is FAISS's on
the very same index object, with as many threads, in turns with ours; speeds are medians over the rounds.

The vectors are drawn: clusters of very unequal sizes, axes of falling variance, a user's moments nearer to one another
than to other users'. The queries are new vectors of users in the index, drawn by the same law, so they lie near the
data as a history of today does; without `users` they may find their own user's moments, with `users` they may not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Literal

import faiss
import numpy as np

from mmsrarec_ray.retrieve.index import MomentIndex, Moments
from mmsrarec_ray.settings import Retrieve

Kind = Literal["exact", "hnsw", "ivf_pq"]
KINDS: tuple[Kind, ...] = ("exact", "hnsw", "ivf_pq")
NAMES = {"exact": "exact", "hnsw": "HNSW", "ivf_pq": "IVF-PQ"}
NEIGHBOURS = (3, 50)
MOMENTS_PER_USER = 10
MEASURES = ("bare", "ours", "ours_users")  # in the order of a round


def main() -> None:
    options = _options()
    # The children read these when they load FAISS and numpy. Threads that spin while they wait would measure whatever
    # else the machine does.
    threads = str(options.threads)
    os.environ |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    report: dict[str, Any] = {
        "faiss": faiss.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "threads": options.threads,
        "dimension": options.dimension,
        "results": [],
    }
    for count in options.moments:
        for kind in options.kinds:
            report["results"].append(_in_child(kind, count, options))
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(_tables(report["results"]))
    print(f"\nwritten: {options.output}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--moments", type=int, nargs="+", default=[100_000], metavar="N", help="sizes of the index (100000)")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of index (all)")
    add("--dimension", type=int, default=64, help="of the vectors (64)")
    add("--threads", type=int, default=os.cpu_count(), help="of FAISS and BLAS (all CPUs)")
    add("--batch", type=int, default=1024, help="queries of a batched search (1024)")
    add("--singles", type=int, default=50, help="of them, searched one by one in each round (50)")
    add("--rounds", type=int, default=9, help="repetitions of every measurement (9)")
    add("--limit", type=float, default=900, metavar="SECONDS", help="for one index, then it is given up (900)")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("retrieval.json"), help="where the figures are written (retrieval.json)")
    add("--quick", action="store_true", help="5,000 moments and 3 rounds: does it run at all?")
    options = parser.parse_args()
    if options.quick:
        options.moments, options.rounds, options.batch = [5_000], 3, 256
    return options


def _in_child(kind: Kind, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one index, or what became of it instead."""
    print(f"{NAMES[kind]}, {count:,} moments …", flush=True)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(kind, count, options, sender))
    child.start()
    sender.close()
    result: dict[str, Any] = {"kind": kind, "moments": count}
    try:
        if receiver.poll(options.limit):
            result |= receiver.recv()
        else:
            result["given_up"] = f"not finished after {options.limit:g} s"
    except EOFError:
        result["given_up"] = "the process died"
    child.terminate()
    child.join()
    return result


def _measure(kind: Kind, count: int, options: argparse.Namespace, answer: Connection) -> None:
    """Build one index, search it and send the figures. Runs in the child."""
    vectors, moments, queries, users = _draw(count, options.batch, options.dimension, options.seed)
    before = _memory("VmRSS")
    start = time.perf_counter()
    index = MomentIndex.build(vectors, moments, Retrieve(index=kind))
    figures: dict[str, Any] = {"build_seconds": time.perf_counter() - start}
    figures |= {"rss_before_bytes": before, "peak_rss_bytes": _memory("VmHWM")}
    figures["index_bytes"] = faiss.serialize_index(index.index).nbytes
    truth = faiss.knn(queries, vectors, max(NEIGHBOURS), metric=faiss.METRIC_INNER_PRODUCT)[1]
    for k in NEIGHBOURS:
        figures[f"at_{k}"] = {
            "recall": _recall(index.search(queries, k).rows, truth[:, :k]),
            "batched": _rates(index, queries, users, k, options.rounds, len(queries), len(queries)),
            "single": _rates(index, queries, users, k, options.rounds, 1, options.singles),
        }
    answer.send(figures)


def _draw(count: int, batch: int, dimension: int, seed: int) -> tuple[np.ndarray, Moments, np.ndarray, np.ndarray]:
    """Vectors float32 (count, dimension) of length 1, their moments, queries (batch, dimension) and their users."""
    rng = np.random.default_rng(seed)
    n_users = max(1, count // MOMENTS_PER_USER)
    n_clusters = max(1, count // 1000)
    share = 1 / np.arange(1, n_clusters + 1) ** 0.7
    spectrum = (1 + np.arange(dimension, dtype=np.float32)) ** -0.5

    def noise(rows: int) -> np.ndarray:
        return rng.standard_normal((rows, dimension), np.float32) * spectrum

    cluster = rng.choice(n_clusters, n_users, p=share / share.sum())
    tastes = noise(n_clusters)[cluster] + 0.5 * noise(n_users)

    def near(users: np.ndarray) -> np.ndarray:
        vectors = tastes[users] + 0.5 * noise(len(users))
        faiss.normalize_L2(vectors)
        return vectors

    users = np.arange(count) % n_users
    positions = (np.arange(count) // n_users + 1).astype(np.int32)
    next_items = rng.integers(0, 10_000, count, np.int32)
    asking = rng.integers(0, n_users, batch)
    return near(users), Moments(users, positions, next_items, positions.astype(np.int64)), near(asking), asking


def _memory(field: str) -> int:
    """Bytes of this process's memory, from Linux. VmHWM: the most so far, of this program alone, unlike ru_maxrss."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def _rates(
    index: MomentIndex, queries: np.ndarray, users: np.ndarray, k: int, rounds: int, batch: int, total: int
) -> dict[str, float]:
    """Queries a second of bare FAISS, of ours and of ours with users, and the median of ours / bare in a round."""
    searches: dict[str, Callable[[slice], Any]] = {
        "bare": lambda part: index.index.search(queries[part], k),
        "ours": lambda part: index.search(queries[part], k),
        "ours_users": lambda part: index.search(queries[part], k, users[part]),
    }
    parts = [slice(start, start + batch) for start in range(0, total, batch)]
    seconds: dict[str, list[float]] = {name: [] for name in MEASURES}
    for round_ in range(rounds + 1):
        for name in MEASURES:
            start = time.perf_counter()
            for part in parts:
                searches[name](part)
            if round_:  # the first warms the caches
                seconds[name].append(time.perf_counter() - start)
    rates = {name: total / median(taken) for name, taken in seconds.items()}
    for name in MEASURES[1:]:
        rates[f"{name}_to_bare"] = median(b / o for b, o in zip(seconds["bare"], seconds[name], strict=True))
    return rates


def _tables(results: list[dict[str, Any]]) -> str:
    """Two Markdown tables: what an index costs, and how it answers."""
    costs = [
        "| moments | index | build | bytes a moment | index | peak memory of the build (vectors included) |",
        "|---|---|---|---|---|---|",
    ]
    answers = [
        "| moments | index | k | recall | batched: FAISS | MomentIndex | with `users` "
        "| single: FAISS | MomentIndex | with `users` |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        name = f"| {r['moments']:,} | {NAMES[r['kind']]} |"
        if "given_up" in r:
            costs.append(f"{name} {r['given_up']} | | | |")
            continue
        each = r["index_bytes"] / r["moments"]
        size, peak = _mib(r["index_bytes"]), _mib(r["peak_rss_bytes"])
        costs.append(f"{name} {r['build_seconds']:.1f} s | {each:.0f} | {size} | {peak} |")
        for k in NEIGHBOURS:
            at = r[f"at_{k}"]
            cells = f"{_cells(at['batched'])} | {_cells(at['single'])}"
            answers.append(f"{name} {k} | {at['recall']:.3f} | {cells} |")
    return "\n".join([*costs, "", "Queries a second, and in brackets ours over FAISS:", "", *answers])


def _cells(rates: dict[str, float]) -> str:
    ours = (f"{rates[name]:,.0f} ({rates[f'{name}_to_bare']:.2f})" for name in MEASURES[1:])
    return " | ".join([f"{rates['bare']:,.0f}", *ours])


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
