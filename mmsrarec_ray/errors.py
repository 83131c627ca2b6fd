"""What can be wrong from the outside, apart from our own mistakes."""

from __future__ import annotations

from mmsrarec_ray.addresses import without_secrets


class UsageError(Exception):
    """The user can mend this: a setting, a path or the data. Jobs print the message alone and exit with 2.

    Passwords in addresses that the message quotes are left out of it. What it quotes of files may not be Unicode: it is
    written with escapes, because a message that cannot be encoded ends the worker of Ray that should send it.
    """

    def __init__(self, message: str = ""):
        super().__init__(without_secrets(message.encode("utf-8", "backslashreplace").decode()))


class ConfigError(UsageError):
    """A setting is unknown, missing or out of range. The message names the dotted key and the value it got."""


class InputError(UsageError):
    """The data is wrong as a whole. The message names the file, the row and the field."""


class ArtefactError(UsageError):
    """An artefact is missing, unfinished, damaged or of a newer schema."""


class LeaseError(UsageError):
    """Another process writes into the same folder. The message names it."""
