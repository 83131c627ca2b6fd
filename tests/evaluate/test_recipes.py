"""What a method's scores are made of: all of it decides whether they are up to date."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

import mmsrarec_ray
from mmsrarec_ray.config import MethodName, load
from mmsrarec_ray.evaluate.stages import Scores

PACKAGE = Path(mmsrarec_ray.__file__).parent
CONFIG = load(None, ["data.format=shop", "run=/nowhere"])
# Settings stand in the fingerprint by their values; the others decide no score.
BESIDE = {"config", "errors", "job", "progress", "store"}


def imports(module: str) -> set[str]:
    """Modules of the package that one of them names, as paths without `.py`."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmsrarec_ray":
            inside = "/".join((node.module or "").split(".")[1:])
            names |= {f"{inside}/{alias.name}".lstrip("/") for alias in node.names} | {inside}
    return {name for name in names if (PACKAGE / f"{name}.py").is_file()}


def files(code: tuple[str, ...]) -> set[str]:
    """Entries of `code` are modules or whole folders."""
    folders = (sorted((PACKAGE / entry).glob("**/*.py")) or [PACKAGE / f"{entry}.py"] for entry in code)
    return {str(file.relative_to(PACKAGE).with_suffix("")) for folder in folders for file in folder}


@pytest.mark.parametrize("method", get_args(MethodName))
def test_the_code_behind_a_score_is_all_that_it_imports(method: str) -> None:
    stage = Scores(CONFIG, method)
    upstream = {module for need in stage.requires() for module in files(need.code)}  # their artefacts are inputs
    named = files(stage.code)
    reached, waiting = set(), set(files(stage.recipe.code)) - {"evaluate/recipes"}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= imports(module) - reached - BESIDE
    assert reached <= named | upstream
