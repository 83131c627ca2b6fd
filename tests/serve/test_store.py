"""Every store keeps the same promises: what was accepted stays, once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsrarec_ray.addresses import holds_password, shown
from mmsrarec_ray.config import load
from mmsrarec_ray.data.check import content_hash
from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.serve import export
from mmsrarec_ray.serve.contents import Contents
from mmsrarec_ray.serve.feed import Feed
from mmsrarec_ray.serve.sqlite import SqliteStore
from mmsrarec_ray.serve.store import Change, Event, Item, Store, open_store
from tests.databases import PASSWORD
from tests.serve.world import contents

_DATABASES = count()


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/online/store.sqlite"
    server = request.getfixturevalue(request.param)
    return server.database(f"store_{next(_DATABASES)}" if request.param == "postgres" else 0)


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    with closing(open_store(address)) as opened:
        yield opened


def event(number: int, user: str = "u", **more: object) -> Event:
    fields = {"event_id": f"e{number}", "kind": "interaction", "item_id": f"i{number}", "timestamp": 1_000 + number}
    return Event(**fields | {"user_id": user} | more)  # type: ignore[arg-type]


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
    rows = [row for _, row in export.events(store)]
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
    [(place, _), _] = list(export.events(store))
    assert [row["event_id"] for _, row in export.events(store, after=place)] == ["e2"]


def test_a_deleted_user_leaves_nothing_but_that_it_was_deleted(store: Store) -> None:
    store.add_events([event(1), event(2), event(3, user="other")])
    assert store.delete_user("u") == 2
    assert store.history("u", 10) == []
    assert [each.user_id for _, each in store.events()] == ["other"]
    assert store.changes(0) == [Change(store.position(), "user", "u")]


def until_forgotten(folder: Path, user: str) -> None:
    """That a user was deleted is told to replicas: in the table of changes, and its index."""
    end = time.monotonic() + 60
    while True:
        left = b"".join(file.read_bytes() for file in folder.glob("store.sqlite*"))
        assert b"other" in left
        if left.count(user.encode()) <= 2:
            return
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.05)


def test_what_a_deleted_user_did_is_not_in_the_file_any_more(tmp_path: Path) -> None:
    with closing(open_store(f"sqlite://{tmp_path}/online/store.sqlite")) as store:
        store.add_events([event(1, user="somebody-to-forget"), event(2, user="other")])
        store.delete_user("somebody-to-forget")
        store.add_events([event(3, user="other")])
        until_forgotten(tmp_path / "online", "somebody-to-forget")


def test_a_user_is_deleted_beside_a_reader_and_gone_from_the_files_after_it(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with (
        closing(open_store(f"sqlite://{path}")) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
        ThreadPoolExecutor(2) as pool,
    ):
        store.add_events([event(1, user="somebody-to-forget"), event(2, user="other")])
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (2,)
        assert pool.submit(store.delete_user, "somebody-to-forget").result(8) == 1
        assert pool.submit(store.add_events, [event(3, user="other")]).result(8) == 1
        assert b"somebody-to-forget" in path.with_name("store.sqlite-wal").read_bytes()
        reader.execute("ROLLBACK")
        until_forgotten(tmp_path, "somebody-to-forget")


def test_what_is_left_of_a_deleted_user_goes_although_the_process_died(tmp_path: Path) -> None:
    address = f"sqlite://{tmp_path}/store.sqlite"
    script = f"""
import os, sqlite3
from mmsrarec_ray.serve.store import Event, open_store
store = open_store({address!r})
store.add_events([Event(name, "interaction", name, "i", 1) for name in ("somebody-to-forget", "other")])
reader = sqlite3.connect({f"{tmp_path}/store.sqlite"!r}, isolation_level=None)
reader.execute("BEGIN")
reader.execute("SELECT * FROM events").fetchall()
store.delete_user("somebody-to-forget")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert b"somebody-to-forget" in (tmp_path / "store.sqlite-wal").read_bytes()
    with closing(open_store(address)):
        until_forgotten(tmp_path, "somebody-to-forget")


