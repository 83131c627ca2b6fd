"""The training loop: it learns what can be learnt, and a run that was cut off ends like one that was not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.retrieve import fit as fitting
from mmsrarec_ray.retrieve.encoders import KINDS, Vocabulary, load_encoder
from mmsrarec_ray.retrieve.fit import EncoderTask, Lessons, finished, fit, read_training, validation_score
from mmsrarec_ray.retrieve.validate import expected_ndcg, shares_above
from mmsrarec_ray.settings import Encoder as EncoderSettings
from mmsrarec_ray.store import Folder

pytestmark = pytest.mark.usefixtures("one_thread")

N_ITEMS = 20  # the last is in no sequence
CYCLE = 19
SETTINGS = EncoderSettings(
    dim=16, layers=1, heads=2, max_length=11, dropout=0.1, batch_users=16, learning_rate=1e-2, epochs=25, patience=25
)


def cycles(n, seed):
    """Users who go round the items in order from a random one, 2 to 12 items each."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, CYCLE, n), rng.integers(2, 13, n)
    return [[int(i) % CYCLE for i in range(a, a + m)] for a, m in zip(starts, lengths, strict=True)]


def cases(histories):
    rows = Sequences.of([history[:-1] for history in histories])
    return Cases(Queries(rows, rows.lengths), np.array([history[-1] for history in histories], np.int32))


def task(folder, kind="sasrec", **changes):
    settings = SETTINGS.model_copy(update=changes)
    return EncoderTask(
        kind, kind, settings, 3, N_ITEMS, Sequences.of(cycles(160, 0)), cases(cycles(40, 1)), Folder.at(str(folder))
    )


def weights(folder):
    return (folder / "weights.safetensors").read_bytes()


class Killed(BaseException):
    pass


def killed_at(step, monkeypatch, task, checkpoint_steps):
    """Run until a step is done, and no further."""
    real = fitting._Fitting._step

    def stop(self, rows):
        if self.progress.step == step:
            raise Killed
        real(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(fitting._Fitting, "_step", stop)
        with pytest.raises(Killed):
            fit(task, checkpoint_steps)


@pytest.mark.parametrize(
    ("kind", "negatives"), [("sasrec", None), ("sasrec", 8), ("gru4rec", None), ("gru4rec", 8), ("bert4rec", None)]
)
def test_it_learns_to_go_round(kind, negatives, tmp_path):
    epochs = 60 if kind == "bert4rec" else 25
    training = fit(task(tmp_path, kind, negatives=negatives, epochs=epochs, patience=epochs), 1000)
    encoder, held_out = load_encoder(Folder.at(str(tmp_path))), cases(cycles(60, 2))
    asked = held_out.take(np.flatnonzero(held_out.queries.histories.lengths))
    assert (shares_above(encoder, asked) == 0).mean() > 0.97  # the right one is first among what is not seen yet
    assert training.best_score > 0.95
    assert training.best_score == max(training.scores)
    assert validation_score(encoder, cases(cycles(40, 1))) == pytest.approx(training.best_score, abs=1e-6)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("step", [25, 30, 31])  # ten steps an epoch: in mid-epoch, at an end, just after
def test_a_killed_run_ends_like_an_unbroken_one(kind, step, tmp_path, monkeypatch):
    changes = {"epochs": 5, "negatives": 8, "dropout": 0.3}
    unbroken = fit(task(tmp_path / "unbroken", kind, **changes), 4)
    broken_task = task(tmp_path / "broken", kind, **changes)
    killed_at(step, monkeypatch, broken_task, 4)
    assert not finished(broken_task.folder)
    resumed = fit(broken_task, 4)
    assert (unbroken.resumed_at, resumed.resumed_at) == (0, {25: 24, 30: 30, 31: 30}[step])
    assert (resumed.scores, resumed.steps) == (unbroken.scores, unbroken.steps)
    assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path, monkeypatch):
    fit(task(tmp_path / "unbroken", epochs=4), 4)
    broken = task(tmp_path / "broken", epochs=4)
    killed_at(26, monkeypatch, broken, 4)
    files = sorted((tmp_path / "broken/checkpoints").iterdir())
    assert [file.name for file in files] == ["000000020.pt", "000000024.pt"]
    files[-1].write_bytes(files[-1].read_bytes()[:5000])
    assert fit(broken, 4).resumed_at == 20
    assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")
    assert not (tmp_path / "broken/checkpoints").exists()


def test_a_finished_encoder_is_left_alone(tmp_path, monkeypatch):
    training = fit(task(tmp_path, epochs=2), 100)
    before = weights(tmp_path)
    monkeypatch.setattr(fitting, "_Fitting", None)
    assert fit(task(tmp_path, epochs=9), 100) == training == read_training(Folder.at(str(tmp_path)))
    assert weights(tmp_path) == before


