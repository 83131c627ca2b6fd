"""Fetching: limits that hold against servers that lie, and no way into the network."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from mmsrarec_ray.fetch import FetchError, FetchRules, FetchUnavailable, fetch, fetch_all, is_public, new_client
from tests.conftest import Page, Web

HERE: dict[str, Any] = {"schemes": ("http",), "networks": ("127.0.0.1/32",)}


def get(url: str, **rules: Any) -> bytes:
    limits = FetchRules(**{"max_bytes": 1000, "content_type": "image/", "seconds": 5.0} | HERE | rules)

    async def ask() -> bytes:
        async with new_client(limits) as client:
            return await fetch(client, url, limits)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("64:ff9b::a00:1", False),  # NAT64 of 10.0.0.1
        ("64:ff9b:1::a00:1", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_a_picture_is_fetched(web: Web) -> None:
    assert get(web.put("/a.png", Page(b"picture"))) == b"picture"


def test_redirects_are_followed(web: Web) -> None:
    web.put("/c.png", Page(b"picture"))
    web.put("/b.png", Page(status=301, headers={"Location": "c.png"}))
    url = web.put("/a.png", Page(status=302, headers={"Location": f"{web.root}/b.png"}))
    assert get(url, redirects=2) == b"picture"
    with pytest.raises(FetchError, match="expected at most 1 redirects"):
        get(url, redirects=1)


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page(b"x" * 1001), "expected at most 1000 bytes, got 1001"),
        (Page([b"x" * 600, b"x" * 600]), "expected at most 1000 bytes, got more"),
        (Page(b"<html>", content_type="text/html"), "content type image/…, got text/html"),
        (Page(b"gone", status=404), "expected HTTP status 200, got 404"),
        (Page(b"packed", headers={"Content-Encoding": "gzip"}), "not compressed, got gzip"),
        (Page(b""), "expected some bytes"),
        (Page(status=302), "expected a web address|expected at most"),
        (Page(status=302, headers={"Location": "ftp://127.0.0.1/a"}), "expected an address with http, got 'ftp://"),
        (Page(status=302, headers={"Location": "http://127.0.0.2/a"}), "public address"),
        (Page(status=302, headers={"Location": "http://169.254.169.254/latest"}), "public address"),
        (Page(status=302, headers={"Location": "http://me:secret@127.0.0.1/a"}), "without user name and password"),
    ],
)
def test_what_is_refused(web: Web, page: Page, reason: str) -> None:
    url = web.put("/a.png", page)
    with pytest.raises(FetchError, match=reason) as caught:
        get(url)
    assert str(caught.value).startswith(url)
    assert not isinstance(caught.value, FetchUnavailable)


@pytest.mark.parametrize(
    "page",
    [
        Page(b"late", wait=3.0),
        Page([b"x"] * 30, wait=0.1),  # a byte now and then, so that no single wait is long
        Page(b"short", length=100),
        Page(b"", status=503),
    ],
)
def test_servers_that_are_slow_or_at_fault(web: Web, page: Page) -> None:
    began = time.monotonic()
    with pytest.raises(FetchUnavailable):
        get(web.put("/a.png", page), seconds=1.0)
    assert time.monotonic() - began < 2.5


def test_the_time_is_for_all_redirects_together(web: Web) -> None:
    url = web.put("/a.png", Page(b"", status=302, headers={"Location": "/a.png"}, wait=0.4))
    with pytest.raises(FetchUnavailable, match="within 1 seconds"):
        get(url, seconds=1.0, redirects=20)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f.1"])
def test_no_way_into_this_machine(web: Web, host: str) -> None:
    port = web.root.rpartition(":")[2]
    with pytest.raises(FetchError, match=r"public address|not a canonical") as caught:
        get(f"http://{host}:{port}/a.png", networks=())
    assert not isinstance(caught.value, FetchUnavailable)
    assert web.asked == []


def test_the_address_that_is_connected_to_is_the_one_that_is_judged(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server may answer first with a public address and then with one of this machine."""
    port = int(web.root.rpartition(":")[2])

    def resolve(host: str, *rest: Any, **more: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(FetchError, match="public address"):
        get(f"http://images.example:{port}/a.png", networks=())
    assert web.asked == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://images.example/a", "expected an address with https"),
        ("http://images.example/a", "expected an address with https"),
        ("https://images.example.evil.example/a", "expected a host among images.example, *.cdn.example"),
        ("https://cdn.example/a", "expected a host among"),
        ("https://", "expected a"),
        ("https://images.example:port/a", "expected a web address"),
    ],
)
def test_only_schemes_and_hosts_that_are_allowed(url: str, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        get(url, schemes=("https",), hosts=("images.example", "*.cdn.example"))
    assert reason in str(caught.value)


def test_hosts_are_compared_without_case(web: Web) -> None:
    port = web.root.rpartition(":")[2]
    web.put("/a.png", Page(b"picture"))
    assert get(f"http://LocalHost:{port}/a.png", hosts=("localhost",), networks=("127.0.0.0/8", "::1/128"))


def test_many_at_a_time_each_with_its_reason(web: Web) -> None:
    good = [web.put(f"/{n}.png", Page(b"%d" % n, wait=0.2)) for n in range(8)]
    again = web.put("/again.png", Page(status=500), Page(b"now"))
    rules = FetchRules(max_bytes=1000, content_type="image/", attempts=2, **HERE)
    began = time.monotonic()
    answers = fetch_all([*good, again, f"{web.root}/none.png", good[0]], rules)
    assert time.monotonic() - began < 1.5
    assert [answers[url] for url in good] == [b"%d" % n for n in range(8)]
    assert answers[again] == b"now"
    assert isinstance(answers[f"{web.root}/none.png"], FetchError)
    assert web.asked.count("/none.png") == 1
    assert web.asked.count("/0.png") == 1