def test_an_item_waits_and_is_ready(store: Store) -> None:
    put = store.put_item("new", "Mug", "red", b"png")
    assert store.waiting() == ["new"]
    assert store.hidden(["new", "of-the-bundle"]) == {"new"}
    before = store.position()
    assert store.set_keywords("new", put.version, ["red"], ["mug", "acme"])
    item = store.items(["new"]).get("new")
    assert item is not None
    assert (item.status, item.image_keywords, item.text_keywords) == ("ready", ("red",), ("mug", "acme"))
    assert (item.title, item.text, item.image) == ("Mug", "red", b"png")
    assert store.waiting() == []
    assert store.hidden(["new"]) == set()
    assert [change.id for change in store.changes(before)] == ["new"]


def test_the_same_content_again_changes_nothing(store: Store) -> None:
    put = store.put_item("new", "Mug", None, b"png")
    assert store.put_item("new", "Mug", None, b"png") == put
    store.set_keywords("new", put.version, ["red"], ["mug"])
    ready, place = store.items(["new"]).get("new"), store.position()
    assert store.put_item("new", "Mug", None, b"png") == ready
    assert (store.items(["new"]).get("new"), store.position(), store.hidden(["new"])) == (ready, place, set())
    for other in (("Mug", "red", b"png"), ("Mug", None, None), ("Cup", None, b"png"), ("Mug", None, b"other")):
        assert store.put_item("new", *other).status == "waiting"
    failed = store.put_item("new", None, "text", None)
    store.set_failed("new", failed.version, "no")
    assert store.put_item("new", None, "text", None).status == "waiting"  # who puts it again wants it tried again
    store.delete_item("new")
    assert store.put_item("new", None, "text", None).status == "waiting"


@pytest.mark.parametrize("address", ["postgres", "redis"], indirect=True)
def test_places_of_events_on_servers_rise_with_the_clock(store: Store, address: str) -> None:
    """One that takes over without the last events does not give their places to others, who goes on after them would
    skip these."""
    places: list[int] = []
    for turn in range(2):
        began = int(time.time() * 1000)
        with closing(open_store(address)) as own:  # as behind a server that has taken over
            own.add_events([event(number) for number in range(10 * turn, 10 * turn + 10)])
        new = [place for place, _ in store.events(places[-1] if places else 0)]
        assert began - 1_000 <= new[0] <= time.time() * 1000 + 1_000
        places += new
        time.sleep(1.5)
    assert places == sorted(set(places))
    assert len(places) == 20
    assert places[10] - places[9] > 1_000


def test_places_of_changes_rise_with_the_clock(store: Store) -> None:
    """A server that takes over without the last changes does not give their places to others."""
    began = int(time.time() * 1000)
    store.delete_user("u")
    first = store.position()
    assert began - 1_000 <= first <= time.time() * 1000 + 1_000
    for number in range(50):
        store.delete_user(f"u{number}")
    places = [change.position for change in store.changes(0)]
    assert len(set(places)) == 51
    assert places == sorted(places)
    assert places[0] == first


def test_keywords_of_an_older_version_are_dropped(store: Store) -> None:
    old = store.put_item("new", "Mug", None, None)
    store.put_item("new", "Lamp", None, None)
    assert not store.set_keywords("new", old.version, [], ["mug"])
    assert not store.set_failed("new", old.version, "no")
    assert store.waiting() == ["new"]
    item = store.items(["new"]).get("new")
    assert item is not None
    assert item.title == "Lamp"


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


def test_a_deleted_users_events_may_be_sent_again(store: Store) -> None:
    store.add_events([event(number, kind=kind) for number, kind in enumerate(("interaction", "impression"))])
    assert store.delete_user("u") == 2
    assert store.delete_user("u") == 0
    assert store.add_events([event(0)]) == 1
    assert store.history("u", 10) == [("i0", 1_000)]


