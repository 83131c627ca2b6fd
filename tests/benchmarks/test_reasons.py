"""What is taken out of a prompt, and what else could have been."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.reasons import Prompt, evidence, history_items, keywords, liked, similar_users
from mmsrarec_ray.serve.why import Companion, Why

LINES = ["red, mug", "blue, mug", "red, bag", "oak, lamp"]
PROMPT = Prompt(
    0, ("blue, mug", "red, bag"), ("red, mug", "oak, lamp"), (), "chosen with this history 3, by all users 2"
)
WHY = Why(("red", "mug"), ("red mug",), 1, 5, (Companion("b", "", 4),))


def test_who_likes_its_keywords_is_named_where_a_keyword_is() -> None:
    asked = replace(PROMPT, evidence="chosen with this history 3, for its keywords 4, by all users 2")
    choice = evidence(asked, WHY, [0])
    assert (choice.named, choice.others) == ([0, 1], [2])
    assert evidence(asked, replace(WHY, liked=()), [0]).others == [1, 2]


def test_words_that_are_liked_leave_the_lines_of_segments() -> None:
    asked = replace(PROMPT, liked=("blue, red", "oak, mug"))
    choice = liked(asked, WHY, [0])
    assert choice.without(choice.named).liked == ("blue", "oak")
    assert choice.without(choice.others).liked == ("red", "mug")


def test_keywords_that_are_shared_leave_the_lines_of_the_history() -> None:
    choice = keywords(PROMPT, WHY, [1, 2])
    assert choice.without(choice.named).history == ("blue", "bag")
    assert choice.without(choice.others).history == ("mug", "red")
    assert choice.without([]) == PROMPT


def test_items_that_count_leave_the_history() -> None:
    choice = history_items(["a", "b", "c", "d"])(PROMPT, WHY, [1, 2])
    assert (choice.named, choice.others) == ([0], [1])
    assert choice.without(choice.named).history == ("red, bag",)


def test_the_item_itself_leaves_the_choices_of_similar_users() -> None:
    choice = similar_users(LINES)(PROMPT, WHY, [1, 2])
    assert choice.without(choice.named).neighbours == ("oak, lamp",)
    assert choice.without(choice.others).neighbours == ("red, mug",)


def test_levels_that_are_named_become_0() -> None:
    choice = evidence(PROMPT, WHY, [1, 2])
    assert choice.without(choice.named).evidence == "chosen with this history 0, by all users 2"
    assert choice.without(choice.others).evidence == "chosen with this history 3, by all users 0"
    unnamed = Why((), (), 0, 5, ())
    assert evidence(PROMPT, unnamed, [1, 2]).named == []
    silent = Prompt(0, (), (), (), "")
    assert evidence(silent, WHY, []).others == []
