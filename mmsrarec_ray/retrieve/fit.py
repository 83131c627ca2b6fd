"""Training of a sequence encoder: a plain loop, alone or with others in a process group of torch.distributed.

The folder is the truth: checkpoints lie below it while training lasts, and its `encoder.json` comes last. A fit
that is killed goes on from the newest checkpoint, and on the CPU, with the same workers and threads, ends with the
same weights to the bit, since all that is random in a step is seeded by (seed, step, worker).
"""

from __future__ import annotations

import io
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import distributed

from mmsrarec_ray.data.log import Cases, Sequences
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.progress import say
from mmsrarec_ray.retrieve.encoders import ENCODER, KINDS, Batch, SequenceEncoder, Vocabulary, left_aligned
from mmsrarec_ray.retrieve.validate import expected_ndcg, shares_above
from mmsrarec_ray.settings import Encoder as EncoderSettings
from mmsrarec_ray.store import Folder

TRAINING = "training.json"
CHECKPOINTS = "checkpoints"
_KEPT_CHECKPOINTS = 2
_VALIDATION_CASES = 5_000
_WARMUP_STEPS = 100
_BATCHES_SORTED = 16  # so many batches at a time are sorted by length: little padding, still mixed batches


@dataclass(frozen=True)
class EncoderTask:
    """An encoder to be trained.

    name: for progress lines; kind: 'sasrec', 'gru4rec' or 'bert4rec'; seed: decides whatever is random; n_items:
    size of the catalogue; train: what is learnt; validation: what the best epoch is chosen on; folder: its own,
    local or on an object store, visible to the first worker wherever it starts.
    """

    name: str
    kind: str
    settings: EncoderSettings
    seed: int
    n_items: int
    train: Sequences
    validation: Cases
    folder: Folder


@dataclass(frozen=True)
class Training:
    """How a finished training went.

    epochs, steps: done in all; best_epoch: counted from 1, whose weights were kept; scores: validation score of
    each epoch; resumed_at: the step of the checkpoint it went on from, 0 where it never had to; seconds: spent,
    without what was lost.
    """

    epochs: int
    steps: int
    best_epoch: int
    scores: list[float]
    resumed_at: int
    seconds: float

    @property
    def best_score(self) -> float:
        """Expected NDCG@5 among 20 negatives on the validation cases, in [0, 1]."""
        return self.scores[self.best_epoch - 1]


def check(task: EncoderTask) -> None:
    """Raises InputError where there is nothing to learn from or to choose on."""
    for what, there in (("training interactions", task.train.items), ("validation cases", task.validation)):
        if not len(there):
            raise InputError(f"{task.name}: there are no {what}.")


def finished(folder: Folder) -> bool:
    """Whether the folder holds an encoder that is fully trained."""
    return folder.exists(ENCODER)


def read_training(folder: Folder) -> Training:
    """How the finished encoder in the folder was trained."""
    return Training(**json.loads(folder.read_bytes(TRAINING)))


def discard_checkpoints(folder: Folder) -> None:
    """Remove what a finished encoder no longer needs."""
    if CHECKPOINTS in folder.folders():
        (folder / CHECKPOINTS).remove()


def fit(
    task: EncoderTask,
    checkpoint_steps: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    report: Callable[[str], None] = say,
) -> Training:
    """Train an encoder into its folder, from the newest checkpoint there; nothing is done where it is finished.

    In a process group every worker calls this with an equal task; each step's users are divided over them.
    report: gets a line an epoch, on the first worker. Raises InputError where there is nothing to learn from or
    to choose on, ConfigError for settings that do not fit together.
    """
    workers = _Workers(device)
    if workers.told_by_first(lambda: finished(task.folder)):
        return read_training(task.folder)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return _Fitting(task, checkpoint_steps, workers, report).run()


