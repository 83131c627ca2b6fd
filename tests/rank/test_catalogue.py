"""The catalogue as the ranker reads it: in the order of ids, whatever it weighs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.data.schemas import ITEMS, KEYWORDS
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.prompts import CandidateForm
from mmsrarec_ray.store import Folder

N = 20


@pytest.fixture
def published(tmp_path: Path) -> tuple[Folder, Folder]:
    """Items in two parts, in no order, and keywords of all but one."""
    dataset, keywords = Folder.at(str(tmp_path / "dataset")), Folder.at(str(tmp_path / "keywords"))
    row = {"content_hash": "", "split": "train", "in_core": True}
    said = {"text_keywords": ["wool"], "content_hash": "", "model": "m", "prompt_version": "1", "tokens": 1}
    order = np.random.default_rng(0).permutation(N).tolist()
    for some in (order[: N // 2], order[N // 2 :]):
        items = [row | {"item_id": f"{n:02}", "title": f"Mug {n}", "text": None, "image": bytes([n])} for n in some]
        write_part(dataset / "items", pa.Table.from_pylist(items, ITEMS), ["item_id"])
    words = [said | {"item_id": f"{n:02}", "image_keywords": [f"no {n}"]} for n in order if n != 3]
    write_part(keywords / "items", pa.Table.from_pylist(words, KEYWORDS), ["item_id"])
    return dataset, keywords


def test_items_stand_in_the_order_of_their_ids(published: tuple[Folder, Folder]) -> None:
    catalogue = Catalogue.read(*published, "image")
    assert catalogue.ids.to_pylist() == [f"{n:02}" for n in range(N)]
    assert catalogue.lines(range(N)) == [f"no {n}, wool" if n != 3 else "" for n in range(N)]
    for n in range(N):
        assert catalogue.item(n) == {"title": f"Mug {n}", "text": None, "image": bytes([n]), "image_uri": None}


def test_titles_need_no_keywords(published: tuple[Folder, Folder]) -> None:
    dataset, keywords = published
    titles = [f"Mug {n}" for n in range(N)]
    for made in (None, keywords):
        assert Catalogue.read(dataset, made, "text", "titles").lines(range(N)) == titles


@pytest.mark.parametrize("form", ["image", "text", "keywords"])
def test_what_is_shown_may_take_more_than_2_gib(published: tuple[Folder, Folder], form: CandidateForm) -> None:
    """A column that is put in order becomes one array: its offsets must have 64 bits."""
    shown = Catalogue.read(*published, form).shown
    assert set(shown.schema.types) <= {pa.large_string(), pa.large_binary()}
    assert shown.num_columns == {"image": 4, "text": 2, "keywords": 0}[form]
