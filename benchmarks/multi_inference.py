"""What a recommendation costs here, beside summing the user up first in the manner of MLLM-MSR (arXiv 2408.09698).

    python benchmarks/multi_inference.py
    python benchmarks/multi_inference.py --adapter /runs/shop/recommender/…/adapter rank.candidate=image

Ours asks once for a candidate: history and similar users' choices stand in the prompt. The other way reads the history
in blocks, each time with what it said of the user so far, and says the user's interests anew; then it asks once for a
candidate. Same model, adapter, keywords and candidates, pictures as `rank.candidate` says, greedy, one thread, prefix
caching, each engine in a process of its own. Counts inferences, tokens read (those that the prefix cache spares apart)
and tokens said for one candidate and for a list; seconds for lists one after the other, which is what somebody waits,
and all lists at once, round by round. What it costs only: an adapter that was not taught to judge by interests alone
says nothing about what the other way is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import alone, table
from score import catalogue, drawn_questions

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.rank.ask import Asker, Question
from mmsrarec_ray.rank.prompts import user_lines
from mmsrarec_ray.rank.score import Questions

WAYS = ("one inference", "several inferences")


@dataclass
class Cost:
    """Of some lists of candidates."""

    inferences: int = 0
    read: int = 0
    cached: int = 0
    said: int = 0
    seconds: float = 0.0


class Model:
    """vLLM alone, and what it has cost so far."""

    def __init__(self, config: Config, adapter: str | None, most: int):
        """most: tokens that are said of a user."""
        from mmsrarec_ray.models.load import engine_arguments, engine_environment, source

        os.environ |= engine_environment(config)
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        self.asker = Asker(config, catalogue(config.rank.candidate))
        lora = {"enable_lora": True, "max_lora_rank": config.tune_recommender.lora.rank} if adapter else {}
        self.engine = LLM(model=source(config.model), **engine_arguments(config, **lora))
        self.adapter = LoRARequest("recommender", 1, adapter) if adapter else None
        self.choose = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=list(self.asker.answers))
        self.say = SamplingParams(max_tokens=most, temperature=0)
        self.cost = Cost()

    def ask(self, questions: Sequence[Question], sampling: Any) -> list[str]:
        prompts: list[Any] = []
        for question, tokens in zip(questions, self.asker.tokens(questions), strict=True):
            picture = {"multi_modal_data": {"image": question.image}} if question.image is not None else {}
            prompts.append({"prompt_token_ids": tokens, **picture})
        answers = self.engine.generate(prompts, sampling, lora_request=self.adapter, use_tqdm=False)
        for answer in answers:
            self.cost.inferences += 1
            self.cost.read += len(answer.prompt_token_ids)
            self.cost.cached += answer.num_cached_tokens or 0
            self.cost.said += len(answer.outputs[0].token_ids)
        return [answer.outputs[0].text for answer in answers]

    def judge(self, users: Sequence[str], lists: Sequence[np.ndarray]) -> None:
        """users: the part of the prompt that the candidates of each list share."""
        pairs = zip(users, lists, strict=True)
        self.ask([self.asker.question(user, int(item)) for user, items in pairs for item in items], self.choose)


def one(model: Model, work: Questions, block: int) -> None:
    """Ours."""
    parts = zip(work.histories, work.neighbours, work.liked, strict=True)
    users = [model.asker.user(*each) for each in parts]
    model.judge(users, work.candidates)


def several(model: Model, work: Questions, block: int) -> None:
    """block: items of the history that are read at a time."""
    said = [""] * len(work)
    for start in range(0, max(map(len, work.histories)), block):
        told = [_so_far(words) for words in said]
        lines = [model.asker.catalogue.lines(history[start : start + block]) for history in work.histories]
        asked = [before + user_lines(each, ()) for before, each in zip(told, lines, strict=True)]
        said = model.ask([model.asker.instruction("interests", user, 0) for user in asked], model.say)
    model.judge([_so_far(words) for words in said], work.candidates)


def _so_far(words: str) -> str:
    return f"The user's interests so far: {' '.join(words.split())}\n" if words else ""


def costs(
    config: Config, adapter: str | None, work: Questions, way: str, block: int, most: int
) -> dict[str, dict[str, Any]]:
    """One after the other, and all at once: in the engine's process."""
    model, ask = Model(config, adapter, most), one if way == WAYS[0] else several
    ask(model, work.take(slice(1)), block)  # what is loaded once
    alone_ = [work.take(slice(row, row + 1)) for row in range(1, len(work))]
    together = work.take(slice(1, None))
    found = {}
    for name, parts in (("alone", alone_), ("together", [together])):
        model.engine.reset_prefix_cache()
        model.cost, began = Cost(), time.perf_counter()
        for part in parts:
            ask(model, part, block)
        model.cost.seconds = time.perf_counter() - began
        found[name] = asdict(model.cost)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--users", type=int, default=40, help="with a list each (40)")
    add("--candidates", type=int, nargs="+", default=[1, 21], help="lengths of the lists (1 21)")
    add("--history", type=int, default=10, help="items of a history (10)")
    add("--block", type=int, default=2, help="items of the history that the other way reads at a time (2)")
    add("--tokens", type=int, default=40, help="the most that is said of a user (40)")
    add("--adapter", help="folder of a LoRA adapter; by default the model as it is")
    add("--output", type=Path, default=Path("runs/bench/multi_inference.json"), help="where the figures are written")
    add("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    fixed = ["data.format=shop", "run=/nowhere", "rank.candidate=keywords", *options.settings]
    config = load(None, fixed)
    found = {
        (length, way): alone(costs, config, options.adapter, work, way, options.block, options.tokens)
        for length in options.candidates
        for work in [drawn_questions(options.users + 1, length, (options.history, config.retrieve.neighbours))]
        for way in WAYS
    }
    rows = []
    for (length, way), measured in found.items():
        cost, users = measured["alone"], options.users
        counted = [f"{cost[name] / users:.1f}" for name in ("inferences", "read", "cached", "said")]
        rates = [f"{cost['seconds'] / users:.3f}", f"{users / measured['together']['seconds']:.1f}"]
        rows.append([f"{length}", way, *counted, *rates])
    table("list | way | inferences | tokens read | of these cached | said | seconds a list | lists/s at once", rows)
    told = [{"candidates": length, "way": way, **measured} for (length, way), measured in found.items()]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": platform.machine(), "cpus": os.cpu_count(), "rows": told}) + "\n")


if __name__ == "__main__":
    main()
