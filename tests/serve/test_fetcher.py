"""Items that are put with the address of their picture: from a web server of this machine."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.errors import ConfigError
from tests.conftest import Page, Web
from tests.serve.test_app import Served, png, serve  # noqa: F401 - the fixture

PICTURE = base64.b64decode(png())
ON = ("serve.fetch.enabled=true", "serve.fetch.schemes=[http]", "serve.fetch.seconds=2")
HERE = (*ON, "serve.fetch.hosts=[127.0.0.1]", "serve.fetch.networks=[127.0.0.1/32]")
OUTSIDE = (*ON, "serve.fetch.hosts=[127.0.0.1, localhost, images.example]")  # allowed by name, and not public


def port(web: Web) -> str:
    return web.root.rpartition(":")[2]


async def refused(s: Served, address: str, code: str, reason: str) -> None:
    error = await s.refused(422, "PUT", "/v1/items/x", json={"title": "Mug", "image_uri": address})
    assert error["code"] == code
    assert reason in error["message"]
    assert s.store.items(["x"]).get("x") is None


def test_a_picture_is_fetched_and_kept(serve: Callable[..., None], web: Web) -> None:  # noqa: F811
    web.put("/b.png", Page(PICTURE))
    address = web.put("/a.png", Page(status=302, headers={"Location": "/b.png"}))

    async def scenario(s: Served) -> None:
        made = await s.client.put("/v1/items/x", json={"image_uri": address})
        assert (made.status_code, made.json()["status"]) == (200, "ready")
        stored = s.store.items(["x"]).get("x")
        assert stored is not None
        assert stored.image == PICTURE
        assert web.asked == ["/a.png", "/b.png"]

    serve(scenario, *HERE)


@pytest.mark.parametrize(
    ("page", "code", "reason"),
    [
        (Page(b"x" * 2_001), "bad_address", "expected at most 2000 bytes, got 2001"),
        (Page(b"<html>", content_type="text/html"), "bad_address", "content type image/…, got text/html"),
        (Page(b"no picture"), "bad_picture", "expected an encoded picture"),
        (Page(status=404), "bad_address", "expected HTTP status 200, got 404"),
        (Page(status=503), "address_unavailable", "expected HTTP status 200, got 503"),
        (Page(PICTURE, wait=4.0), "address_unavailable", "expected an answer within 2 seconds"),
        (
            Page(status=302, headers={"Location": "http://127.0.0.2/a"}),
            "bad_address",
            "expected a host among 127.0.0.1",
        ),
        (Page(status=302, headers={"Location": "file:///etc/passwd"}), "bad_address", "expected an address with http"),
    ],
)
def test_what_is_not_a_picture_of_an_allowed_host_is_refused(
    serve: Callable[..., None],  # noqa: F811
    web: Web,
    page: Page,
    code: str,
    reason: str,
) -> None:
    address = web.put("/a.png", page)

    async def scenario(s: Served) -> None:
        await refused(s, address, code, reason)

    serve(scenario, *HERE, "serve.limits.picture_bytes=2000")


def test_who_waits_for_others_waits_no_longer_than_that(serve: Callable[..., None], web: Web) -> None:  # noqa: F811
    address = web.put("/a.png", Page(PICTURE, wait=1.0))

    async def scenario(s: Served) -> None:
        asked = (s.client.put(f"/v1/items/x{n}", json={"image_uri": address}) for n in range(5))
        began = time.monotonic()
        answers = await asyncio.gather(*asked)
        assert time.monotonic() - began < 8, "one after the other they would take ten seconds"
        assert [answer.status_code for answer in answers].count(422) >= 3
        late = next(answer.json()["error"] for answer in answers if answer.status_code == 422)
        assert (late["code"], "within 3 seconds" in late["message"]) == ("address_unavailable", True)

    serve(scenario, *HERE, "serve.fetch.seconds=3", "serve.fetch.at_a_time=1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_allowed_host_inside_the_network_is_not_asked(serve: Callable[..., None], web: Web, host: str) -> None:  # noqa: F811
    web.put("/a.png", Page(PICTURE))

    async def scenario(s: Served) -> None:
        await refused(s, f"http://{host}:{port(web)}/a.png", "bad_address", "a host with a public address")
        assert web.asked == []

    serve(scenario, *OUTSIDE)


def test_a_redirect_into_the_network_is_not_followed(serve: Callable[..., None], web: Web) -> None:  # noqa: F811
    """The first host may be asked; the one that it names is allowed by its name alone."""
    web.put("/in.png", Page(PICTURE))
    address = web.put("/a.png", Page(status=302, headers={"Location": f"http://127.0.0.2:{port(web)}/in.png"}))

    async def scenario(s: Served) -> None:
        await refused(s, address, "bad_address", "a host with a public address")
        assert web.asked == ["/a.png"]

    serve(scenario, *ON, "serve.fetch.hosts=[127.0.0.1, 127.0.0.2]", "serve.fetch.networks=[127.0.0.1/32]")


def test_a_name_that_leads_into_the_network_is_not_followed(
    serve: Callable[..., None],  # noqa: F811
    web: Web,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    web.put("/a.png", Page(PICTURE))

    def resolve(host: str, *rest: Any, **more: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port(web))))]

    async def scenario(s: Served) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        await refused(s, f"http://images.example:{port(web)}/a.png", "bad_address", "a host with a public address")
        assert web.asked == []

    serve(scenario, *OUTSIDE)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "/etc/passwd", "s3://bucket/a.png", "http://", "x"])
def test_only_web_addresses_are_fetched(serve: Callable[..., None], address: str) -> None:  # noqa: F811
    async def scenario(s: Served) -> None:
        await refused(s, address, "bad_address", "expected a")

    serve(scenario, *HERE)


def test_who_fetches_names_the_hosts() -> None:
    words = ["data.format=shop", "run=/r", "serve.fetch.enabled=true"]
    with pytest.raises(ConfigError, match=r"serve\.fetch\.hosts: must name the hosts"):
        load(None, words)
    hosts = json.dumps(["*.example.com"])
    assert load(None, [*words, f"serve.fetch.hosts={hosts}"]).serve.fetch.schemes == ("https",)
