"""Segments of users: the formulas by brute force, tastes found again, what is not there."""

from __future__ import annotations

from math import exp, log, prod
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.retrieve.segments import Facet, Segments, _Learning
from mmsrarec_ray.settings import Segments as SegmentsSettings
from mmsrarec_ray.store import Folder

COLOURS, MATERIALS = ("red", "green", "blue", "white"), ("oak", "wool", "steel")
ITEMS = [(colour, material) for colour in COLOURS for material in MATERIALS for _ in range(5)]
TEXTS = [[colour for colour, _ in ITEMS], [material for _, material in ITEMS]]
SMALL = SegmentsSettings(count=6, min_items=1)
HISTORIES = Sequences.of([[0, 3], [], [2]])
WORDS = [["red mug", "blue mug", "red", "", "blue oak"], ["oak", "oak", "wool", "wool", ""]]


def facets() -> list[Facet]:
    """Two facets with two segments each, as if learnt."""
    rng = np.random.default_rng(3)
    words = (["blue", "mug", "red"], ["oak", "wool"])
    return [Facet(each, rng.normal(size=(2, len(each))), rng.normal(size=2), np.log([0.3, 0.7])) for each in words]


def by_hand(history: list[int], item: int) -> float:
    """log lift, from the definition."""
    total = 0.0
    for facet, texts in zip(facets(), WORDS, strict=True):

        def gain(i: int, z: int, facet: Facet = facet, texts: list[str] = texts) -> float:
            said = texts[i].split()
            liked = sum(facet.weights[z, place] for place, word in enumerate(facet.words) if word in said)
            return exp(liked - facet.scale[z])

        belief = [exp(facet.shares[z]) * prod(gain(i, z) for i in history) for z in (0, 1)]
        total += log(sum(belief[z] * gain(item, z) for z in (0, 1)) / sum(belief))
    return total


def test_lifts_are_those_of_the_definition() -> None:
    segments = Segments(facets(), WORDS)
    expected = [[by_hand(list(history), item) for item in range(5)] for history in HISTORIES]
    np.testing.assert_allclose(segments.lifts(HISTORIES), expected)
    rows, items = np.array([2, 0, 0]), np.array([1, 4, 0])
    np.testing.assert_allclose(segments.lifts_of(HISTORIES, rows, items), np.array(expected)[rows, items])
    new = segments.lifts_of_new(HISTORIES.take(np.array([0])), [["red mug", "unheard"], ["oak", ""]])
    assert new[0] == pytest.approx(expected[0][0])  # the very words of item 0
    assert np.isfinite(new[1])
    for belief in segments.beliefs(HISTORIES):
        np.testing.assert_allclose(belief.sum(1), 1)
        np.testing.assert_allclose(belief[1], [0.3, 0.7])


def test_what_was_learnt_reads_back(tmp_path: Path) -> None:
    segments, folder = Segments(facets(), WORDS), Folder.at(str(tmp_path))
    segments.save(folder)
    np.testing.assert_array_equal(Segments.load(folder, WORDS).lifts(HISTORIES), segments.lifts(HISTORIES))


def drawn(users: int, seed: int) -> tuple[Sequences, np.ndarray, np.ndarray]:
    """Users who love one colour and one material, whichever: three choices of four are what they love."""
    rng = np.random.default_rng(seed)
    colour, material = rng.integers(4, size=users), rng.integers(3, size=users)
    histories = []
    for loved in zip(colour, material, strict=True):
        utility = [3 * (c == COLOURS[loved[0]]) + 3 * (m == MATERIALS[loved[1]]) for c, m in ITEMS]
        histories.append(np.argsort(-(utility + rng.gumbel(size=len(ITEMS))))[:5].tolist())
    return Sequences.of(histories), colour, material


def asked(sequences: Sequences) -> Cases:
    """The last item of each, after all before it."""
    before = sequences.beginnings(np.arange(len(sequences)), sequences.lengths - 1)
    return Cases(Queries(before, np.zeros(len(sequences), np.int64)), sequences.items[sequences.starts[1:] - 1])


