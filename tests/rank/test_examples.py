"""What is written for the recommender to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.data.log import Log, Sequences
from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.rank.contexts import Contexts
from mmsrarec_ray.rank.evidence import Scale, Signs
from mmsrarec_ray.rank.examples import EXAMPLES, Source, Writer, read_examples
from mmsrarec_ray.rank.prompts import INSTRUCTIONS, interests
from mmsrarec_ray.rank.segments import FoldedSegments
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.moments import ALL_USERS
from mmsrarec_ray.retrieve.segments import Facet, Segments
from mmsrarec_ray.store import Folder
from tests.rank import world

ROWS = [
    {
        "user_id": user,
        "cut": cut,
        "round": number,
        "examples": [
            {"task": "choice", "item_id": "i", "prompt": f"{user} {cut} {number}", "answer": "no", "picture": None}
        ],
    }
    for user in ("a", "b")
    for cut in (1, 2)
    for number in (0, 1)
]


@pytest.mark.parametrize(
    "parts", [[[0, 1, 2, 3, 4, 5, 6, 7]], [[6, 1, 4], [5, 0], [7, 3, 2]], [[7, 6, 5, 4], [3, 2, 1, 0]]]
)
def test_the_order_does_not_depend_on_how_rows_were_divided(parts: list[list[int]], tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path / "train"))
    for part in parts:
        write_part(folder, pa.Table.from_pylist([ROWS[row] for row in part], EXAMPLES), ["user_id", "cut", "round"])
    read = read_examples(folder, tmp_path / "scratch").to_list()
    assert read == [{"examples": row["examples"]} for row in ROWS]


def test_interests_are_what_comes_back_the_commonest_first_then_the_newest() -> None:
    history = ["red, mug, oak", "red, hat", "blue, hat, oak", "red, bag"]
    assert interests(history, 6) == "red, hat, oak"
    assert interests(history, 1) == "red"
    assert interests(["red, mug", "", "blue, hat"], 6) == ""
    assert interests([], 6) == ""


USERS, ITEMS = 200, 4
NO_TASKS = tuple(f"tune_recommender.tasks.{task}=0" for task in ("next_item", "item_keywords", "interests"))


def written(
    *words: str, learnt: bool = True, segments: FoldedSegments | None = None, later: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Examples of many users who all went from item 0 to item 1 of four; the last has no keywords but item 3's. later:
    what they chose afterwards, which is for testing."""
    settings = world.config("rank.candidate=keywords", *words)
    sequences = Sequences.of([[0, 1, *later]] * USERS)
    users = pa.array([f"u{number:03}" for number in range(USERS)])
    catalogue = world.catalogue()
    split = np.array([0, 0, *(2 for _ in later)] * USERS, np.uint8)
    log = Log(catalogue.ids, np.ones(ITEMS, bool), users, sequences, split, not later)
    signs = Signs(settings.rank.evidence, log.train(), Cooccurrence.of(sequences, ITEMS, 5), ITEMS, segments=segments)
    scale = Scale({kind: [0.5] * 9 for kind in settings.rank.evidence})
    contexts = Contexts(
        users=np.arange(USERS),
        cuts=np.ones(USERS, np.int64),
        folds=np.zeros(USERS, np.int64),
        vectors=np.zeros((USERS, 1), np.float32),
        histories=[np.array([0])] * USERS,
        neighbours=[np.array([3, 1])] * USERS,
        votes=[{3: 1.0}] * USERS,
    )
    return Writer(Source(settings, log, catalogue, signs, scale)).rows(contexts, learnt)


def choices(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["item_id"], each["answer"]) for each in row["examples"] if each["task"] == "choice"]


def test_each_round_has_negatives_and_a_wording_of_its_own() -> None:
    rows = written("tune_recommender.epochs=2", *NO_TASKS)
    assert [row["round"] for row in rows] == [0, 1] * USERS
    ids = world.catalogue().ids.to_pylist()
    for row in rows:
        (positive, yes), (negative, no) = choices(row)
        assert (positive, yes, no) == (ids[1], "yes", "no")
        assert negative in ids[2:]
    pairs = [(choices(first)[1], choices(second)[1]) for first, second in zip(rows[::2], rows[1::2], strict=True)]
    assert 0.3 < np.mean([one != other for one, other in pairs]) < 0.7
    asked = [
        [n for n, words in enumerate(INSTRUCTIONS["choice"]) if words in row["examples"][0]["prompt"]] for row in rows
    ]
    assert Counter(map(len, asked)) == {1: len(rows)}
    shares = np.bincount([each[0] for each in asked]) / len(rows)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.08)
    assert rows == written("tune_recommender.epochs=2", *NO_TASKS)


