"""The importers: tables of every kind, films with posters, MicroLens; the real data where it is at hand."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsrarec_ray.config import load
from mmsrarec_ray.data.images import ImageLimits, UnreadableImage, check_image, load_image
from mmsrarec_ray.data.importers.base import RowError, clean_attribute, clean_id, clean_text
from mmsrarec_ray.data.importers.tables import _milliseconds
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.errors import InputError
from tests.data.conftest import CSV, ITEMS_CSV, Prepared, picture, prepare_folder

JSONL = ("data.items=items.jsonl", "data.interactions=interactions.jsonl", "data.item_columns.image=null")


@pytest.mark.parametrize(("value", "text"), [(" a ", "a"), ("", None), (None, None), (5, "5"), (float("nan"), None)])
def test_clean_text(value: object, text: str | None) -> None:
    assert clean_text(value, "title") == text


@pytest.mark.parametrize("value", [True, b"x", ["x"], {"x": 1}])
def test_what_is_not_text_names_its_field(value: object) -> None:
    with pytest.raises(RowError, match="WrongType: title: expected text"):
        clean_text(value, "title")


def test_ids_are_text_or_whole_numbers() -> None:
    assert clean_id(7, "item_id") == "7"
    with pytest.raises(RowError, match="WrongType: item_id"):
        clean_id(7.0, "item_id")
    with pytest.raises(RowError, match="MissingId: item_id"):
        clean_id("  ", "item_id")


def test_lists_of_attributes_are_joined() -> None:
    assert clean_attribute(["red", None, 5], "colour") == "red|5"
    assert clean_attribute([], "colour") is None


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pa.array([False]), "false"),
        (pa.array([[True, None, False]]), "true|false"),
        (pa.array([Decimal("12.50")], pa.decimal128(6, 2)), "12.50"),
        (pa.array([Decimal("1000000000000000000000")], pa.decimal128(30, 0)), "1000000000000000000000"),
        (pa.array([date(2024, 1, 31)]), "2024-01-31"),
        (pa.array([datetime(2024, 1, 31, 12)], pa.timestamp("us", "UTC")), "2024-01-31T12:00:00+00:00"),
        (pa.array([datetime(2024, 1, 31, 12)], pa.timestamp("ns")), "2024-01-31T12:00:00"),
        (pa.array([None], pa.date32()), None),
    ],
)
def test_attributes_of_every_type_are_text(column: pa.Array, text: str | None) -> None:
    """Values as the rows of a Parquet file have them."""
    assert clean_attribute(column.to_pylist()[0], "made") == text


def test_columns_are_mapped(prepare: Callable[..., Prepared]) -> None:
    items = {"sku": [1, 2], "name": ["One", "Two"], "colours": [["red", "blue"], []], "price": [1.5, None]}
    items |= {"made": [date(2024, 1, 31), None], "new": [False, None]}
    log = pa.table({"who": [7, 7], "what": [2, 1], "when": [datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 1)]})
    done = prepare(
        {"items.parquet": pa.table(items), "interactions.parquet": log},
        *("data.item_columns.item_id=sku", "data.item_columns.title=name", "data.item_columns.text=null"),
        *("data.item_columns.image=null", "data.item_columns.attributes=[colours, price, made, new]"),
        *("data.interaction_columns.user_id=who", "data.interaction_columns.item_id=what"),
        "data.interaction_columns.timestamp=when",
    )
    assert dict(done.item("1")["attributes"]) == {
        "colours": "red|blue",
        "price": "1.5",
        "made": "2024-01-31",
        "new": "false",
    }
    assert done.item("2")["attributes"] == []
    assert done.history("7") == ["1", "2"]
    assert done.rows("interactions")[0]["timestamp"] == 1_704_067_200_000


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("s", "1704067200"),
        ("s", "1704067200.0"),
        ("ms", "1704067200000"),
        ("us", "1704067200000000"),
        ("ns", "1704067200000000000"),
        ("s", "2024-01-01"),
        ("s", "2024-01-01T01:00:00+01:00"),
        ("s", "2024-01-01 00:00:00"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_units_of_time(prepare: Callable[..., Prepared], kind: str, unit: str, value: str) -> None:
    row = {"user_id": "u", "item_id": "a", "timestamp": value if "-" in value else json.loads(value)}
    log = json.dumps(row) if kind == "jsonl" else f"user_id,item_id,timestamp\nu,a,{value}\n"
    settings = (*CSV, f"data.interactions=interactions.{kind}", f"data.timestamp_unit={unit}")
    done = prepare({"items.csv": ITEMS_CSV, f"interactions.{kind}": log}, *settings)
    assert [row["timestamp"] for row in done.rows("interactions")] == [1_704_067_200_000]


def test_without_time_the_order_of_the_rows_counts(prepare: Callable[..., Prepared]) -> None:
    files = {
        "items.csv": ITEMS_CSV,
        "log/2.csv": "user_id,item_id\nu,a\n",
        "log/1.csv": "user_id,item_id\nu,c\nv,a\nu,b\n",
    }
    done = prepare(files, *CSV, "data.interactions=log", "data.interaction_columns.timestamp=null")
    assert done.history("u") == ["c", "b", "a"]
    assert done.metrics["ordered_by"] == "order"


def test_columns_may_have_any_name(prepare: Callable[..., Prepared]) -> None:
    names = ["source", "row", "order", "problem", "json", "line"]
    items = f"item_id,{','.join(names)}\na,{','.join(f'its {name}' for name in names)}\n"
    none = [f"data.item_columns.{name}=null" for name in ("title", "text")]
    attributes = f"data.item_columns.attributes=[{', '.join(names)}]"
    done = prepare({"items.csv": items}, *CSV, "data.interactions=null", *none, attributes)
    assert dict(done.item("a")["attributes"]) == {name: f"its {name}" for name in names}


def test_a_column_named_order_does_not_take_the_place_of_the_order_of_rows(prepare: Callable[..., Prepared]) -> None:
    log = [{"user_id": "u", "item_id": item, "order": order} for item, order in (("c", 7), ("b", 9), ("a", 8))]
    done = prepare(
        {"items.csv": ITEMS_CSV, "log.jsonl": "\n".join(map(json.dumps, log))},
        *(*CSV, "data.interactions=log.jsonl", "data.interaction_columns.timestamp=null"),
        "data.interaction_columns.weight=order",
    )
    assert done.history("u") == ["c", "b", "a"]
    assert [row["weight"] for row in done.rows("interactions")] == [7.0, 9.0, 8.0]


def test_csv_quotes_newlines_and_a_byte_order_mark(prepare: Callable[..., Prepared]) -> None:
    items = (
        '\ufeffitem_id,title,text\r\na,"One, ""two""","first\nsecond"\r\n\r\nb,"bad"quote,x\r\nc,Cup,\r\n,none,x\r\n'
    )
    done = prepare({"items.csv": items}, *CSV, "data.interactions=null")
    assert (done.item("a")["title"], done.item("a")["text"]) == ('One, "two"', "first\nsecond")
    assert {row["row"]: row["error"] for row in done.rows("failures")} == {5: "MalformedRow", 7: "MissingId"}


