"""What a method's scores are made of: all of it decides whether they are up to date."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

import mmsrarec_ray
from mmsrarec_ray.config import MethodName, load
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.evaluate.stages import Scores
from mmsrarec_ray.job import Stage
from mmsrarec_ray.rank.stage import TuneRecommender
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.summarize.stage import Summarize

PACKAGE = Path(mmsrarec_ray.__file__).parent
CONFIG = load(None, ["data.format=shop", "run=/nowhere"])
# Settings stand in the fingerprint by their values; the others decide no score.
BESIDE = {"config", "errors", "job", "metrics", "progress", "store"}


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
    assert reached(files(stage.recipe.code) - {"evaluate/recipes"}) <= files(stage.code) | upstream(stage)


@pytest.mark.parametrize("stage", [Prepare, Summarize, Retrieve, TuneRecommender])
def test_the_code_behind_an_artefact_is_all_that_it_imports(stage: type[Stage]) -> None:
    made = stage(CONFIG)
    found = reached(files(made.code)) - files(made.code)
    # The stages before are named in the code of the stage itself, and their artefacts are inputs.
    assert found <= upstream(made)


def upstream(stage: Stage) -> set[str]:
    """Modules behind the artefacts that a stage reads, directly or not."""
    return {module for need in stage.requires() for module in files(need.code) | upstream(need)}


def reached(modules: set[str]) -> set[str]:
    """These and all that they import."""
    found, waiting = set[str](), set(modules)
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imports(module) - found - BESIDE
    return found
