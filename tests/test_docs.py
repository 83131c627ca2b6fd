"""The commands of the manual are ones that the programs understand; those on the drawn shop are planned for real."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmsrarec_ray import job
from mmsrarec_ray.config import Config, known_keys, load
from mmsrarec_ray.job import Stage

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = [key for key, _, _ in known_keys()]
_PROGRAM = re.compile(r"(ray job submit --working-dir \. -- )?(\.venv/bin/)?python (jobs|benchmarks)/\w+\.py\b")
_FOLDERS = ("configs/", "deploy/", "serve_apps/", "scripts/")


def blocks(text: str) -> str:
    """The lines of code blocks, fenced or indented, a command a line."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
        else:
            lines.append("")
    return re.sub(r"\\\n\s*", " ", "\n".join(lines))


def commands() -> Iterator[Any]:
    """Every command of every page, in blocks and within lines, once a page."""
    for page in PAGES:
        text = page.read_text()
        inline = re.findall(r"`(python (?:jobs|benchmarks)/[^`]+)`", text)
        for line in dict.fromkeys([*blocks(text).splitlines(), *inline]):
            if re.match(r"\S*python |make |ray |serve |kubectl |docker ", line) and "NAME" not in line:
                yield pytest.param(line, id=f"{page.stem}: {line[:60]}")


COMMANDS = list(commands())


def words_of(line: str) -> list[str]:
    """Without comments; what a reader has to fill in is filled in."""
    return [word.replace("…", "/nowhere") for word in shlex.split(line, comments=True)]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_files_and_targets_that_a_command_names_are_there(line: str) -> None:
    words = words_of(line)
    for word in words:
        if word.startswith(_FOLDERS) or word == "cluster.yaml":
            assert (ROOT / word).exists(), word
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    if words[0].endswith("python") and words[1] == "-m":
        assert importlib.util.find_spec(words[2])
    if words[:2] == ["serve", "run"]:
        load(None, ["data.format=shop", *words[3:]])


@pytest.mark.parametrize("line", [each for each in COMMANDS if _PROGRAM.match(each.values[0]) and "jobs/" in each.id])
def test_a_job_takes_its_settings(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With data of the shop it is planned as well."""
    monkeypatch.chdir(ROOT)
    words = words_of(line)
    script, *given = words[next(place for place, word in enumerate(words) if word.startswith("jobs/")) :]
    named = runpy.run_path(str(ROOT / script), run_name="docs")
    [stage] = {each for each in named.values() if isinstance(each, type) and issubclass(each, Stage)}
    options = job._parser(stage).parse_args(given)
    if options.config is None:  # named in passing, without settings
        return
    config = load(options.config, options.settings)
    if config.data.format == "shop" and script != "jobs/build_model.py":
        assert job.main(stage, [*given, f"run={tmp_path}/run", "--dry-run"]) == 0
        assert f"{stage.name}: to run" in capsys.readouterr().out


class Parsed(Exception):
    """Carries the arguments out of a program that would begin its work now."""


@pytest.mark.parametrize("line", [each for each in COMMANDS if "python benchmarks/" in each.values[0]])
def test_a_benchmark_takes_its_arguments(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script, *given = words_of(line)[1:]
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *arguments: Any) -> Any:
        raise Parsed(parse(parser, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", stop)
    monkeypatch.setattr(sys, "argv", [script, *given])
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with pytest.raises(Parsed) as parsed:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    options = parsed.value.args[0]
    if getattr(options, "config", None):
        load(options.config, options.settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_setting_that_is_named_exists(page: Path) -> None:
    groups = "|".join(Config.model_fields)
    for name in re.findall(rf"`((?:{groups})(?:\.[a-z]\w*)+)(?:=[^`]*)?`", page.read_text()):
        if not name.endswith(".py") and not name.startswith(("ray.data", "ray.init")):  # which are Ray's own
            assert any(key == name or key.startswith(f"{name}.") for key in KEYS), name
