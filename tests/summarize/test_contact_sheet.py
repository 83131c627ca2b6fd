"""The contact sheet: nothing an item says can become markup, and an empty sheet is a sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.data.parts import to_parquet, write_part
from mmsrarec_ray.data.schemas import ITEMS, KEYWORDS
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.contact_sheet import HTML, draw, page, write_contact_sheet
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.reuse import Items
from tests.data.conftest import picture, spoil_pictures

CARD = {
    "item_id": "a",
    "title": "<script>alert(1)</script>",
    "text": '"><img src=x onerror=alert(1)>' * 20,
    "image_keywords": ["red", "<b>"],
    "text_keywords": ["wool"],
    "model": "m",
    "prompt_version": "1",
    "thumbnail": None,
}


def test_everything_is_escaped() -> None:
    html = page([CARD])
    assert "<script>" not in html
    assert "<img" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "no picture" in html


def test_long_texts_stay_in_their_card() -> None:
    sheet = draw([CARD] * 5)
    assert sheet.size == draw([CARD | {"text": ""}] * 5).size
    right_edge = sheet.crop((sheet.width - 3, 0, sheet.width, sheet.height))
    assert right_edge.getcolors() == [(right_edge.width * right_edge.height, (255, 255, 255))]


@pytest.mark.parametrize("name", ["title", "text"])
def test_a_word_without_end_is_cut(name: str) -> None:
    assert draw([CARD | {name: "x" * 2_000_000}]).size == draw([CARD]).size


def test_an_empty_sheet() -> None:
    assert "0 items" in page([])
    assert draw([]).width > 0


ROW = {"content_hash": "", "split": "train", "in_core": True}
SAID = {"image_keywords": ["red"], "text_keywords": [], "content_hash": "", "model": "m", "prompt_version": "1"}


def write_keywords(folder: Folder, items: list[str]) -> None:
    rows = [SAID | {"item_id": item, "tokens": 1} for item in items]
    write_part(folder / "items", pa.Table.from_pylist(rows, KEYWORDS), ["item_id"])


def sheet_of(dataset: Folder, out: Folder, *settings: str) -> str:
    config = load(None, ["run=/unused", "data.format=shop", *settings])
    write_contact_sheet(config, Items(dataset, parquet_files(dataset / "items")), out)
    return out.read_bytes(HTML).decode()


def test_a_picture_that_is_no_longer_there_is_left_out(tmp_path: Path) -> None:
    gone = ROW | {"item_id": "a", "title": "Mug", "image_uri": str(tmp_path / "gone.png")}
    broken = ROW | {"item_id": "b", "title": "Lamp", "image": b"no picture"}
    dataset, out = Folder.at(str(tmp_path / "dataset")), Folder.at(str(tmp_path / "keywords"))
    write_part(dataset / "items", pa.Table.from_pylist([gone, broken], ITEMS), ["item_id"])
    write_keywords(out, ["a", "b"])
    html = sheet_of(dataset, out)
    assert html.count("no picture") == 2
    assert "Mug" in html
    assert "Lamp" in html


def test_pictures_are_read_of_the_groups_alone_in_which_the_shown_items_lie(tmp_path: Path) -> None:
    """Ids are in no order, neither over the files nor within: of 24 groups two are read."""
    order = np.random.default_rng(0).permutation(96).tolist()
    dataset, out = Folder.at(str(tmp_path / "dataset")), Folder.at(str(tmp_path / "keywords"))
    items = [ROW | {"item_id": f"{n:02}", "title": "Mug" if n else None, "image": picture(width=n + 1)} for n in order]
    for part in (0, 1, 2):
        rows = pa.Table.from_pylist(items[32 * part : 32 * (part + 1)], ITEMS)
        (dataset / "items").write_bytes(f"{part}.parquet", to_parquet(rows, 4))
        places = [order.index(n) - 32 * part for n in (0, 1)]
        spoil_pictures(tmp_path / f"dataset/items/{part}.parquet", {place // 4 for place in places if 0 <= place < 32})
    write_keywords(out, [item["item_id"] for item in sorted(items, key=lambda item: item["item_id"])])
    html = sheet_of(dataset, out, "summarize.contact_sheet_items=2")
    assert html.count("data:image/png") == 2
    assert "<h2>00</h2>" in html  # what has no title
    assert "<h2>Mug</h2>" in html