def test_a_user_of_many_events_is_deleted(store: Store) -> None:
    store.add_events([event(number, kind="impression" if number % 3 else "interaction") for number in range(2_500)])
    store.add_events([event(9_999, user="other")])
    assert store.delete_user("u") == 2_500
    assert [each.event_id for _, each in store.events()] == ["e9999"]


def test_texts_and_numbers_come_back_as_they_were(store: Store) -> None:
    told = event(2**53, user="ü: ☃ '", item_id="a:b/c%", timestamp=2**53, weight=0.1, rank=2**53)
    store.add_events([told])
    assert [each for _, each in store.events()] == [told]
    assert store.history("ü: ☃ '", 1) == [("a:b/c%", 2**53)]
    picture = bytes(range(256))
    store.put_item("item:1", "", "line\nline", picture)
    item = store.items(["item:1"]).get("item:1")
    assert item is not None
    assert (item.title, item.text, item.image) == ("", "line\nline", picture)
    assert store.changes(0) == [Change(item.version, "item", "item:1")]


def test_events_and_changes_come_in_pages(store: Store) -> None:
    store.add_events([event(number) for number in range(25)])
    for number in range(25):
        store.delete_user(f"nobody-{number}")
    for page in (store.events, store.changes):
        seen: list = []
        while batch := page(seen[-1] if seen else 0, 10):  # type: ignore[operator]
            assert len(batch) <= 10
            seen += [each[0] if isinstance(each, tuple) else each.position for each in batch]
        assert len(seen) == 25
        assert seen == sorted(set(seen))


def test_an_export_holds_a_page_at_a_time(store: Store) -> None:
    long = "x" * 4_000
    for first in range(0, 6_000, 500):
        store.add_events([event(number, bundle=long) for number in range(first, first + 500)])
    tracemalloc.start()
    try:
        assert sum(1 for _ in export.events(store)) == 6_000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 6_000 * len(long) * 0.75


def test_a_reader_that_was_away_learns_of_all_that_changed(store: Store, address: str) -> None:
    """Of each item and user once, as it is by then, in order; and of what comes later."""
    learnt: list[tuple[str, str]] = []
    with closing(open_store(address)) as own:
        feed = Feed(
            own,
            contents(),
            lambda item, own: learnt.append((item.item_id, item.status)),
            lambda user, moment: learnt.append((user, "")),
        )
        for number in range(250):
            store.put_item(f"i{number}", "x", None, None)
        store.delete_item("i3")
        store.delete_user("u")
        feed.begin()
        assert len(learnt) == 251
        assert learnt[0] == ("i0", "waiting")
        assert learnt[-2:] == [("i3", "deleted"), ("u", "")]
        learnt.clear()
        put = store.put_item("new", "x", None, None)
        store.set_keywords("new", put.version, ["red"], [])
        asyncio.run(feed.catch_up(store.position()))
        assert learnt == [("new", "ready")]


def listening(deleted: list[str]) -> tuple[Callable[[Item, bool], None], Callable[[str, int], None]]:
    """What a feed calls, where users alone are listened to."""
    return lambda item, own: None, lambda user, moment: deleted.append(user)


@pytest.mark.parametrize("pictures", [True, False])
def test_a_reader_is_told_what_its_bundle_was_made_from(store: Store, pictures: bool) -> None:
    """By title, text and picture, and of what is ready alone."""
    ids, picture = ["i0", "i1", "i2", "i3"], b"picture"
    hashes = [content_hash("a mug", None, picture), *(content_hash("a lamp", "of oak", b"") for _ in ids[1:])]
    learnt: list[tuple[str, str, bool]] = []
    bundle = Contents(pa.array(ids), pa.array(hashes))
    feed = Feed(
        store,
        bundle,
        lambda item, own: learnt.append((item.item_id, item.status, own)),
        lambda user, moment: learnt.append((user, "", abs(moment - time.time() * 1000) < 60_000)),
        pictures,
    )

    def put(item_id: str, title: str, text: str | None, image: bytes | None) -> None:
        made = store.put_item(item_id, title, text, image)
        store.set_keywords(item_id, made.version, ["red"], [])

    put("i0", " a mug", "", picture)  # text is cleaned before it is learnt from
    put("i1", "a lamp", "of oak", picture)  # which had none
    put("i2", "a lamp", "of ash", None)
    put("new", "a lamp", "of oak", None)
    store.put_item("i3", "a lamp", "of oak", None)
    feed.begin()
    expected = [("i0", "ready", True), *((item, "ready", False) for item in ("i1", "i2", "new"))]
    assert learnt == [*expected, ("i3", "waiting", False)]
    learnt.clear()
    store.delete_item("i0")
    put("i1", "a lamp", "of oak", None)
    store.delete_user("u")
    asyncio.run(feed.catch_up(store.position()))
    assert learnt == [("i0", "deleted", False), ("i1", "ready", True), ("u", "", True)]


