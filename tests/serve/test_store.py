"""The store: what was accepted stays, once, whatever dies."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.serve.export import main
from mmsrarec_ray.serve.sqlite import SqliteStore
from mmsrarec_ray.serve.store import Change, Event, Store, export, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite://{tmp_path}/online/store.sqlite")


def event(number: int, user: str = "u", **more: object) -> Event:
    fields = {"kind": "interaction", "item_id": f"i{number}", "timestamp": 1_000 + number} | more
    return Event(event_id=f"e{number}", user_id=user, **fields)  # type: ignore[arg-type]


def test_an_event_counts_once_however_often_it_is_sent(store: Store) -> None:
    assert store.add_events([event(1), event(2)]) == 2
    assert store.add_events([event(2), event(3), event(3)]) == 1
    assert [each.event_id for _, each in store.events()] == ["e1", "e2", "e3"]


def test_a_history_is_the_newest_interactions_in_order(store: Store) -> None:
    late = event(0, timestamp=5_000)
    store.add_events([late, event(1), event(2), event(3, kind="impression"), event(4, user="somebody else")])
    assert store.history("u", 10) == [("i1", 1_001), ("i2", 1_002), ("i0", 5_000)]
    assert store.history("u", 2) == [("i2", 1_002), ("i0", 5_000)]
    assert store.history("nobody", 10) == []


def test_events_of_the_same_time_keep_the_order_they_came_in(store: Store) -> None:
    store.add_events([event(9, timestamp=7), event(1, timestamp=7)])
    assert [item for item, _ in store.history("u", 10)] == ["i9", "i1"]


def test_exported_rows_have_the_fields_of_the_format(store: Store) -> None:
    shown = event(1, kind="impression", weight=0.5, request_id="r", rank=3, bundle="b")
    store.add_events([shown, event(2)])
    rows = [row for _, row in export(store)]
    assert rows[0] == {
        "event_id": "e1",
        "kind": "impression",
        "user_id": "u",
        "item_id": "i1",
        "timestamp": 1_001,
        "weight": 0.5,
        "request_id": "r",
        "rank": 3,
        "bundle": "b",
    }
    assert rows[1] | {"event_id": "", "item_id": "", "timestamp": 0} == {
        **dict.fromkeys(rows[0], None),
        "event_id": "",
        "kind": "interaction",
        "user_id": "u",
        "item_id": "",
        "timestamp": 0,
    }
    [(place, _), _] = list(export(store))
    assert [row["event_id"] for _, row in export(store, after=place)] == ["e2"]


def test_a_deleted_user_leaves_nothing_but_that_it_was_deleted(store: Store) -> None:
    store.add_events([event(1), event(2), event(3, user="other")])
    assert store.delete_user("u") == 2
    assert store.history("u", 10) == []
    assert [each.user_id for _, each in store.events()] == ["other"]
    assert store.changes(0) == [Change(store.position(), "user", "u")]


def test_what_a_deleted_user_did_is_not_in_the_file_any_more(store: Store, tmp_path: Path) -> None:
    store.add_events([event(1, user="somebody-to-forget"), event(2, user="other")])
    store.delete_user("somebody-to-forget")
    store.add_events([event(3, user="other")])
    left = b"".join(file.read_bytes() for file in (tmp_path / "online").glob("store.sqlite*"))
    assert b"other" in left
    assert left.count(b"somebody-to-forget") <= 2  # that it was deleted is told to replicas: changes, and its index


def test_an_item_waits_and_is_ready(store: Store) -> None:
    put = store.put_item("new", "Mug", "red", b"png")
    assert [each.item_id for each in store.waiting()] == ["new"]
    assert store.hidden(["new", "of-the-bundle"]) == {"new"}
    before = store.position()
    assert store.set_keywords("new", put.version, ["red"], ["mug", "acme"])
    item = store.item("new")
    assert item is not None
    assert (item.status, item.image_keywords, item.text_keywords) == ("ready", ("red",), ("mug", "acme"))
    assert (item.title, item.text, item.image) == ("Mug", "red", b"png")
    assert store.waiting() == []
    assert store.hidden(["new"]) == set()
    assert [change.id for change in store.changes(before)] == ["new"]


def test_keywords_of_an_older_version_are_dropped(store: Store) -> None:
    old = store.put_item("new", "Mug", None, None)
    store.put_item("new", "Lamp", None, None)
    assert not store.set_keywords("new", old.version, [], ["mug"])
    assert not store.set_failed("new", old.version, "no")
    [waiting] = store.waiting()
    assert waiting.title == "Lamp"


def test_a_deleted_item_stays_hidden_until_it_is_put_again(store: Store) -> None:
    store.delete_item("of-the-bundle")
    assert store.hidden(["of-the-bundle", "x"]) == {"of-the-bundle"}
    put = store.put_item("of-the-bundle", "again", None, None)
    store.delete_item("of-the-bundle")
    assert not store.set_keywords("of-the-bundle", put.version, [], ["late"])  # the summary came after the deletion
    assert store.hidden(["of-the-bundle"]) == {"of-the-bundle"}


def test_of_several_changes_of_the_same_the_last_is_told(store: Store) -> None:
    for _ in range(3):
        store.put_item("a", "x", None, None)
    store.delete_user("u")
    store.delete_item("a")
    assert [(change.kind, change.id) for change in store.changes(0)] == [("user", "u"), ("item", "a")]
    assert store.changes(0)[-1].position == store.position()
    assert store.changes(store.position()) == []


def test_several_writers_lose_nothing(store: Store, tmp_path: Path) -> None:
    """As many stores as processes would have, on one file."""

    def write(first: int) -> None:
        own = open_store(f"sqlite://{tmp_path}/online/store.sqlite")
        for number in range(first, first + 25):
            own.add_events([event(number)])

    writers = [threading.Thread(target=write, args=(100 * number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(store.events(limit=1_000)) == 100


_WRITER = """
import sys
from mmsrarec_ray.serve.store import Event, open_store
store = open_store(sys.argv[1])
for number in range(100_000):
    store.add_events([Event(f"e{number}", "interaction", "u", "i", number)])
    print(number, flush=True)
"""


def test_an_accepted_event_survives_the_kill_of_its_writer(store: Store, tmp_path: Path) -> None:
    where = f"sqlite://{tmp_path}/online/store.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, where], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    accepted = [int(writer.stdout.readline()) for _ in range(50)]
    writer.kill()
    accepted += [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    kept = {each.event_id for _, each in open_store(where).events(limit=100_000)}
    assert {f"e{number}" for number in accepted} <= kept
    assert len(kept) <= len(accepted) + 1  # one may have been written and not yet told


def test_other_addresses_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"serve\.store: expected 'sqlite:///' and an absolute path, got 'sqlite://x'"
    ):
        open_store("sqlite://x")


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    SqliteStore(str(tmp_path / "s"))._connection().execute("PRAGMA user_version = 99")
    with pytest.raises(ArtefactError, match="expected a store of version 1 or older, got 99"):
        SqliteStore(str(tmp_path / "s"))


def test_events_are_exported_as_json_lines(store: Store, tmp_path: Path) -> None:
    store.add_events([event(1), event(2, user="ü\n")])
    out = tmp_path / "events.jsonl"
    where = f"sqlite://{tmp_path}/online/store.sqlite"
    assert main([where, str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert rows == [row for _, row in export(store)]
    store.add_events([event(3)])
    assert main([where, str(out), "--after", "2"]) == 0
    assert [json.loads(line)["event_id"] for line in out.read_text("utf-8").splitlines()] == ["e3"]
    assert main(["nowhere", str(out)]) == 2
