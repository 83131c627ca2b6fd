"""Addresses of servers without what is secret in them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode

_SHOWN = ("host", "port", "db", "dbname")
_SECRETS = {"auth", "credential", "credentials", "key", "passwd", "password", "secret", "sig", "signature", "token"}
_ENDS = ("apikey", "passwd", "password", "secret", "token")  # of words that are written as one, such as PGPASSWORD
_USER = re.compile(r"(\w://)[^\s'\"]*@")
_PARAMETER = re.compile(r"([?&]([^\s'\"=&]+)=)[^\s'\"&]+")


def shown(address: str) -> str:
    """For logs and errors: no user, no password, and of the parameters only where the server is.

    All before the last @ is left out, since people forget to quote a password.
    """
    scheme, colon, rest = address.partition("://")
    place, _, parameters = rest.rpartition("@")[2].partition("?")
    told = urlencode([(name, value) for name, value in parse_qsl(parameters) if name in _SHOWN], safe="/:")
    return f"{scheme}{colon}{place}{'?' if told else ''}{told}"


def names_secret(name: str) -> bool:
    """Whether a variable or a parameter of this name holds a secret, such as HF_TOKEN or X-Amz-Signature."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return not _SECRETS.isdisjoint(words) or any(word.endswith(_ENDS) for word in words)


def holds_password(address: str) -> bool:
    """Whether there is a secret, be it before the host or in a parameter."""
    user, at, _ = address.partition("://")[2].rpartition("@")
    return (bool(at) and ":" in user) or any(names_secret(name) for _, name in _PARAMETER.findall(address))


def without_secrets(text: str) -> str:
    """A message without what is secret in the addresses that it quotes."""
    text = _USER.sub(r"\1…@", text)
    return _PARAMETER.sub(lambda found: found[1] + "…" if names_secret(found[2]) else found[0], text)
