"""The store on PostgreSQL, shared by the processes of any number of nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

from mmsrarec_ray.addresses import shown
from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.serve.store import CALL_SECONDS, CONNECT_SECONDS, Change, Event, Item, StoreUnavailable, missing

_VERSION = 2
_CONNECTIONS = 8  # of a process, at most
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS mmsrarec;
CREATE TABLE mmsrarec.about (version integer NOT NULL, checked timestamptz);
CREATE SEQUENCE mmsrarec.event_places;
CREATE TABLE mmsrarec.events (
    place bigint PRIMARY KEY,
    event_id text NOT NULL UNIQUE,
    kind text NOT NULL,
    user_id text NOT NULL,
    item_id text NOT NULL,
    timestamp bigint NOT NULL,
    weight double precision,
    request_id text,
    rank bigint,
    bundle text
);
CREATE INDEX ON mmsrarec.events (user_id, kind, timestamp, place);
CREATE TABLE mmsrarec.items (
    item_id text PRIMARY KEY,
    version bigint NOT NULL,
    status text NOT NULL,
    title text,
    text text,
    image bytea,
    image_keywords text[] NOT NULL DEFAULT '{}',
    text_keywords text[] NOT NULL DEFAULT '{}',
    error text
);
CREATE INDEX ON mmsrarec.items (version) WHERE status = 'waiting';
CREATE TABLE mmsrarec.changes (
    place bigint NOT NULL UNIQUE,
    kind text NOT NULL,
    id text NOT NULL,
    PRIMARY KEY (kind, id)
);
"""
_EVENT = "event_id, kind, user_id, item_id, timestamp, weight, request_id, rank, bundle"
_TYPES = ("text", "text", "text", "text", "bigint", "double precision", "text", "bigint", "text")
_ITEM = "item_id, version, status, title, text, image, image_keywords, text_keywords, error"
# Places are given in the order of the batch, and rows are written in that of their ids: two batches with the same
# events in another order would else wait for each other for ever.
_ADD_EVENTS = f"""
WITH placed AS MATERIALIZED (
    SELECT nextval('mmsrarec.event_places') AS place, {_EVENT}
    FROM (
        SELECT * FROM unnest({", ".join(f"%s::{kind}[]" for kind in _TYPES)}) WITH ORDINALITY AS given ({_EVENT}, nth)
        ORDER BY nth
    ) AS batch
)
INSERT INTO mmsrarec.events (place, {_EVENT})
SELECT place, {_EVENT} FROM placed ORDER BY event_id, place
ON CONFLICT (event_id) DO NOTHING
"""
# A transaction that takes the next place may end after one that took a later place; whoever had read up to the later
# one would never see it. So places are taken and read under advisory locks, which a transaction holds to its end.
# Changes are few: their writers go one after the other, and readers need no lock. Events are many: their writers
# share a lock, and a reader of events waits until none of them is under way.
# Places rise with the clock. So a standby that takes over without the last events and changes gives none of their
# places again, which whoever has seen them would take for known; and that of a change tells when somebody was deleted.
# Those of events come from a sequence, which each new connection puts on to the clock before its first event: behind a
# server that has taken over, all connections are new. Writers go on meanwhile, so it must be behind by more than what
# they can take between the look at it and the step.
_NEXT = """
SELECT greatest(coalesce(max(place), 0) + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
FROM mmsrarec.changes
"""
_RISE = """
WITH clock AS MATERIALIZED (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now)
SELECT setval('mmsrarec.event_places', now) FROM mmsrarec.event_places, clock WHERE last_value < now - 1000
"""
_MAKING, _CHANGES, _EVENTS, _RISING = (7_305_800_000 + number for number in range(4))
_DOWN = (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction)
_SESSION = f"""
SELECT set_config('statement_timeout', '{CALL_SECONDS:.0f}s', false),
       set_config('idle_in_transaction_session_timeout', '{CALL_SECONDS:.0f}s', false),
       set_config('synchronous_commit', CASE setting WHEN 'off' THEN 'on' ELSE setting END, false)
FROM current_setting('synchronous_commit') AS setting
"""


class _Connection(psycopg.Connection):
    """One that does not wait for ever: the limits of the server are of no use where the server is stopped or away.

    risen: whether it has put the places of events on to the clock.
    """

    risen = False

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, CALL_SECONDS + 1 if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()  # the answer may still come, and would be taken for that of the next question
            raise


