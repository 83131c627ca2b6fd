"""The contract of every job: plan, run, publish, report, exit."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.errors import ArtefactError
from mmsrarec_ray.job import Outcome, Stage, execute, plan
from mmsrarec_ray.progress import said_as, say
from mmsrarec_ray.store import Artefact, Folder, Run

ROOT = Path(__file__).parents[1]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))


class Letters(Stage):
    """Writes a file of letters; the seed of the split decides which."""

    name: ClassVar[str] = "letters"
    artefact: ClassVar[str] = "letters"
    code: ClassVar[tuple[str, ...]] = ("errors",)
    runs: ClassVar[list[bool]] = []

    def settings(self) -> dict[str, Any]:
        return {"seed": self.config.split.seed}

    def engine(self) -> dict[str, Any]:
        return {"name": "none"}

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        self.runs.append(self.fresh)
        out.write_bytes("letters.txt", b"ab" * (1 + self.config.split.seed // 10))  # seeds 0 to 9 write the same
        return Outcome({"in": 2, "out": 2})


class Count(Stage):
    """Counts the letters."""

    name: ClassVar[str] = "count"
    artefact: ClassVar[str] = "count"
    code: ClassVar[tuple[str, ...]] = ("errors",)
    runs: ClassVar[list[bool]] = []

    def requires(self) -> list[Stage]:
        return [Letters(self.config)]

    def settings(self) -> dict[str, Any]:
        return {}

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        self.runs.append(self.fresh)
        count = len(inputs["letters"].folder.read_bytes("letters.txt"))
        out.write_bytes("count.txt", str(count).encode())
        return Outcome({"in": 1, "out": 1}, {"letters": count})


class Slow(Letters):
    """Works on what a killed run has left."""

    name: ClassVar[str] = "slow"
    artefact: ClassVar[str] = "slow"
    scratch: ClassVar[tuple[str, ...]] = ("half", "done.json")

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        self.runs.append((out / "half").exists("work"))
        (out / "half").write_bytes("work", b"")
        out.write_bytes("done.json", b"{}")
        return super().run(out, inputs)


@pytest.fixture
def run(ray_session: str, tmp_path: Path) -> Run:
    Letters.runs.clear()
    Count.runs.clear()
    return Run.at(str(tmp_path / "run"))


def config(seed: int = 0) -> Config:
    return load(None, ["run=/unused", "data.format=shop", f"split.seed={seed}"])


def statuses(seed: int, run: Run) -> list[str]:
    return [step.status for step in plan(Count(config(seed)), run)]


def test_a_stage_brings_what_it_needs_up_to_date_and_then_itself(run: Run) -> None:
    assert statuses(0, run) == ["to run", "to run after letters"]
    _, manifest, done = execute(Count(config()), run)
    assert done
    assert manifest.metrics == {"letters": 2}
    assert statuses(0, run) == ["up to date", "up to date"]
    _, again, done = execute(Count(config()), run)
    assert not done
    assert again == manifest
    assert (len(Letters.runs), len(Count.runs)) == (1, 1)


def test_an_equal_result_of_the_stage_before_leaves_the_next_up_to_date(run: Run) -> None:
    execute(Count(config(0)), run)
    execute(Count(config(9)), run)  # other settings, the same letters
    assert (len(Letters.runs), len(Count.runs)) == (2, 1)
    _, manifest, _ = execute(Count(config(10)), run)
    assert manifest.metrics == {"letters": 4}
    assert (len(Letters.runs), len(Count.runs)) == (3, 2)


def test_force_repeats_the_stage_alone(run: Run) -> None:
    execute(Count(config()), run)
    execute(Count(config()), run, force=True)
    assert Letters.runs == [False]
    assert Count.runs == [False, True]


def test_a_job_may_have_everything_repeated(run: Run) -> None:
    class All(Count):
        force_all: ClassVar[bool] = True

    execute(All(config()), run)
    execute(All(config()), run, force=True)
    assert Letters.runs == [False, True]
    assert Count.runs == [False, True]


def test_what_stages_share_is_renewed_once_in_a_forced_job(run: Run) -> None:
    """And never in one that is not forced, which goes on with what a killed one has made."""
    found: list[list[str]] = []

    class Sharing(Letters):
        def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
            self.renew(run.folder / "shared")
            found.append((run.folder / "shared").files())
            (run.folder / "shared").write_bytes(self.name, b"")
            return super().run(out, inputs)

    class Second(Sharing):
        name: ClassVar[str] = "second"
        artefact: ClassVar[str] = "second"
        force_all: ClassVar[bool] = True

        def requires(self) -> list[Stage]:
            return [Sharing(self.config)]

    (run.folder / "shared").write_bytes("old", b"")
    execute(Second(config()), run)
    assert found == [["old"], ["letters", "old"]]
    execute(Second(config()), run, force=True)
    assert found[2:] == [[], ["letters"]]
    run.published("second")[0].folder.clear()
    execute(Second(config()), run)
    assert found[4:] == [["letters", "second"]]


def test_the_manifest_tells_what_the_artefact_was_made_from(run: Run) -> None:
    step, manifest, _ = execute(Count(config()), run)
    letters = run.published("letters")[0].manifest
    assert manifest.inputs == {"letters": letters.digest}
    assert manifest.config["split"]["seed"] == 0
    assert letters.engine == {"name": "none"}
    assert list(letters.files) == ["letters.txt"]
    assert letters.files["letters.txt"].bytes == 2
    assert step.artefact is not None
    assert step.artefact.fingerprint == manifest.fingerprint


def test_an_unfinished_artefact_is_made_again(run: Run) -> None:
    execute(Count(config()), run)
    letters = run.published("letters")[0]
    (letters.folder.filesystem).delete_file(letters.folder.file("manifest.json"))
    assert statuses(0, run) == ["to run", "to run after letters"]


def test_what_was_forced_is_whole_for_the_next_job(run: Run) -> None:
    """It is made in a folder that has a manifest already, which is no file of the new one."""
    execute(Count(config()), run)
    execute(Letters(config()), run, force=True)
    assert list(run.published("letters")[0].manifest.files) == ["letters.txt"]
    assert execute(Count(config()), run, force=True)[1].metrics == {"letters": 2}


def test_a_damaged_artefact_is_not_read(run: Run) -> None:
    """Force makes the stage read again what it read before."""
    execute(Count(config()), run)
    letters = run.published("letters")[0]
    letters.folder.write_bytes("letters.txt", b"aX")
    with pytest.raises(ArtefactError, match=r"letters.txt: expected SHA-256 .* remove .*/letters/.* and give the job"):
        execute(Count(config()), run, force=True)
    letters.folder.write_bytes("letters.txt", b"a")
    with pytest.raises(ArtefactError, match=r"letters.txt: expected 2 bytes, got 1"):
        execute(Count(config()), run, force=True)
    letters.folder.remove()
    assert execute(Count(config()), run)[1].metrics == {"letters": 2}


def test_lines_are_json_with_run_and_stage_where_asked(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    with said_as("JSON", run="/runs/a", stage="count"):
        execute(Count(config()), run)
        say("all done", item="i1")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["stage"], line["message"].split(" in ")[0]) for line in lines] == [
        ("letters", "letters: running"),
        ("letters", "letters: done"),
        ("count", "count: running"),
        ("count", "count: done"),
        ("count", "all done"),
    ]
    assert {line["run"] for line in lines} == {"/runs/a"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    assert lines[-1]["item"] == "i1"
    say("as text again", item="i1")
    assert capfd.readouterr().err == "as text again\n"


class Call:
    """Runs a job's file as its own program would, without importing everything anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, job: str, *words: str) -> tuple[int, dict[str, Any], str, str]:
        """The exit code, the JSON of the last line, and both outputs."""
        self.monkeypatch.setattr(sys, "argv", [job, *words])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / "jobs" / job), run_name="__main__")
        output, error = self.capfd.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, json.loads(output.splitlines()[-1]), output, error


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(ROOT)
    return Call(monkeypatch, capfd)


