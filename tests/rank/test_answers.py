"""Kept answers: found by what was asked, and kept however the asking ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmsrarec_ray.rank import answers as module
from mmsrarec_ray.rank.answers import Answers, Keeper, keys_of
from mmsrarec_ray.store import Folder

HISTORY, NEIGHBOURS, CANDIDATES, SAID = np.array([1, 2]), np.array([3]), np.array([5, 6]), ["often", "never"]
LIKED = ["red, mug", "oak"]


def test_a_key_tells_apart_what_is_asked_differently() -> None:
    none = np.zeros(0, np.int64)
    asked = [
        (HISTORY, NEIGHBOURS, CANDIDATES, SAID, LIKED),
        (HISTORY, NEIGHBOURS, CANDIDATES, SAID, LIKED[::-1]),
        (HISTORY, NEIGHBOURS, CANDIDATES, SAID, []),
        (HISTORY[::-1], NEIGHBOURS, CANDIDATES, SAID, LIKED),
        (np.append(HISTORY, NEIGHBOURS), none, CANDIDATES, SAID, LIKED),
        (none, np.append(HISTORY, NEIGHBOURS), CANDIDATES, SAID, LIKED),
        (HISTORY, NEIGHBOURS, CANDIDATES, SAID[::-1], LIKED),
        (HISTORY, NEIGHBOURS, CANDIDATES + 2, SAID, LIKED),
    ]
    keys = np.concatenate([keys_of(*each) for each in asked])
    assert len(np.unique([bytes(key) for key in keys])) == 2 * len(asked)
    np.testing.assert_array_equal(keys_of(*asked[0])[1:], keys_of(HISTORY, NEIGHBOURS, CANDIDATES[1:], SAID[1:], LIKED))


def test_only_what_was_kept_is_found(tmp_path: Path) -> None:
    folder, keys = Folder.at(str(tmp_path / "answers")), keys_of(HISTORY, NEIGHBOURS, CANDIDATES, SAID, LIKED)
    nothing = Answers(folder).find([keys, keys[:0]])
    assert np.isnan(nothing[0]).all()
    assert [len(each) for each in nothing] == [2, 0]
    Answers(folder).keep(keys[1:], np.array([0.25]), 3.0)
    answers = Answers(folder)
    found = answers.find([keys, keys[:0], keys[1:]])
    np.testing.assert_array_equal(np.concatenate(found), [np.nan, 0.25, 0.25])
    assert answers.spared_seconds == 6.0


def test_what_has_arrived_is_kept_however_the_asking_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, keys = Answers(Folder.at(str(tmp_path))), keys_of(HISTORY, NEIGHBOURS, CANDIDATES, SAID, LIKED)
    monkeypatch.setattr(module, "_KEPT_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        _add_and_break_off(answers, keys, monkeypatch)
    np.testing.assert_array_equal(answers.find([keys])[0], [0.5, 0.75])


def test_the_time_of_what_is_asked_for_others_is_theirs(tmp_path: Path) -> None:
    answers, keys = Answers(Folder.at(str(tmp_path))), keys_of(HISTORY, NEIGHBOURS, CANDIDATES, SAID, LIKED)
    with Keeper(answers) as keeper:
        keeper.add(keys, np.array([0.5, 0.75]), ahead=1)
        keeper.since -= 10.0
    assert -5.5 < answers.spared_seconds <= -5.0
    later = Answers(answers.folder)
    later.find([keys[:1], keys[1:]], counted=1)
    np.testing.assert_allclose(later.spared_seconds, -answers.spared_seconds)


def _add_and_break_off(answers: Answers, keys: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with Keeper(answers) as keeper:
        keeper.add(keys[:1], np.array([0.5]))
        np.testing.assert_array_equal(answers.find([keys])[0], [0.5, np.nan])  # at once
        monkeypatch.setattr(module, "_KEPT_EVERY", 60.0)
        keeper.add(keys[1:], np.array([0.75]))
        assert len(answers.folder.files()) == 1
        raise KeyboardInterrupt
