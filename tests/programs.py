"""Programs for tests: the machine's, or those of Debian's packages, unpacked below build/ and installed nowhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_BUILD = ROOT / "build"
_ELSEWHERE = ("/usr/lib/postgresql/*/bin",)  # where Debian has programs that are on no path


def program(name: str, package: str) -> Path:
    """Where it lies; package: of Debian, which has it. Skips the test where it cannot be had."""
    if found := _installed(name):
        return found
    unpacked = _BUILD / package
    if not unpacked.is_dir() and (reason := _fetch(package)):
        pytest.skip(f"no {name}: {reason}")
    brought = [path for folder in ("/usr/bin", *_ELSEWHERE) for path in unpacked.glob(f"{folder[1:]}/{name}")]
    if not brought:  # it is installed, in a place of somebody's own
        pytest.skip(f"no {name}: Debian's {package} brought none")
    return brought[0]


def environment(found: Path) -> dict[str, str]:
    """What the program needs to find the libraries that were unpacked with it."""
    if _BUILD not in found.parents:
        return dict(os.environ)
    root = _BUILD / found.relative_to(_BUILD).parts[0]
    folders = {str(library.parent) for library in root.glob("usr/lib/**/*.so*")}
    return dict(os.environ) | {"LD_LIBRARY_PATH": ":".join(sorted(folders))}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _installed(name: str) -> Path | None:
    if found := shutil.which(name):
        whole = Path(found).resolve()  # its helpers lie beside it
        return whole if whole.name == name else Path(found)  # Redis' programs are one file, that asks what it is called
    elsewhere = sorted(path for folder in _ELSEWHERE for path in Path("/").glob(f"{folder[1:]}/{name}"))
    return elsewhere[-1] if elsewhere else None


@cache
def _fetch(package: str) -> str | None:
    """Bring a package with those that it needs and the machine lacks; returns why they cannot be brought."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "there is no apt-get that could bring it"
    apt = ["apt-get", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20"]
    _BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_BUILD) as name:
        folder = Path(name)
        (folder / "partial").mkdir()
        only = ["-o", f"Dir::Cache::archives={folder}", "-o", "Debug::NoLocking=1", "--yes", "--no-install-recommends"]
        download = [*apt, *only, "install", "--download-only", package]
        for before in ([], [[*apt, "update"]]):  # a new machine has no lists of packages yet
            for command in (*before, download):
                done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            return f"apt-get says {done.stderr.strip()}"
        for each in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", each, folder / "unpacked"], check=True)
        with suppress(OSError):  # another test worker was faster
            (folder / "unpacked").rename(_BUILD / package)
    return None
