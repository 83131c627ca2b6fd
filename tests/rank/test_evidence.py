"""What is said of candidates: counted by hand, a user's own trace left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import Sequences
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.rank.evidence import NOBODY, Asking, Scale, Signs, Votes
from mmsrarec_ray.rank.expectation import FoldedTables, ItemTable
from mmsrarec_ray.rank.segments import FoldedSegments
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.moments import ALL_USERS
from mmsrarec_ray.retrieve.segments import Facet, Segments
from mmsrarec_ray.store import Folder

TRAIN = Sequences.of([[0, 1, 2], [0, 1], [3, 1], [0, 2]])
ITEMS = 5
NEW = np.array([NOBODY])


def signs(*kinds: str) -> Signs:
    return Signs(kinds, TRAIN, Cooccurrence.of(TRAIN, ITEMS, window=2), ITEMS)  # type: ignore[arg-type]


def asking(users: np.ndarray, histories: Sequence[np.ndarray], votes: Sequence[Votes] = ()) -> Asking:
    return Asking(users, histories, votes or [{}] * len(users), np.zeros((len(users), 1), np.float32))


def test_counts_by_hand() -> None:
    # After 0 came 1, 2; 1; 2: four pairs, two of them with 1. After 3 came 1.
    found = signs("cooccurrence", "moments", "popularity")(
        asking(NEW, [np.array([0, 3])], [{1: 0.75, 4: 0.25}]), [np.array([1, 2, 4])]
    )
    near, older = 1 / 1.8, 0.8 / 1.8  # weights of 3, the newest, and of 0
    expected = [[near * 1 + older * 2 / 4, older * 2 / 4, 0], [0.75, 0, 0.25], [3, 2, 0]]
    np.testing.assert_allclose(found[0], expected)


def test_a_users_own_interactions_leave_no_trace() -> None:
    """User 0 went from 0 and 1 to 2: without it, 2 came after 0 once of twice, and never after 1. Without user 3, it
    came after 0 once of three times."""
    histories = [np.array([0, 1]), np.array([0])]
    with_own, without = (
        signs("cooccurrence", "popularity")(asking(users, histories), [np.array([2]), np.array([2])])
        for users in (NEW.repeat(2), np.array([0, 3]))
    )
    assert with_own[0][1] == 2
    assert without[0][1] == without[1][1] == 1
    newest, older = 1 / 1.8, 0.8 / 1.8
    assert with_own[0][0] == pytest.approx(newest * 1 / 1 + older * 2 / 4)
    assert without[0][0] == pytest.approx(older * 1 / 2)
    assert without[1][0] == pytest.approx(1 / 3)


def test_signs_are_those_of_a_log_that_never_had_the_user() -> None:
    """So a training user is told of as one who is new."""
    rng, items = np.random.default_rng(0), 12
    train = Sequences.of([rng.integers(0, items, rng.integers(1, 9)).tolist() for _ in range(30)])
    for user in range(len(train)):
        rest = train.take(np.arange(len(train)) != user)
        with_it, never = (
            Signs(("cooccurrence", "succession", "popularity"), each, Cooccurrence.of(each, items, window=3), items)
            for each in (train, rest)
        )
        asked = asking(np.array([user]), [np.arange(5)]), [np.arange(items)]
        np.testing.assert_allclose(with_it(*asked), never(*asked))


def test_successions_by_hand() -> None:
    """Of the 9 choices 3 were of 1 and 2 of 2. Right after 0 came 1, 1 and 2; right after 1 came 2."""
    asked = asking(NEW.repeat(3), [np.array([3, 0]), np.array([0, 1]), np.zeros(0, np.int64)])
    found = signs("succession")(asked, [np.array([1, 2, 4])] * 3)
    np.testing.assert_allclose(found[0], [[2 / 8 / (3 / 9), 1 / 8 / (2 / 9), 0]])
    np.testing.assert_allclose(found[1], [[0, 1 / 6 / (2 / 9), 0]])
    np.testing.assert_array_equal(found[2], [[0, 0, 0]])


def liking(word: str) -> Segments:
    """One segment, to which items with this word are e times likelier."""
    facet = Facet(["blue", "red"], np.array([[word == "blue", word == "red"]], float), np.zeros(1), np.zeros(1))
    return Segments([facet], [["red mug", "red", "blue", "", "blue"]])


def test_keywords_are_liked_by_the_segments_that_do_not_know_the_user() -> None:
    segments = FoldedSegments({ALL_USERS: liking("red"), 3: liking("blue")})
    told = Signs(("segments",), TRAIN, Cooccurrence.of(TRAIN, ITEMS, window=2), ITEMS, segments=segments)
    asked, candidates = asking(NEW.repeat(2), [np.array([0])] * 2), [np.array([1, 2, 3])] * 2
    np.testing.assert_allclose(told(asked, candidates), [[[np.e, 1, 1]]] * 2)
    folded = replace(asked, folds=np.array([3, ALL_USERS]))
    np.testing.assert_allclose(told(folded, candidates), [[[1, np.e, 1]], [[np.e, 1, 1]]])


def test_the_encoder_of_each_fold_tells_what_is_likely_next() -> None:
    """Three of five items are known to it; of the others it tells nothing."""
    numbers = np.array([0, -1, 1, 2, -1])
    rows = {ALL_USERS: np.eye(3, dtype=np.float32), 3: np.ones((3, 3), np.float32)}
    tables = FoldedTables({fold: ItemTable(numbers, table) for fold, table in rows.items()})
    told = Signs(("encoder",), TRAIN, Cooccurrence.of(TRAIN, ITEMS, window=2), ITEMS, tables)
    vectors = np.log(np.array([[1, 2, 5], [6, 3, 1]], np.float32))
    asked = replace(asking(NEW.repeat(2), [np.array([0])] * 2), vectors=vectors)
    candidates = [np.arange(5), np.array([3, 0])]
    first, second = told(asked, candidates)
    np.testing.assert_allclose(first, [[1 / 8, 0, 2 / 8, 5 / 8, 0]], rtol=1e-6)
    np.testing.assert_allclose(second, [[1 / 10, 6 / 10]], rtol=1e-6)
    first, second = told(replace(asked, folds=np.array([3, ALL_USERS])), candidates)
    np.testing.assert_allclose(first, [[1 / 3, 0, 1 / 3, 1 / 3, 0]], rtol=1e-6)
    np.testing.assert_allclose(second, [[1 / 10, 6 / 10]], rtol=1e-6)


def test_contexts_without_history_candidates_or_kinds() -> None:
    empty = np.zeros(0, np.int64)
    found = signs("cooccurrence", "popularity")(
        asking(NEW.repeat(2), [empty, np.array([0])]), [np.array([1, 2]), empty]
    )
    np.testing.assert_array_equal(found[0], [[0, 0], [3, 2]])
    assert found[1].shape == (2, 0)
    [none] = signs()(asking(NEW, [np.array([0])]), [np.array([1, 2])])
    assert Scale({}).lines(none) == ["", ""]
    assert signs("popularity")(asking(NEW[:0], []), []) == []


def test_a_level_is_how_rare_so_strong_a_sign_is(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    Scale.of(["moments", "popularity"], np.stack([np.arange(1024.0), np.zeros(1024)])).write(folder)
    scale = Scale.read(folder)
    lines = scale.lines(np.array([[0.0, 300, 600, 1000, 5000], [0, 0, 0, 0.5, 1]]))
    assert lines == [
        "chosen by similar users 0, by all users 0",
        "chosen by similar users 0, by all users 0",
        "chosen by similar users 1, by all users 0",
        "chosen by similar users 5, by all users 9",
        "chosen by similar users 9, by all users 9",
    ]


def test_votes_must_be_kept_where_they_are_told() -> None:
    words = ["data.format=shop", "run=/nowhere", "rank.evidence=[moments]"]
    with pytest.raises(ConfigError, match=r"^retrieve\.voters: must be above 0"):
        load(None, words)
    assert load(None, [*words, "retrieve.voters=100"]).retrieve.voters == 100
