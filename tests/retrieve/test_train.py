"""Encoders trained by Ray Train: two workers, a worker that is really killed, encoders that are there already."""

import os
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from torch.nn.utils import parameters_to_vector

from mmsrarec_ray import workers
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.retrieve.encoders import load_encoder
from mmsrarec_ray.retrieve.fit import CHECKPOINTS, finished, fit
from mmsrarec_ray.retrieve.train import train_encoders
from mmsrarec_ray.settings import Train as TrainSettings
from tests.retrieve.test_fit import task

WORKERS = TrainSettings(workers=2, cpus=1, threads=1, checkpoint_steps=7, max_failures=1)
# Long enough to be met in its middle; negatives, masks and dropout must all come again as they were.
LONG = {"kind": "bert4rec", "epochs": 60, "patience": 60, "negatives": 8, "dropout": 0.3}


class Killer(threading.Thread):
    """Kills a training worker below this process as soon as a checkpoint of that step or a later one is there."""

    def __init__(self, folder, step):
        super().__init__(daemon=True)
        self.folder, self.step, self.left = folder, step, []

    def names(self):
        return sorted(file.name for file in self.folder.glob("*.pt"))

    def run(self):
        while not any(int(name[:9]) >= self.step for name in self.names()):
            time.sleep(0.01)
        ours = psutil.Process(os.getpid()).children(recursive=True)
        found = [process for process in ours if "RayTrainWorker" in " ".join(process.cmdline())]
        assert len(found) == 2
        found[-1].kill()
        time.sleep(1)  # the other one finishes its step, then waits for the dead one
        self.left = self.names()


@pytest.fixture(scope="module")
def broken(ray_session, tmp_path_factory):
    """A short encoder, then a long one whose worker is killed; what the latter left behind when it happened."""
    folder = tmp_path_factory.mktemp("broken")
    short = task(folder / "short", epochs=3, dropout=0.0)
    long = task(folder / "long", **LONG)
    killer = Killer(folder / "long" / CHECKPOINTS, 100)
    killer.start()
    facts = train_encoders([short, long], WORKERS)
    killer.join()
    return [short, long], facts, killer.left


def test_training_goes_on_where_the_checkpoint_was(broken):
    _, (short, long), left = broken
    assert short.resumed_at == 0
    assert long.resumed_at == int(left[-1][:9]) >= 100
    assert (long.epochs, long.steps) == (60, 600)
    assert len(left) == 2


def test_a_killed_run_ends_like_an_unbroken_one_and_the_finished_are_left_alone(broken, tmp_path, capfd):
    (short, long), facts, _ = broken
    written = short.folder.entries()["weights.safetensors"].mtime_ns
    unbroken = replace(long, folder=task(tmp_path).folder)
    again, whole = train_encoders([short, unbroken], WORKERS)
    assert again == facts[0]
    assert short.folder.entries()["weights.safetensors"].mtime_ns == written
    assert (whole.resumed_at, whole.scores) == (0, facts[1].scores)
    assert unbroken.folder.read_bytes("weights.safetensors") == long.folder.read_bytes("weights.safetensors")
    lines = capfd.readouterr().err.splitlines()
    assert sum("bert4rec: epoch" in line for line in lines) == 60
    assert not any("sasrec" in line for line in lines)


@pytest.mark.usefixtures("one_thread")
def test_two_workers_learn_what_one_does(broken, tmp_path):
    (short, _), facts, _ = broken
    alone = replace(short, folder=task(tmp_path).folder)
    # Not to the bit: Adam makes whole steps of gradients that are almost zero, whose sign is rounding.
    np.testing.assert_allclose(fit(alone, 100).scores, facts[0].scores, atol=0.05)
    one, two = (parameters_to_vector(load_encoder(each.folder).parameters()) for each in (alone, short))
    assert (one - two).norm() < 0.3 * one.norm()  # of another seed: 1.4


def test_where_all_are_finished_no_worker_starts(broken, monkeypatch):
    tasks, facts, _ = broken
    monkeypatch.setattr(workers.ray.train.torch, "TorchTrainer", None)
    (tasks[0].folder / CHECKPOINTS).write_bytes("000000001.pt", b"left by a worker that died while clearing up")
    assert train_encoders(tasks, WORKERS) == facts
    assert all(finished(each.folder) and not each.folder.folders() for each in tasks)


def test_what_cannot_be_trained_is_refused_before_a_worker_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.ray.train.torch, "TorchTrainer", None)
    nobody = replace(task(tmp_path), validation=task(tmp_path).validation.take(np.zeros(0, np.int64)))
    with pytest.raises(InputError, match="there are no validation cases"):
        train_encoders([nobody], WORKERS)
