"""The contact sheet: pictures, texts and keywords side by side, for people to look at."""

from __future__ import annotations

import base64
import io
from typing import Any

import jinja2
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.images import ImageError, ImageLimits, load_image
from mmsrarec_ray.data.rows import Rows
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.reuse import Items

HTML, PNG = "contact_sheet.html", "contact_sheet.png"
_DRAWN_CHARS = 400  # of a text: more than its lines hold
_THUMBNAIL = 112
_COLUMNS, _CARD_WIDTH, _CARD_HEIGHT, _MARGIN = 4, 400, 136, 12
_INK, _QUIET, _PAPER, _LINE = "#1b1f24", "#59636e", "#ffffff", "#d1d9e0"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Contact sheet</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }
ul { list-style: none; padding: 0 }
li { display: flex; gap: 1rem; border: 1px solid #8884; border-radius: 8px; padding: 1rem; }
img, .none { width: 112px; height: 112px; object-fit: contain; flex: none; background: #8881; border-radius: 4px; }
.none { display: grid; place-items: center; opacity: .6 }
h2 { font-size: 1rem; margin: 0; } p { margin: .3rem 0; } .text { opacity: .75; font-size: .85rem; }
.kw span { display: inline-block; border-radius: 1em; padding: 0 .6em; margin: 0 .2em .2em 0; }
.image span { background: #2da44e33; } .said span { background: #0969da33; }
</style></head><body>
<h1>Contact sheet</h1>
<p>{{ cards|length }} items. <span class="kw image"><span>green</span></span> from the picture,
<span class="kw said"><span>blue</span></span> from the text. Model {{ model }}, prompt {{ prompt }}.</p>
<ul>{% for card in cards %}
<li>{% if card.thumbnail %}<img src="data:image/png;base64,{{ card.thumbnail }}" alt="Picture of {{ card.title }}">
{% else %}<div class="none">no picture</div>{% endif %}
<div><h2>{{ card.title }}</h2>
<p class="kw image">{% for word in card.image_keywords %}<span>{{ word }}</span>{% endfor %}</p>
<p class="kw said">{% for word in card.text_keywords %}<span>{{ word }}</span>{% endfor %}</p>
<p class="text">{{ card.text|truncate(280) }}</p></div></li>{% endfor %}
</ul></body></html>
"""


def write_contact_sheet(config: Config, items: Items, out: Folder) -> None:
    """Write the sheet of the first items of the keyword table, as HTML and as PNG, into `out`."""
    cards = _cards(config, items, out)
    out.write_bytes(HTML, page(cards).encode())
    buffer = io.BytesIO()
    draw(cards).save(buffer, "PNG", optimize=True)
    out.write_bytes(PNG, buffer.getvalue())


def page(cards: list[dict[str, Any]]) -> str:
    """The sheet as HTML, everything escaped. cards: keyword rows with `title`, `text`, `thumbnail` (base64 or None)."""
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    made = cards[0] if cards else {"model": "", "prompt_version": ""}
    return template.render(cards=cards, model=made["model"], prompt=made["prompt_version"])


def _cards(config: Config, items: Items, out: Folder) -> list[dict[str, Any]]:
    """Keyword rows with their item's title, text and thumbnail (base64 of a PNG, or None where it cannot be had)."""
    import pyarrow.parquet as pq

    wanted = config.summarize.contact_sheet_items
    files = parquet_files(out / "items")
    if not files:
        return []
    with out.filesystem.open_input_file(files[0]) as stream:
        batch = next(pq.ParquetFile(stream).iter_batches(batch_size=wanted), None)
    if batch is None:
        return []
    by_id = _find(items, batch["item_id"])
    limits = ImageLimits(config.data.max_image_bytes, config.data.max_image_pixels)
    return [_card(keywords, by_id[keywords["item_id"]], limits) for keywords in batch.to_pylist()]


def _find(items: Items, chosen: pa.Array) -> dict[str, dict[str, Any]]:
    """Rows of these items by id: of pictures, the groups in which they lie are read, and no others."""
    columns = ["item_id", "title", "text", "image", "image_uri"]
    rows = Rows(items.folder.filesystem, _files_of(items, chosen))
    return {item_id: row for item_id in chosen.to_pylist() if (row := rows.find(item_id, columns))}


def _files_of(items: Items, chosen: pa.Array) -> list[str]:
    """The files in which these items lie. Reads ids here, and no further than the last of them: for a column Ray Data
    takes longer to start than this to read."""
    import pyarrow.dataset as ds

    files: list[str] = []
    every = ds.dataset(items.files, filesystem=items.folder.filesystem, format="parquet")
    for batch in every.to_batches(columns=["item_id", "__filename"], filter=ds.field("item_id").isin(chosen)):
        files += batch["__filename"].to_pylist()
        if len(files) == len(chosen):
            break
    return sorted(set(files))


def _card(keywords: dict[str, Any], item: dict[str, Any], limits: ImageLimits) -> dict[str, Any]:
    try:
        picture = load_image(item, limits, _THUMBNAIL)
    except (ImageError, OSError):  # keywords that were taken over outlive their picture
        picture = None
    thumbnail = None
    if picture is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        thumbnail = base64.b64encode(buffer.getvalue()).decode()
    return keywords | {"title": item["title"] or item["item_id"], "text": item["text"] or "", "thumbnail": thumbnail}


def draw(cards: list[dict[str, Any]]) -> Image.Image:
    """The sheet as one picture."""
    height = -(-len(cards) // _COLUMNS) * _CARD_HEIGHT
    sheet = Image.new("RGB", (_COLUMNS * _CARD_WIDTH, max(height, _CARD_HEIGHT)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(cards):
        left, top = number % _COLUMNS * _CARD_WIDTH, number // _COLUMNS * _CARD_HEIGHT
        pen.rectangle((left + 4, top + 4, left + _CARD_WIDTH - 4, top + _CARD_HEIGHT - 4), outline=_LINE)
        if row["thumbnail"]:
            picture = Image.open(io.BytesIO(base64.b64decode(row["thumbnail"])))
            sheet.paste(picture, (left + _MARGIN, top + _MARGIN))
        _write(pen, row, left + _THUMBNAIL + 2 * _MARGIN, top + _MARGIN)
    return sheet


def _write(pen: ImageDraw.ImageDraw, row: dict[str, Any], left: int, top: int) -> None:
    font = ImageFont.load_default(13)
    width = _CARD_WIDTH - _THUMBNAIL - 3 * _MARGIN
    lines = [(_INK, line) for line in _wrap(pen, font, row["title"], width, 2)]
    for label, colour in (("image", "#1a7f37"), ("text", "#0969da")):
        lines += [(colour, line) for line in _wrap(pen, font, ", ".join(row[f"{label}_keywords"]), width, 2)]
    lines += [(_QUIET, line) for line in _wrap(pen, font, row["text"], width, 2)]
    for number, (colour, line) in enumerate(lines):
        pen.text((left, top + 17 * number), line, fill=colour, font=font)


def _wrap(pen: ImageDraw.ImageDraw, font: Any, text: str, width: int, most: int) -> list[str]:
    lines: list[str] = []
    for word in text[:_DRAWN_CHARS].split():  # Pillow refuses very long ones
        if lines and pen.textlength(f"{lines[-1]} {word}", font=font) <= width:
            lines[-1] += f" {word}"
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] += " …"
            break
    return lines
