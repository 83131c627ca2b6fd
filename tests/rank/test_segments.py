"""What segments of a recommender know of items: no more than its prompts tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.data.log import Log, Sequences
from mmsrarec_ray.data.parts import to_parquet
from mmsrarec_ray.rank.segments import heard, learn_segments, read_segments, write_segments
from mmsrarec_ray.store import Folder
from tests.rank import world

ITEMS = pa.array(["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("keywords", [["blue", "red"], ["oak", "wool"]]),
        ("image_keywords", [["blue", "red"], []]),
        ("text_keywords", [[], ["oak", "wool"]]),
        ("titles", [[], ["bag", "mug"]]),
    ],
)
def test_segments_know_what_prompts_tell(said: str, words: list[list[str]], tmp_path: Path) -> None:
    table = {"item_id": ITEMS, "title": ["Mug", "Bag", "Mug", "Bag"]}
    dataset, keywords, kept = (Folder.at(str(tmp_path / name)) for name in ("dataset", "keywords", "recommender"))
    (dataset / "items").write_bytes("part-0.parquet", to_parquet(pa.table(table)))
    halves = {"image_keywords": [["red"], ["red"], ["blue"], ["blue"]]}
    halves |= {"text_keywords": [["oak"], ["wool"], ["oak"], ["wool"]]}
    (keywords / "items").write_bytes("part-0.parquet", to_parquet(pa.table({"item_id": ITEMS, **halves})))
    sequences = Sequences.of([[0, 1, 0, 1, 0], [2, 3, 2, 3, 2]] * 20)
    split = np.array([0, 0, 0, 0, 1] * 40, np.uint8)
    log = Log(ITEMS, np.ones(4, bool), pa.array([f"u{n}" for n in range(40)]), sequences, split, False)
    settings = world.config(
        "rank.liked=2", f"rank.said={said}", "methods.segments.count=2", "methods.segments.min_items=1"
    )
    learnt = learn_segments(settings, log, dataset, None if said == "titles" else keywords)
    assert learnt is not None
    assert [facet.words for facet in learnt.whole.facets] == words
    write_segments(learnt, kept)
    read = read_segments(settings, ITEMS, dataset, keywords, kept)
    assert read is not None
    history = [np.array([0, 1])]
    assert read.liked(history, 2) == learnt.liked(history, 2)
    np.testing.assert_array_equal(read.whole.gains, learnt.whole.gains)


def test_a_new_item_is_heard_of_as_the_others() -> None:
    item = "Mug", "red", "oak"
    assert heard("keywords", *item) == ("red", "oak")
    assert heard("image_keywords", *item) == ("red", "")
    assert heard("text_keywords", *item) == ("", "oak")
    assert heard("titles", *item) == ("", "Mug")
