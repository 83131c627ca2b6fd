"""What stands around the whole application: headers of answers, whom they are for, and a limit on every body."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmsrarec_ray.serve.refusal import Refused

_HERE = ("localhost", "127.0.0.1", "[::1]")
_PROBED = ("/healthz", "/readyz", "/metrics")


class Headers:
    """ASGI middleware: every answer has these headers, but for a mistake of our own (500), which Starlette answers from
    further out."""

    def __init__(self, app: ASGIApp, more: Mapping[str, str]):
        self.app = app
        self.more = [(name.lower().encode(), value.encode()) for name, value in more.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.more]
            await send(message)

        await self.app(scope, receive, with_more)


class Hosts:
    """ASGI middleware: whoever takes the service for another host is refused. A page of anywhere may let its own name
    stand for this machine (DNS rebinding): its scripts would read and write here, in the browser of somebody who may.

    Probes ask by an address that nobody knows before, and learn nothing of anybody."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], refuse: Callable[[Refused], Response]):
        """hosts: beside those of this machine for itself; refuse: makes the answer."""
        self.app, self.hosts, self.refuse = app, {*_HERE, *hosts}, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PROBED:
            named = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if re.sub(r":\d*$", "", named).lower() not in self.hosts:
                await self.refuse(_wrong_host(named))(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _wrong_host(named: str) -> Refused:
    expected = "expected localhost, or one of serve.hosts, while there are no API keys"
    return Refused(421, "wrong_host", f"Host: {expected}, got {named!r}.")


class BodyLimit:
    """ASGI middleware: a body that is too long is refused, whether its length was announced or not."""

    def __init__(self, app: ASGIApp, most: int, refuse: Callable[[Refused], Response]):
        """most: bytes; refuse: makes the answer."""
        self.app, self.most, self.refuse = app, most, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.most:
            await self._refused()(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                await self._refused()(scope, receive, send)
                return
        await self.app(scope, _once(bytes(body), receive), send)

    def _refused(self) -> Response:
        return self.refuse(Refused(413, "body_too_large", f"expected a body of at most {self.most} bytes."))


def _once(body: bytes, receive: Receive) -> Receive:
    """What gives the body, and afterwards whatever else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return waiting.pop() if waiting else await receive()

    return give
