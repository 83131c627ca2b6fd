"""The stage behind jobs/retrieve.py: who else was at such a point, and what they did next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from mmsrarec_ray import workers
from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import Cases, Log, Sequences, read_log
from mmsrarec_ray.data.parts import to_parquet
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.progress import Progress, say
from mmsrarec_ray.retrieve.contexts import Support, contexts_table, hits
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.encoders import SequenceEncoder, load_encoder
from mmsrarec_ray.retrieve.fit import EncoderTask, finished, read_training
from mmsrarec_ray.retrieve.folders import encoder_folder, name_of
from mmsrarec_ray.retrieve.index import MomentIndex, Moments
from mmsrarec_ray.retrieve.moments import ALL_USERS, folds_of, last_cuts, moments
from mmsrarec_ray.retrieve.retriever import ABOUT, ENCODER, FOLDS, ITEMS, PAIRS, Retriever
from mmsrarec_ray.retrieve.train import train_encoders
from mmsrarec_ray.store import Artefact, Folder, Run

_CASES_PER_PART = 5_000


class Retrieve(Stage):
    """Train the sequence encoder, index the moments of the training users, and look up every case's context."""

    name: ClassVar[str] = "retrieve"
    artefact: ClassVar[str] = "retriever"
    code: ClassVar[tuple[str, ...]] = (
        *("retrieve/contexts", "retrieve/cooccurrence", "retrieve/encoders", "retrieve/fit", "retrieve/folders"),
        *("retrieve/index", "retrieve/moments", "retrieve/retriever", "retrieve/stage", "retrieve/train"),
        *("retrieve/validate", "workers", "data/log", "data/splits", "data/schemas", "data/parts"),
    )

    def requires(self) -> list[Stage]:
        return [Prepare(self.config)]

    def settings(self) -> dict[str, Any]:
        c = self.config
        encoder = getattr(c.methods, c.retrieve.encoder).model_dump()
        timed = c.split.users == "time"
        trained = [c.train.workers, c.train.gpu]
        return {"retrieve": c.retrieve.model_dump(), "encoder": encoder, "workers": trained, "timed": timed}

    def engine(self) -> dict[str, Any]:
        import faiss
        import torch

        return {"name": "torch", "version": torch.__version__, "faiss": faiss.__version__}

    def resources(self) -> dict[str, Any]:
        return workers.resources(self.config.train, at_least=1)

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        work = _Work(self.config, read_log(inputs["dataset"].folder), out)
        for task in work.tasks().values():
            self.renew(task.folder)
        out.clear()
        seconds = work.train()
        index = work.build(work.training, ALL_USERS)
        work.save(index)
        support = {name: work.contexts(index, work.log.cases(name), name, ALL_USERS) for name in ("validation", "test")}
        support["train"] = work.training_contexts()
        say(_table(support))
        cases = {f"{name}_contexts": each.cases for name, each in support.items()}
        repeats = {f"{name}_repeats": work.log.repeats(name) for name in ("validation", "test")}
        counts = {"moments": len(index), "pairs": work.together.count.nnz, **cases, **repeats}
        counts["train_repeats"] = work.repeats
        shares = {name: each.shares() for name, each in support.items()}
        return Outcome(counts, {"support": shares, "encoder_seconds": seconds})


