"""Users and items that were deleted are left out, and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsrarec_ray.data.log import read_log
from mmsrarec_ray.errors import ConfigError, InputError
from mmsrarec_ray.serve import export
from mmsrarec_ray.serve.contents import Contents
from mmsrarec_ray.serve.people import People
from mmsrarec_ray.serve.store import Event, open_store
from tests.data.conftest import CSV, ITEMS_CSV, Prepared, picture, prepare_folder
from tests.data.test_prepare import assert_counts_add_up

LOG = "user_id,item_id,timestamp\nu,a,10\nu,b,20\nu,c,31\nv,a,10\nv,b,20\nw,c,5\n"
SETTINGS = (*CSV, "data.deletions=deletions.jsonl")


def deleted(*rows: tuple[str, str, int]) -> str:
    return "".join(json.dumps({"kind": kind, "id": id, "timestamp": time}) + "\n" for kind, id, time in rows)


def test_what_a_user_did_until_it_was_deleted_is_left_out(prepare: Callable[..., Prepared]) -> None:
    gone = deleted(("user", "u", 20_000), ("user", "u", 30_000), ("user", "w", 30_000), ("user", "nobody", 1))
    done = prepare({"items.csv": ITEMS_CSV, "interactions.csv": LOG, "deletions.jsonl": gone}, *SETTINGS)
    assert done.history("u") == ["c"]
    assert done.history("v") == ["a", "b"]
    assert {row["user_id"] for row in done.rows("users")} == {"u", "v"}
    assert (done.counts["filtered_deleted"], done.counts["items_deleted"]) == (3, 0)
    assert_counts_add_up(done.counts)


def test_a_deleted_item_is_left_out_with_all_its_interactions(prepare: Callable[..., Prepared]) -> None:
    gone = deleted(("item", "a", 1))
    done = prepare({"items.csv": ITEMS_CSV, "interactions.csv": LOG, "deletions.jsonl": gone}, *SETTINGS)
    assert [row["item_id"] for row in done.rows("items")] == ["b", "c"]
    assert (done.history("u"), done.history("v")) == (["b", "c"], ["b"])
    assert (done.counts["filtered_deleted"], done.counts["items_deleted"]) == (2, 1)
    assert done.counts["interactions_failed"] == 0
    assert_counts_add_up(done.counts)


def test_a_row_of_a_deleted_user_that_cannot_be_read_is_in_no_table(prepare: Callable[..., Prepared]) -> None:
    log = LOG + "w,b,who knows\nx,b,who knows\n"
    gone = deleted(("user", "w", 30_000))
    done = prepare({"items.csv": ITEMS_CSV, "interactions.csv": log, "deletions.jsonl": gone}, *SETTINGS)
    assert [row["id"] for row in done.rows("failures")] == ["x"]
    assert done.counts["filtered_deleted"] == 2
    assert_counts_add_up(done.counts)


def test_without_times_all_of_a_user_is_left_out(prepare: Callable[..., Prepared]) -> None:
    files = {"items.csv": ITEMS_CSV, "interactions.csv": LOG, "deletions.jsonl": deleted(("user", "u", 0))}
    done = prepare(files, *SETTINGS, "data.interaction_columns.timestamp=null")
    assert {row["user_id"] for row in done.rows("users")} == {"v", "w"}


def test_the_file_may_be_empty_and_must_be_readable(prepare: Callable[..., Prepared]) -> None:
    files = {"items.csv": ITEMS_CSV, "interactions.csv": LOG}
    with pytest.raises(InputError, match=r"deletions\.jsonl: data\.deletions must be a file of JSON lines"):
        prepare(files, *SETTINGS)
    with pytest.raises(InputError, match=r"below: data\.deletions must be a file of JSON lines"):
        prepare(files | {"below/deletions.jsonl": ""}, *CSV, "data.deletions=below")
    done = prepare(files | {"deletions.jsonl": ""}, *SETTINGS)
    assert (done.counts["filtered_deleted"], done.counts["interactions_out"]) == (0, 6)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "MalformedRow: line: expected a JSON object"),
        ('{"kind": "shop", "id": "a", "timestamp": 1}', "WrongType: kind: expected user or item, got 'shop'"),
        ('{"kind": "user", "timestamp": 1}', "MissingId: id: expected an id, got nothing"),
        ('{"kind": "user", "id": "u"}', "WrongType: timestamp: expected milliseconds since 1970, got None"),
        ('{"kind": "user", "id": "u", "timestamp": "1"}', "WrongType: timestamp: expected milliseconds"),
    ],
)
def test_a_line_that_is_wrong_stops_the_job(prepare: Callable[..., Prepared], line: str, said: str) -> None:
    files = {
        "items.csv": ITEMS_CSV,
        "interactions.csv": LOG,
        "deletions.jsonl": deleted(("user", "u", 1)) + line + "\n",
    }
    with pytest.raises(InputError, match=rf"deletions\.jsonl, row 2: {said}"):
        prepare(files, *SETTINGS)


def test_the_drawn_shop_has_no_folder_for_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.deletions: needs data\.path"):
        prepare_folder("", str(tmp_path), "data.format=shop", "data.path=null", "data.deletions=deletions.jsonl")


def test_what_the_service_learnt_and_forgot_goes_into_the_next_training(tmp_path: Path) -> None:
    """Events, new items and deletions of a store, as they are exported."""
    data = tmp_path / "data"
    (data / "items").mkdir(parents=True)
    catalogue = {"item_id": ["a", "b"], "title": ["Mug", "Lamp"], "text": [None, None], "image": [picture(), None]}
    pq.write_table(pa.table(catalogue), data / "items" / "catalogue.parquet")
    with closing(open_store(f"sqlite://{tmp_path}/store.sqlite")) as store:
        store.put_item("new", "Hat", "Wool", picture(colour="blue"))
        store.put_item("mistake", "Hta", None, None)
        store.delete_item("mistake")
        store.delete_item("b")
        store.add_events([_chosen(number, "u", item) for number, item in enumerate(("a", "b", "new"))])
        (data / "events").mkdir()
        export.write("events", store, data / "events" / "1.jsonl")  # exported before the user was deleted
        store.delete_user("u")
        [place] = [change.position for change in store.changes(0) if change.kind == "user"]
        store.add_events([_chosen(3, "u", "new", place + 1), _chosen(4, "v", "new")])
        export.write("events", store, data / "events" / "2.jsonl")
        assert export.write("items", store, data / "items" / "online.parquet") == "1 items"
        assert export.write("deletions", store, data / "deletions.jsonl") == "3 deletions"
        [new] = store.items(["new"]).values()
    settings = ["data.format=events", "data.items=items", "data.interactions=events", "data.deletions=deletions.jsonl"]
    columns = '{"title": "title", "text": "text", "image": "image"}'
    done = prepare_folder(str(data), str(tmp_path / "run"), *settings, f"data.item_columns={columns}")
    assert {row["item_id"]: row["title"] for row in done.rows("items")} == {"a": "Mug", "new": "Hat"}
    assert done.item("new")["image"] == picture(colour="blue")
    assert (done.history("u"), done.history("v")) == (["new"], ["new"])
    assert (done.counts["filtered_deleted"], done.counts["items_deleted"]) == (3, 1)
    # And a service of what is learnt from it knows that by the same store.
    people, learnt = People(read_log(done.folder)), Contents.read(done.folder)
    assert (people.forget("u", place), people.history("u")) == (None, [1])
    assert [learnt.has(item) for item in (new, replace(new, image=None), replace(new, text="Felt"))] == [
        True,
        False,
        False,
    ]


def _chosen(number: int, user: str, item: str, timestamp: Any = 1_000) -> Event:
    return Event(f"e{number}", "interaction", user, item, timestamp)