def test_a_reader_far_behind_gets_on_although_nobody_waits_for_long(tmp_path: Path) -> None:
    """Each who asks gives up before a page is read: it is applied all the same."""
    learnt: list[str] = []
    with closing(open_store(f"sqlite://{tmp_path}/store.sqlite")) as store:
        for number in range(250):
            store.delete_user(f"u{number:03}")
        feed, read = Feed(store, contents(), *listening(learnt), pictures=False), store.changes

        def slowly(after: int, limit: int = 1_000) -> list[Change]:
            time.sleep(0.2)
            return read(after, limit)

        store.changes = slowly  # type: ignore[method-assign]

        async def ask() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await feed.catch_up(store.position())

        async def main() -> None:
            for _ in range(40):
                await ask()

        asyncio.run(main())
    assert learnt == [f"u{number:03}" for number in range(250)]


def test_a_change_that_is_made_while_another_reads_is_seen(tmp_path: Path) -> None:
    """The page that is under way was read before it: it is not the last word."""
    learnt: list[str] = []
    with closing(open_store(f"sqlite://{tmp_path}/store.sqlite")) as store:
        feed, read, made = Feed(store, contents(), *listening(learnt)), store.changes, threading.Event()

        def early(after: int, limit: int = 1_000) -> list[Change]:
            found = read(after, limit)
            made.wait(20)
            return found

        store.changes = early  # type: ignore[method-assign]

        async def main() -> None:
            first = asyncio.create_task(feed.catch_up(1))
            await asyncio.sleep(0.2)  # it has looked, and seen nothing
            store.delete_user("u")
            second = asyncio.create_task(feed.catch_up(store.position()))
            await asyncio.sleep(0.2)
            made.set()
            await second
            await first

        asyncio.run(main())
    assert learnt == ["u"]


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    begin = threading.Barrier(6)

    def first(number: int, path: Path) -> int:
        begin.wait()
        with closing(open_store(f"sqlite://{path}")) as own:
            return own.add_events([event(number)])

    with ThreadPoolExecutor(6) as pool:
        for turn in range(20):
            assert sum(pool.map(first, range(6), [tmp_path / f"{turn}.sqlite"] * 6)) == 6


def test_several_writers_lose_nothing(address: str) -> None:
    """As many stores as processes would have; the same events are sent by two of them."""

    def write(first: int) -> int:
        with closing(open_store(address)) as own:
            batches = [[event(number), event(number + 1)] for number in range(first, first + 50)]
            return sum(own.add_events(batch[:: 1 if first else -1]) for batch in batches)

    with ThreadPoolExecutor(6) as pool:
        added = list(pool.map(write, (0, 0, 100, 100, 200, 300)))
    with closing(open_store(address)) as store:
        kept = [each.event_id for _, each in store.events(limit=1_000)]
    assert sum(added) == len(kept) == len(set(kept)) == 4 * 51