class _Workers:
    """The process group, or this process alone."""

    def __init__(self, device: torch.device):
        self.device = device
        grouped = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if grouped else (0, 1)

    def told_by_first(self, ask: Callable[[], Any]) -> Any:
        """What the first worker finds, on all of them."""
        answer = [ask() if self.rank == 0 else None]
        if self.size > 1:
            distributed.broadcast_object_list(answer, device=self.device)
        return answer[0]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the workers, in place; the same to the bit on all of them."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients over the workers, all in one piece."""
        for each in parameters:
            if each.grad is None:  # a worker without a user in this step
                each.grad = torch.zeros_like(each)
        if self.size == 1:
            return
        gradients = [each.grad for each in parameters if each.grad is not None]
        joined = self.sum(torch.cat([each.flatten() for each in gradients]))
        pieces = joined.split([each.numel() for each in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


@dataclass
class _Progress:
    """Where a training stands: with the weights, all that a checkpoint holds."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    """Summed over the targets of this epoch so far."""
    targets: int = 0
    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best_epoch(self) -> int:
        """Counted from 1; the first of equals."""
        return 1 + int(np.argmax(self.scores))


class _Fitting:
    """One training on one worker."""

    def __init__(self, task: EncoderTask, checkpoint_steps: int, workers: _Workers, report: Callable[[str], None]):
        check(task)
        self.task, self.checkpoint_steps, self.workers = task, checkpoint_steps, workers
        self.report = report if workers.rank == 0 else lambda line: None
        vocabulary = Vocabulary.of(task.train, task.n_items)
        torch.manual_seed(task.seed)
        self.encoder = KINDS[task.kind](task.settings, vocabulary).to(workers.device)
        self.parameters = list(self.encoder.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, task.settings.learning_rate, weight_decay=task.settings.weight_decay, fused=True
        )
        self.lessons = Lessons(vocabulary.known(task.train), task.settings)
        self.validation = _some(task.validation, task.seed)
        self.progress, self.best = _Progress(), self._weights()
        self.checkpoints = task.folder / CHECKPOINTS

    def run(self) -> Training:
        state = self.workers.told_by_first(lambda: _newest(self.checkpoints))
        if state is not None:
            self._take_up(state)
        resumed_at = self.progress.step
        self.began = time.monotonic() - self.progress.seconds
        while not self._over():
            self._epoch()
        training = Training(
            epochs=self.progress.epoch,
            steps=self.progress.step,
            best_epoch=self.progress.best_epoch,
            scores=self.progress.scores,
            resumed_at=resumed_at,
            seconds=round(self.progress.seconds, 1),
        )
        self._publish(training)
        return training

    def _over(self) -> bool:
        done, settings = self.progress.epoch, self.task.settings
        return done >= settings.epochs or (done > 0 and done - self.progress.best_epoch >= settings.patience)

    def _epoch(self) -> None:
        progress, began = self.progress, time.monotonic()
        batches = self.lessons.batches(self.task.seed, progress.epoch)
        for rows in batches[progress.step - progress.epoch * len(batches) :]:
            self._step(rows)
            if progress.step % self.checkpoint_steps == 0 and progress.step < (progress.epoch + 1) * len(batches):
                self._keep()
        loss = progress.loss / progress.targets
        progress.scores.append(validation_score(self.encoder, self.validation, self.workers))
        progress.epoch, progress.loss, progress.targets = progress.epoch + 1, 0.0, 0
        if progress.best_epoch == progress.epoch:
            self.best = self._weights()
        self.report(
            f"{self.task.name}: epoch {progress.epoch} of {self.task.settings.epochs}, step {progress.step:,}, "
            f"loss {loss:.3f}, validation {progress.scores[-1]:.4f}, {time.monotonic() - began:.1f} s"
        )
        self._keep()

    def _step(self, rows: np.ndarray) -> None:
        workers, progress = self.workers, self.progress
        seed = int(np.random.SeedSequence([self.task.seed, progress.step, workers.rank]).generate_state(1)[0])
        torch.manual_seed(seed)
        self.encoder.train()
        self.optimizer.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=workers.device)
        if len(mine := rows[workers.rank :: workers.size]):
            batch = self.lessons.batch(mine, workers.device)
            loss, targets = self.encoder.loss(batch, torch.Generator().manual_seed(seed))
            loss.backward()
            sums = torch.stack([loss.detach().double(), sums.new_tensor(targets)])
        workers.sum_gradients(self.parameters)
        loss_sum, targets_sum = workers.sum(sums).tolist()
        for each in self.parameters:
            each.grad /= targets_sum  # the mean over all targets, however they are divided over the workers
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.settings.learning_rate * min(1.0, (progress.step + 1) / _WARMUP_STEPS)
        self.optimizer.step()
        progress.step, progress.loss = progress.step + 1, progress.loss + loss_sum
        progress.targets += int(targets_sum)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: weights.clone() for name, weights in self.encoder.state_dict().items()}

    def _keep(self) -> None:
        """Write a checkpoint and remove those before the last."""
        self.progress.seconds = time.monotonic() - self.began
        if self.workers.rank:
            return
        state = {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "progress": asdict(self.progress),
        }
        content = io.BytesIO()
        torch.save(state, content)
        self.checkpoints.write_bytes(f"{self.progress.step:09d}.pt", content.getvalue())
        for name in _checkpoints(self.checkpoints)[_KEPT_CHECKPOINTS:]:
            self.checkpoints.filesystem.delete_file(self.checkpoints.file(name))

    def _take_up(self, state: dict[str, Any]) -> None:
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = {name: weights.to(self.workers.device) for name, weights in state["best"].items()}
        self.progress = _Progress(**state["progress"])
        self.report(f"{self.task.name}: goes on from step {self.progress.step:,}")

    def _publish(self, training: Training) -> None:
        if self.workers.rank:
            return
        self.encoder.load_state_dict(self.best)
        self.task.folder.write_bytes(TRAINING, json.dumps(asdict(training), indent=2).encode())
        self.encoder.save(self.task.folder)
        discard_checkpoints(self.task.folder)


def _checkpoints(folder: Folder) -> list[str]:
    """Names of the checkpoints, the newest first."""
    return [name for name in reversed(folder.files()) if name.endswith(".pt")]


def _newest(folder: Folder) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU."""
    for name in _checkpoints(folder):
        try:
            return torch.load(io.BytesIO(folder.read_bytes(name)), map_location="cpu", weights_only=True)
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):  # damaged
            continue
    return None


class Lessons:
    """Training sequences, cut into windows and divided into batches.

    A window is what fits an encoder: `max_length` items and the one after them. A longer sequence is cut into
    several, each beginning with the last item of the one before it, so that every item is a target once an epoch.
    """

    def __init__(self, sequences: Sequences, settings: EncoderSettings):
        size, lengths = settings.max_length, sequences.lengths
        windows = np.maximum(1, -(-(lengths - 1) // size))
        rows = np.repeat(np.arange(len(sequences)), windows)
        back = np.arange(len(rows)) - np.repeat(np.cumsum(windows) - windows, windows)
        ends = lengths[rows] - back * size
        firsts = np.maximum(0, ends - size - 1)
        self.items, self.batch_users = sequences.items, settings.batch_users
        self.lengths, self.begins = ends - firsts, firsts == 0
        self.firsts = sequences.starts[:-1][rows] + firsts

    def batches(self, seed: int, epoch: int) -> list[np.ndarray]:
        """Numbers of the windows of each step of an epoch, about equally many in each."""
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self.lengths))
        pool = self.batch_users * _BATCHES_SORTED
        pools = (order[start : start + pool] for start in range(0, len(order), pool))
        by_length = np.concatenate([each[np.argsort(self.lengths[each], kind="stable")] for each in pools])
        batches = np.array_split(by_length, -(-len(order) // self.batch_users))
        return [batches[place] for place in rng.permutation(len(batches))]

    def batch(self, rows: np.ndarray, device: torch.device) -> Batch:
        items = left_aligned(self.items, self.firsts[rows], self.lengths[rows])
        return Batch(items.to(device), torch.from_numpy(self.begins[rows]).to(device))


def _some(cases: Cases, seed: int) -> Cases:
    if len(cases) <= _VALIDATION_CASES:
        return cases
    chosen = np.random.default_rng(seed).choice(len(cases), _VALIDATION_CASES, replace=False)
    return cases.take(np.sort(chosen))


def validation_score(encoder: SequenceEncoder, cases: Cases, workers: _Workers | None = None) -> float:
    """Mean expected NDCG@5 of the positives among 20 uniform negatives, each worker a part of the cases."""
    workers = workers or _Workers(encoder.table.weight.device)
    scores = np.zeros(len(cases))
    mine = np.arange(workers.rank, len(cases), workers.size)
    scores[mine] = expected_ndcg(shares_above(encoder, cases.take(mine)))
    return float(workers.sum(torch.from_numpy(scores).to(workers.device)).mean())