def test_a_quote_that_never_closes_is_refused(prepare: Callable[..., Prepared]) -> None:
    items = 'item_id,title,text\na,Apple,red\nb,"Bread,brown\nc,Cup,\n'
    with pytest.raises(Exception, match=r"items\.csv: line 3: a quote is opened"):
        prepare({"items.csv": items}, *CSV, "data.interactions=null")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_text_files_packed_with_gzip(prepare: Callable[..., Prepared], ending: str) -> None:
    row = {"item_id": "a", "title": "Äpfel", "text": "red"}
    between = "\t" if ending == "tsv" else ","
    text = json.dumps(row) if ending == "jsonl" else "\n".join(map(between.join, (row, row.values())))
    settings = (*CSV, "data.interactions=null", f"data.items=items.{ending}.gz")
    done = prepare({f"items.{ending}.gz": gzip.compress(text.encode())}, *settings)
    assert done.item("a")["title"] == "Äpfel"


def test_json_lines(prepare: Callable[..., Prepared]) -> None:
    items = '{"item_id": 1, "title": "One", "text": null}\r\n\n{"title": "Two", "item_id": "2", "text": "t"}'
    log = [
        '{"user_id": 5, "item_id": 1, "timestamp": 10.5}',
        '{"user_id": 5, "item_id": [2], "timestamp": 11}',
        '{"user_id": true, "item_id": 2, "timestamp": 11}',
        '{"user_id": 5, "item_id": 2, "timestamp": {}}',
        "{",
        '{"user_id": 5, "item_id": 2, "timestamp": "12"}',
    ]
    done = prepare({"items.jsonl": items, "interactions.jsonl": "\n".join(log)}, *JSONL)
    errors = {row["row"]: row["error"] for row in done.rows("failures")}
    assert errors == {2: "WrongType", 3: "WrongType", 4: "WrongType", 5: "MalformedRow"}
    assert [(row["item_id"], row["timestamp"]) for row in done.rows("interactions")] == [("1", 10_500), ("2", 12_000)]


