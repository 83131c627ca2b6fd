"""What benchmarks share: jobs run under a watch on memory and processor time, catalogues, figures that are kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from mmsrarec_ray.data.shop.generate import item_row, shop_of

ROOT = Path(__file__).parents[1]
ROLES = {  # what a process is, by how its command line begins
    "VLLM::EngineCore": "engine core",
    "ray::MapWorker(MapBatches(vLLM": "engine frontend",
    "ray::MapWorker(MapBatches(_Render": "renderer",
    "ray::": "other workers",
}
ROWS_PER_FILE = 5_000
SHARE = 100  # one item of so many is changed
Measured = dict[str, Any]


class Watch(threading.Thread):
    """Highest memory in MiB and seconds of processor time, by role, of this process's children while it runs.

    Memory is resident memory that is shared with nobody; Ray's object store, which is shared, is counted apart. Of each
    role also the most processes at a time, and the highest memory of one: summed, many and large look the same.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.memory: dict[str, float] = defaultdict(float)
        self.largest: dict[str, float] = defaultdict(float)
        self.processes: dict[str, int] = defaultdict(int)
        self._seconds: dict[tuple[str, int], float] = {}
        self._over = threading.Event()
        self._before = shutil.disk_usage("/dev/shm").used

    def run(self) -> None:
        while not self._over.wait(1):
            now: dict[str, float] = defaultdict(float)
            here: Counter[str] = Counter()
            for process in psutil.Process().children(recursive=True):
                try:
                    command, memory, times = process.cmdline(), process.memory_info(), process.cpu_times()
                except psutil.Error:  # it has just ended
                    continue
                name, own = role(command), (memory.rss - memory.shared) / 2**20
                now[name] += own
                here[name] += 1
                self.largest[name] = max(self.largest[name], own)
                self._seconds[name, process.pid] = times.user + times.system
            now["object store"] = (shutil.disk_usage("/dev/shm").used - self._before) / 2**20
            for name, held in now.items():
                self.memory[name] = max(self.memory[name], held)
            for name, count in here.items():
                self.processes[name] = max(self.processes[name], count)

    def end(self) -> Measured:
        self._over.set()
        self.join()
        seconds: dict[str, float] = defaultdict(float)
        for (name, _), spent in self._seconds.items():
            seconds[name] += spent
        return {
            "memory_mib": {k: round(v) for k, v in self.memory.items()},
            "largest_mib": {k: round(v) for k, v in self.largest.items()},
            "processes": dict(self.processes),
            "cpu_seconds": dict(seconds),
        }


@contextmanager
def watched() -> Iterator[Measured]:
    """What a `Watch` saw while the block ran; filled when it ends."""
    watch, measured = Watch(), {}
    watch.start()
    try:
        yield measured
    finally:
        measured |= watch.end()


def role(command: list[str]) -> str:
    line = " ".join(command)
    for beginning, name in ROLES.items():
        if line.startswith(beginning):
            return name
    return "driver" if "jobs/" in line else "Ray itself"


def write_catalogue(folder: Path, size: int, changed: bool = False) -> None:
    """So many items of the drawn shop; `changed`: one of a hundred has another title."""
    if (folder / "complete").exists():
        return
    (folder / "items").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_write_file, folder / "items", size, changed), range(0, size, ROWS_PER_FILE)))
    (folder / "complete").touch()


def _write_file(folder: Path, size: int, changed: bool, first: int) -> None:
    shop = shop_of(0, max(size, 1200))
    rows = [item_row(shop, number) for number in range(first, min(first + ROWS_PER_FILE, size))]
    for row in rows[::SHARE] if changed else []:
        row["title"] = f"{row['title'] or ''} again".strip()
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{first:08}.parquet", row_group_size=500)


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def run_job(name: str, words: list[str]) -> Measured:
    """Seconds that a job takes from its start to its end, memory in MiB and processor seconds by kind of process."""
    began, command = time.perf_counter(), [sys.executable, f"jobs/{name}.py", *words]
    with watched() as measured:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"jobs/{name}.py failed:\n{done.stderr[-2000:]}")
    return {"wall_seconds": round(seconds, 2), **measured}


class Report:
    """The figures, kept after each part, so that a run that was stopped goes on."""

    def __init__(self, path: Path, of: dict[str, Any]):
        """of: what is measured, such as the settings; kept with the figures. Exits where those in the file are of
        something else."""
        self.path, kept = path, json.loads(path.read_text()) if path.exists() else {"of": of, "parts": {}}
        if kept["of"] != of:
            raise SystemExit(
                f"{path}: holds figures of {kept['of']}, not of {of}. Give another --output, or remove it."
            )
        self.of, self.parts = of, kept["parts"]

    def part(self, name: str, measure: Callable[..., Measured], *arguments: Any) -> Measured:
        if name not in self.parts:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            self.parts[name] = measure(*arguments)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"of": self.of, "parts": self.parts}, indent=1) + "\n")
        return self.parts[name]


def table(heading: str, rows: list[list[str]]) -> None:
    print(f"\n| {heading} |\n|" + "---|" * (heading.count(" | ") + 1))
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
