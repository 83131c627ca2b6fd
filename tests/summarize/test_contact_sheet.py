"""The contact sheet: nothing an item says can become markup, and an empty sheet is a sheet."""

from __future__ import annotations

from mmsrarec_ray.summarize.contact_sheet import draw, page

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