def test_broken_encoding_in_parquet(prepare: Callable[..., Prepared]) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"\xff\xfe"], pa.binary()).buffers())
    items = pa.table({"item_id": ["a", "b"], "title": broken})
    settings = ("data.item_columns.text=null", "data.item_columns.image=null", "data.interactions=null")
    done = prepare({"items.parquet": items}, *settings)
    assert (done.failure()["row"], done.failure()["error"]) == (2, "BrokenEncoding")
    assert "title" in done.failure()["message"]


def test_a_picture_that_is_decoded_before_its_size_is_known_is_refused() -> None:
    """Within an ICO lies a PNG, which Pillow decodes when it opens it, however large."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "ICO")
    with pytest.raises(UnreadableImage, match="cannot identify image file"):
        check_image(buffer.getvalue(), ImageLimits(10**6, 10**6))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        check_image(picture(8, 8, kind=kind), ImageLimits(10**6, 10**6))


def broken_words() -> pa.Array:
    """Lists of words, the second with one that is not UTF-8."""
    words = pa.Array.from_buffers(pa.string(), 3, pa.array([b"red", b"\xff", b"oak"], pa.binary()).buffers())
    return pa.ListArray.from_arrays([0, 1, 2, 3], words)


def test_broken_encoding_inside_a_list_fails_its_row(prepare: Callable[..., Prepared]) -> None:
    items = pa.table({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "words": broken_words()})
    settings = ("data.item_columns.text=null", "data.item_columns.image=null", "data.interactions=null")
    done = prepare({"items.parquet": items}, *settings, "data.item_columns.attributes=[words]")
    assert (done.failure()["row"], done.failure()["error"]) == (2, "BrokenEncoding")
    assert "words" in done.failure()["message"]
    assert {row["item_id"] for row in done.rows("items")} == {"a", "c"}


def test_a_parquet_file_that_is_broken_further_on_is_named(prepare: Callable[..., Prepared]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"item_id": [f"item {n:05}" for n in range(5_000)], "title": ["A"] * 5_000}), buffer)
    content = bytearray(buffer.getvalue())
    content[200:400] = b"\xff" * 200
    settings = ("data.item_columns.text=null", "data.item_columns.image=null", "data.interactions=null")
    with pytest.raises(Exception, match=r"items\.parquet: rows from 1 on cannot be read: "):
        prepare({"items.parquet": bytes(content)}, *settings)


LEAST = -(2**63)  # what tools write where there is no time


@pytest.mark.parametrize(
    ("times", "unit", "expected"),
    [
        (pa.array([LEAST, -1, 5], pa.int64()), "s", [None, None, 5_000]),
        (pa.array([2**63, 2**64 - 1, 5], pa.uint64()), "s", [None, None, 5_000]),
        (pa.array([LEAST, -999, 5_000], pa.int64()), "us", [None, None, 5]),
        (pa.array([-1, -999_999, 5_000_000], pa.int64()), "ns", [None, None, 5]),
        (pa.array([2**62, -1, 5], pa.timestamp("s")), "ms", [None, None, 5_000]),
        (pa.array([-1, 2**62, 5_000], pa.timestamp("us", "UTC")), "s", [None, None, 5]),
        (pa.array([-1, 2**31 - 1, 1], pa.date32()), "s", [None, None, 86_400_000]),
    ],
)
def test_marks_for_no_time_are_no_time(times: pa.Array, unit: str, expected: list[int | None]) -> None:
    assert _milliseconds(pa.chunked_array([times]), unit).to_pylist() == expected


def test_broken_encoding_among_coded_values_fails_its_row(prepare: Callable[..., Prepared]) -> None:
    words = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"\xff\xfe"], pa.binary()).buffers())
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), words)
    items = pa.table({"item_id": ["a", "b", "c"], "title": coded})
    settings = ("data.item_columns.text=null", "data.item_columns.image=null", "data.interactions=null")
    done = prepare({"items.parquet": items}, *settings)
    assert (done.failure()["row"], done.failure()["error"]) == (2, "BrokenEncoding")
    assert {row["item_id"] for row in done.rows("items")} == {"a", "c"}


def test_a_column_that_cannot_hold_ids_is_refused(prepare: Callable[..., Prepared]) -> None:
    log = pa.table({"user_id": [1.0], "item_id": ["a"], "timestamp": [1]})
    with pytest.raises(Exception, match=r"interactions\.parquet: column user_id: double"):
        prepare({"items.csv": ITEMS_CSV, "interactions.parquet": log}, *CSV, "data.interactions=interactions.parquet")


def test_pictures(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where.png"
    elsewhere.write_bytes(picture(colour="blue"))
    rows = {
        "relative": "pictures/red one.png",
        "file": elsewhere.as_uri(),
        "absolute": str(elsewhere),
        "web": "https://images.example/a.png",
        "missing": "pictures/gone.png",
        "none": "",
        "text": "pictures/no.png",
        "bytes": "pictures/big.bmp",
        "pixels": "pictures/wide.png",
        "folder": "pictures",
        "scheme": "ftp://images.example/a.png",
    }
    files = {
        "items.csv": "item_id,image\n" + "".join(f"{name},{image}\n" for name, image in rows.items()),
        "pictures/red one.png": picture(),
        "pictures/no.png": b"<html>",
        "pictures/big.bmp": picture(200, 200, kind="BMP"),
        "pictures/wide.png": picture(3000, 2),
    }
    done = prepare(
        files,
        *CSV,
        *("data.interactions=null", "data.item_columns.title=null", "data.item_columns.text=null"),
        *("data.item_columns.image=image", "data.max_image_bytes=20000", "data.max_image_pixels=5000"),
    )
    assert {row["id"]: row["error"] for row in done.rows("failures")} == {
        "text": "UnreadableImage",
        "bytes": "ImageTooLarge",
        "pixels": "ImageTooLarge",
        "folder": "UnreadableImage",
        "scheme": "UnreadableImage",
    }
    uris = {item["item_id"]: item["image_uri"] for item in done.rows("items")}
    folder = tmp_path / "one" / "data"
    assert uris == {
        "relative": f"{folder}/pictures/red one.png",
        "file": elsewhere.as_uri(),
        "absolute": str(elsewhere),
        "web": "https://images.example/a.png",
        "missing": None,
        "none": None,
    }
    assert done.metrics["missing_images"] == 2
    assert done.metrics["missing_texts"] == 6
    hashes = {item["item_id"]: item["content_hash"] for item in done.rows("items")}
    assert hashes["file"] == hashes["absolute"]
    assert hashes["missing"] == hashes["none"]
    assert len(set(hashes.values())) == 4


@pytest.mark.parametrize("address", ["https://images.example/a.png", "HTTP://images.example/a.png"])
def test_a_picture_on_the_web_is_none_until_it_is_fetched(address: str) -> None:
    assert load_image({"image": None, "image_uri": address}, ImageLimits(1000, 1000), 10) is None
    assert load_image({"image": picture(), "image_uri": address}, ImageLimits(1000, 1000), 10) is not None


def test_the_content_hash_is_of_the_content(prepare: Callable[..., Prepared]) -> None:
    """Bytes and a reference to the same bytes are the same content; another picture is another."""
    inside = pa.table({"item_id": ["a"], "title": ["A"], "text": ["t"], "image": [picture()]})
    by_path = "item_id,title,text,image\na,A,t,a.png\n"
    settings = ("data.items=items.csv", "data.interactions=null")
    done = [
        prepare({"items.parquet": inside}, "data.interactions=null", under="one"),
        prepare({"items.csv": by_path, "a.png": picture()}, *settings, under="two"),
        prepare({"items.csv": by_path, "a.png": picture(colour="blue")}, *settings, under="three"),
    ]
    hashes = [each.item("a")["content_hash"] for each in done]
    assert hashes[0] == hashes[1] != hashes[2]
    assert done[0].item("a")["image"] == picture()
    assert done[0].item("a")["image_uri"] is None


FILM = {
    "item_id": 1,
    "title": "A Film (1999)",
    "year": 1999,
    "genres": ["Crime", "Drama"],
    "description": "A thief repents.",
    "plot_omdb": "Late, he pays.",
    "director": None,
    "plot_keywords": None,
    "image": "images/1.jpg",
}


def test_movies(prepare: Callable[..., Prepared]) -> None:
    films = [FILM, FILM | {"item_id": 2, "plot_omdb": "thief repents", "image": None, "director": "N. N."}]
    files = {
        "items.jsonl": "\n".join(map(json.dumps, films)),
        "interactions.csv": "user_id,item_id,rating,timestamp\n5,2,10,1362084991\n5,1,7,1362084992\n",
        "images/1.jpg": picture(kind="JPEG"),
    }
    done = prepare(files, "data.format=movies")
    first, second = done.item("1"), done.item("2")
    assert first["text"] == "A thief repents. Late, he pays."
    assert second["text"] == "A thief repents."
    assert dict(first["attributes"]) == {"genres": "Crime|Drama", "year": "1999"}
    assert dict(second["attributes"])["director"] == "N. N."
    assert first["image_uri"].endswith("/data/images/1.jpg")
    assert [(row["item_id"], row["weight"]) for row in done.rows("interactions")] == [("2", 10.0), ("1", 7.0)]


def test_microlens(prepare: Callable[..., Prepared]) -> None:
    files = {
        "titles.csv": 'item,title\n1,"one, first"\n2,two\n3,three\n',
        "pairs.tsv": "\ufeff8\t3 1 2\n9\t2  3 \nno tab\n10\t7 1\n\n11\t\n",
    }
    done = prepare(files, "data.format=microlens")
    assert done.history("8") == ["3", "1", "2"]
    assert done.history("9") == ["2", "3"]
    assert done.history("10") == ["1"]
    assert done.item("1")["title"] == "one, first"
    failed = sorted((row["row"], row["error"], row["id"]) for row in done.rows("failures"))
    assert [(row, error) for row, error, _ in failed] == [(3, "MalformedRow"), (4, "UnknownItem"), (6, "MalformedRow")]
    assert done.counts["interactions_in"] == 9


RELEASE = {
    "MicroLens-50k_titles.csv": "item,title\n1,one\n2,two\n",
    "MicroLens-50k_pairs.csv": "user,item,timestamp\n8,2,1583378629552\n8,1,1583378629551\n9,1,never\n",
    "MicroLens-50k_pairs.tsv": "8\t2 1\n",
    "MicroLens-50k_covers/1.jpg": picture(kind="JPEG"),
}


def test_the_release_of_microlens_has_times_and_covers(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    done = prepare(RELEASE, "data.format=microlens")
    assert done.history("8") == ["1", "2"]
    assert done.rows("interactions")[0]["timestamp"] == 1583378629551
    assert done.failure("interactions")["error"] == "BadTimestamp"
    assert done.item("1")["image_uri"] == f"{tmp_path}/one/data/MicroLens-50k_covers/1.jpg"
    assert done.item("2")["image_uri"] is None
    assert (done.metrics["ordered_by"], done.metrics["missing_images"]) == ("time", 1)


def test_covers_of_microlens_lie_where_the_setting_says(prepare: Callable[..., Prepared]) -> None:
    files = {"titles.csv": "item,title\n1,one\n2,two\n", "pairs.tsv": "8\t1 2\n", "covers/1.jpg": picture()}
    files |= {"my covers/1.jpg": b"no picture", "my covers/2.jpg": picture(colour="blue")}
    done = prepare(files, "data.format=microlens", "data.covers=my covers")
    assert (done.failure()["id"], done.failure()["error"]) == ("1", "UnreadableImage")
    assert done.item("2")["image_uri"].endswith("/my covers/2.jpg")
    assert prepare(files, "data.format=microlens", under="two").item("1")["image_uri"].endswith("/covers/1.jpg")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pairs.tsv": ""}, "expected titles.csv, with any prefix_ before it"),
        ({"titles.csv": ""}, "expected pairs.csv or pairs.tsv"),
        (RELEASE | {"MicroLens-100k_pairs.csv": ""}, "expected one pairs.csv, got MicroLens-100k_pairs.csv, MicroL"),
        ({"titles.csv": "", "pairs.tsv": ""}, "data.covers must be a folder"),
    ],
)
def test_files_of_microlens_that_are_refused(
    prepare: Callable[..., Prepared], files: dict[str, str | bytes], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        prepare(files, "data.format=microlens", "data.covers=gone")


@pytest.mark.parametrize("settings", [("data.items=nowhere.csv",), ("data.items=items.txt",), ("data.items=empty",)])
def test_files_that_are_not_there(tmp_path: Path, settings: tuple[str, ...]) -> None:
    (tmp_path / "data" / "empty").mkdir(parents=True)
    (tmp_path / "data" / "items.txt").write_text("item_id\na\n")
    words = ["data.format=tables", f"data.path={tmp_path}/data", f"run={tmp_path}/run", *settings]
    with pytest.raises(InputError, match=r"data\.items"):
        Prepare(load(None, words)).sources()


def _real(name: str) -> str:
    folder = os.environ.get("MMSRAREC_DATA")
    if not folder:
        pytest.skip("MMSRAREC_DATA is not set: the folder with movies/ and microlens/")
    return str(Path(folder) / name)


def test_the_real_films(ray_session: str, tmp_path: Path) -> None:
    done = prepare_folder(_real("movies"), str(tmp_path), "data.format=movies")
    assert done.counts["items_out"] == 2013
    assert done.counts["interactions_out"] == 61_133
    assert done.metrics["users"] == 4106
    assert done.metrics["missing_images"] == 0


def test_the_core_of_microlens_is_the_papers(ray_session: str, tmp_path: Path) -> None:
    core = ("data.k_core_user=6", "data.k_core_item=5")
    done = prepare_folder(_real("microlens"), str(tmp_path), "data.format=microlens", *core)
    assert done.counts["interactions_in"] == 359_708
    assert (done.metrics["users"], done.metrics["core_items"], done.metrics["items"]) == (25_411, 11_896, 19_220)
