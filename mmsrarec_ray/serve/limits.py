"""What the service refuses before it does any work: too much, too many, and those without a key."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmsrarec_ray.config import Limits, Serve
from mmsrarec_ray.data.images import ImageError, ImageLimits, load_image
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.serve.schemas import EventIn, ItemIn, RecommendationRequest

_THUMBNAIL = 32  # a picture is decoded this small to see that it can be


class Refused(Exception):
    """An answer with a status other than 200. code: for programs; message: for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


def check_recommendation(request: RecommendationRequest, limits: Limits) -> None:
    """Raises Refused."""
    if (request.user_id is None) == (request.history is None):
        raise Refused(422, "user_or_history", "expected either user_id or history, got both or neither.")
    _at_most("k", request.k, limits.k)
    _at_most("items of history", len(request.history or ()), limits.history)
    _at_most("candidates", len(request.candidates or ()), limits.candidates)
    _at_most("items of exclude", len(request.exclude), limits.candidates)
    if request.candidates is not None and not request.candidates:
        raise Refused(422, "no_candidates", "expected at least one candidate, got an empty list.")
    for each in (request.user_id or "", *(request.history or ()), *(request.candidates or ()), *request.exclude):
        check_id(each, limits)


def check_events(events: Sequence[EventIn], limits: Limits) -> None:
    """Raises Refused."""
    _at_most("events", len(events), limits.events)
    for event in events:
        for each in (event.event_id, event.user_id, event.item_id, event.request_id or "", event.bundle or ""):
            check_id(each, limits)


def check_id(value: str, limits: Limits) -> None:
    """Raises Refused."""
    _at_most("characters in an id", len(value), limits.id_chars)


def picture_of(item: ItemIn, limits: Limits) -> bytes | None:
    """The encoded picture of an item that is put, None without one, decoded once to see that it can be. Raises Refused,
    also where title or text are too long or there is nothing at all."""
    _at_most("characters in title", len(item.title or ""), limits.title_chars)
    _at_most("characters in text", len(item.text or ""), limits.text_chars)
    if not item.image:
        if not (item.title or "").strip() and not (item.text or "").strip():
            raise Refused(422, "empty_item", "expected a title, a text or a picture, got neither.")
        return None
    try:
        content = base64.b64decode(item.image, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, "bad_picture", "image: expected an encoded picture in base64.") from None
    try:
        load_image({"image": content}, ImageLimits(limits.picture_bytes, limits.picture_pixels), _THUMBNAIL)
    except ImageError as error:
        raise Refused(422, "bad_picture", f"image: {error}") from None
    return content


def _at_most(what: str, got: int, most: int) -> None:
    if got > most:
        raise Refused(422, "too_many", f"expected at most {most} {what}, got {got}.")


class Keys:
    """Who may read and who may write. Keys come from the environment of the process and are never shown."""

    def __init__(self, settings: Serve):
        """Raises ConfigError where a variable is named and holds no key: a door that should be locked stays shut."""
        self._writers = _keys("serve.write_keys_env", settings.write_keys_env)
        self._readers = _keys("serve.read_keys_env", settings.read_keys_env)

    def check(self, key: str | None, write: bool) -> None:
        """Writers may read. Raises Refused."""
        allowed = self._writers if write else self._readers and [*self._readers, *(self._writers or ())]
        if not allowed:
            return
        # Every key is compared, in constant time: how long it takes tells nothing.
        given = (key or "").encode()
        if not sum(hmac.compare_digest(given, each.encode()) for each in allowed):
            raise Refused(401, "no_key", "expected a valid API key in 'Authorization: Bearer …'.", _CHALLENGE)


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def _keys(setting: str, variable: str | None) -> list[str] | None:
    if variable is None:
        return None
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not keys:
        raise ConfigError(f"{setting}: expected API keys in the environment variable {variable}, got none.")
    return keys


class BodyLimit:
    """ASGI middleware: a body that is too long is refused, whether its length was announced or not."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.most:
            await _refuse(send, self.most)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                await _refuse(send, self.most)
                return
        await self.app(scope, _once(bytes(body), receive), send)


def _once(body: bytes, receive: Receive) -> Receive:
    """What gives the body, and afterwards whatever else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return waiting.pop() if waiting else await receive()

    return give


async def _refuse(send: Send, most: int) -> None:
    import json

    problem: dict[str, Any] = {"code": "body_too_large", "message": f"expected a body of at most {most} bytes."}
    content = json.dumps({"error": problem | {"details": []}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": content})