def test_readers_that_follow_miss_nothing(address: str) -> None:
    """While several write, whoever reads on from the last place it saw sees every event and every change."""
    written = threading.Event()

    def write(writer: int) -> None:
        with closing(open_store(address)) as own:
            for number in range(40):
                own.add_events([event(1_000 * writer + number), event(1_000 * writer + 500 + number)])
                own.put_item(f"{writer}-{number}", "x", None, None)

    def follow(read: Callable[[Store, int], list[tuple[int, str]]]) -> list[str]:
        seen: list[tuple[int, str]] = []
        with closing(open_store(address)) as own:
            while True:
                last = written.is_set()
                news = read(own, seen[-1][0] if seen else 0)
                seen += news
                if last and not news:
                    return [which for _, which in seen]

    with ThreadPoolExecutor(6) as pool:
        events = pool.submit(follow, lambda own, after: [(at, each.event_id) for at, each in own.events(after)])
        changes = pool.submit(follow, lambda own, after: [(each.position, each.id) for each in own.changes(after)])
        try:
            for each in [pool.submit(write, writer) for writer in range(3)]:
                each.result()
        finally:
            written.set()
        assert sorted(events.result()) == sorted(
            f"e{1_000 * writer + half + number}" for writer in range(3) for half in (0, 500) for number in range(40)
        )
        assert sorted(changes.result()) == sorted(f"{writer}-{number}" for writer in range(3) for number in range(40))


_WRITER = """
import sys
from mmsrarec_ray.serve.store import Event, open_store
store = open_store("env:STORE")
for number in range(100_000):
    store.add_events([Event(f"e{number}", "interaction", "u", "i", number)])
    print(number, flush=True)
"""


