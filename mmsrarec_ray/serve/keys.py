"""Who may read and who may write."""

from __future__ import annotations

import hmac
import os

from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.serve.refusal import Refused
from mmsrarec_ray.settings import Serve

_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Keys:
    """Who may read and who may write. Keys come from the environment of the process and are never shown."""

    def __init__(self, settings: Serve):
        """Raises ConfigError where a variable is named and holds no key: a door that should be locked stays shut;
        and where there are keys for reading alone."""
        self._writers = _keys("serve.write_keys_env", settings.write_keys_env)
        self._readers = _keys("serve.read_keys_env", settings.read_keys_env)
        if self._readers and not self._writers:
            raise ConfigError("serve.read_keys_env: whoever may not read could write: set serve.write_keys_env too.")

    @property
    def anybody_reads(self) -> bool:
        """Without a key."""
        return not self._readers

    def check(self, key: str | None, write: bool) -> None:
        """Writers may read. Raises Refused."""
        allowed = self._writers if write else self._readers and [*self._readers, *(self._writers or ())]
        if not allowed:
            return
        # Every key is compared, in constant time: how long it takes tells nothing.
        given = (key or "").encode()
        if not sum(hmac.compare_digest(given, each.encode()) for each in allowed):
            raise Refused(401, "no_key", "expected a valid API key in 'Authorization: Bearer …'.", _CHALLENGE)


def _keys(setting: str, variable: str | None) -> list[str] | None:
    if variable is None:
        return None
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not keys:
        raise ConfigError(f"{setting}: expected API keys in the environment variable {variable}, got none.")
    return keys
