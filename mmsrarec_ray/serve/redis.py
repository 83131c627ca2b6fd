"""The store on a Redis server, in whose memory it lies, shared by the processes of any number of nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mmsrarec_ray.addresses import shown
from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.serve.store import CALL_SECONDS, CONNECT_SECONDS, Change, Event, Item, StoreUnavailable, missing

_VERSION = 2
_KEPT = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
"""Settings of the server without which it may lose what it has accepted."""
_DOWN = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
)
_REFUSING = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY")
"""How answers begin while it cannot write to its disk or to enough replicas, or has no master or no time."""
_ITEM = ("version", "status", "title", "text", "image", "image_keywords", "text_keywords", "error")
_FORGOTTEN = 1_000  # events that one call of a script takes away: the server does nothing else meanwhile
# The keys:
#   mmsrarec:events              stream, `<place>-0`: event_id, event (JSON)
#   mmsrarec:event_ids           hash, event_id: place
#   mmsrarec:user:<kind>:<user>  sorted set, timestamp: `<place, 16 digits>:<item_id>`
#   mmsrarec:item:<item_id>      hash, the fields of an item that are not null
#   mmsrarec:waiting             sorted set, version: item_id
#   mmsrarec:hidden              set of item_ids that are not ready
#   mmsrarec:changes             sorted set, place: `<kind>:<id>`; so of the changes of the same, the last alone
# Places rise with the clock. So a replica that takes over without the last events and changes gives none of their
# places again, which whoever has seen them would take for known; and that of a change tells when somebody was deleted.
# A script is one step for all others: what it does is seen, and kept, as a whole or not at all.
_PLACE = """
local function next_place(key)
    local now = redis.call('TIME')
    local last = tonumber(redis.call('GET', key) or 0)
    local place = math.max(last + 1, now[1] * 1000 + math.floor(now[2] / 1000))
    redis.call('SET', key, string.format('%.0f', place))
    return place
end
"""
_TELL = (
    _PLACE
    + """
local function tell(kind, id)
    local place = next_place('mmsrarec:change_places')
    redis.call('ZADD', 'mmsrarec:changes', place, kind .. ':' .. id)
    return place
end
"""
)
_ADD_EVENTS = (
    _PLACE
    + """
local added = 0
for n = 1, #ARGV, 6 do
    local event_id, kind, user_id, item_id, timestamp, event = unpack(ARGV, n, n + 5)
    if redis.call('HEXISTS', 'mmsrarec:event_ids', event_id) == 0 then
        local place = next_place('mmsrarec:event_places')
        redis.call('HSET', 'mmsrarec:event_ids', event_id, place)
        redis.call('XADD', 'mmsrarec:events', string.format('%.0f-0', place), 'event_id', event_id, 'event', event)
        local member = string.format('%016.0f:', place) .. item_id
        redis.call('ZADD', 'mmsrarec:user:' .. kind .. ':' .. user_id, timestamp, member)
        added = added + 1
    end
end
return added
"""
)
_DELETE_USER = (
    _TELL
    + """
local user_id, most, gone = ARGV[1], tonumber(ARGV[2]), 0
for _, kind in ipairs({'interaction', 'impression'}) do
    local key = 'mmsrarec:user:' .. kind .. ':' .. user_id
    while gone < most do
        local member = redis.call('ZRANGE', key, 0, 0)[1]
        if not member then break end
        local id = string.format('%.0f-0', tonumber(string.sub(member, 1, 16)))
        local entry = redis.call('XRANGE', 'mmsrarec:events', id, id)[1]
        redis.call('HDEL', 'mmsrarec:event_ids', entry[2][2])
        redis.call('XDEL', 'mmsrarec:events', id)
        redis.call('ZREM', key, member)
        gone = gone + 1
    end
end
if gone < most then tell('user', user_id) end
return gone
"""
)
_REPLACE = (
    _TELL
    + """