@pytest.mark.parametrize("job", JOBS)
def test_every_job_refuses_wrong_settings_in_the_same_way(call: Call, job: str) -> None:
    code, last, _, error = call(job, "--config", "configs/demo.yaml", "run=relative", "engine.cpu=1")
    assert code == 2
    assert last["status"] == "refused"
    assert {"stage", "artefact", "counts", "metrics", "seconds"} <= set(last)
    assert "engine.cpu: there is no such setting. Did you mean engine.cpus?" in error
    assert "Traceback" not in error


def test_a_refusal_is_json_too_where_asked(call: Call, tmp_path: Path) -> None:
    words = [f"run={tmp_path}/run", f"data.path={tmp_path}/none", "data.format=tables", "ray.log_encoding=JSON"]
    code, last, _, error = call("prepare.py", *words)
    assert code == 2
    line = json.loads(error.splitlines()[-1])
    assert (line["run"], line["stage"]) == (f"{tmp_path}/run", "prepare")
    assert line["message"] == f"prepare: {last['error']}"


@pytest.mark.parametrize("job", JOBS)
def test_every_job_plans_without_starting_anything(call: Call, job: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, last, output, error = call(job, "--config", "configs/demo.yaml", f"run={run}", "--dry-run")
    assert code == 0, error
    assert last["status"] == "planned"
    assert last["plan"][-1]["stage"] == job.removesuffix(".py")
    assert "max_keywords: 6" in output  # the resolved configuration
    assert "asks for" in output
    assert not run.exists()


def test_settings_may_stand_behind_options(call: Call, tmp_path: Path) -> None:
    code, _, output, error = call("prepare.py", f"run={tmp_path}/run", "--dry-run", "data.format=shop")
    assert code == 0, error
    assert "format: shop" in output


def test_what_cannot_be_written_fails_with_one_line_and_exit_code_1() -> None:
    words = ["--config", "configs/demo.yaml", "run=/dev/null/run", "ray.num_cpus=2"]
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "prepare.py", *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1
    assert last["status"] == "failed"
    assert "Not a directory" in last["error"]
    assert f"prepare: failed: {last['error']}" in done.stderr


def test_a_missing_data_folder_is_refused(call: Call) -> None:
    words = ["--config", "configs/movies.yaml", "run=/unused", "data.path=/no/where"]
    code, last, _, error = call("prepare.py", *words)
    assert code == 2
    assert "/no/where" in error
    assert last["status"] == "refused"


def test_the_settings_can_be_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["summarize.py", "--help-config"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / "jobs" / "summarize.py"), run_name="__main__")
    assert not exit_.value.code
    assert "summarize.max_keywords" in capsys.readouterr().out


def test_what_a_killed_run_goes_on_from_stays_until_the_result_is_published(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Folder, names: list[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mmsrarec_ray.job.checksums", killed)
        with pytest.raises(KeyboardInterrupt):
            execute(Slow(config()), run)
    step, manifest, _ = execute(Slow(config()), run)
    assert Letters.runs == [False, False, True, False], "the second run found what the first had done"
    assert step.artefact is not None
    assert list(manifest.files) == ["letters.txt"]
    assert step.artefact.folder.files() == ["letters.txt", "manifest.json"]
