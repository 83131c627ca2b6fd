"""What a summary job costs beside the bare engine: speed, memory and processor time, on the tiny model.

    python benchmarks/summarize.py

Part by part, each in processes of its own; a part that stands in the output is not measured again:

- `job`: `jobs/summarize.py` on catalogues of several sizes. Speed is what further items cost, so starting is left out;
  memory is what processes hold beside what they share, at its highest; both of each kind of process, with the number of
  its processes and the largest of them.
- `async engine`, `LLM.generate`: the same prompts, made before, go to vLLM's own two interfaces, warm. Both get the
  job's arguments, threads, grammar and number of requests at a time, and are watched as it is. Their keywords are
  compared with the job's. They and the job take turns, several rounds, and are compared within a round: a machine that
  others share is not equally fast for an hour.
- `changed`: of the largest catalogue a hundredth has another title; what is known is taken over.
- `two engines`: the job again with `engine.concurrency=2`, on as many cores; its keywords are compared.
- `checkpoint`: memory of Ray Data's own checkpoint by the number of finished ids, beside the index of this project.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from measure import Measured, Report, alone, run_job, table, watched, write_catalogue

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.models.load import engine_arguments, engine_environment, source
from mmsrarec_ray.store import Artefact, Run
from mmsrarec_ray.summarize.keywords import parse
from mmsrarec_ray.summarize.render import Renderer
from mmsrarec_ray.summarize.reuse import KEY, index

JOBS = {"job": 1, "two engines": 2}  # by engines
BARE = ("async engine", "LLM.generate")


def words(data: Path, run: Path, *settings: str) -> list[str]:
    fixed = ["data.format=tables", "data.items=items", "data.interactions=null", "ray.num_cpus=6"]
    return [*fixed, f"data.path={data}", f"run={run}", *settings]


def job(data: Path, run: Path, *settings: str) -> Measured:
    """Seconds, memory and processor time of the summary alone; the catalogue is prepared before."""
    given = words(data, run, *settings)
    for name in ("prepare", "summarize"):
        measured = run_job(name, given)
    manifest = keywords_of(run).manifest
    return measured | {"seconds": manifest.seconds, "counts": manifest.counts}


def keywords_of(run: Path) -> Artefact:
    """The newest keywords of a run folder."""
    return Run.at(str(run)).published("keywords")[0]


def by_item(run: Path) -> dict[str, list[list[str]]]:
    """item_id -> keywords of picture and text."""
    table = pq.read_table(keywords_of(run).folder.path + "/items")
    columns = [table[name].to_pylist() for name in ("item_id", "image_keywords", "text_keywords")]
    return {item: [image, text] for item, image, text in zip(*columns, strict=True)}


def prompts(config: Config, data: Path, size: int) -> tuple[list[str], list[dict[str, Any]], list[Any]]:
    """Ids, prompts and sampling parameters of the first items, as the job renders them."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    render, ids, asked, sampling = Renderer(config), [], [], []
    rows = (row for file in sorted((data / "items").iterdir()) for row in pq.read_table(file).to_pylist())
    for row, _ in zip(rows, range(size), strict=False):
        request = render({"image_uri": None, **row})
        picture = {"multi_modal_data": {"image": request.image}} if request.image is not None else {}
        ids.append(row["item_id"])
        asked.append({"prompt_token_ids": request.tokens, **picture})
        grammar = StructuredOutputsParams(**request.sampling.pop("structured_outputs"))
        sampling.append(SamplingParams(**request.sampling, structured_outputs=grammar))
    return ids, asked, sampling


def bare(interface: str, config: Config, data: Path, warm: int, size: int) -> Measured:
    """Seconds of all items after the first `warm`, and all keywords, from one of vLLM's interfaces."""
    os.environ |= engine_environment(config)
    ids, asked, sampling = prompts(config, data, size)
    measured, texts = (asynchronous if interface == "async engine" else synchronous)(config, asked, sampling, warm)
    said = [parse(text, True, True) for text in texts]
    found = {item: [list(each.image), list(each.text)] for item, each in zip(ids, said, strict=True)}
    return {"items": size - warm, "keywords": found, **measured}


class Stopwatch:
    """Seconds, and seconds of processor time of this process and of the engine's, since it was made."""

    def __init__(self) -> None:
        self._began, self._spent = time.perf_counter(), self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        spent = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
        return time.process_time(), sum(times.user + times.system for times in spent)

    def read(self) -> Measured:
        seconds = time.perf_counter() - self._began
        own, core = np.subtract(self._now(), self._spent).tolist()
        return {"seconds": seconds, "cpu_seconds": {"engine frontend": own, "engine core": core}}


