"""What rules see, and what an oracle forgets."""

from __future__ import annotations

import numpy as np

from benchmarks.limits import Asked, Rule, features, forgetful, levels
from mmsrarec_ray.data.log import Sequences
from mmsrarec_ray.data.shop import law
from mmsrarec_ray.rank.evidence import LEVELS

SHOP = law.draw_shop(3, 40)


def test_lines_of_evidence_are_read_back_as_levels() -> None:
    found = levels(["chosen with this history 3, by all users 0", "chosen with this history 9, by all users 1"])
    assert found.shape == (2, 2 * LEVELS)
    assert [np.flatnonzero(row).tolist() for row in found] == [[3, LEVELS], [9, LEVELS + 1]]
    assert levels([]).size == 0


def test_a_rule_sees_what_it_is_allowed_and_no_more() -> None:
    words = np.array([[0], [1], [-1]], np.int8)  # of two items and of none
    items, nobody = np.array([[0, 1]]), np.array([[0, 0]])
    asked = Asked(Sequences.of([[0, 1]]), np.array([[0]]), items, levels(["x 1", "x 2"]), nobody)
    assert features(asked, Rule(words, 2)).tolist() == [[0.5, 1, 0, 0], [0.5, 0, 1, 0]]
    assert features(asked, Rule(words, 1)).tolist() == [[0, 1, 0, 0], [1, 0, 1, 0]]
    assert features(asked, Rule(None, 2, evidence=True)).tolist() == asked.told.tolist()
    counts = np.array([3, 0])
    assert features(asked, Rule(words, 2, counts))[:, -1].tolist() == [np.log(4), 0]
    training = asked._replace(own=np.array([[1, 0]]))  # whose own choice is among the counts
    assert features(training, Rule(words, 2, counts))[:, -1].tolist() == [np.log(3), 0]


def test_an_oracle_forgets_one_part_of_the_law_and_keeps_the_others() -> None:
    less = dict(forgetful(SHOP))
    assert list(less) == ["the look", "the habit", "the circle", "recency"]
    recent = np.array([[0, 1, 2], [7, -1, -1]])
    owned = np.zeros((2, len(SHOP)), bool)
    owned[0, :3] = owned[1, 7] = True
    assert law.recency(SHOP, recent)[~owned].any()
    assert not law.recency(less["recency"], recent)[~owned].any()
    assert not less["the look"].look_utility.any()
    assert not less["the habit"].habit_utility.any()
    assert len(set(less["the circle"].circle.tolist())) == 1
    for name, other in less.items():
        kept = [part for part in ("look_utility", "habit_utility", "circle") if part.split("_")[0] not in name]
        assert len(kept) >= 2
        assert all(np.array_equal(getattr(other, part), getattr(SHOP, part)) for part in kept)
