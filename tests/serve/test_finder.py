"""Retrieval for one request, on a world worked out by hand."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.methods.base import Dataset
from mmsrarec_ray.methods.mmsrarec import MmsraRec
from mmsrarec_ray.methods.retrieval import Retrieval
from mmsrarec_ray.rank.evidence import Scale
from mmsrarec_ray.retrieve.index import Moments
from mmsrarec_ray.retrieve.segments import Facet, Segments
from mmsrarec_ray.serve.catalogue import LiveCatalogue
from mmsrarec_ray.serve.finder import Candidate, Finder, Found, Wish
from mmsrarec_ray.serve.keywords import KeywordIndex
from mmsrarec_ray.serve.look import Looker
from mmsrarec_ray.serve.store import Item, Status
from mmsrarec_ray.serve.why import Companion, Evidence
from tests.serve.world import HISTORIES, IDS, WORDS, catalogue, finder

NOW = 1_800_000_000_000


def put(name: str, *keywords: str, status: Status = "ready", title: str = "new") -> Item:
    return Item(name, 1, status, title, "text", None, (), keywords)


def find(world: Finder, *history: str, count: int = 4, **more: object) -> Found:
    return world.find(Wish(None, history, None, count, **more))  # type: ignore[arg-type]


def ids(found: Found) -> list[str]:
    return [each.item_id for each in found.candidates]


def of(found: Found, item: str) -> Candidate:
    return next(each for each in found.candidates if each.item_id == item)


def test_what_similar_users_did_next_comes_first_with_its_evidence() -> None:
    found = find(finder(), "i0", "i1")
    # Three users were at exactly this point: two chose i3, one i2.
    assert ids(found)[:2] == ["i3", "i2"]
    best = of(found, "i3")
    assert (best.source, best.why.similar_users, best.why.of) == ("similar_users", 2, 3)
    assert best.why.history == (Companion("i0", "title i0", 2), Companion("i1", "title i1", 2))
    assert best.why.keywords == ("mug",)
    assert best.title == "title i3"
    assert found.history == ["i0", "i1"]
    assert found.neighbours == ["i2", "i3"]  # the two nearest, equally near: the earlier user first


def test_the_history_is_never_recommended_nor_what_is_excluded() -> None:
    found = find(finder(), "i0", "i1", count=8, exclude=["i3"])
    assert not {"i0", "i1", "i3"} & set(ids(found))


def test_only_items_with_the_keywords_that_are_asked_for_are_found() -> None:
    world = finder()
    assert set(ids(find(world, "i0", "i1", count=8, keywords=["mug"]))) == {"i2", "i3"}
    assert ids(find(world, "i0", "i1", count=8, keywords=["mug", "green"])) == ["i3"]
    assert ids(find(world, "i0", "i1", count=8, keywords=["mug", "nonsense"])) == []
    world.item_changed(put("fresh", "green", "mug", "red"))
    world.item_changed(put("i3", "purple", "mug"))
    assert ids(find(world, "i0", "i1", count=8, keywords=["mug", "green"])) == ["fresh"]


def test_a_known_user_has_the_history_of_the_log_and_is_not_its_own_neighbour() -> None:
    world = finder()
    found = world.find(Wish("dan", [], None, 4))
    assert found.known_user
    assert found.history == ["i4", "i5"]
    assert world.find(Wish("dan", ["i0"], None, 4)).history == ["i4", "i5", "i0"]
    assert not world.find(Wish("eve", ["i0"], None, 4)).known_user


def test_an_unknown_user_gets_what_is_popular() -> None:
    found = find(finder(), count=3)
    assert ids(found) == ["i0", "i1", "i3"]
    assert {each.source for each in found.candidates} == {"popularity"}
    assert found.history == found.neighbours == []


def test_an_item_nobody_touched_is_found_by_its_keywords() -> None:
    found = find(finder(), "i0", "i1")
    cold = of(found, "i6")
    assert (cold.source, cold.why.keywords) == ("keywords", ("red",))
    assert (cold.why.similar_users, cold.why.history) == (0, ())
    assert "i6" not in ids(find(finder("serve.fresh=0"), "i0", "i1", count=3))


def test_a_new_item_is_found_when_it_is_ready_and_not_before() -> None:
    world = finder()
    world.item_changed(put("fresh", "red", "mug", status="waiting"))
    assert "fresh" not in ids(find(world, "i0", "i1"))
    world.item_changed(put("fresh", "red", "mug"))
    assert of(find(world, "i0", "i1"), "fresh").why.keywords == ("red", "mug")
    world.item_changed(put("fresh", status="deleted"))
    assert "fresh" not in ids(find(world, "i0", "i1"))


def test_the_ranker_is_told_who_likes_the_keywords_of_new_items_too() -> None:
    nothing, mugs = (Facet(words, np.ones((1, len(words))), np.zeros(1), np.zeros(1)) for words in ([], ["mug"]))
    liking = Segments([nothing, mugs], [[""] * len(WORDS), WORDS])
    scale = Scale({"popularity": [0.5] * 9, "segments": [2.0] * 9})
    world = finder("rank.evidence=[popularity,segments]", "serve.fresh=2", scale=scale, liking=liking)
    world.item_changed(put("fresh", "red", "mug"))
    world.item_changed(put("i3", "red", "pot"))  # was a mug
    told = {each.item_id: each.evidence for each in find(world, "i0", "i1", count=8).candidates}
    assert find(finder("rank.liked=2", liking=liking), "i0", "i1").liked == ["", ""]  # one segment: all are alike
    assert told["i2"] == "chosen by all users 9, for its keywords 9"
    assert told["i3"] == "chosen by all users 9, for its keywords 0"
    assert told["i4"] == "chosen by all users 9, for its keywords 0"
    assert told["fresh"] == "chosen by all users 0, for its keywords 9"


def test_the_ranker_is_told_of_a_training_user_what_others_chose() -> None:
    world = finder("rank.evidence=[popularity]", scale=Scale({"popularity": [0.5] * 9}))

    def told(user: str | None, *history: str) -> str:
        [found] = world.find(Wish(user, history, ["i2"], 4)).candidates
        return found.evidence

    assert told(None, "i0", "i1") == "chosen by all users 9"
    assert told("ben") == "chosen by all users 9"
    assert told("ann") == "chosen by all users 0"  # nobody else chose it
    world.user_deleted("ann", NOW)
    assert told("ann") == "chosen by all users 9"  # the bundle's counts still have what nobody is known to have chosen


def test_the_evaluation_tells_the_same_of_training_users() -> None:
    kinds = ["popularity", "cooccurrence", "encoder", "moments"]
    scale = Scale({kind: np.linspace(0.1, 2.5, 9).tolist() for kind in kinds})
    world = finder(f"rank.evidence=[{','.join(kinds)}]", "retrieve.voters=3", scale=scale)
    train = Sequences.of(list(HISTORIES.values()))
    queries = Queries(train, np.full(len(train), np.iinfo(np.int64).max))
    retrieval = Retrieval(world.config.methods.retrieval, world.retriever)
    method = MmsraRec(world.config, catalogue(), retrieval, scale, None, None, {})
    method.fit(Dataset(len(IDS), train, Cases(queries, train.items[:0]), np.ones(len(IDS), bool)))
    asked = method.questions(queries, [np.arange(len(IDS))] * len(train))
    for user, expected in zip(HISTORIES, asked.evidence, strict=True):
        found = world.find(Wish(user, [], IDS, len(IDS)))
        assert [of(found, item).evidence for item in IDS] == expected
    assert len({line for lines in asked.evidence for line in lines}) > len(IDS)


def test_keywords_that_users_of_the_same_segments_like_are_a_reason() -> None:
    weights = np.array([[2.0, 0.0], [0.0, 2.0]])
    of_kind = Facet(["mug", "pot"], weights, np.zeros(2), np.log([0.5, 0.5]))
    world = finder("serve.fresh=2", liking=Segments([of_kind], [WORDS]))
    world.item_changed(put("fresh", "blue", "mug"))
    found = {each.item_id: each.why.liked for each in find(world, "i0", "i1", count=8).candidates}
    assert found.pop("fresh") == ("mug",)
    assert len(found) == len(WORDS) - 2
    assert found == {item: ("mug",) if "mug" in WORDS[int(item[1:])] else () for item in found}
    assert of(find(finder(), "i0", "i1"), "i2").why.liked == ()


def test_users_are_counted_not_moments() -> None:
    users, next_items = np.array([0, 0, 0, 1, 2]), np.array([3, 3, 2, 3, 0], np.int32)
    moments = Moments(users, np.ones(5, np.int32), next_items, np.zeros(5, np.int64))
    evidence = Evidence(LiveCatalogue(catalogue()), finder().retriever.cooccurrence, None, [0], moments, np.arange(4))
    assert [(why.similar_users, why.of) for why in evidence.why([3, 2, 0])] == [(2, 2), (1, 2), (0, 2)]
    # Three users were here, each at two moments that are near.
    assert of(find(finder("methods.retrieval.neighbours=6"), "i0", "i1"), "i3").why.of == 3


def test_an_item_of_the_history_is_named_once() -> None:
    found = find(finder("data.drop_repeats=false"), "i0", "i1", "i0")
    assert of(found, "i3").why.history == (Companion("i0", "title i0", 2), Companion("i1", "title i1", 2))


def test_only_what_the_ranker_reads_of_a_history_is_a_reason() -> None:
    best = of(find(finder("retrieve.history=1"), "i0", "i1"), "i3")
    assert best.why.history == (Companion("i1", "title i1", 2),)
    cold = of(find(finder("retrieve.history=1", "serve.fresh=2"), "i0", "i4", count=8), "i6")
    assert cold.why.keywords == ()  # i0 is red too


@pytest.mark.parametrize(("said", "shared"), [("text_keywords", ("mug",)), ("image_keywords", ()), ("titles", ())])
def test_keywords_that_prompts_do_not_tell_are_no_reason(said: str, shared: tuple[str, ...]) -> None:
    world = finder(f"rank.said={said}")
    world.item_changed(put("fresh", "red", "mug"))
    best = of(find(world, "i0", "i1", count=8, keywords=["mug"]), "i3")
    assert (best.keywords, best.why.keywords) == (("green", "mug"), shared)
    assert of(find(world, "i0", "i1", count=8), "fresh").why.keywords == (("red", "mug") if shared else ())


def test_a_history_of_new_items_alone_is_answered_by_keywords() -> None:
    world = finder("serve.fresh=2")
    world.item_changed(put("fresh", "blue", "hat"))
    found = find(world, "fresh", count=4)
    assert found.history == ["fresh"]
    first = of(found, "i5")
    assert (first.source, first.why.keywords) == ("keywords", ("blue", "hat"))
    assert ids(found)[0] == "i5"


def test_a_deleted_item_is_neither_found_nor_named() -> None:
    world = finder()
    world.item_changed(put("i3", status="deleted"))
    world.item_changed(put("i1", status="deleted"))
    found = find(world, "i0", "i1", count=8)
    assert not {"i1", "i3"} & set(ids(found))
    assert found.history == ["i0"]
    assert found.neighbours == []  # what users at this point chose next is i1
    assert all(companion.item_id != "i1" for each in found.candidates for companion in each.why.history)
    asked = world.find(Wish(None, ["i0"], ["i3", "i2"], 1))
    assert (ids(asked), asked.unknown) == (["i2"], ["i3"])


def test_new_content_of_an_item_keeps_what_users_did_with_it() -> None:
    world = finder()
    world.item_changed(put("i3", "purple", title="changed"))
    best = of(find(world, "i0", "i1"), "i3")
    assert (best.title, best.keywords, best.why.similar_users) == ("changed", ("purple",), 2)


def test_a_deleted_user_is_unknown_and_nobodys_neighbour() -> None:
    world = finder()
    world.user_deleted("ann", NOW)
    found = find(world, "i0", "i1")
    assert found.neighbours == ["i3", "i3"]  # the next nearest moment took the place
    assert (of(found, "i3").why.similar_users, of(found, "i3").why.of) == (2, 2)
    gone = world.find(Wish("ann", [], None, 2))
    assert (gone.known_user, gone.history) == (False, [])
    for user in ("ben", "cat", "dan"):
        world.user_deleted(user, NOW)
    assert find(world, "i0", "i1").neighbours == []


def test_who_came_back_before_the_training_is_known() -> None:
    world = finder(since=NOW)
    world.user_deleted("ann", NOW - 1)
    assert world.find(Wish("ann", [], None, 2)).history == ["i0", "i1", "i2"]
    assert find(world, "i0", "i1").neighbours == ["i2", "i3"]
    world.user_deleted("ann", NOW)  # what was done in that moment is left out of a training too
    assert world.find(Wish("ann", [], None, 2)).history == []
    assert find(world, "i0", "i1").neighbours == ["i3", "i3"]


def test_an_item_that_the_bundle_was_made_from_is_as_the_bundle_has_it() -> None:
    world = finder()
    plain = find(world, "i0", "i1", count=8)
    world.item_changed(put("i3", "purple", title="title i3"), own=True)
    assert find(world, "i0", "i1", count=8) == plain
    for other in (put("i3", "purple", title="changed"), put("i3", status="deleted"), put("i3", status="waiting")):
        world.item_changed(other)
        assert find(world, "i0", "i1", count=8) != plain
        world.item_changed(put("i3", "purple", title="title i3"), own=True)
        assert find(world, "i0", "i1", count=8) == plain
        assert ids(find(world, "i0", "i1", count=8, keywords=["green"])) == ["i3"]


def test_candidates_that_are_given_are_ranked_and_nothing_else() -> None:
    found = finder().find(Wish(None, ["i0", "i1"], ["i2", "nonsense", "i3", "i2", "i0"], 1))
    assert ids(found) == ["i3", "i2", "i0"]
    assert found.unknown == ["nonsense"]


def test_given_candidates_are_left_out_where_they_are_excluded_or_lack_the_keywords() -> None:
    world, given = finder(), ["i2", "nonsense", "i3", "i4"]
    excluded = world.find(Wish(None, ["i0"], given, 1, exclude=["i3", "absent"]))
    assert (set(ids(excluded)), excluded.unknown) == ({"i2", "i4"}, ["nonsense"])
    blue = world.find(Wish(None, ["i0"], given, 1, keywords=["blue"]))
    assert (set(ids(blue)), blue.unknown) == ({"i2", "i4"}, ["nonsense"])
    assert ids(world.find(Wish(None, ["i0"], given, 1, exclude=["i4"], keywords=["blue"]))) == ["i2"]


def test_repeats_count_where_the_dataset_holds_them() -> None:
    again = ["i0", "i1", "i0"]
    assert find(finder(), *again).history == ["i0", "i1"]
    assert find(finder("data.drop_repeats=false"), *again).history == again


def test_what_a_training_has_learnt_of_the_store_is_not_counted_twice() -> None:
    """Events stay in the store when they have been exported: the log of the next bundle ends with them."""
    world = finder("data.drop_repeats=false")
    assert world.history("ann", ["i1", "i2", "i4"]) == [0, 1, 2, 4]
    assert world.history("ann", ["i4", "i2"]) == [0, 1, 2, 4, 2]
    assert world.history("ann", []) == [0, 1, 2]


def test_what_a_training_could_not_learn_does_not_hide_what_it_has_learnt() -> None:
    world = finder("data.drop_repeats=false", outside=[6])
    world.item_changed(put("fresh"))
    world.item_changed(put("gone"))
    world.item_changed(put("gone", status="deleted"))
    fresh = world.catalogue.number("fresh")
    assert world.history("ann", ["i1", "gone", "i2", "i4"]) == [0, 1, 2, 4]
    assert world.history("ann", ["i1", "i6", "absent", "i2", "fresh", "i4"]) == [0, 1, 6, 2, fresh, 4]
    world.item_changed(put("i1", status="deleted"))  # which the log has
    assert world.history("ann", ["i0", "i1", "i2", "i4"]) == [0, 2, 4]


def test_only_the_newest_items_of_a_long_history_count() -> None:
    world = finder("serve.limits.history=2")
    assert world.history("ann", ["i5"]) == [2, 5]


@pytest.mark.parametrize("item", IDS)
def test_numbers_and_ids_fit(item: str) -> None:
    live = LiveCatalogue(catalogue())
    number = live.number(item)
    assert number is not None
    assert live.id(number) == item
    assert live.lines([number]) == [WORDS[number]]
    assert live.number(item + "x") is None
    assert live.number("") is None


def test_cosines_of_keywords() -> None:
    index = KeywordIndex(["a, b", "a", "c", ""])
    [first, second, third, none] = index.cosines(index.profile([("a, b", 1.0)]))
    assert first == pytest.approx(1)
    assert 0 < second < 1
    assert third == none == 0
    index.put(4, "b, z")
    rare, common = index.cosines(index.profile([("b", 1.0)]))[[4, 0]]
    assert 0 < rare < common
    assert not index.cosines(index.profile([])).any()
    assert np.isfinite(index.cosines(index.profile([("q", 1.0)]))).all()


def test_keywords_that_are_put_later_count_as_those_of_the_beginning() -> None:
    lines = ["a, b", "c", "", "a", "b, c", "c, a"]
    whole, grown = KeywordIndex(lines), KeywordIndex(["a, b", "b", "c", "c"])
    grown._weight, grown._rarest = whole._weight, whole._rarest  # they stay as they were at first
    for number, line in [(4, "a"), (5, "b, z"), (1, "z"), *enumerate(lines)]:
        grown.put(number, line)
    for profile in ({"a": 1.0, "c": 0.5}, {"b": 2.0, "z": 1.0}, {}):
        assert grown.cosines(profile).tolist() == pytest.approx(whole.cosines(profile).tolist())
    for words in (["a"], ["a", "b"], ["c"], ["z"], []):
        assert grown.holding(words).tolist() == whole.holding(words).tolist()


def test_a_request_does_not_look_at_each_item_that_was_put() -> None:
    """Counted in calls of functions."""
    world, counts = finder(), []
    for batch in range(3):
        for number in range(100):
            world.item_changed(put(f"new-{batch}-{number}", "oak", f"word {number}"))
            world.item_changed(put(f"never-{batch}-{number}", status="deleted"))
        calls: Counter[str] = Counter()
        sys.setprofile(lambda frame, event, argument, calls=calls: calls.update([event]))
        try:
            found = find(world, "i0", "i1", keywords=["mug"])
        finally:
            sys.setprofile(None)
        assert ids(found) == ["i3", "i2"]
        counts.append(calls["call"] + calls["c_call"])
    assert counts[1] == counts[2]  # whatever a first request fills stays
    assert len(world.catalogue) == len(WORDS) + 300  # what was deleted before anybody knew it is not kept


def test_items_are_found_by_words_new_ones_first() -> None:
    world = finder()
    world.item_changed(put("fresh", "red"))
    look = Looker(world)
    found, total = look.items("RED", 0, 10)
    assert [each.item_id for each in found] == ["fresh", "i0", "i1", "i6"]
    assert total == 4
    assert [each.item_id for each in look.items("", 1, 2)[0]] == ["i0", "i1"]
    assert [each.item_id for each in look.items("title mug", 0, 9)[0]] == ["i0", "i2", "i3"]
    world.item_changed(put("fresh", status="deleted"))
    assert look.item("fresh") is None
    assert [each.item_id for each in look.user("ann", ["i5"]).history] == ["i5", "i2", "i1", "i0"]