class PostgresStore:
    """See `store.Store` and `store.open_store`. Raises ConfigError where the server does not keep what it accepts,
    ArtefactError where the tables are of another version, StoreUnavailable."""

    def __init__(self, url: str, make: bool = True):
        """url: as PostgreSQL's own programs take it; what it leaves open comes from PGPASSWORD, PGPASSFILE and the
        like."""
        self._name = shown(url)
        try:
            conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # which repeats the address, and so a password
            raise ConfigError(f"serve.store: expected an address of PostgreSQL, got {self._name!r}.") from None
        connecting: dict[str, Any] = {"autocommit": True, "connect_timeout": round(CONNECT_SECONDS)}
        with self._answering(), _Connection.connect(url, **connecting) as connection:  # says why, as the pool does not
            _configure(connection)
            _check_durable(connection, self._name)
            _open(connection, self._name, make)
        self._pool = ConnectionPool(
            url,
            connection_class=_Connection,
            kwargs=connecting,
            min_size=0,
            max_size=_CONNECTIONS,
            open=True,
            configure=_configure,
            check=ConnectionPool.check_connection,
            timeout=CONNECT_SECONDS,
            reconnect_timeout=1.0,  # then the next call tries
            name=self._name,
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except _DOWN as error:
            reason = str(error).strip().splitlines()
            raise StoreUnavailable(f"the store {self._name} does not answer: {': '.join(reason[:1])}") from error

    @contextmanager
    def _connected(self) -> Iterator[_Connection]:
        with self._answering(), self._pool.connection() as connection:
            yield connection

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        with self._connected() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _changing(self) -> Iterator[psycopg.Connection]:
        """A transaction that tells replicas something."""
        with self._connected() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CHANGES,))
            yield connection

    def add_events(self, events: Sequence[Event]) -> int:
        columns = [list(column) for column in zip(*(event.row().values() for event in events), strict=True)]
        if not columns:
            return 0
        with self._connected() as connection:
            _rise(connection)
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (_EVENTS,))
                return connection.execute(_ADD_EVENTS, columns).rowcount

    def history(self, user_id: str, limit: int) -> list[tuple[str, int]]:
        newest = self._rows(
            "SELECT item_id, timestamp FROM mmsrarec.events WHERE user_id = %s AND kind = 'interaction' "
            "ORDER BY timestamp DESC, place DESC LIMIT %s",
            (user_id, limit),
        )
        return newest[::-1]

    def events(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, Event]]:
        query = f"SELECT place, {_EVENT} FROM mmsrarec.events WHERE place > %s ORDER BY place LIMIT %s"
        with self._connected() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_EVENTS,))
            rows = connection.execute(query, (after, limit)).fetchall()
        return [(row[0], Event(*row[1:])) for row in rows]

    def delete_user(self, user_id: str) -> int:
        with self._changing() as connection:
            gone = connection.execute("DELETE FROM mmsrarec.events WHERE user_id = %s", (user_id,)).rowcount
            _tell(connection, "user", user_id)
        return gone

    def put_item(self, item_id: str, title: str | None, text: str | None, image: bytes | None) -> Item:
        with self._changing() as connection:
            known = connection.execute(f"SELECT {_ITEM} FROM mmsrarec.items WHERE item_id = %s", (item_id,)).fetchone()
            if known is not None and (item := _item(known)).holds(title, text, image):
                return item
            version = _tell(connection, "item", item_id)
            _replace(connection, Item(item_id, version, "waiting", title, text, image))
        return Item(item_id, version, "waiting", title, text, image)

    def set_keywords(self, item_id: str, version: int, image: Sequence[str], text: Sequence[str]) -> bool:
        return self._settle(item_id, version, "ready", image, text, None)

    def set_failed(self, item_id: str, version: int, error: str) -> bool:
        return self._settle(item_id, version, "failed", (), (), error)

    def _settle(
        self, item_id: str, version: int, status: str, image: Sequence[str], text: Sequence[str], error: str | None
    ) -> bool:
        with self._changing() as connection:
            done = connection.execute(
                "UPDATE mmsrarec.items SET status = %s, image_keywords = %s::text[], text_keywords = %s::text[], "
                "error = %s WHERE item_id = %s AND version = %s AND status = 'waiting'",
                (status, list(image), list(text), error, item_id, version),
            ).rowcount
            if done:
                _tell(connection, "item", item_id)
        return bool(done)

    def delete_item(self, item_id: str) -> None:
        with self._changing() as connection:
            _replace(connection, Item(item_id, _tell(connection, "item", item_id), "deleted"))

    def items(self, item_ids: Sequence[str], pictures: bool = True) -> dict[str, Item]:
        columns = _ITEM if pictures else _ITEM.replace("image,", "NULL,")
        rows = self._rows(f"SELECT {columns} FROM mmsrarec.items WHERE item_id = ANY(%s)", (list(item_ids),))
        return {row[0]: _item(row) for row in rows}

    def waiting(self, limit: int = 100) -> list[str]:
        rows = self._rows(
            "SELECT item_id FROM mmsrarec.items WHERE status = 'waiting' ORDER BY version LIMIT %s", (limit,)
        )
        return [row[0] for row in rows]

    def hidden(self, item_ids: Sequence[str]) -> set[str]:
        rows = self._rows(
            "SELECT item_id FROM mmsrarec.items WHERE status <> 'ready' AND item_id = ANY(%s)", (list(item_ids),)
        )
        return {row[0] for row in rows}

    def position(self) -> int:
        return self._rows("SELECT coalesce(max(place), 0) FROM mmsrarec.changes")[0][0]

    def changes(self, after: int, limit: int = 1_000) -> list[Change]:
        rows = self._rows(
            "SELECT place, kind, id FROM mmsrarec.changes WHERE place > %s ORDER BY place LIMIT %s", (after, limit)
        )
        return [Change(*row) for row in rows]

    def check(self) -> None:
        with self._connected() as connection:
            connection.execute("UPDATE mmsrarec.about SET checked = clock_timestamp()")

    def close(self) -> None:
        self._pool.close()


