"""deploy/Dockerfile, which is built nowhere in these tests, at least copies and installs what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ").splitlines()


def stages() -> dict[str, list[str]]:
    """Name -> instructions."""
    found: dict[str, list[str]] = {}
    for line in LINES:
        if stage := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            found[stage[1]] = []
        elif found and line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def test_both_targets_end_as_a_user_without_rights() -> None:
    assert list(stages()) == ["base", "cpu", "gpu"]
    assert [stages()[target][-1] for target in ("cpu", "gpu")] == ["USER ray", "USER ray"]


def test_what_it_names_is_there() -> None:
    """Files it copies and installs from, the extra, and that the build's context leaves out what is large."""
    for line in LINES:
        for name in re.findall(r"requirements[.\w]*|pyproject\.toml", line):
            assert (ROOT / name).is_file(), line
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extra] = {name for line in LINES for name in re.findall(r"--extra (\S+)", line)}
    assert extra in project["optional-dependencies"]
    assert {".git", ".venv", "runs", "build"} <= set((ROOT / ".dockerignore").read_text().split())