def asynchronous(config: Config, asked: list[Any], sampling: list[Any], warm: int) -> tuple[Measured, list[str]]:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    async def everything() -> tuple[Measured, list[str]]:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=source(config.model), **engine_arguments(config)))
        room = asyncio.Semaphore(config.engine.max_num_seqs * 11 // 10)  # as ray.data.llm lets in at a time

        async def one(number: int) -> str:
            async with room:
                async for output in engine.generate(asked[number], sampling[number], str(number)):
                    last = output
            return last.outputs[0].text

        first = await asyncio.gather(*map(one, range(warm)))
        watch = Stopwatch()
        rest = await asyncio.gather(*map(one, range(warm, len(asked))))
        return watch.read(), first + rest

    return asyncio.run(everything())


def synchronous(config: Config, asked: list[Any], sampling: list[Any], warm: int) -> tuple[Measured, list[str]]:
    from vllm import LLM

    model = LLM(model=source(config.model), **engine_arguments(config))
    at_a_time = config.engine.batch_size * config.engine.max_concurrent_batches

    def some(first: int, last: int) -> list[str]:
        texts = []
        for start in range(first, last, at_a_time):
            chunk = slice(start, min(start + at_a_time, last))
            outputs = model.generate(asked[chunk], sampling[chunk], use_tqdm=False)
            texts += [output.outputs[0].text for output in outputs]
        return texts

    first = some(0, warm)
    watch = Stopwatch()
    rest = some(warm, len(asked))
    return watch.read(), first + rest


def checkpoint(folder: Path, ids: int) -> Measured:
    """Bytes an id of Ray Data's checkpoint, of its own count and of a process that loads it, and of our index."""
    import ray
    from ray.data.checkpoint import CheckpointConfig
    from ray.data.checkpoint.checkpoint_filter import IdColumnCheckpointManager

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": [f"item-{number:012}" for number in range(ids)]}), folder / "ids.parquet")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    settings = CheckpointConfig(id_column="item_id", checkpoint_path=str(folder))
    reference, counted = IdColumnCheckpointManager(settings, context).load_checkpoint()

    @ray.remote
    def held(refs: list[Any]) -> float:
        before = psutil.Process().memory_info().rss
        array = ray.get(refs[0])
        return (psutil.Process().memory_info().rss - before) / len(array)

    resident = ray.get(held.remote([reference]))
    ours = index([np.frombuffer(np.random.default_rng(0).bytes(KEY.itemsize * ids), KEY)]).nbytes
    ray.shutdown()
    return {"ids": ids, "counted": counted / ids, "resident": resident, "ours": ours / ids}


def measure_jobs(report: Report, work: Path, sizes: list[int], settings: list[str]) -> None:
    """The job by size, with a changed catalogue, and with two engines."""
    for size in sizes:
        write_catalogue(work / f"{size}", size)
        report.part(f"job {size}", job, work / f"{size}", work / f"run-{size}", *settings)
    write_catalogue(work / "changed", sizes[-1], changed=True)
    report.part("changed", job, work / "changed", work / f"run-{sizes[-1]}", *settings)
    two = (*settings, "engine.concurrency=2")
    report.part("two engines", job, work / f"{sizes[-2]}", work / f"two-{sizes[-2]}", *two)


def measure_rounds(report: Report, work: Path, sizes: list[int], settings: list[str], rounds: int) -> None:
    """The job and vLLM's interfaces in turns on the second last size; the one before it is their warming up."""
    warm, size = sizes[-3], sizes[-2]
    data = work / f"{size}"
    config = load(None, words(data, Path("/nowhere"), *settings))
    expected = by_item(work / f"run-{size}")
    twice = by_item(work / f"two-{size}")
    report.part("two engines agree", lambda: {"same": same(expected, twice)})

    def asked(interface: str) -> Measured:
        with watched():  # it costs some time, here as in the job
            measured = alone(bare, interface, config, data, warm, size)
        agreed = same(expected, measured.pop("keywords"))
        return measured | {"same": agreed}

    def once(number: int, concurrency: int) -> Measured:
        """The same of the job."""
        whole, begun = (
            job(
                work / f"{n}", work / f"turn-{number}-{concurrency}-{n}", f"engine.concurrency={concurrency}", *settings
            )
            for n in (size, warm)
        )
        spent = {name: value - begun["cpu_seconds"].get(name, 0) for name, value in whole["cpu_seconds"].items()}
        return {"items": size - warm, "seconds": whole["seconds"] - begun["seconds"], "cpu_seconds": spent}

    for number in range(rounds):
        for name, concurrency in JOBS.items():
            report.part(f"{name}, round {number}", once, number, concurrency)
        for interface in BARE:
            report.part(f"{interface}, round {number}", asked, interface)


def same(expected: dict[str, Any], found: dict[str, Any]) -> float:
    """Share of items with equal keywords."""
    return sum(found.get(item) == said for item, said in expected.items()) / len(expected)


def tell(parts: dict[str, Any], sizes: list[int], rounds: int) -> None:
    """The tables, in Markdown."""
    start, *_, largest = sizes
    table("what | items/s | of the async engine | equal keywords", speeds(parts, rounds))
    shown = [f"{size:,} items" for size in sizes]
    kinds = ("MiB at most", "memory_mib"), ("MiB of the largest process", "largest_mib"), ("processes", "processes")
    for unit, key in (*kinds, ("processor seconds", "cpu_seconds")):
        measured = [parts[f"job {size}"][key] for size in sizes]
        names = sorted(set().union(*measured))
        table(
            " | ".join([unit, *shown]), [[name, *(f"{each.get(name, 0):,.0f}" for each in measured)] for name in names]
        )
    table("processor ms an item | the job | " + " | ".join(BARE), costs(parts, rounds))
    begun = parts[f"job {start}"]["seconds"]
    whole, changed = (parts[name]["seconds"] - begun for name in (f"job {largest}", "changed"))
    counts, ids = parts["changed"]["counts"], parts["checkpoint"]
    print(
        f"\n{start} items take {begun:.0f} s, which is starting. Beyond it {largest:,} items take {whole:.0f} s, "
        f"and again with {counts['in'] - counts['reused']:,} changed {changed:.1f} s: {100 * changed / whole:.1f} %."
        f"\n\nBytes a finished id: {ids['ours']:.0f} of ours; of Ray Data's checkpoint {ids['counted']:.0f} by its own "
        f"count, {ids['resident']:.0f} in a process that filters ({ids['ids']:,} ids)."
    )


def rates(parts: dict[str, Any], rounds: int) -> dict[str, np.ndarray]:
    """Items a second in each round, by what was measured."""
    names = (*JOBS, *BARE)
    taken = {name: [parts[f"{name}, round {number}"] for number in range(rounds)] for name in names}
    return {name: np.array([each["items"] / each["seconds"] for each in turns]) for name, turns in taken.items()}


def speeds(parts: dict[str, Any], rounds: int) -> list[list[str]]:
    """Name, items a second, as a share of the async engine's in the same round, share of keywords equal to the job's:
    the median of the rounds, and the least and the most."""
    equal = {"job": 1.0, "two engines": parts["two engines agree"]["same"]}
    equal |= {name: parts[f"{name}, round 0"]["same"] for name in BARE}
    found = rates(parts, rounds)
    rows = []
    for name, rate in found.items():
        shares = rate / found["async engine"]
        cells = (
            f"{np.median(each):.{n}f} ({each.min():.{n}f}–{each.max():.{n}f})" for each, n in ((rate, 1), (shares, 2))
        )
        rows.append([name, *cells, f"{100 * equal[name]:.2f} %"])
    return rows


def costs(parts: dict[str, Any], rounds: int) -> list[list[str]]:
    """Processor milliseconds an item, by role, of the job (starting left out) and of each of vLLM's interfaces: the
    median of the rounds."""
    asked = ("job", *BARE)
    turns = {who: [parts[f"{who}, round {number}"] for number in range(rounds)] for who in asked}
    rows = []
    for role in sorted(turns["job"][0]["cpu_seconds"]):
        spent = ([each["cpu_seconds"].get(role, 0) / each["items"] for each in turns[who]] for who in asked)
        rows.append([role, *(f"{1000 * np.median(each):.2f}" for each in spent)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs=4, default=[16, 1_000, 10_000, 50_000], metavar="N", help="items of the catalogues")
    add("--rounds", type=int, default=3, help="in which the job and vLLM's interfaces take turns (3)")
    add("--ids", type=int, default=5_000_000, help="in Ray Data's checkpoint (5,000,000)")
    add("--output", type=Path, default=Path("runs/bench/summarize.json"), help="where the figures are written")
    add("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for an engine of one CPU
    measured = {name: getattr(options, name) for name in ("sizes", "rounds", "ids", "settings")}
    report = Report(options.output, measured)
    work = options.output.absolute().with_suffix("")
    report.part("machine", lambda: {"machine": platform.machine(), "cpus": os.cpu_count()})
    measure_jobs(report, work, options.sizes, options.settings)
    measure_rounds(report, work, options.sizes, options.settings, options.rounds)
    report.part("checkpoint", alone, checkpoint, work / "checkpoint", options.ids)
    tell(report.parts, options.sizes, options.rounds)


if __name__ == "__main__":
    main()
