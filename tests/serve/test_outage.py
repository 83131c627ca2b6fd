"""Servers of the store that die, stop, start again or keep no promise."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg
import pytest
import redis

from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.serve import postgres as postgres_store
from mmsrarec_ray.serve import redis as redis_store
from mmsrarec_ray.serve import store as stores
from mmsrarec_ray.serve.store import Event, Store, StoreUnavailable, open_store
from tests.databases import PASSWORD, PostgresServer, RedisServer, Server, postgres_server, redis_server
from tests.serve.test_store import event


@pytest.fixture
def address(server: Server, request: pytest.FixtureRequest) -> str:
    if isinstance(server, PostgresServer):
        return server.database(request.node.name.partition("[")[0][-50:])
    assert isinstance(server, RedisServer)
    return server.database(0)


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    with closing(open_store(address)) as opened:
        yield opened


@contextmanager
def killed(server: Server) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


def until_it_answers(store: Store) -> float:
    """Seconds until it did."""
    began = time.monotonic()
    while True:
        try:
            store.check()
        except StoreUnavailable:
            assert time.monotonic() - began < 20
        else:
            return time.monotonic() - began


def test_every_accepted_event_survives_the_kill_of_the_server(server: Server, address: str, store: Store) -> None:
    """Under concurrent writes, twice; what was not accepted is sent again, and counts once."""
    accepted: list[str] = []
    refused: list[Event] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            sent = event(number, user=f"writer-{writer}", event_id=f"{writer}-{number}")
            try:
                store.add_events([sent])
                accepted.append(sent.event_id)
            except StoreUnavailable:
                refused.append(sent)
            number += 1

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        for _ in range(2):
            enough = len(accepted) + 100
            while len(accepted) < enough:
                time.sleep(0.01)
            with killed(server):
                time.sleep(0.2)
        enough = len(accepted) + 20
        while len(accepted) < enough:
            time.sleep(0.01)
        stop.set()
        for each in writers:
            each.result()
    kept = [each.event_id for _, each in store.events(limit=100_000)]
    assert len(kept) == len(set(kept))
    assert set(accepted) <= set(kept)
    assert set(kept) <= set(accepted) | {each.event_id for each in refused}
    store.add_events(refused)
    assert len(store.events(limit=100_000)) == len(accepted) + len(refused)


def test_a_dead_server_is_told_of_in_time_without_its_password(
    server: Server, address: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.add_events([event(1)])
    caplog.set_level(logging.INFO)
    with killed(server):
        for call in (store.position, store.check, lambda: store.add_events([event(2)]), lambda: open_store(address)):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match=rf"the store .*127\.0\.0\.1:{server.port}/") as told:
                call()
            assert time.monotonic() - began < stores.CONNECT_SECONDS + 2
            assert PASSWORD not in str(told.value)
    until_it_answers(store)
    assert [each.event_id for _, each in store.events()] == ["e1"]
    assert PASSWORD not in caplog.text


def test_a_server_that_hangs_is_not_waited_for(server: Server, store: Store) -> None:
    """It takes connections and says nothing. Afterwards nobody gets an answer that was meant for somebody else."""
    store.add_events([event(1)])
    with server.frozen():
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.position()
        assert time.monotonic() - began < stores.CALL_SECONDS + 3
    until_it_answers(store)
    assert (store.position(), store.history("u", 5)) == (0, [("i1", 1_001)])


def test_a_server_that_comes_back_late_is_used_within_seconds(server: Server, store: Store) -> None:
    with killed(server):
        end = time.monotonic() + 4  # longer than the pool tries by itself
        while time.monotonic() < end:
            with pytest.raises(StoreUnavailable):
                store.position()
    assert until_it_answers(store) < 5


def test_a_wrong_password_is_refused_and_not_repeated(server: Server, address: str) -> None:
    wrong = address.replace("s3cret", "s3cret-too")
    assert wrong != address
    with pytest.raises(StoreUnavailable, match=r"the store .* does not answer: .*") as told:
        open_store(wrong)
    assert "s3cret" not in str(told.value)


def test_the_password_may_come_from_the_environment(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    address = postgres.database("by_environment").replace(
        postgres.url, f"postgresql://tester@127.0.0.1:{postgres.port}"
    )
    with pytest.raises(StoreUnavailable, match="no password supplied"):
        open_store(address)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with closing(open_store(address)) as store:
        store.check()


@pytest.mark.parametrize("address", ["postgresql://u:s3cret@h/d?nonsense=1", "redis://u:s3cret@h/0?socket_timeout=x"])
def test_an_address_that_cannot_be_read_is_refused_and_its_password_not_repeated(address: str) -> None:
    with pytest.raises(
        ConfigError, match=r"serve\.store: expected an address of (PostgreSQL|Redis), got '.*h/"
    ) as told:
        open_store(address)
    assert "s3cret" not in str(told.value)


def test_a_store_of_another_version_is_refused(server: Server, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = postgres_store if isinstance(server, PostgresServer) else redis_store
    with monkeypatch.context() as newer:
        newer.setattr(module, "_VERSION", 99)
        open_store(address).close()
    with pytest.raises(ArtefactError, match="expected a store of version 2, got 99"):
        open_store(address)


def test_a_redis_that_may_lose_events_is_refused() -> None:
    said = r"appendfsync to be always, got everysec; maxmemory-policy to be noeviction, got allkeys-lru"
    unsafe = redis_server(appendfsync="everysec", maxmemory_policy="allkeys-lru")
    with unsafe as server, pytest.raises(ConfigError, match=said):
        open_store(server.database(0))


def test_a_redis_that_does_not_let_itself_be_asked_is_refused() -> None:
    said = "does not tell whether it keeps what it accepts"
    with redis_server(rename_command='CONFIG" "') as server, pytest.raises(ConfigError, match=said):
        open_store(server.database(0))


def test_a_redis_with_too_few_replicas_is_unavailable() -> None:
    with redis_server() as server, closing(open_store(server.database(0))) as store:
        with redis.Redis.from_url(server.database(0)) as client:
            client.config_set("min-replicas-to-write", 1)
        for write in (lambda: store.add_events([event(0)]), lambda: store.delete_user("u"), store.check):
            with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
                write()


def test_a_redis_that_no_longer_keeps_what_it_accepts_is_not_ready() -> None:
    with redis_server() as server, closing(open_store(server.database(0))) as store:
        store.check()
        with redis.Redis.from_url(server.database(0)) as client:
            client.config_set("appendfsync", "no")
        with pytest.raises(ConfigError, match="appendfsync to be always, got no"):
            store.check()


def test_a_full_redis_is_unavailable_and_says_why() -> None:
    with redis_server(maxmemory="3mb") as server, closing(open_store(server.database(0))) as store:
        with pytest.raises(StoreUnavailable, match="maxmemory"):  # noqa: PT012 - at which of them is the server's affair
            for number in range(1_000):
                store.add_events([event(number, bundle="x" * 10_000)])
        assert store.history("u", 1)  # it still answers


def test_a_postgres_that_may_lose_events_is_refused() -> None:
    said = "expected its setting fsync to be on, got off"
    with postgres_server("fsync=off") as server, pytest.raises(ConfigError, match=said):
        open_store(server.database("unsafe"))


def test_commits_are_waited_for_whatever_the_server_is_used_to(postgres: PostgresServer) -> None:
    address = postgres.database("asynchronous")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("ALTER DATABASE asynchronous SET synchronous_commit = off")
        connection.execute("ALTER DATABASE asynchronous SET default_transaction_isolation = 'serializable'")
    with closing(open_store(address)) as store:
        assert isinstance(store, postgres_store.PostgresStore)
        with store._connected() as connection, connection.transaction():
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
            assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_several_services_may_make_the_tables_at_once(postgres: PostgresServer) -> None:
    address = postgres.database("at_once")
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(open_store, [address] * 4))
    assert [store.add_events([event(number)]) for number, store in enumerate(stores)] == [1] * 4
    for store in stores:
        assert {each.event_id for _, each in store.events()} == {event(number).event_id for number in range(4)}
        store.close()


def test_what_is_committed_late_is_not_skipped(postgres: PostgresServer) -> None:
    """Two writers have taken their places and wait; a third, who came after them, is done before they are."""
    address = postgres.database("late")
    with closing(open_store(address)) as store, psycopg.connect(address) as other, ThreadPoolExecutor(4) as pool:
        values = "('late', 'interaction', 'u', 'i', 1, 0)"
        other.execute(
            f"INSERT INTO mmsrarec.events (event_id, kind, user_id, item_id, timestamp, place) VALUES {values}"
        )
        other.execute("INSERT INTO mmsrarec.items (item_id, version, status) VALUES ('late', 0, 'ready')")
        slow = event(1, event_id="late"), event(2)  # its id stands in a transaction that is under way
        told, put = pool.submit(store.add_events, slow), pool.submit(store.put_item, "late", "x", None, None)
        _until_blocked(address, 2)
        assert store.add_events([event(3)]) == 1
        read = pool.submit(store.events)
        _until_blocked(address, 3)
        assert store.changes(0) == []
        assert not read.done()
        other.rollback()
        assert told.result() == 2
        assert put.result().title == "x"
        assert [each.event_id for _, each in read.result()] == ["late", "e2", "e3"]
        assert [each.id for each in store.changes(0)] == ["late"]


def _until_blocked(address: str, sessions: int) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    end = time.monotonic() + 5
    with psycopg.connect(address, autocommit=True) as connection:
        while connection.execute(query).fetchone() != (sessions,):
            assert time.monotonic() < end
            time.sleep(0.02)


def test_two_batches_with_the_same_events_do_not_wait_for_each_other_for_ever(postgres: PostgresServer) -> None:
    address = postgres.database("crosswise")
    batch = [event(number) for number in range(400)]
    with closing(open_store(address)) as store, ThreadPoolExecutor(4) as pool:
        for turn in range(5):
            fresh = [event(number, event_id=f"{turn}-{number}") for number in range(len(batch))]
            added = list(pool.map(store.add_events, [fresh, fresh[::-1], fresh, fresh[::-1]]))
            assert sum(added) == len(fresh)
