"""Moments and folds."""

from __future__ import annotations

import numpy as np

from mmsrarec_ray.data.log import Cases, Sequences
from mmsrarec_ray.retrieve.moments import folds_of, last_cuts, moments

SEQUENCES = Sequences.of([[3, 1, 2], [7], [], [0, 4]], np.array([10, 11, 12, 13]))


def transitions(cases: Cases) -> list[tuple[int, list[int], int, int]]:
    histories = cases.queries.histories
    rows = zip(histories.users, histories, cases.positives, cases.queries.now, strict=True)
    return [(int(user), history.tolist(), int(item), int(now)) for user, history, item, now in rows]


def test_every_prefix_is_a_moment_with_what_came_next() -> None:
    (found,) = moments(SEQUENCES, "prefixes")
    assert transitions(found) == [(10, [3], 1, 1), (10, [3, 1], 2, 2), (13, [0], 4, 1)]


def test_the_last_cuts_alone() -> None:
    assert transitions(last_cuts(SEQUENCES, 1)) == [(10, [3, 1], 2, 2), (13, [0], 4, 1)]
    assert len(last_cuts(SEQUENCES, 5)) == 3


def test_moments_come_a_few_users_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("mmsrarec_ray.retrieve.moments._USERS", 2)
    parts = list(moments(SEQUENCES, "prefixes"))
    assert [len(part) for part in parts] == [2, 1]
    assert [len(part) for part in moments(SEQUENCES, "users")] == [1, 1]


def test_the_prefixes_of_a_long_history_come_in_pieces(monkeypatch) -> None:
    whole = last_cuts(Sequences.of([list(range(60)), [1, 2]]), 100)
    monkeypatch.setattr("mmsrarec_ray.retrieve.moments._HELD", 200)
    parts = list(moments(Sequences.of([list(range(60)), [1, 2]]), "prefixes"))
    assert max(len(part.queries.histories.items) for part in parts) <= 200 + 60
    assert [each for part in parts for each in transitions(part)] == transitions(whole)


def test_a_user_s_fold_depends_on_its_id_alone() -> None:
    ids = [f"user {n}" for n in range(1000)]
    folds = folds_of(ids, 3, 0)
    assert (folds_of(ids[500:], 3, 0) == folds[500:]).all()
    assert (folds_of(ids, 3, 1) != folds).any()
    assert (np.abs(np.bincount(folds) - 333) < 60).all()