def _configure(connection: psycopg.Connection) -> None:
    """What a session must promise, whatever the server's defaults are."""
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # else a lock is waited for with an old view
    connection.execute(_SESSION)


def _check_durable(connection: psycopg.Connection, name: str) -> None:
    """Raises ConfigError where the server may lose what it has committed."""
    for setting in ("fsync", "full_page_writes"):
        row = connection.execute("SELECT current_setting(%s)", (setting,)).fetchone()
        if row != ("on",):
            raise ConfigError(
                f"serve.store: {name} may lose what it accepted: expected its setting {setting} to be on, got off."
            )


def _open(connection: psycopg.Connection, name: str, make: bool) -> None:
    """Make the tables where there are none, or raise ConfigError. Raises ArtefactError where they are of another
    version."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
        if connection.execute("SELECT to_regclass('mmsrarec.about')").fetchone() == (None,):
            if not make:
                raise missing(name)
            connection.execute(_SCHEMA)
            connection.execute("INSERT INTO mmsrarec.about (version) VALUES (%s)", (_VERSION,))
        [version] = connection.execute("SELECT version FROM mmsrarec.about").fetchone() or (None,)
    if version != _VERSION:
        raise ArtefactError(f"{name}: expected a store of version {_VERSION}, got {version}.")


def _rise(connection: _Connection) -> None:
    """Once a connection, one connection after the other; see above."""
    if not connection.risen:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_RISING,))
            connection.execute(_RISE)
        connection.risen = True


def _tell(connection: psycopg.Connection, kind: str, which: str) -> int:
    """Note a change, in place of the last one of the same: the table never outgrows what it tells of."""
    row = connection.execute(
        f"INSERT INTO mmsrarec.changes (place, kind, id) VALUES (({_NEXT}), %s, %s) "
        "ON CONFLICT (kind, id) DO UPDATE SET place = EXCLUDED.place RETURNING place",
        (kind, which),
    ).fetchone()
    assert row is not None
    return row[0]


def _replace(connection: psycopg.Connection, item: Item) -> None:
    connection.execute("DELETE FROM mmsrarec.items WHERE item_id = %s", (item.item_id,))
    connection.execute(
        "INSERT INTO mmsrarec.items (item_id, version, status, title, text, image) VALUES (%s, %s, %s, %s, %s, %s)",
        (item.item_id, item.version, item.status, item.title, item.text, item.image),
    )


def _item(row: tuple) -> Item:
    values = dict(zip(_ITEM.split(", "), row, strict=True))
    return Item(**values | {name: tuple(values[name]) for name in ("image_keywords", "text_keywords")})
