"""What the recommender learns from: for each context the item that came next and others the user never touched, to be
told apart, and examples of the other tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.frames import iter_tables
from mmsrarec_ray.data.log import Log
from mmsrarec_ray.data.negatives import untouched
from mmsrarec_ray.data.parts import read_part, write_part
from mmsrarec_ray.data.splits import hashes
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.progress import Progress
from mmsrarec_ray.rank.ask import Asker, Question
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.contexts import Contexts
from mmsrarec_ray.rank.evidence import Scale, Signs, Votes
from mmsrarec_ray.rank.prompts import NO, YES, Task, bullet, interests
from mmsrarec_ray.store import Folder

if TYPE_CHECKING:
    import datasets

EXAMPLE = pa.struct(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("item_id", pa.string()),  # that the example is about: a candidate, the next item; null of `interests`
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("picture", pa.int64()),  # whose picture stands in the prompt, by number; null where none does
    ]
)
EXAMPLES = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("cut", pa.int32(), nullable=False),  # length of the history
        pa.field("round", pa.int32(), nullable=False),  # which of the epochs: each has other negatives and wordings
        pa.field("examples", pa.list_(EXAMPLE), nullable=False),
    ]
)
_KEY = ["user_id", "cut", "round"]
_ROWS = 2_000  # contexts in a part
_DRAWN = 200  # random items put to each of the users that levels are made from


@dataclass(frozen=True)
class Source:
    """What examples are written from. scale: how signs become levels."""

    config: Config
    log: Log
    catalogue: Catalogue
    signs: Signs
    scale: Scale

    def liked(self, contexts: Contexts) -> list[list[str]]:
        """What users of the same segments like, for each context: lines, none where they are not shown."""
        most, segments = self.config.rank.liked, self.signs.segments
        if segments is None or not most:
            return [[] for _ in range(len(contexts))]
        return segments.liked(contexts.histories, most, contexts.folds)


def write_examples(source: Source, retriever: Folder, contexts: dict[str, int], out: Folder) -> Counter[str]:
    """Write the examples of the splits' contexts as Parquet parts below `out/SPLIT`, through Ray Data.

    contexts: how many of each split there are. Returns counts: SPLIT_contexts, and SPLIT_TASK, examples of each task.

    What is drawn depends on the seed, the user, the cut and the round alone. retriever: its folder, whose contexts of
    training users are cross-fitted. Other splits than train have one round and nothing but choices.
    """
    folder = retriever / "contexts"
    names = [{"name": name} for name in folder.files() if name.split("-")[0] in contexts]
    # A file a row: what Ray would make of the rows' blocks depends on the cluster, and so would the parts.
    written = ray.data.from_items(names, override_num_blocks=max(1, len(names))).map_batches(
        _Write,
        fn_constructor_args=(ray.put(source), folder, list(contexts), out),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=source.config.engine.preprocess_concurrency),
        num_cpus=1,
    )
    totals, progress = Counter[str](), Progress("examples", sum(contexts.values()), "contexts")
    for part in iter_tables(written, name="examples"):
        for name, count in zip(part["what"].to_pylist(), part["count"].to_pylist(), strict=True):
            totals[name] += count
        progress.update(sum(totals[f"{split}_contexts"] for split in contexts))
    return totals


def read_examples(folder: Folder, scratch: Path) -> datasets.Dataset:
    """Contexts with their `examples`, on disk below `scratch`.

    The order is that of user, cut and round: parts are in the order of their names, which are hashes.
    """
    import datasets

    local = scratch / Path(folder.path).name
    folder.download(local)
    files = sorted(str(path) for path in local.iterdir())
    rows = datasets.Dataset.from_parquet(files, cache_dir=str(scratch / "cache"))
    return rows.sort(_KEY).select_columns(["examples"])


def scale_of(config: Config, log: Log, signs: Signs, contexts: Contexts) -> Scale:
    """Levels of evidence, from random items of the core put to the users of these training contexts."""
    if not signs.kinds:
        return Scale({})
    rng = np.random.default_rng([config.tune_recommender.seed, 11])
    core = np.flatnonzero(log.in_core)
    candidates = [rng.choice(core, min(len(core), _DRAWN), replace=False) for _ in range(len(contexts))]
    found = signs(contexts.asking, candidates)
    return Scale.of(signs.kinds, np.concatenate(found, axis=1))


@dataclass(frozen=True)
class _Lesson:
    """One round of one context. row: of the contexts; candidates: the positive, then negatives."""

    row: int
    round: int
    candidates: np.ndarray
    tasks: tuple[Task, ...]
    wording: int


class _Write:
    """CPU actor: names of files of contexts in, parts of examples written, counts out."""

    def __init__(self, source: ray.ObjectRef, contexts: Folder, splits: list[str], out: Folder):
        self.writer, self.contexts, self.splits, self.out = Writer(ray.get(source)), contexts, splits, out

    def __call__(self, batch: pa.Table) -> Iterator[dict[str, list[Any]]]:
        for name in batch["name"].to_pylist():
            table = read_part(self.contexts, name)
            for start in range(0, table.num_rows, _ROWS):
                counts = self._write(table.slice(start, _ROWS))
                yield {"what": list(counts), "count": list(counts.values())}

    def _write(self, table: pa.Table) -> Counter[str]:
        counts = Counter[str]()
        for split in self.splits:
            contexts = Contexts.of(self.writer.log, table.filter(pc.equal(table["split"], split)))
            rows = self.writer.rows(contexts, learnt=split == "train")
            write_part(self.out / split, pa.Table.from_pylist(rows, EXAMPLES), _KEY)
            counts[f"{split}_contexts"] += len(contexts)
            counts.update(f"{split}_{example['task']}" for row in rows for example in row["examples"])
        return counts


class Writer:
    """Writes the examples of contexts."""

    def __init__(self, source: Source):
        self.source, self.log, self.catalogue = source, source.log, source.catalogue
        self.settings = source.config.tune_recommender
        self.asker = Asker(source.config, self.catalogue)
        self.core = np.flatnonzero(self.log.in_core)

    def rows(self, contexts: Contexts, learnt: bool) -> list[dict[str, Any]]:
        """Rows of EXAMPLES. learnt: with all rounds and tasks. Raises InputError where the core has too few items that
        a user never touched, or a question does not fit the model."""
        lessons = [lesson for row in range(len(contexts)) for lesson in self._lessons(contexts, row, learnt)]
        rows = np.array([lesson.row for lesson in lessons], np.int64)
        signs = self.source.signs(contexts.asking.take(rows), [lesson.candidates for lesson in lessons])
        liked = self.source.liked(contexts)
        return [
            {
                "user_id": self.log.users[int(contexts.users[lesson.row])].as_py(),
                "cut": int(contexts.cuts[lesson.row]),
                "round": lesson.round,
                "examples": list(self._examples(contexts, lesson, liked[lesson.row], self.source.scale.lines(each))),
            }
            for lesson, each in zip(lessons, signs, strict=True)
        ]

    def _lessons(self, contexts: Contexts, row: int, learnt: bool) -> Iterator[_Lesson]:
        """What is drawn for one context."""
        user, cut, tasks = int(contexts.users[row]), int(contexts.cuts[row]), self.settings.tasks
        whole = self.log.sequences[user]
        # What came later and is not for learning is not known: no reason to spare it among the negatives.
        [known] = self.log.train_of(np.array([user])) if learnt else [whole[: cut + 1]]
        shares: dict[Task, float] = {
            "next_item": tasks.next_item,
            "item_keywords": tasks.item_keywords,
            "interests": tasks.interests,
        }
        for number in range(math.ceil(self.settings.epochs) if learnt else 1):
            name = f"{self.log.users[user]}\0{cut}\0{number}"
            rng = np.random.default_rng(self._key(name, "example"))
            if learnt and rng.random() >= self.settings.epochs - number:
                continue  # the last round of a broken number of epochs is for some
            negatives = self._negatives(name, known, contexts.neighbours[row], contexts.votes[row], rng)
            chosen = tuple(task for task, share in shares.items() if learnt and rng.random() < share)
            wording = int(rng.integers(tasks.phrasings)) if learnt else 0
            yield _Lesson(row, number, np.array([whole[cut], *negatives], np.int64), chosen, wording)

    def _negatives(
        self, name: str, touched: np.ndarray, neighbours: np.ndarray, votes: Votes, rng: np.random.Generator
    ) -> np.ndarray:
        """Items that the user never touched, as far as may be known. Raises InputError where the core has too few."""
        wanted, share = self.settings.negatives, self.settings.hard_negatives
        hard = np.zeros(0, np.int64)
        if share:
            found = np.unique(np.concatenate([neighbours, np.fromiter(votes, np.int64)]))
            found = found[self.log.in_core[found] & ~np.isin(found, touched)]
            hard = rng.permutation(found)[: rng.binomial(wanted, share)]
        key = self._key(name, "negatives")
        fresh = untouched(self.core, np.concatenate([touched, hard]), wanted - len(hard), key)
        if len(fresh) + len(hard) < wanted:
            raise InputError(
                f"tune_recommender.negatives: {wanted} core items that a user never touched are needed; user "
                f"{name.split(chr(0))[0]} has {len(fresh) + len(hard)}."
            )
        return np.concatenate([hard, fresh])

    def _key(self, name: str, what: str) -> int:
        """Decides what is drawn for a context; each kind of draw has a key of its own."""
        return int(hashes([name], self.settings.seed, what)[0])

    def _examples(
        self, contexts: Contexts, lesson: _Lesson, liked: list[str], evidence: list[str]
    ) -> Iterator[dict[str, Any]]:
        """liked: what users of the same segments like; evidence: what is said of each candidate."""
        history, positive = contexts.histories[lesson.row], int(lesson.candidates[0])
        user = self.asker.user(history, contexts.neighbours[lesson.row], liked)
        for number, said, answer in zip(lesson.candidates.tolist(), evidence, _answers(lesson), strict=True):
            yield self._example("choice", number, self.asker.question(user, number, said, lesson.wording), answer)
        [next_words] = self.catalogue.lines([positive])
        interest = interests(self.catalogue.lines(history), self.source.config.summarize.max_keywords)
        for task in lesson.tasks:
            words = interest if task == "interests" else next_words
            if not words:
                continue
            if task == "item_keywords":
                question = self.asker.description(positive, lesson.wording)
            else:
                question = self.asker.instruction(task, user, lesson.wording)
            yield self._example(task, None if task == "interests" else positive, question, bullet(words))

    def _example(self, task: Task, number: int | None, question: Question, answer: str) -> dict[str, Any]:
        self.asker.tokens([question])  # refuses now what would not fit when it is scored
        item = None if number is None else self.catalogue.ids[number].as_py()
        values = (task, item, question.prompt, answer, number if question.image is not None else None)
        return dict(zip(EXAMPLE.names, values, strict=True))


def _answers(lesson: _Lesson) -> list[str]:
    return [YES, *[NO] * (len(lesson.candidates) - 1)]