def test_an_object_store_holds_checkpoints_too(s3, tmp_path, monkeypatch):
    uri, options = s3
    there = replace(task(tmp_path / "local", epochs=3), folder=Folder.at(f"{uri}/encoder{options}"))
    killed_at(15, monkeypatch, there, 4)
    assert fit(there, 4).resumed_at == 12
    fit(task(tmp_path / "local", epochs=3), 4)
    assert there.folder.read_bytes("weights.safetensors") == weights(tmp_path / "local")
    assert there.folder.files() == ["encoder.json", "training.json", "weights.safetensors"]


def test_a_validation_positive_decides_nothing_but_the_stopping(tmp_path):
    one = task(tmp_path / "one", epochs=3)
    other = replace(task(tmp_path / "other", epochs=3), validation=replace(one.validation, positives=np.full(40, 5)))
    trainings = fit(one, 100), fit(other, 100)
    assert trainings[0].scores != trainings[1].scores
    for epoch in (1, 2, 3):  # the weights after so many epochs, whatever the best was
        ends = []
        for each in (one, other):
            changed = each.settings.model_copy(update={"epochs": epoch})
            state = fitting._Fitting(replace(each, settings=changed), 100, fitting._Workers(torch.device("cpu")), print)
            state.began = 0.0
            for _ in range(epoch):
                state._epoch()
            ends.append(state.encoder.table.weight.detach().clone())
        assert torch.equal(*ends)


def test_it_stops_when_nothing_is_gained(tmp_path):
    training = fit(task(tmp_path, learning_rate=1e-9, patience=2, epochs=20), 100)
    assert training.epochs == training.best_epoch + 2 < 20
    assert training.steps == training.epochs * 10


def test_lines_tell_of_epochs(tmp_path):
    lines = []
    fit(task(tmp_path, epochs=2), 100, report=lines.append)
    assert [line[:33] for line in lines] == ["sasrec: epoch 1 of 2, step 10, lo", "sasrec: epoch 2 of 2, step 20, lo"]


def test_without_data_it_says_so(tmp_path):
    empty = Sequences.of([])
    with pytest.raises(InputError, match="no training interactions"):
        fit(replace(task(tmp_path), train=empty), 10)
    with pytest.raises(InputError, match="no validation cases"):
        fit(replace(task(tmp_path), validation=Cases(Queries(empty, np.zeros(0)), np.zeros(0, np.int32))), 10)


def test_every_item_is_a_target_once(tmp_path):
    sequences = Sequences.of([list(range(n)) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)])
    lessons = Lessons(sequences, SETTINGS.model_copy(update={"max_length": 3, "batch_users": 4}))
    encoder = KINDS["sasrec"](SETTINGS, Vocabulary.of(sequences, 10))
    wanted = []
    for rows in lessons.batches(0, 0):
        batch = lessons.batch(rows, torch.device("cpu"))
        assert batch.items.shape[1] <= 4
        shown, told = encoder.exercise(batch, torch.Generator())
        wanted += told[told >= 0].tolist()
        inner = (told > 0) & (shown != encoder.start)
        assert (shown[inner] == told[inner] - 1).all()
    assert sorted(wanted) == sorted(sequences.items.tolist())


def test_batches_follow_from_seed_and_epoch():
    lessons = Lessons(Sequences.of(cycles(100, 0)), SETTINGS)
    same, again, later = lessons.batches(1, 2), lessons.batches(1, 2), lessons.batches(1, 3)
    assert all(np.array_equal(a, b) for a, b in zip(same, again, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(same, later, strict=True))
    assert {len(rows) for rows in same} <= {14, 15, 16}
    assert sorted(np.concatenate(same)) == list(range(len(lessons.lengths)))


def test_expected_ndcg_is_that_of_draws():
    rng = np.random.default_rng(0)
    for p in (0.0, 0.03, 0.2, 1.0):
        above = rng.binomial(20, p, 200_000)
        drawn = np.where(above < 5, 1 / np.log2(above + 2), 0).mean()
        assert expected_ndcg(np.array([p]))[0] == pytest.approx(drawn, abs=0.003)
    assert expected_ndcg(np.array([0.0, 1.0, np.nan])).tolist() == [1, 0, 0]


def test_shares_are_of_known_items_outside_the_history():
    encoder = KINDS["sasrec"](SETTINGS, Vocabulary(np.arange(6, dtype=np.int32), N_ITEMS))
    history = [0, 3, 3, 19]
    rows = Sequences.of([history, history, history])
    asked = Cases(Queries(rows, np.zeros(3)), np.array([2, 19, 3], np.int32))
    scores = encoder.score_all(asked.queries)[0]
    shares = shares_above(encoder, asked)
    assert shares[0] == np.mean([scores[i] > scores[2] for i in (1, 4, 5)])
    assert np.isnan(shares[1])
    assert shares[2] == np.mean([scores[i] > scores[3] for i in (1, 2, 4, 5)])
    torch.nn.init.zeros_(encoder.table.weight)
    assert shares_above(encoder, asked)[0] == 0.5  # ties count half