def test_tastes_are_found_again_and_can_be_read() -> None:
    train, validation = drawn(600, 1)[0], asked(drawn(200, 2)[0])
    segments = Segments.learn(train, validation, TEXTS, SMALL, seed=0)
    tests, colour, material = drawn(200, 4)
    before = asked(tests).queries.histories
    for belief, facet, loved, names in zip(
        segments.beliefs(before), segments.facets, (colour, material), (COLOURS, MATERIALS), strict=True
    ):
        favourite = np.array([facet.words[place] for place in facet.weights[belief.argmax(1)].argmax(1)])
        assert (favourite == np.array(names)[loved]).mean() > 0.85
    lifts = segments.lifts(before)
    of_both = [[item == (COLOURS[c], MATERIALS[m]) for item in ITEMS] for c, m in zip(colour, material, strict=True)]
    inside = np.array(of_both)
    assert lifts[inside].mean() > 1.5
    assert lifts[~inside].mean() < 0
    again = Segments.learn(train, validation, TEXTS, SMALL, seed=0)
    np.testing.assert_array_equal(again.lifts(before), lifts)


def test_what_segments_like_best_is_told_in_words() -> None:
    colours, silent = (
        Facet(words, np.array(weights), np.zeros(2), np.log([0.5, 0.5]))
        for words, weights in ((["blue", "mug", "red"], [[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]]), ([], [[], []]))
    )
    segments = Segments([colours, silent], [["red", "blue", "mug"], ["", "", ""]])
    histories = Sequences.of([[0, 0], [1], [2]])  # all like mugs, and a mug tells nothing
    assert segments.liked(histories, 2) == [["red", ""], ["blue", ""], ["", ""]]
    assert segments.liked(histories, 0) == [["", ""]] * 3
    keywords = [("Red", "sky-blue", "mug"), ("pot",), ()]
    assert [segments.fond(histories.take(np.array([row])), keywords)[0] for row in (0, 1, 2)] == [
        ("Red",),
        ("sky-blue",),
        (),
    ]
    assert segments.fond(histories.take(np.array([0])), keywords)[1:] == [(), ()]
    told = segments.told(2).splitlines()
    assert told[2:8] == ["## Facet 1", "", "| users | like |", "|--:|:--|", "| 50.0% | blue |", "| 50.0% | red |"]


def test_the_gradient_is_that_of_the_likelihood() -> None:
    train = drawn(40, 1)[0]
    learning = _Learning(train, asked(train), TEXTS[0], SMALL, 0)
    values = np.random.default_rng(0).normal(size=6 + 6 * 4)
    error = optimize.check_grad(lambda v: learning._loss(v)[0], lambda v: learning._loss(v)[1], values)
    assert error < 1e-5


@pytest.mark.parametrize("changed", [{"steps": 4}, {"prior": 1e6}])
def test_learning_that_ends_before_the_first_look_is_not_lost(changed: dict[str, float]) -> None:
    train, settings = drawn(40, 1)[0], SMALL.model_copy(update=changed)
    learning = _Learning(train, asked(train), TEXTS[0], settings, 0)
    assert not np.allclose(learning.facet().weights, learning.start)


def test_items_that_say_nothing_have_no_lift() -> None:
    train = drawn(20, 1)[0]
    silent = Segments.learn(train, asked(train), [[""] * len(ITEMS)], SMALL, 0)
    np.testing.assert_allclose(silent.lifts(train), 0, atol=1e-12)
    rare = Segments.learn(train, asked(train), [TEXTS[0]], SMALL.model_copy(update={"min_items": 16}), 0)
    np.testing.assert_allclose(rare.lifts(train), 0, atol=1e-12)


def test_without_validation_users_learning_goes_on_to_its_end() -> None:
    train, nobody = drawn(600, 1)[0], Cases(Queries(Sequences.of([]), np.zeros(0, np.int64)), np.zeros(0, np.int32))
    learning = _Learning(train, nobody, TEXTS[0], SMALL, 0)
    facet = learning.facet()
    _, gradient = learning._loss(np.concatenate([facet.shares, facet.weights.ravel()]))
    assert np.abs(gradient).max() < 1e-4  # after five iterations 6e-3


def test_only_the_commonest_words_count() -> None:
    train = drawn(20, 1)[0]
    texts = [f"{colour} common" for colour, _ in ITEMS]
    segments = Segments.learn(train, asked(train), [texts], SMALL.model_copy(update={"words": 1}), 0)
    assert segments.facets[0].words == ["common"]


def test_a_word_may_be_a_single_character() -> None:
    train = drawn(20, 1)[0]
    segments = Segments.learn(train, asked(train), [["猫, t-shirt, 5 cups, C#"] * len(ITEMS)], SMALL, 0)
    assert set(segments.facets[0].words) == {"猫", "t", "shirt", "5", "cups", "c"}
    assert segments.facets[0].gains(["猫", ""]).shape == (2, 6)
