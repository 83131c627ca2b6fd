"""The embedded store: one SQLite file in WAL mode, shared by the processes of a node."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from mmsrarec_ray.errors import ArtefactError
from mmsrarec_ray.serve.store import CALL_SECONDS, Change, Event, Item, StoreUnavailable, missing

_LOG = logging.getLogger("ray.serve")
_VERSION = 2
_EMPTYING_SECONDS = 0.05  # writers wait for so long at a time, while the log waits for its readers
_PAUSE_SECONDS = 0.5
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    user_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    weight REAL,
    request_id TEXT,
    rank INTEGER,
    bundle TEXT
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, kind, timestamp, place);
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    status TEXT NOT NULL,
    title TEXT,
    text TEXT,
    image BLOB,
    image_keywords TEXT NOT NULL DEFAULT '[]',
    text_keywords TEXT NOT NULL DEFAULT '[]',
    error TEXT
);
CREATE INDEX IF NOT EXISTS items_waiting ON items (version) WHERE status = 'waiting';
CREATE TABLE IF NOT EXISTS changes (
    place INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    UNIQUE (kind, id)
);
"""
_EVENT = "event_id, kind, user_id, item_id, timestamp, weight, request_id, rank, bundle"
_ITEM = "item_id, version, status, title, text, image, image_keywords, text_keywords, error"


