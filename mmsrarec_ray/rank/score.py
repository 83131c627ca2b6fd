"""Scores of candidates by a language model: p(yes) / (p(yes) + p(no)), one forward pass each, through Ray Data.

A user's candidates stay together and share every token before the candidate, so the engine's prefix cache reads the
user once (the paper scores each candidate with a prompt of its own).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.frames import iter_tables
from mmsrarec_ray.models.engine import (
    ERROR,
    adapter_arguments,
    asked,
    engine_cpus,
    engines_heard,
    require_cpus,
    rows_in_block,
)
from mmsrarec_ray.progress import Progress
from mmsrarec_ray.rank.answers import Answers, Keeper, keys_of
from mmsrarec_ray.rank.ask import Asker, Question, p_yes
from mmsrarec_ray.rank.catalogue import Catalogue

_TASK = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("history", pa.list_(pa.int64())),  # items by number, the newest last
        pa.field("neighbours", pa.list_(pa.int64())),  # what similar users chose next, the most similar first
        pa.field("columns", pa.list_(pa.int64())),  # places of the candidates in the user's list
        pa.field("candidates", pa.list_(pa.int64())),
        pa.field("evidence", pa.list_(pa.string())),  # what is said of each candidate
        pa.field("liked", pa.list_(pa.string())),  # what users of the same segments like, a line a facet
    ]
)


@dataclass(frozen=True)
class Questions:
    """What is asked of some users.

    histories, neighbours, candidates: numbers of items, int64, an array for each user, as in `rank.ask`; evidence: what
    is said of each of the candidates, as `Scale.lines` gives it; liked: what users of the same segments like, as
    `FoldedSegments.liked` gives it.
    """

    histories: Sequence[np.ndarray]
    neighbours: Sequence[np.ndarray]
    candidates: Sequence[np.ndarray]
    evidence: Sequence[list[str]]
    liked: Sequence[list[str]]

    def __len__(self) -> int:
        return len(self.histories)

    def users(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[str], list[str]]]:
        """What is asked of each."""
        return zip(self.histories, self.neighbours, self.candidates, self.evidence, self.liked, strict=True)

    def take(self, rows: slice) -> Questions:
        """Of some users alone."""
        return Questions(*(getattr(self, each.name)[rows] for each in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Questions]) -> Questions:
        """One after the other."""
        return cls(*([row for part in parts for row in getattr(part, each.name)] for each in fields(cls)))


def score(
    config: Config,
    catalogue: Catalogue,
    adapter: str | None,
    questions: Questions,
    answers: Answers | None = None,
    ahead: Questions | None = None,
) -> list[np.ndarray]:
    """Scores in [0, 1] of each user's candidates: float64 (c,) each.

    adapter: the local folder of a LoRA adapter, None for the model as it is; answers: of this model, settings and
    catalogue: what is found there is not asked again (no engine starts where that is all), and what is asked is added;
    ahead: what is only added to the answers, for who asks later: an engine takes long to start.
    Ray must be connected. Raises RuntimeError with the engine's message where a candidate could not be scored,
    InputError where a question does not fit the model, ConfigError where the cluster is too small.
    """
    every = Questions.joined([questions, ahead]) if answers and ahead else questions
    keys = [keys_of(*each) for each in every.users()]
    found = answers.find(keys, len(questions)) if answers else [np.full(len(each), math.nan) for each in keys]
    columns = [np.flatnonzero(np.isnan(each)) for each in found]
    total = sum(map(len, columns))
    if not total:
        return found[: len(questions)]
    progress, done = Progress("score", total, "candidates"), 0
    with engines_heard(), Keeper(answers) as keeper:
        for part in _asked(
            config, catalogue, adapter, _tasks(every, columns), math.ceil(total / rows_in_block(config))
        ):
            for row, column, value in zip(part.rows, part.columns, part.scores, strict=True):
                found[row][column] = value
            asked = np.array([keys[row][column] for row, column in zip(part.rows, part.columns, strict=True)])
            keeper.add(asked, part.scores, int((part.rows >= len(questions)).sum()))
            done += len(part.rows)
            progress.update(done)
    if any(np.isnan(each).any() for each in found):
        raise RuntimeError("the engine answered for fewer candidates than it was asked for")
    return found[: len(questions)]


def _tasks(questions: Questions, columns: list[np.ndarray]) -> pa.Table:
    """A row for each user of whom something is asked. columns: places of these candidates, int64, an array each."""
    rows = [
        (row, history, near, asked, items[asked], [said[place] for place in asked], liked)
        for row, (asked, (history, near, items, said, liked)) in enumerate(zip(columns, questions.users(), strict=True))
        if len(asked)
    ]
    return pa.Table.from_pylist([dict(zip(_TASK.names, row, strict=True)) for row in rows], _TASK)


@dataclass(frozen=True)
class _Part:
    """Some answers: rows and columns, int64 (n,), and scores, float64 (n,)."""

    rows: np.ndarray
    columns: np.ndarray
    scores: np.ndarray


def _asked(config: Config, catalogue: Catalogue, adapter: str | None, tasks: pa.Table, blocks: int) -> Iterator[_Part]:
    """The answers to all tasks, as they come."""
    require_cpus("mmsrarec", engine_cpus(config))
    requests = ray.data.from_arrow(_pieces(tasks, blocks)).map_batches(
        _Ask,
        fn_constructor_args=(config, ray.put(catalogue), adapter),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.engine.preprocess_concurrency),
        num_cpus=1,
    )
    lora = adapter_arguments(config.tune_recommender.lora) if adapter else {}
    for part in iter_tables(asked(config, _answer, **lora)(requests), name="score"):
        for error in filter(None, part["error"].to_pylist()):
            raise RuntimeError(f"the engine could not score a candidate: {error}")
        yield _Part(*(part[name].to_numpy() for name in ("row", "column", "score")))


def _pieces(table: pa.Table, count: int) -> list[pa.Table]:
    edges = np.linspace(0, table.num_rows, min(count, table.num_rows) + 1).astype(int)
    return [table.slice(start, end - start).combine_chunks() for start, end in pairwise(edges)]


class _Ask:
    """CPU actor: one request for each candidate."""

    def __init__(self, config: Config, catalogue: ray.ObjectRef, adapter: str | None):
        self.asker, self.adapter = Asker(config, ray.get(catalogue)), adapter

    def __call__(self, batch: pa.Table) -> Iterator[dict[str, list]]:
        for task in batch.to_pylist():
            user = self.asker.user(task["history"], task["neighbours"], task["liked"])
            told = zip(task["candidates"], task["evidence"], strict=True)
            questions = [self.asker.question(user, candidate, evidence) for candidate, evidence in told]
            tokens = self.asker.tokens(questions)
            rows = [self._request(*each) for each in zip(questions, tokens, strict=True)]
            places = {"row": [task["row"]] * len(rows), "column": task["columns"]}
            yield places | {name: [row[name] for row in rows] for name in rows[0]}

    def _request(self, question: Question, tokens: list[int]) -> dict[str, Any]:
        adapter = {"model": self.adapter} if self.adapter else {}
        return {
            "tokenized_prompt": tokens,
            "multimodal_data": {"image": question.image} if question.image is not None else {},
            "sampling_params": self.asker.sampling,
            "answers": list(self.asker.answers),
            ERROR: "",
            **adapter,
        }


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    told = {"row": row["row"], "column": row["column"], "error": row[ERROR] or "", "score": math.nan}
    if told["error"]:
        return told
    said = {int(token): each["logprob"] for token, each in row["logprobs"][0].items() if each is not None}
    yes, no = (said[token] for token in row["answers"])
    return told | {"score": p_yes(yes, no)}
