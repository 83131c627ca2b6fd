"""Amazon Reviews 2023: products and reviews as they are shipped, pictures that stay on the web or are fetched."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from mmsrarec_ray.errors import InputError
from tests.conftest import Page, Web
from tests.data.conftest import Prepared, picture
from tests.data.test_prepare import assert_counts_add_up

PRODUCT = {
    "main_category": "All Beauty",
    "title": "Hair Spray",
    "average_rating": 4.8,
    "rating_number": 10,
    "features": ["Holds well", "Vegan"],
    "description": ["For every day."],
    "price": 12.5,
    "images": [
        {"thumb": "https://m.example/b_t.jpg", "large": "https://m.example/b.jpg", "variant": "PT01", "hi_res": None},
        {"thumb": "https://m.example/a_t.jpg", "large": "https://m.example/a.jpg", "variant": "MAIN", "hi_res": None},
    ],
    "videos": [],
    "store": "Howard",
    "categories": ["Hair", "Styling"],
    "details": {
        "Brand": "Howard",
        "Item Weight": 3,
        "Vegan": True,
        "Batteries Required": False,
        "Best Sellers Rank": {"Beauty": 7},
    },
    "parent_asin": "B01",
    "bought_together": None,
}
REVIEW = {
    "rating": 5.0,
    "title": "Good",
    "text": "It holds.",
    "images": [],
    "asin": "B01X",
    "parent_asin": "B01",
    "user_id": "AE1",
    "timestamp": 1588687728923,
    "helpful_vote": 0,
    "verified_purchase": True,
}
BARE = {"images": [], "features": [], "description": [], "price": None, "categories": [], "details": {}, "store": None}


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def test_products_and_reviews(prepare: Callable[..., Prepared]) -> None:
    files = {
        "raw/meta_categories/meta_All_Beauty.jsonl.gz": gzip.compress(
            lines(PRODUCT, BARE | {"parent_asin": "B02", "title": "Comb"}).encode()
        ),
        "raw/review_categories/All_Beauty.jsonl": lines(
            REVIEW, REVIEW | {"parent_asin": "B02", "rating": 1.0, "timestamp": 1588687728000}
        ),
    }
    done = prepare(files, "data.format=amazon")
    spray, comb = done.item("B01"), done.item("B02")
    assert (spray["title"], spray["text"]) == ("Hair Spray", "Holds well Vegan For every day.")
    assert dict(spray["attributes"]) == {
        "Brand": "Howard",
        "Item Weight": "3",
        "Vegan": "true",
        "Batteries Required": "false",
        "main_category": "All Beauty",
        "categories": "Hair|Styling",
        "store": "Howard",
        "price": "12.5",
    }
    assert (spray["image"], spray["image_uri"]) == (None, "https://m.example/a.jpg")
    assert (comb["text"], comb["attributes"], comb["image_uri"]) == (None, [], None)
    assert done.history("AE1") == ["B02", "B01"]
    assert [(row["timestamp"], row["weight"]) for row in done.rows("interactions")] == [
        (1588687728000, 1.0),
        (1588687728923, 5.0),
    ]
    assert (done.metrics["missing_images"], done.metrics["unfetched_images"]) == (1, 1)
    assert_counts_add_up(done.counts)


def test_a_file_of_deletions_is_no_review(prepare: Callable[..., Prepared]) -> None:
    files = {
        "meta_All_Beauty.jsonl": lines(PRODUCT),
        "All_Beauty.jsonl": lines(REVIEW, REVIEW | {"user_id": "AE2"}),
        "deletions.jsonl": lines({"kind": "user", "id": "AE1", "timestamp": 1588687728923}),
    }
    done = prepare(files, "data.format=amazon", "data.deletions=deletions.jsonl")
    assert [row["user_id"] for row in done.rows("users")] == ["AE2"]
    assert_counts_add_up(done.counts)


def test_broken_rows_fail_alone(prepare: Callable[..., Prepared]) -> None:
    products = [
        PRODUCT,
        PRODUCT | {"parent_asin": ""},
        PRODUCT | {"parent_asin": "B03", "images": {"large": ["a"]}},
        PRODUCT | {"parent_asin": "B04", "description": "no list"},
        PRODUCT | {"parent_asin": "B05", "images": [{"large": 5, "variant": ["MAIN"]}, "text"]},
        '{"parent_asin": "B06", "title"',
        PRODUCT,
    ]
    reviews = [
        REVIEW,
        REVIEW | {"parent_asin": "B09"},
        REVIEW | {"user_id": None},
        REVIEW | {"timestamp": "yesterday"},
        REVIEW | {"rating": "five"},
    ]
    done = prepare({"meta_X.jsonl": lines(*products), "X.jsonl": lines(*reviews)}, "data.format=amazon")
    failed = {(row["table"], row["row"]): row["error"] for row in done.rows("failures")}
    assert failed == {
        ("items", 2): "MissingId",
        ("items", 3): "WrongType",
        ("items", 4): "WrongType",
        ("items", 5): "UnreadableImage",
        ("items", 6): "MalformedRow",
        ("items", 7): "DuplicateId",
        ("interactions", 2): "UnknownItem",
        ("interactions", 3): "MissingId",
        ("interactions", 4): "BadTimestamp",
        ("interactions", 5): "BadWeight",
    }
    assert_counts_add_up(done.counts)


@pytest.mark.parametrize("cut", [slice(0, 60), slice(1, None)])
def test_a_damaged_gzip_file_is_refused(prepare: Callable[..., Prepared], cut: slice) -> None:
    packed = gzip.compress(lines(PRODUCT).encode())
    with pytest.raises(Exception, match=r"meta_X\.jsonl\.gz: this is not gzip"):
        prepare({"meta_X.jsonl.gz": packed[cut], "X.jsonl": lines(REVIEW)}, "data.format=amazon")


@pytest.mark.parametrize("name", ["meta_X.jsonl", "X.jsonl"])
def test_both_kinds_of_files_are_needed(prepare: Callable[..., Prepared], name: str) -> None:
    with pytest.raises(InputError, match=r"expected .*jsonl"):
        prepare({name: lines(PRODUCT)}, "data.format=amazon")


FETCH = ("data.format=amazon", "data.fetch.enabled=true", "data.fetch.schemes=[http]")
HERE = "data.fetch.networks=[127.0.0.1/32]"


def shop(addresses: dict[str, str]) -> dict[str, str]:
    """Products with these pictures, and a review of each."""
    products = [
        PRODUCT | {"parent_asin": name, "images": [{"large": address, "variant": "MAIN"}]}
        for name, address in addresses.items()
    ]
    return {
        "meta_X.jsonl": lines(*products, PRODUCT | {"parent_asin": "none", "images": []}),
        "X.jsonl": lines(*(REVIEW | {"parent_asin": name} for name in [*addresses, "none"])),
    }


def test_pictures_are_fetched_on_request(prepare: Callable[..., Prepared], web: Web) -> None:
    red = web.put("/red.png", Page(picture()))
    pages = {
        "html": Page(b"<html>", content_type="text/html"),
        "missing": Page(status=404),
        "large": Page(b"x" * 5001),
        "pixels": Page(picture(3000, 2)),
        "broken": Page(b"no picture"),
        "private": Page(status=302, headers={"Location": "http://169.254.169.254/latest"}),
        "slow": Page(b"x", wait=3.0),
    }
    wrong = {name: web.put(f"/{name}", page) for name, page in pages.items()}
    limits = ("data.max_image_bytes=5000", "data.max_image_pixels=5000", "data.fetch.seconds=1")
    settings = (*FETCH, HERE, *limits, "data.fetch.attempts=1")
    done = prepare(shop({"red": red, "again": red} | wrong), *settings)
    item = done.item("red")
    assert (item["image"], item["image_uri"]) == (picture(), red)
    assert item["content_hash"] == done.item("again")["content_hash"]
    errors = {row["id"]: (row["error"], row["message"]) for row in done.rows("failures") if row["table"] == "items"}
    assert {name: error for name, (error, _) in errors.items()} == {
        "html": "ImageNotFetched",
        "missing": "ImageNotFetched",
        "large": "ImageNotFetched",
        "pixels": "ImageTooLarge",
        "broken": "UnreadableImage",
        "private": "ImageNotFetched",
        "slow": "ImageNotFetched",
    }
    assert errors["missing"][1] == f"image: {wrong['missing']}: expected HTTP status 200, got 404"
    assert web.asked.count("/red.png") == 1
    assert (done.metrics["missing_images"], done.metrics["unfetched_images"]) == (1, 0)
    assert_counts_add_up(done.counts)


def test_this_machine_is_not_asked_unless_allowed(prepare: Callable[..., Prepared], web: Web) -> None:
    done = prepare(shop({"red": web.put("/red.png", Page(picture()))}), *FETCH)
    assert "public address" in done.failure()["message"]
    assert web.asked == []


def test_more_pictures_than_are_held_at_a_time(prepare: Callable[..., Prepared], web: Web) -> None:
    colours = {f"i{n:03}": web.put(f"/{n}.png", Page(picture(colour=f"#0000{n:02x}"))) for n in range(230)}
    done = prepare(shop(colours), *FETCH, HERE, "data.fetch.at_a_time=32")
    assert done.counts["items_out"] == 231
    assert len({item["content_hash"] for item in done.rows("items")}) == 231


def test_a_broken_name_of_a_detail_fails_its_product(prepare: Callable[..., Prepared]) -> None:
    broken = json.dumps(BARE | {"parent_asin": "B02", "title": "Comb", "details": {"NAME": "x"}})
    meta = lines(PRODUCT, broken.replace("NAME", "\\ud83d"))
    files = {
        "raw/meta_categories/meta_All_Beauty.jsonl": meta,
        "raw/review_categories/All_Beauty.jsonl": lines(REVIEW),
    }
    done = prepare(files, "data.format=amazon")
    assert (done.failure()["row"], done.failure()["error"]) == (2, "BrokenEncoding")
    assert [item["item_id"] for item in done.rows("items")] == ["B01"]
