"""The contact sheet: nothing an item says can become markup, and an empty sheet is a sheet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from mmsrarec_ray.config import load
from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.data.schemas import ITEMS, KEYWORDS
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.contact_sheet import HTML, draw, page, write_contact_sheet
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.reuse import Items

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


def test_an_empty_sheet() -> None:
    assert "0 items" in page([])
    assert draw([]).width > 0


def test_a_picture_that_is_no_longer_there_is_left_out(tmp_path: Path) -> None:
    row = {"content_hash": "", "split": "train", "in_core": True}
    gone = row | {"item_id": "a", "title": "Mug", "image_uri": str(tmp_path / "gone.png")}
    broken = row | {"item_id": "b", "title": "Lamp", "image": b"no picture"}
    said = {"image_keywords": ["red"], "text_keywords": [], "content_hash": "", "model": "m", "prompt_version": "1"}
    dataset, out = Folder.at(str(tmp_path / "dataset")), Folder.at(str(tmp_path / "keywords"))
    write_part(dataset / "items", pa.Table.from_pylist([gone, broken], ITEMS), ["item_id"])
    words = [said | {"item_id": item, "tokens": 1} for item in "ab"]
    write_part(out / "items", pa.Table.from_pylist(words, KEYWORDS), ["item_id"])
    write_contact_sheet(
        load(None, ["run=/unused", "data.format=shop"]), Items(dataset, parquet_files(dataset / "items")), out
    )
    html = out.read_bytes(HTML).decode()
    assert html.count("no picture") == 2
    assert "Mug" in html
    assert "Lamp" in html