def test_an_accepted_event_survives_the_kill_of_its_writer(address: str) -> None:
    environment = os.environ | {"STORE": address}
    writer = subprocess.Popen([sys.executable, "-c", _WRITER], env=environment, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    accepted = [int(writer.stdout.readline()) for _ in range(50)]
    writer.kill()
    accepted += [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    with closing(open_store(address)) as store:
        kept = {each.event_id for _, each in store.events(limit=100_000)}
    assert {f"e{number}" for number in accepted} <= kept
    assert len(kept) <= len(accepted) + 1  # one may have been written and not yet told


@pytest.mark.parametrize("address", ["sqlite://x", "mysql://u:s3cret@here/x", "postgresql://", "nowhere"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(
        ConfigError, match=r"serve\.store: expected 'sqlite:///' and an absolute path, .*, got '"
    ) as told:
        open_store(address)
    assert "s3cret" not in str(told.value)


def test_an_address_may_stand_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE", f"sqlite://{tmp_path}/s")
    open_store("env:STORE").check()
    assert (tmp_path / "s").is_file()
    monkeypatch.setenv("STORE", "")
    with pytest.raises(ConfigError, match=r"serve\.store: expected an address in the environment variable STORE, got"):
        open_store("env:STORE")


def test_an_address_is_shown_without_its_secrets() -> None:
    assert shown("postgresql://me:p@ss/w?rd#@host:5/db?sslmode=require&host=/run") == "postgresql://host:5/db?host=/run"
    assert shown("redis://:pw@host/1?password=x&db=2") == "redis://host/1?db=2"
    assert shown("sqlite:///a/b") == "sqlite:///a/b"
    for address in ("redis://:x@h", "postgresql://u:x@h/d", "postgresql://h/d?password=x"):
        assert holds_password(address)
        with pytest.raises(ConfigError, match=r"serve\.store: must hold no password") as told:
            load(None, ["data.format=shop", "run=/r", f"serve.store={address}"])
        assert ":x@" not in str(told.value)
        assert "=x" not in str(told.value)
    for address in ("redis://h:6379", "postgresql://u@h:5432/d", "sqlite:///a", "env:STORE"):
        assert not holds_password(address)


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    SqliteStore(str(tmp_path / "s"))._connection().execute("PRAGMA user_version = 99")
    with pytest.raises(ArtefactError, match="expected a store of version 2, got 99"):
        SqliteStore(str(tmp_path / "s"))


def test_events_are_exported_as_json_lines(
    store: Store, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("STORE", address)
    store.add_events([event(1), event(2, user="ü\n")])
    out = tmp_path / "events.jsonl"
    assert export.main(["events", "env:STORE", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    places, kept = zip(*export.events(store), strict=True)
    assert rows == list(kept)
    store.add_events([event(3)])
    assert export.main(["events", "env:STORE", str(out), "--after", str(places[-1])]) == 0
    assert [json.loads(line)["event_id"] for line in out.read_text("utf-8").splitlines()] == ["e3"]
    assert export.main(["events", "nowhere", str(out)]) == 2
    assert export.main(["events", address, str(out / "below" / "a file")]) == 2
    assert [each.name for each in tmp_path.glob("events*")] == ["events.jsonl"]
    assert PASSWORD not in "".join(capfd.readouterr())


def test_deletions_are_exported_with_their_moment(store: Store, address: str, tmp_path: Path) -> None:
    """Those that still hold: an item that was put again is none."""
    before = time.time_ns() // 1_000_000
    store.add_events([event(1)])
    for item_id in ("gone", "back", "stays"):
        store.put_item(item_id, "Mug", None, None)
    for number in range(250):  # more than a page
        store.delete_user(f"u{number}")
    store.delete_item("gone")
    store.delete_item("back")
    store.put_item("back", "Mug", None, None)
    store.delete_item("of the bundle")
    out = tmp_path / "deletions.jsonl"
    assert export.main(["deletions", address, str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    told = [(row["kind"], row["id"]) for row in rows]
    assert told == [*(("user", f"u{number}") for number in range(250)), ("item", "gone"), ("item", "of the bundle")]
    moments = [row["timestamp"] for row in rows]
    assert moments == sorted(moments)
    assert before <= moments[0] <= moments[-1] <= time.time_ns() // 1_000_000 + len(rows) + 10


def test_items_are_exported_as_a_table(store: Store, address: str, tmp_path: Path) -> None:
    for number in range(150):  # more than a page
        store.put_item(f"i{number:03}", f"Mug {number}", None, b"png" if number % 2 else None)
    store.delete_item("i000")
    out = tmp_path / "items.parquet"
    assert export.main(["items", address, str(out)]) == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["item_id"] for row in rows] == [f"i{number:03}" for number in range(1, 150)]
    assert rows[:2] == [
        {"item_id": "i001", "title": "Mug 1", "text": None, "image": b"png"},
        {"item_id": "i002", "title": "Mug 2", "text": None, "image": None},
    ]
    with pytest.raises(SystemExit):
        export.main(["items", address, str(out), "--after", "3"])


@pytest.mark.parametrize("what", export.WRITERS)
def test_what_is_no_store_is_not_exported_as_an_empty_one(address: str, tmp_path: Path, what: str) -> None:
    """A mistyped address would replace deletions by none."""
    out = tmp_path / "out"
    out.write_text("of the last export")
    assert export.main([what, address, str(out)]) == 2
    assert out.read_text() == "of the last export"
    assert not (tmp_path / "online" / "store.sqlite").exists()


def test_an_item_that_is_put_again_during_an_export_is_in_it(tmp_path: Path) -> None:
    with closing(open_store(f"sqlite://{tmp_path}/store.sqlite")) as store:
        store.delete_item("z")
        for number in range(20):
            store.put_item(f"i{number:02}", "Mug", None, None)
        pages = export.items(store)
        next(pages)
        store.put_item("z", "Mug", None, None)
        assert "z" in [item.item_id for page in pages for item in page]


def test_items_come_without_pictures_where_nobody_needs_them(store: Store) -> None:
    store.put_item("i", "Mug", "red", b"png")
    [whole], [bare] = store.items(["i", "nobody"]).values(), store.items(["i"], pictures=False).values()
    assert whole.image == b"png"
    assert (bare.title, bare.text, bare.status, bare.image) == ("Mug", "red", "waiting", None)


def test_a_place_is_never_given_twice(store: Store) -> None:
    """Whoever has read up to a place would never see what comes again at it."""
    places = []
    for _ in range(50):
        store.delete_user("u")
        places.append(store.position())
    assert places == sorted(set(places))
