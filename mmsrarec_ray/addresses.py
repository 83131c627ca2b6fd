"""Addresses of servers without what is secret in them."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

_SHOWN = ("host", "port", "db", "dbname")


def shown(address: str) -> str:
    """For logs and errors: no user, no password, and of the parameters only where the server is.

    All before the last @ is left out, since people forget to quote a password.
    """
    scheme, colon, rest = address.partition("://")
    place, _, parameters = rest.rpartition("@")[2].partition("?")
    told = urlencode([(name, value) for name, value in parse_qsl(parameters) if name in _SHOWN], safe="/:")
    return f"{scheme}{colon}{place}{'?' if told else ''}{told}"


def holds_password(address: str) -> bool:
    """Whether there is one, be it before the host or in a parameter."""
    user, at, _ = address.partition("://")[2].rpartition("@")
    return (bool(at) and ":" in user) or "password=" in address.lower()