class _Work:
    """One run of the stage."""

    def __init__(self, config: Config, log: Log, out: Folder):
        self.config, self.log, self.out = config, log, out
        self.timed = config.split.users == "time"
        self.training = log.train()
        ids = log.users.take(pa.array(self.training.users)).to_pylist()
        self.fold = folds_of(ids, config.retrieve.folds, config.retrieve.seed)
        self.together = Cooccurrence.of(self.training, log.n_items, config.retrieve.cooccurrence_window)
        self.repeats = 0  # training contexts that were left out
        if not (self.training.lengths > 1).any():
            raise InputError("no training user has two interactions: there is no moment to retrieve.")
        if len(found := np.unique(self.fold[self.training.lengths > 1])) == 1:
            raise InputError(
                "retrieve.folds: contexts of a fold come from the moments of the others, so training users with two "
                f"interactions are needed in at least two folds. All of them are in fold {found[0]} of "
                f"{config.retrieve.folds}: give more users, or another retrieve.seed or retrieve.folds."
            )

    def others(self, fold: int) -> Sequences:
        """The training users whose encoder and index a fold uses: all but its own."""
        return self.training if fold == ALL_USERS else self.training.take(self.fold != fold)

    def tasks(self) -> dict[int, EncoderTask]:
        """What has to be trained, by fold: the encoder of all training users, and each fold's."""
        settings, kind = self.config.retrieve, self.config.retrieve.encoder
        run, validation = Run.at(self.config.run), self.log.cases("validation")
        encoder, tasks = getattr(self.config.methods, kind), {}
        for fold in (ALL_USERS, *range(settings.folds)):
            about = (kind, encoder, settings.seed, self.log.n_items, self.others(fold), validation)
            name = f"{kind} of all training users" if fold == ALL_USERS else f"{kind} without fold {fold}"
            tasks[fold] = EncoderTask(name, *about, encoder_folder(run, self.config.train, *about))
        return tasks

    def train(self) -> dict[str, float]:
        """Train all encoders in one fit. Returns the seconds of those that were not there, by their names."""
        tasks = self.tasks()
        waiting = [task.folder for task in tasks.values() if not finished(task.folder)]
        train_encoders(list(tasks.values()), self.config.train)
        self.encoders = {fold: task.folder for fold, task in tasks.items()}
        return {name_of(folder): read_training(folder).seconds for folder in waiting}

    def encoder(self, fold: int) -> SequenceEncoder:
        return load_encoder(self.encoders[fold])

    def build(self, sequences: Sequences, fold: int) -> MomentIndex:
        """The index of the moments of these users, as the fold's encoder sees them."""
        encoder, parts = self.encoder(fold), []
        for cases in moments(sequences, self.config.retrieve.moments):
            histories = cases.queries.histories
            lengths = histories.lengths.astype(np.int32)
            parts.append((encoder.encode(cases.queries), histories.users, lengths, cases.positives, cases.queries.now))
        vectors, *columns = map(np.concatenate, zip(*parts, strict=True))
        return MomentIndex.build(vectors, Moments(*columns), self.config.retrieve)

    def save(self, index: MomentIndex) -> None:
        """Everything but the contexts."""
        self.encoder(ALL_USERS).save(self.out / ENCODER)
        for fold in range(self.config.retrieve.folds):
            self.encoder(fold).save(self.out / FOLDS / str(fold))
        index.save(self.out / "index")
        self.out.write_bytes(PAIRS, to_parquet(self.together.table(self.log.items)))
        self.out.write_bytes(ITEMS, to_parquet(pa.table({"item_id": self.log.items})))
        about = {"window": self.together.window, "timed": self.timed}
        self.out.write_bytes(ABOUT, json.dumps(about).encode())

    def training_contexts(self) -> Support:
        """Each training user's contexts, from the encoder and the index that do not know the user's fold; where the
        positive stands in the history, there is none."""
        total = Support()
        for fold in range(self.config.retrieve.folds):
            own = self.training.take(self.fold == fold)
            cases = last_cuts(own, self.config.retrieve.train_cuts)
            self.repeats += int(cases.repeats.sum())
            index = self.build(self.others(fold), fold)
            total += self.contexts(index, cases.without_repeats(), "train", fold)
        return total

    def contexts(self, index: MomentIndex, cases: Cases, split: str, fold: int) -> Support:
        """Write the contexts of some cases, a part at a time."""
        settings, total = self.config.retrieve, Support()
        retriever = Retriever(self.encoder(fold), index, self.together, self.log.items, self.timed)
        progress = Progress("retrieve", len(cases), f"{split} contexts")
        for number, part in enumerate(_parts(cases)):
            vectors = retriever.encoder.encode(part.queries)
            found = retriever.near(part.queries, vectors, max(settings.neighbours, settings.voters))
            table = contexts_table(self.log, part, vectors, split, fold, index.moments, found, settings)
            name = f"{split}-{max(fold, 0)}-{number:05d}.parquet"
            (self.out / "contexts").write_bytes(name, to_parquet(table))
            near = found.first(settings.neighbours)
            total += Support(len(part), hits(index.moments, near, part.positives), self._pairs(part))
            progress.update(total.cases)
        return total

    def _pairs(self, cases: Cases) -> int:
        """Cases whose positive followed one of the last items of the history in another user's."""
        histories = cases.queries.histories
        recent = histories.last(self.config.retrieve.history, -1)
        rows = np.nonzero(recent >= 0)[0]
        own = self.log.train_of(histories.users)
        counts = self.together.without(own, rows, recent[recent >= 0], cases.positives[rows])
        return len(np.unique(rows[counts > 0]))


def _parts(cases: Cases) -> Iterator[Cases]:
    for start in range(0, len(cases), _CASES_PER_PART):
        yield cases.take(np.arange(start, min(start + _CASES_PER_PART, len(cases))))


def _table(support: dict[str, Support]) -> str:
    """For people: the three rows must be alike, or a ranker learns to trust what vanishes at test time."""
    lines = ["  share of cases whose positive is   among the neighbours' next items   supported by co-occurrence"]
    for name, each in support.items():
        shares = each.shares()
        lines.append(f"  {name:33} {shares['neighbours']:>34.1%} {shares['cooccurrence']:>28.1%}")
    return "\n".join(lines)
