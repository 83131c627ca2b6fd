"""What happens while the service runs: events, items put and deleted, users deleted. The interface of every store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from mmsrarec_ray.addresses import shown
from mmsrarec_ray.errors import ConfigError

CALL_SECONDS = 10.0
"""No question to a server takes longer, whatever the server does."""
CONNECT_SECONDS = 3.0
"""Nor does the wait for a connection."""
_FILES = ("sqlite",)
_SERVERS = ("postgresql", "redis", "rediss")
_VARIABLE = "env:"
_PAGE = 100  # changes at a time
_WITH_PICTURES = 5  # where each item comes with its picture: a page has to travel within `CALL_SECONDS`

Kind = Literal["interaction", "impression"]
Status = Literal["waiting", "ready", "failed", "deleted"]


@dataclass(frozen=True)
class Event:
    """Something a user did (an interaction) or was shown (an impression).

    timestamp: milliseconds since 1970; request_id, rank, bundle: of the recommendation it came from.
    """

    event_id: str
    kind: Kind
    user_id: str
    item_id: str
    timestamp: int
    weight: float | None = None
    request_id: str | None = None
    rank: int | None = None
    bundle: str | None = None

    def row(self) -> dict[str, Any]:
        """As it is exported."""
        return asdict(self)


@dataclass(frozen=True)
class Item:
    """An item that was put while the service runs. version: grows with each change of it."""

    item_id: str
    version: int
    status: Status
    title: str | None = None
    text: str | None = None
    image: bytes | None = None
    image_keywords: tuple[str, ...] = ()
    text_keywords: tuple[str, ...] = ()
    error: str | None = None

    def holds(self, title: str | None, text: str | None, image: bytes | None) -> bool:
        """Whether it has this content, and has keywords for it or waits for them."""
        return self.status in ("ready", "waiting") and (self.title, self.text, self.image) == (title, text, image)


@dataclass(frozen=True)
class Change:
    """Something replicas must learn of: an item or a user changed. Of several changes of the same, the last is told.

    position: milliseconds since 1970 when it was made, or a little later: positions are never given twice, and rise.
    """

    position: int
    kind: Literal["item", "user"]
    id: str


class StoreUnavailable(Exception):
    """The store does not answer, or takes no writes at the moment. What was accepted is kept; whether the call that
    raised this was, nobody knows: it may be repeated."""


class Store(Protocol):
    """Durable when a call returns: what was accepted survives the end of any process.

    Calls block, each question for `CONNECT_SECONDS` and `CALL_SECONDS` at most, and raise StoreUnavailable. One store
    may be used by several threads.
    """

    def add_events(self, events: Sequence[Event]) -> int:
        """Keep events whose id is new; returns how many were."""

    def history(self, user_id: str, limit: int) -> list[tuple[str, int]]:
        """(item_id, timestamp) of a user's newest interactions, the oldest first."""

    def events(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, Event]]:
        """Events with their place, in the order they were accepted."""

    def delete_user(self, user_id: str) -> int:
        """Forget a user's events, and remember to leave the user out of the bundle; returns how many events went."""

    def put_item(self, item_id: str, title: str | None, text: str | None, image: bytes | None) -> Item:
        """A new item, or new content of one: it waits for keywords. One with the same content stays as it is."""

    def set_keywords(self, item_id: str, version: int, image: Sequence[str], text: Sequence[str]) -> bool:
        """The item is ready, unless it has changed since that version; returns whether it is."""

    def set_failed(self, item_id: str, version: int, error: str) -> bool:
        """It could not be summarised; as above."""

    def delete_item(self, item_id: str) -> None:
        """From now on it may never be shown, whether the store or the bundle has it."""

    def items(self, item_ids: Sequence[str], pictures: bool = True) -> dict[str, Item]:
        """By id, without those that were never put or deleted here. pictures: false to do without `image`, which is
        most of what has to travel."""

    def waiting(self, limit: int = 100) -> list[str]:
        """Ids of items without keywords, the longest waiting first."""

    def hidden(self, item_ids: Sequence[str]) -> set[str]:
        """Which of these must not be shown: deleted, waiting or failed."""

    def position(self) -> int:
        """The place of the last change."""

    def changes(self, after: int, limit: int = 1_000) -> list[Change]:
        """What changed since, in order."""

    def check(self) -> None:
        """Write something. Raises where the store cannot be written."""

    def close(self) -> None:
        """Give back its connections; it is not used afterwards."""


def open_store(address: str, make: bool = True) -> Store:
    """The store at an address (see `resolved`). make: where there is none.

    Raises ConfigError as `resolved`, where a server does not keep what it accepts, and where there is no store and none
    is to be made; ArtefactError where the store is of another version; StoreUnavailable.
    """
    url = resolved(address)
    scheme, _, path = url.partition("://")
    if scheme == "sqlite":
        from mmsrarec_ray.serve.sqlite import SqliteStore

        return SqliteStore(path, make)
    if scheme == "postgresql":
        from mmsrarec_ray.serve.postgres import PostgresStore

        return PostgresStore(url, make)
    from mmsrarec_ray.serve.redis import RedisStore

    return RedisStore(url, make)


def page_of_changes(store: Store, after: int, pictures: bool) -> tuple[list[Change], dict[str, Item]]:
    """The next changes after a place, and the items that they tell of. pictures: as `Store.items` takes it."""
    changes = store.changes(after, _WITH_PICTURES if pictures else _PAGE)
    return changes, store.items([each.id for each in changes if each.kind == "item"], pictures)


def missing(name: str) -> ConfigError:
    """name: its address, without a password."""
    return ConfigError(f"serve.store: expected a store at {name}, found none.")


def check_store(address: str) -> None:
    """Raises as `open_store`, before anything starts. A file is not opened: it may lie on another machine."""
    if resolved(address).startswith(_SERVERS):
        open_store(address).close()


def resolved(address: str) -> str:
    """The URL that an address means: `env:NAME` is what the environment variable NAME holds.

    Raises ConfigError for anything but `sqlite:///absolute/path`, `postgresql://…`, `redis://…` and `rediss://…`.
    """
    if address.startswith(_VARIABLE):
        variable = address.removeprefix(_VARIABLE)
        if not os.environ.get(variable):
            raise ConfigError(f"serve.store: expected an address in the environment variable {variable}, got none.")
        return resolved(os.environ[variable])
    scheme, _, rest = address.partition("://")
    if (scheme in _FILES and rest.startswith("/")) or (scheme in _SERVERS and rest):
        return address
    raise ConfigError(
        "serve.store: expected 'sqlite:///' and an absolute path, 'postgresql://…', 'redis://…' or 'env:' and the name "
        f"of an environment variable, got {shown(address)!r}."
    )