local item_id, status = ARGV[1], ARGV[2]
if status == 'waiting' then
    local known = redis.call('HMGET', 'mmsrarec:item:' .. item_id, 'status', 'title', 'text', 'image')
    local same = known[1] == 'ready' or known[1] == 'waiting'
    local given = {}
    for n = 3, #ARGV, 2 do given[ARGV[n]] = ARGV[n + 1] end
    for n, name in ipairs({'title', 'text', 'image'}) do
        same = same and known[n + 1] == (given[name] or false)
    end
    if same then return 0 end
end
local version = tell('item', item_id)
redis.call('DEL', 'mmsrarec:item:' .. item_id)
redis.call('HSET', 'mmsrarec:item:' .. item_id, 'version', version, 'status', status, unpack(ARGV, 3))
redis.call('SADD', 'mmsrarec:hidden', item_id)
redis.call('ZREM', 'mmsrarec:waiting', item_id)
if status == 'waiting' then redis.call('ZADD', 'mmsrarec:waiting', version, item_id) end
return version
"""
)
_SETTLE = (
    _TELL
    + """
local item_id, version, status = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('HMGET', 'mmsrarec:item:' .. item_id, 'version', 'status')
if known[1] ~= version or known[2] ~= 'waiting' then return 0 end
redis.call('HSET', 'mmsrarec:item:' .. item_id, 'status', status, unpack(ARGV, 4))
redis.call('ZREM', 'mmsrarec:waiting', item_id)
if status == 'ready' then redis.call('SREM', 'mmsrarec:hidden', item_id) end
tell('item', item_id)
return 1
"""
)


class RedisStore:
    """See `store.Store` and `store.open_store`. Raises ConfigError where the server does not keep what it accepts,
    ArtefactError where the keys are of another version, StoreUnavailable.

    One server, not Redis Cluster: scripts use all keys.
    """

    def __init__(self, url: str, make: bool = True):
        self._name = shown(url)
        # A write is not repeated by itself: whoever asked for it is told, and may.
        limits: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": CALL_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        try:
            self._redis: Any = redis.Redis.from_url(url, **limits)  # its types allow for all protocols at once
        except ValueError:  # which repeats the address, and so a password
            raise ConfigError(f"serve.store: expected an address of Redis, got {self._name!r}.") from None
        with self._answering():
            _check_durable(self._redis, self._name)
            if make:
                self._redis.set("mmsrarec:version", _VERSION, nx=True)
            version = int(self._redis.get("mmsrarec:version") or 0)
        if version == 0:
            raise missing(self._name)
        if version != _VERSION:
            raise ArtefactError(f"{self._name}: expected a store of version {_VERSION}, got {version}.")
        scripts = (_ADD_EVENTS, _DELETE_USER, _REPLACE, _SETTLE)
        self._add, self._delete, self._replace, self._settled = map(self._redis.register_script, scripts)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except _DOWN as error:
            raise StoreUnavailable(f"the store {self._name} does not answer: {error}") from error
        except redis.ResponseError as error:
            if not str(error).startswith(_REFUSING):
                raise
            raise StoreUnavailable(f"the store {self._name} does not answer: {error}") from error

    def add_events(self, events: Sequence[Event]) -> int:
        arguments: list[str | int] = []
        for each in events:
            arguments += (each.event_id, each.kind, each.user_id, each.item_id, each.timestamp, json.dumps(each.row()))
        with self._answering():
            return self._add(args=arguments)

    def history(self, user_id: str, limit: int) -> list[tuple[str, int]]:
        with self._answering():
            newest = self._redis.zrange(
                f"mmsrarec:user:interaction:{user_id}",
                "+inf",
                "-inf",
                desc=True,
                byscore=True,
                offset=0,
                num=limit,
                withscores=True,
            )
        return [(member.decode().partition(":")[2], int(timestamp)) for member, timestamp in newest[::-1]]

    def events(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, Event]]:
        with self._answering():
            entries = self._redis.xrange("mmsrarec:events", f"({after}-0", "+", limit)
        return [(int(place.partition(b"-")[0]), Event(**json.loads(fields[b"event"]))) for place, fields in entries]

    def delete_user(self, user_id: str) -> int:
        """It is told when all are gone: who is interrupted repeats it."""
        gone, last = 0, _FORGOTTEN
        while last == _FORGOTTEN:
            with self._answering():
                last = self._delete(args=(user_id, _FORGOTTEN))
            gone += last
        return gone

    def put_item(self, item_id: str, title: str | None, text: str | None, image: bytes | None) -> Item:
        given = {"title": title, "text": text, "image": image}
        fields = [word for name, value in given.items() if value is not None for word in (name, value)]
        with self._answering():
            version = self._replace(args=(item_id, "waiting", *fields))
        known = {} if version else self.items([item_id])
        return known.get(item_id) or Item(item_id, version, "waiting", title, text, image)

    def set_keywords(self, item_id: str, version: int, image: Sequence[str], text: Sequence[str]) -> bool:
        words = {"image_keywords": image, "text_keywords": text}
        fields = [word for name, value in words.items() for word in (name, json.dumps(list(value)))]
        return self._settle(item_id, version, "ready", *fields)

    def set_failed(self, item_id: str, version: int, error: str) -> bool:
        return self._settle(item_id, version, "failed", "error", error)

    def _settle(self, item_id: str, version: int, status: str, *fields: str) -> bool:
        with self._answering():
            return bool(self._settled(args=(item_id, version, status, *fields)))

    def delete_item(self, item_id: str) -> None:
        with self._answering():
            self._replace(args=(item_id, "deleted"))

    def items(self, item_ids: Sequence[str], pictures: bool = True) -> dict[str, Item]:
        names = [name for name in _ITEM if pictures or name != "image"]
        with self._answering(), self._redis.pipeline(transaction=False) as asked:
            for item_id in item_ids:
                asked.hmget(f"mmsrarec:item:{item_id}", names)
            found = asked.execute()
        told = (dict(zip(names, values, strict=True)) for values in found)
        return {
            item_id: _item(item_id, fields) for item_id, fields in zip(item_ids, told, strict=True) if fields["status"]
        }

    def waiting(self, limit: int = 100) -> list[str]:
        with self._answering():
            return [each.decode() for each in self._redis.zrange("mmsrarec:waiting", 0, limit - 1)]

    def hidden(self, item_ids: Sequence[str]) -> set[str]:
        if not item_ids:
            return set()
        with self._answering():
            found = self._redis.smismember("mmsrarec:hidden", list(item_ids))
        return {item_id for item_id, there in zip(item_ids, found, strict=True) if there}

    def position(self) -> int:
        with self._answering():
            return int(self._redis.get("mmsrarec:change_places") or 0)

    def changes(self, after: int, limit: int = 1_000) -> list[Change]:
        with self._answering():
            found = self._redis.zrangebyscore("mmsrarec:changes", f"({after}", "+inf", 0, limit, withscores=True)
        return [_change(int(place), member.decode()) for member, place in found]

    def check(self) -> None:
        with self._answering():
            _check_durable(self._redis, self._name)
            self._redis.set("mmsrarec:checked", 1)

    def close(self) -> None:
        self._redis.close()


def _check_durable(server: Any, name: str) -> None:
    """Raises ConfigError where the server may lose what it has accepted, or does not let itself be asked."""
    try:
        found = {key: server.config_get(key).get(key) for key in _KEPT}
    except redis.ResponseError as error:
        raise ConfigError(
            f"serve.store: {name} does not tell whether it keeps what it accepts: {error}. Allow its user CONFIG GET."
        ) from None
    wrong = [f"{key} to be {value}, got {found[key]}" for key, value in _KEPT.items() if found[key] != value]
    if wrong:
        raise ConfigError(f"serve.store: {name} may lose what it accepted: expected its settings {'; '.join(wrong)}.")


def _change(place: int, member: str) -> Change:
    kind, _, which = member.partition(":")
    return Change(place, kind, which)  # type: ignore[arg-type]


def _item(item_id: str, fields: dict[str, bytes | None]) -> Item:
    image = fields.pop("image", None)
    values: dict[str, Any] = {name: value.decode() for name, value in fields.items() if value is not None}
    keywords = {name: tuple(json.loads(values.get(name, "[]"))) for name in ("image_keywords", "text_keywords")}
    return Item(**{"item_id": item_id, "image": image} | values | {"version": int(values["version"])} | keywords)
