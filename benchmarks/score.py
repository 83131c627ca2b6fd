"""Candidates a second of the recommender's scorer, with and without shared prefixes, beside the bare engine.

    python benchmarks/score.py

The same questions go to `rank.score` (Ray Data and the engine of `ray.data.llm`) and to vLLM's own `LLM.generate`, each
with prefix caching and without it: without, the candidates of a user are as many separate prompts. Two lengths of what
a user's candidates share: that of the defaults, and a long one. Starting is left out: the scorer is asked for some
users and for more, and the difference counts; the bare engine is warm. Each engine runs in a process of its own, with
one thread and as many tokens in a step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import alone

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.data.shop.truth import item_keywords
from mmsrarec_ray.rank.catalogue import Catalogue, line
from mmsrarec_ray.rank.score import Questions

ITEMS = 1200
BATCHED_TOKENS = 2048  # what vLLM gives the scorer's engine by itself, and `LLM` twice
MORE = 8  # times the users of the scorer's first call stand in its second: starting must not decide the difference
SHARED = {"short": (5, 3), "long": (40, 10)}  # items of the history, items of similar users


def catalogue(form: str) -> Catalogue:
    """The drawn shop with its true keywords."""
    shop = shop_of(0, ITEMS)
    rows = [{"image_uri": None, **item_row(shop, index)} for index in range(ITEMS)]
    words = pa.array([line("keywords", None, *item_keywords(shop, index)) for index in range(ITEMS)])
    table = pa.Table.from_pylist(rows)
    shown = {"image": ["title", "text", "image", "image_uri"], "text": ["title", "text"], "keywords": []}[form]
    return Catalogue(table["item_id"].combine_chunks(), words, table.select(shown))


def drawn_questions(users: int, candidates: int, shared: tuple[int, int]) -> Questions:
    """Histories, neighbours and candidates at random: what they are does not change what they cost. shared: items of a
    history, items of similar users."""
    rng = np.random.default_rng(0)
    drawn = [[rng.choice(ITEMS, size, replace=False) for _ in range(users)] for size in (*shared, candidates)]
    return Questions(*drawn, evidence=[[""] * candidates] * users, liked=[[]] * users)


def ours(config: Config, work: Questions, adapter: str | None) -> float:
    """Candidates a second of the scorer: of the users that the second call has more."""
    from mmsrarec_ray.job import connect
    from mmsrarec_ray.rank.score import score

    connect(config)
    shown, seconds = catalogue(config.rank.candidate), []
    score(config, shown, adapter, work.take(slice(1)))  # what is loaded once
    few = work.take(slice(len(work) // MORE))
    for part in (few, work):
        began = time.perf_counter()
        score(config, shown, adapter, part)
        seconds.append(time.perf_counter() - began)
    more = sum(map(len, work.candidates)) - sum(map(len, few.candidates))
    return more / (seconds[1] - seconds[0])


def bare(config: Config, work: Questions, adapter: str | None) -> float:
    """Candidates a second of vLLM alone, warm, prompts as tokens."""
    from mmsrarec_ray.models.load import engine_arguments, engine_environment, source
    from mmsrarec_ray.rank.ask import Asker

    os.environ |= engine_environment(config)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    asker = Asker(config, catalogue(config.rank.candidate))
    lora = {"enable_lora": True, "max_lora_rank": config.tune_recommender.lora.rank} if adapter else {}
    alike = {"max_num_batched_tokens": BATCHED_TOKENS}
    model = LLM(model=source(config.model), **engine_arguments(config, **lora, **alike))
    sampling = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=list(asker.answers))
    request = LoRARequest("recommender", 1, adapter) if adapter else None
    prompts: list[Any] = []
    for history, neighbours, candidates, *_ in work.users():
        user = asker.user(history, neighbours)
        questions = [asker.question(user, int(candidate)) for candidate in candidates]
        for question, tokens in zip(questions, asker.tokens(questions), strict=True):
            picture = {"multi_modal_data": {"image": question.image}} if question.image is not None else {}
            prompts.append({"prompt_token_ids": tokens, **picture})
    warm = len(prompts) // 5
    model.generate(prompts[:warm], sampling, lora_request=request, use_tqdm=False)
    began = time.perf_counter()
    model.generate(prompts[warm:], sampling, lora_request=request, use_tqdm=False)
    return (len(prompts) - warm) / (time.perf_counter() - began)


def lengths(config: Config, work: Questions) -> tuple[int, int]:
    """Tokens of the first user's part, which all candidates share, and of the first question."""
    from mmsrarec_ray.rank.ask import Asker

    asker = Asker(config, catalogue(config.rank.candidate))
    user = asker.user(work.histories[0], work.neighbours[0])
    one, another = asker.tokens([asker.question(user, int(candidate)) for candidate in work.candidates[0][:2]])
    pairs = zip(one, another, strict=False)
    return next(place for place, (first, second) in enumerate(pairs) if first != second), len(one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--users", type=int, default=30, help="with a list of candidates each (30)")
    add("--candidates", type=int, default=21, help="of each user (21)")
    add("--adapter", help="folder of a LoRA adapter; by default the model as it is")
    add("--output", type=Path, default=Path("runs/bench/score.json"), help="where the figures are written")
    add("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for an engine of one CPU
    fixed = ["data.format=shop", "run=/nowhere", "rank.candidate=keywords", "ray.num_cpus=8", *options.settings]
    report: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "rows": []}
    print("| shared part | tokens, shared of all | what | prefixes shared | separate prompts | ratio |")
    print("|---|---|---|---|---|---|", flush=True)
    for shared in SHARED:
        work = drawn_questions(MORE * options.users, options.candidates, SHARED[shared])
        tokens = alone(lengths, load(None, fixed), work)
        for name, measure, asked in (("scorer", ours, work), ("bare engine", bare, work.take(slice(options.users)))):
            row = {"shared": shared, "tokens": tokens, "what": name}
            for caching, column in ((True, "prefixes"), (False, "separate")):
                config = load(None, [*fixed, f"engine.prefix_caching={str(caching).lower()}"])
                row[column] = alone(measure, config, asked, options.adapter)
            report["rows"].append(row)
            rates = f"{row['prefixes']:.0f} | {row['separate']:.0f} | {row['prefixes'] / row['separate']:.1f}"
            print(f"| {shared} | {tokens[0]} of {tokens[1]} | {name} | {rates} |", flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