def test_a_broken_number_of_epochs_gives_some_a_further_round() -> None:
    rows = written("tune_recommender.epochs=1.25", *NO_TASKS)
    assert Counter(row["round"] for row in rows) == {0: USERS, 1: pytest.approx(USERS / 4, rel=0.4)}


def test_tasks_have_their_share_and_their_answers() -> None:
    rows = written("tune_recommender.tasks.next_item=0.5", "tune_recommender.tasks.item_keywords=1")
    found = [example for row in rows for example in row["examples"]]
    counts = Counter(example["task"] for example in found)
    assert counts["choice"] == 2 * USERS
    assert counts["next_item"] == pytest.approx(USERS / 2, rel=0.2)
    assert counts["item_keywords"] == USERS
    assert counts["interests"] == 0  # nothing comes back in a history of one
    by_task = {example["task"]: example for example in found}
    assert by_task["next_item"]["answer"] == by_task["item_keywords"]["answer"] == "- blue, hat"
    assert by_task["next_item"]["picture"] is None
    assert by_task["item_keywords"]["picture"] == 1
    assert "User history" not in by_task["item_keywords"]["prompt"]
    judged = [example for row in written("tune_recommender.epochs=3", learnt=False) for example in row["examples"]]
    assert Counter(example["task"] for example in judged) == {"choice": 2 * USERS}


def test_hard_negatives_are_what_similar_users_chose_and_this_one_did_not() -> None:
    ids = world.catalogue().ids.to_pylist()
    rows = written("tune_recommender.hard_negatives=1", *NO_TASKS)
    assert {choices(row)[1][0] for row in rows} == {ids[3]}
    both = written("tune_recommender.hard_negatives=0.5", "tune_recommender.negatives=2", *NO_TASKS)
    assert {tuple(sorted(item for item, _ in choices(row)[1:])) for row in both} == {(ids[2], ids[3])}
    with pytest.raises(InputError, match=r"negatives: 3 core items .* needed; user u000 has 2\.$"):
        written("tune_recommender.negatives=3", *NO_TASKS)


@pytest.mark.parametrize("learnt", [True, False])
def test_what_a_user_chose_later_is_not_spared_among_the_negatives(learnt: bool) -> None:
    def drawn(later: Sequence[int]) -> list[list[tuple[str, str]]]:
        words = ("tune_recommender.hard_negatives=0.5", *NO_TASKS)
        return [choices(row) for row in written(*words, learnt=learnt, later=later)]

    assert drawn([3]) == drawn([]) == drawn([2])
    assert {item for _, (item, _) in drawn([3])} == set(world.catalogue().ids.to_pylist()[2:])


def test_what_users_of_the_segment_like_stands_before_the_instruction() -> None:
    halves = [Facet([word], np.array([[3.0], [-3.0]]), np.zeros(2), np.log([0.5, 0.5])) for word in ("mug", "oak")]
    segments = Segments(halves, [["mug", "", "", ""], ["oak", "", "", ""]])
    other = Segments(halves, [["", "mug", "", ""], ["", "", "", ""]])
    folded = FoldedSegments({ALL_USERS: other, 0: segments})
    [row, *_] = written("rank.liked=2", *NO_TASKS, segments=folded)
    for example in row["examples"]:
        assert "- green, bag\n- blue, hat\nUsers of this kind like:\n- mug\n- oak\n" in example["prompt"]
    [row, *_] = written(*NO_TASKS, segments=folded)
    assert "Users of this kind" not in row["examples"][0]["prompt"]


def test_evidence_stands_beside_the_candidate_and_leaves_the_user_out() -> None:
    [row, *_] = written("rank.evidence=[cooccurrence, moments, popularity]", "retrieve.voters=5", *NO_TASKS)
    positive, negative = (example["prompt"] for example in row["examples"])
    assert "\n- chosen with this history 9, by similar users 0, by all users 9<" in positive
    assert "How often a candidate was chosen is told from 0 to 9.\n" in positive
    assert ", by all users 0<" in negative
