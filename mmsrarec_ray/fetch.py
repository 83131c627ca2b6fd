"""What lies behind a web address, within limits, and never from inside the network unless that is allowed.

An address is judged where its socket is made. So no redirect, no odd way of writing an address and no name that
resolves to something else the second time leads to a place that is not public.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import aiohttp
from yarl import URL

_REDIRECTS = (301, 302, 303, 307, 308)
_GLOBAL_UNICAST, _NAT64 = ip_network("2000::/3"), ip_network("64:ff9b::/96")


class FetchError(ValueError):
    """An address that may not be asked, or an answer that cannot be used."""


class FetchUnavailable(FetchError):
    """No answer, or one that says that the server is at fault: another time may be better."""


class NotPublic(OSError):
    """A host inside the network."""


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched.

    max_bytes: of an answer. content_type: how its type begins, such as `image/`. hosts: those that may be asked,
    `*.example.com` for all below one; empty: any. networks: those that may be asked though they are not public, such as
    `10.2.0.0/16`. seconds: for one address, redirects and all. attempts: for one address, where the server is at fault.
    """

    max_bytes: int
    content_type: str
    hosts: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("https",)
    networks: tuple[str, ...] = ()
    seconds: float = 20.0
    redirects: int = 3
    attempts: int = 1
    at_a_time: int = 8


def fetch_all(urls: Iterable[str], rules: FetchRules) -> dict[str, bytes | FetchError]:
    """Fetch addresses, `rules.at_a_time` at a time: each with its content, or why there is none."""
    return asyncio.run(_fetch_all(list(dict.fromkeys(urls)), rules))


async def _fetch_all(urls: list[str], rules: FetchRules) -> dict[str, bytes | FetchError]:
    free = asyncio.Semaphore(rules.at_a_time)

    async def one(url: str) -> bytes | FetchError:
        async with free:
            try:
                return await fetch_again(client, url, rules)
            except FetchError as error:
                return error

    async with new_client(rules) as client:
        return dict(zip(urls, await asyncio.gather(*map(one, urls)), strict=True))


def new_client(rules: FetchRules) -> aiohttp.ClientSession:
    """A client that connects only where the rules allow; to be closed. It keeps no cookies and asks no proxy."""
    networks = [ip_network(network) for network in rules.networks]

    def new_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, where = info
        if not (is_public(where[0]) or any(ip_address(where[0]) in network for network in networks)):
            raise NotPublic("expected a host with a public address, got one of this machine or of a private network")
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=new_socket, limit=rules.at_a_time),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # a few bytes can be unpacked to gigabytes
        headers={"Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(),  # `fetch` holds the limit, over redirects too
    )


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip not in _GLOBAL_UNICAST and ip not in _NAT64:
            return False
        # Gateways send these on to the IPv4 address within.
        ip = ip.sixtofour or (IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def fetch(client: aiohttp.ClientSession, url: str, rules: FetchRules) -> bytes:
    """The content of an address. Raises FetchError, whose message names the address and the reason."""
    try:
        async with asyncio.timeout(rules.seconds):
            return await _follow(client, url, rules)
    except TimeoutError:
        raise FetchUnavailable(f"{url}: expected an answer within {rules.seconds:g} seconds") from None
    except FetchError as error:
        raise type(error)(f"{url}: {error}") from None
    except aiohttp.ClientConnectorError as error:
        kind = FetchError if isinstance(error.os_error, NotPublic) else FetchUnavailable
        raise kind(f"{url}: {error.os_error}") from None
    except aiohttp.InvalidURL as error:
        raise FetchError(f"{url}: expected a web address: {error}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchUnavailable(f"{url}: {error or type(error).__name__}") from None


async def fetch_again(client: aiohttp.ClientSession, url: str, rules: FetchRules) -> bytes:
    """As `fetch`, up to `rules.attempts` times where the server is silent or at fault."""
    for attempt in range(rules.attempts - 1):
        try:
            return await fetch(client, url, rules)
        except FetchUnavailable:
            await asyncio.sleep(2**attempt / 2)
    return await fetch(client, url, rules)


async def _follow(client: aiohttp.ClientSession, url: str, rules: FetchRules) -> bytes:
    target = _allowed(url, rules)
    for _ in range(rules.redirects + 1):
        async with client.get(target, allow_redirects=False) as answer:
            if answer.status not in _REDIRECTS:
                return await _content(answer, rules)
            target = _allowed(answer.headers.get("Location", ""), rules, target)
    raise FetchError(f"expected at most {rules.redirects} redirects, got one more")


def _allowed(url: str, rules: FetchRules, base: URL | None = None) -> URL:
    """An address that may be asked. base: the address that redirects to it. Raises FetchError."""
    try:
        address = base.join(URL(url)) if base else URL(url)
    except ValueError as error:
        raise FetchError(f"expected a web address, got {url!a:.200}: {error}") from None
    if address.scheme not in rules.schemes:
        raise FetchError(f"expected an address with {' or '.join(rules.schemes)}, got {str(address)!a:.200}")
    if address.user is not None or address.password is not None:
        raise FetchError("expected an address without user name and password")
    if rules.hosts and not any(_matches(address.host or "", host) for host in rules.hosts):
        raise FetchError(f"expected a host among {', '.join(rules.hosts)}, got {address.host}")
    return address


def _matches(host: str, pattern: str) -> bool:
    pattern = pattern.lower()
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


async def _content(answer: aiohttp.ClientResponse, rules: FetchRules) -> bytes:
    if answer.status >= 500 or answer.status == 429:
        raise FetchUnavailable(f"expected HTTP status 200, got {answer.status}")
    if answer.status != 200:
        raise FetchError(f"expected HTTP status 200, got {answer.status}")
    if not answer.content_type.startswith(rules.content_type):
        raise FetchError(f"expected the content type {rules.content_type}…, got {answer.content_type}")
    if (coding := answer.headers.get("Content-Encoding", "identity").lower()) != "identity":
        raise FetchError(f"expected an answer that is not compressed, got {coding}")
    if (answer.content_length or 0) > rules.max_bytes:
        raise FetchError(f"expected at most {rules.max_bytes} bytes, got {answer.content_length}")
    content = bytearray()
    async for piece in answer.content.iter_any():
        content += piece
        if len(content) > rules.max_bytes:
            raise FetchError(f"expected at most {rules.max_bytes} bytes, got more")
    if not content:
        raise FetchError("expected some bytes, got none")
    return bytes(content)