class SqliteStore:
    """See `store.Store` and `store.open_store`. Raises ArtefactError where the file is of another version,
    StoreUnavailable."""

    def __init__(self, path: str, make: bool = True):
        self.path = path
        self._local, self._log = threading.local(), _Log(path)
        if not make and not Path(path).exists():
            raise missing(f"sqlite://{path}")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with self._write() as made:
            version = made.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not make:
                raise missing(f"sqlite://{path}")
            if version not in (0, _VERSION):
                raise ArtefactError(f"{path}: expected a store of version {_VERSION}, got {version}.")
            for statement in filter(str.strip, _SCHEMA.split(";")):
                made.execute(statement)
            made.execute(f"PRAGMA user_version = {_VERSION}")
        self._log.empty()  # who deleted a user may have died before it was

    def _connection(self) -> sqlite3.Connection:
        """This thread's own."""
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self.path, timeout=CALL_SECONDS, isolation_level=None)
            _use_log(connection)
            connection.execute("PRAGMA synchronous = FULL")  # in WAL mode: the log is on the disk when a commit returns
            connection.execute("PRAGMA secure_delete = ON")  # what a deleted user left is overwritten
            self._local.connection = connection
        return self._local.connection

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Raises StoreUnavailable where the file is locked for too long, or the disk is full or gone."""
        try:
            yield self._connection()
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"the store sqlite://{self.path} does not answer: {error}") from error

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all or nothing. It waits for other writers, not for readers."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite ends it itself where the disk is full
                    connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        with self._connected() as connection:
            return connection.execute(query, values).fetchall()

    def add_events(self, events: Sequence[Event]) -> int:
        values = [tuple(event.row().values()) for event in events]
        with self._write() as connection:
            before = connection.total_changes
            connection.executemany(f"INSERT OR IGNORE INTO events ({_EVENT}) VALUES (?,?,?,?,?,?,?,?,?)", values)
            return connection.total_changes - before

    def history(self, user_id: str, limit: int) -> list[tuple[str, int]]:
        newest = self._rows(
            "SELECT item_id, timestamp FROM events WHERE user_id = ? AND kind = 'interaction' "
            "ORDER BY timestamp DESC, place DESC LIMIT ?",
            (user_id, limit),
        )
        return newest[::-1]

    def events(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, Event]]:
        rows = self._rows(f"SELECT place, {_EVENT} FROM events WHERE place > ? ORDER BY place LIMIT ?", (after, limit))
        return [(row[0], Event(*row[1:])) for row in rows]

    def delete_user(self, user_id: str) -> int:
        with self._write() as connection:
            gone = connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount
            _tell(connection, "user", user_id)
        self._log.empty()  # it holds what is deleted
        return gone

    def put_item(self, item_id: str, title: str | None, text: str | None, image: bytes | None) -> Item:
        with self._write() as connection:
            [known] = connection.execute(f"SELECT {_ITEM} FROM items WHERE item_id = ?", (item_id,)).fetchall() or [
                None
            ]
            if known is not None and (item := _item(known)).holds(title, text, image):
                return item
            version = _tell(connection, "item", item_id)
            connection.execute(
                "INSERT OR REPLACE INTO items (item_id, version, status, title, text, image) VALUES (?,?,?,?,?,?)",
                (item_id, version, "waiting", title, text, image),
            )
        return Item(item_id, version, "waiting", title, text, image)

    def set_keywords(self, item_id: str, version: int, image: Sequence[str], text: Sequence[str]) -> bool:
        return self._settle(item_id, version, "ready", json.dumps(list(image)), json.dumps(list(text)), None)

    def set_failed(self, item_id: str, version: int, error: str) -> bool:
        return self._settle(item_id, version, "failed", "[]", "[]", error)

    def _settle(self, item_id: str, version: int, status: str, image: str, text: str, error: str | None) -> bool:
        with self._write() as connection:
            done = connection.execute(
                "UPDATE items SET status = ?, image_keywords = ?, text_keywords = ?, error = ? "
                "WHERE item_id = ? AND version = ? AND status = 'waiting'",
                (status, image, text, error, item_id, version),
            ).rowcount
            if done:
                _tell(connection, "item", item_id)
        return bool(done)

    def delete_item(self, item_id: str) -> None:
        with self._write() as connection:
            version = _tell(connection, "item", item_id)
            connection.execute(
                "INSERT OR REPLACE INTO items (item_id, version, status) VALUES (?, ?, 'deleted')", (item_id, version)
            )

    def items(self, item_ids: Sequence[str], pictures: bool = True) -> dict[str, Item]:
        columns = _ITEM if pictures else _ITEM.replace("image,", "NULL,")
        query = f"SELECT {columns} FROM items WHERE item_id IN (SELECT value FROM json_each(?))"
        return {row[0]: _item(row) for row in self._rows(query, (json.dumps(list(item_ids)),))}

    def waiting(self, limit: int = 100) -> list[str]:
        rows = self._rows("SELECT item_id FROM items WHERE status = 'waiting' ORDER BY version LIMIT ?", (limit,))
        return [row[0] for row in rows]

    def hidden(self, item_ids: Sequence[str]) -> set[str]:
        rows = self._rows(
            "SELECT item_id FROM items WHERE status != 'ready' AND item_id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(item_ids)),),
        )
        return {row[0] for row in rows}

    def position(self) -> int:
        return self._rows("SELECT coalesce(max(place), 0) FROM changes")[0][0]

    def changes(self, after: int, limit: int = 1_000) -> list[Change]:
        rows = self._rows("SELECT place, kind, id FROM changes WHERE place > ? ORDER BY place LIMIT ?", (after, limit))
        return [Change(*row) for row in rows]

    def check(self) -> None:
        with self._write() as connection:
            connection.execute(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        """Those of other threads are closed when these end."""
        self._log.close()
        self._connection().close()
        del self._local.connection


class _Log:
    """The log of a store. It is emptied in a thread of its own: that has to wait until nobody reads what lies in it,
    and while it waits, writers do too."""

    def __init__(self, path: str):
        self._path, self._guard, self._closed = path, threading.Lock(), threading.Event()
        self._wanted = False
        self._thread: threading.Thread | None = None

    def empty(self) -> None:
        """Soon; what is written meanwhile may stay."""
        with self._guard:
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sqlite-log", daemon=True)
                self._thread.start()

    def close(self) -> None:
        self._closed.set()
        with self._guard:
            thread = self._thread
        if thread:
            thread.join()

    def _work(self) -> None:
        with closing(sqlite3.connect(self._path, timeout=_EMPTYING_SECONDS, isolation_level=None)) as connection:
            while self._next():
                while not self._emptied(connection):
                    if self._closed.wait(_PAUSE_SECONDS):
                        return

    def _next(self) -> bool:
        """Whether there is something to do."""
        with self._guard:
            wanted, self._wanted = self._wanted, False
            if not wanted:
                self._thread = None
            return wanted

    def _emptied(self, connection: sqlite3.Connection) -> bool:
        try:
            [(busy, _, _)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            _LOG.warning("what was deleted from sqlite://%s is still in its log: %s", self._path, error)
            return False
        return not busy


def _use_log(connection: sqlite3.Connection) -> None:
    """WAL mode, which the file keeps. While several make it their own at once, SQLite does not wait for its lock as it
    does elsewhere, but says at once that it is busy."""
    until = time.monotonic() + CALL_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _tell(connection: sqlite3.Connection, kind: str, which: str) -> int:
    """Note a change, in place of the last one of the same: the table never outgrows what it tells of."""
    [(last,)] = connection.execute("SELECT coalesce(max(place), 0) FROM changes")
    place = max(last + 1, time.time_ns() // 1_000_000)
    connection.execute(
        "INSERT INTO changes (place, kind, id) VALUES (?, ?, ?) "
        "ON CONFLICT (kind, id) DO UPDATE SET place = excluded.place",
        (place, kind, which),
    )
    return place


def _item(row: tuple) -> Item:
    values = dict(zip(_ITEM.split(", "), row, strict=True))
    keywords = {name: tuple(json.loads(values[name])) for name in ("image_keywords", "text_keywords")}
    return Item(**values | keywords)
