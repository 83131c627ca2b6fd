"""What every job does the same way: read the command line, check, plan, connect to Ray, run, report, exit.

A job is a `Stage`. It says what it needs and what decides its result; this module finds out what is up to date,
runs the missing stages before it, and publishes each result with its manifest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import takewhile
from typing import Any, ClassVar

import yaml

from mmsrarec_ray import __version__
from mmsrarec_ray.addresses import without_secrets
from mmsrarec_ray.config import Config, known_keys, load
from mmsrarec_ray.errors import UsageError
from mmsrarec_ray.estimate.table import Estimates
from mmsrarec_ray.lease import Lease, held
from mmsrarec_ray.progress import said_about, said_as, say
from mmsrarec_ray.store import MANIFEST, Artefact, FileEntry, Folder, Manifest, Run, code_fingerprint, fingerprint

DONE, FAILED, USAGE = 0, 1, 2
_RAY_DATA_ADDS = re.compile(r"Failed to .+ after \d+/\d+ attempts \(total backoff")


@dataclass(frozen=True)
class Outcome:
    """What a stage reports: whole numbers that must add up, and measurements."""

    counts: dict[str, int]
    metrics: dict[str, Any] = field(default_factory=dict)


class Stage(ABC):
    """One step from artefacts to an artefact."""

    name: ClassVar[str]
    """As in jobs/NAME.py."""
    artefact: ClassVar[str]
    """The folder its result goes to."""
    code: ClassVar[tuple[str, ...]]
    """Modules and packages whose source decides the result."""
    scratch: ClassVar[tuple[str, ...]] = ()
    """Names in its folder that a killed run goes on from, and that are no part of the result: they stay until it is
    published."""
    force_all: ClassVar[bool] = False
    """Whether `--force` means all it requires too."""

    def __init__(self, config: Config):
        self.config = config
        self.fresh = False
        """Forced: take nothing over from before."""
        self.renewed: set[str] = set()
        """Paths of the folders that stages of this job have renewed."""

    def requires(self) -> list[Stage]:
        """The stages whose results this one reads."""
        return []

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The part of the configuration that decides the result."""

    def sources(self) -> dict[str, str]:
        """Fingerprints of what is read from outside the run. Raises UsageError where it cannot be read."""
        return {}

    def engine(self) -> dict[str, Any]:
        """What computes the result, with its version."""
        import ray

        return {"name": "ray.data", "version": ray.__version__}

    def resources(self) -> dict[str, Any]:
        """What the stage asks of Ray, for the plan."""
        return {"CPU": 1}

    def check(self) -> None:
        """Refuse, before Ray starts, what cannot work. Raises UsageError."""
        return

    @abstractmethod
    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        """Write the result into `out`. inputs: artefact name -> published artefact."""

    def renew(self, folder: Folder) -> None:
        """Empty a folder of the run that several stages share, where this one is forced and no other of the job has
        renewed it: what stands in it afterwards is of this job. Raises LeaseError where another process has it."""
        if self.fresh and folder.path not in self.renewed:
            with held(folder):
                folder.clear()
            self.renewed.add(folder.path)

    def clear_up(self, artefact: Artefact) -> None:
        """Remove what a killed run would have gone on from and that lies outside its folder. Called when the result is
        published."""
        return

    def announce(self, artefact: Artefact, run: Run) -> None:
        """Put the result where people look for it. Called whenever a job that has it or needs it ends well."""
        return


@dataclass(frozen=True)
class Planned:
    """A stage, where its result goes, and whether it is there already."""

    stage: Stage
    status: str
    """'up to date', 'to run', or 'to run after X' when its fingerprint depends on a result still to come."""
    artefact: Artefact | None = None
    inputs: dict[str, Artefact] = field(default_factory=dict)
    manifest_inputs: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "status": self.status,
            "artefact": self.artefact.folder.path if self.artefact else None,
            "resources": self.stage.resources(),
        }


def plan(stage: Stage, run: Run) -> list[Planned]:
    """What has to be done for a stage's result: its requirements first, itself last."""
    steps: dict[str, Planned] = {}
    for each in _closure(stage):
        steps[each.name] = _plan(each, run, steps)
    return list(steps.values())


def _closure(stage: Stage) -> list[Stage]:
    """The stage and all it needs, directly or not, each once, in an order in which they can run."""
    stages: dict[str, Stage] = {}
    for required in stage.requires():
        for each in _closure(required):
            stages.setdefault(each.name, each)
    return [*stages.values(), stage]


def _plan(stage: Stage, run: Run, steps: Mapping[str, Planned]) -> Planned:
    """What has to be done for one stage, where `steps` holds those it requires."""
    direct = {required.artefact: steps[required.name] for required in stage.requires()}
    waiting = [step.stage.name for step in direct.values() if step.status != "up to date"]
    if waiting:
        return Planned(stage, f"to run after {', '.join(waiting)}")
    inputs = {name: step.artefact for name, step in direct.items() if step.artefact}
    manifest_inputs = stage.sources() | {name: artefact.manifest.digest for name, artefact in inputs.items()}
    artefact = run.artefact(stage.artefact, _identity(stage, manifest_inputs))
    status = "up to date" if artefact.published else "to run"
    return Planned(stage, status, artefact, inputs, manifest_inputs)


def _identity(stage: Stage, inputs: dict[str, str]) -> str:
    return fingerprint(
        {
            "artefact": stage.artefact,
            "code": code_fingerprint(stage.code),
            "engine": stage.engine(),
            "settings": stage.settings(),
            "inputs": inputs,
        }
    )


def execute(stage: Stage, run: Run, force: bool = False) -> tuple[Planned, Manifest, bool]:
    """Bring a stage's result up to date, its requirements first. Ray must be running.

    force: run the stage itself in any case, and with `force_all` what it requires. Returns its step, its manifest and
    whether anything was done for it. What a stage reads is verified before; raises ArtefactError where it is damaged.
    """
    steps: dict[str, Planned] = {}
    trusted: set[str] = set()  # artefacts that this job has written or verified
    renewed: set[str] = set()
    for each in _closure(stage):
        each.renewed = renewed
        step = _plan(each, run, steps)
        fresh = force and (each is stage or stage.force_all)
        done = (step.status != "up to date" or fresh) and _make(step, fresh, trusted)
        if not done:
            say(f"{each.name}: up to date ({step.artefact.folder.path})")  # type: ignore[union-attr]
        steps[each.name] = replace(step, status="up to date")
    assert step.artefact is not None
    _announce(steps.values(), run)
    return step, step.artefact.manifest, done


def _announce(steps: Iterable[Planned], run: Run) -> None:
    for step in steps:
        assert step.artefact is not None
        step.stage.announce(step.artefact, run)


def _make(step: Planned, fresh: bool, trusted: set[str]) -> bool:
    """Run a stage and publish its result; returns whether it had to, since another job may have done so meanwhile.

    trusted: folders of artefacts that are known to be whole; the others that it reads are verified before, and added.
    """
    artefact = step.artefact
    assert artefact is not None
    with said_about(stage=step.stage.name), held(artefact.folder) as lease:
        if artefact.published and not fresh:
            return False
        for each in step.inputs.values():
            if each.folder.path not in trusted:
                each.verify(checksums)
        step.stage.fresh = fresh
        _publish(step, artefact, lease)
        trusted |= {made.folder.path for made in (*step.inputs.values(), artefact)}
    return True


def _publish(step: Planned, artefact: Artefact, lease: Lease) -> None:
    from mmsrarec_ray.metrics import counted

    stage = step.stage
    say(f"{stage.name}: running")
    began = time.perf_counter()
    with _shown(stage.name), counted(stage.name):
        outcome = stage.run(artefact.folder, step.inputs)
    seconds = time.perf_counter() - began
    manifest = _manifest(step, outcome, seconds)
    lease.confirm()
    artefact.publish(manifest)
    for name in stage.scratch:
        artefact.folder.discard(name)
    stage.clear_up(artefact)
    say(f"{stage.name}: done in {seconds:.1f} s, {_counts(outcome.counts)}")


class _Marks:
    """Actor whose calls are the stages in Ray's dashboard: each lasts as long as its stage and fails with it."""

    def __init__(self) -> None:
        self.ends: dict[str, asyncio.Future[None]] = {}

    async def begin(self, stage: str) -> None:
        self.ends[stage] = asyncio.get_running_loop().create_future()
        await self.ends[stage]

    async def end(self, stage: str, error: str | None) -> None:
        if error is None:
            self.ends[stage].set_result(None)
        else:
            self.ends[stage].set_exception(RuntimeError(error))


@lru_cache(maxsize=1)
def _marks(cluster: str, job: str) -> Any:
    """The marks of a Ray job, which end with it: a process for all its stages. cluster: its address; job: an id."""
    import ray

    return ray.remote(num_cpus=0)(_Marks).remote()


@contextmanager
def _shown(stage: str) -> Iterator[None]:
    """Show a stage in the dashboard's list of tasks while it runs, under the name `stage: NAME`."""
    import ray
    from ray.exceptions import RayError

    here = ray.get_runtime_context()
    marks = _marks(here.gcs_address, here.get_job_id())
    mark = marks.begin.options(name=f"stage: {stage}").remote(stage)
    error: str | None = "interrupted"
    try:
        yield
        error = None
    except Exception as failure:
        error = _reason(failure)
        raise
    finally:
        with suppress(RayError):  # where Ray itself has died, the stage's own error tells it
            marks.end.remote(stage, error)
            ray.wait([mark], timeout=1)  # so that its end is told before Ray is left


def _manifest(step: Planned, outcome: Outcome, seconds: float) -> Manifest:
    assert step.artefact is not None
    stage, folder = step.stage, step.artefact.folder
    written = [name for name in folder.files() if name.partition("/")[0] not in (MANIFEST, *stage.scratch)]
    return Manifest(
        artefact=stage.artefact,
        fingerprint=step.artefact.fingerprint,
        code=code_fingerprint(stage.code),
        package=__version__,
        engine=stage.engine(),
        config=stage.config.model_dump(mode="json"),
        inputs=step.manifest_inputs,
        files=checksums(folder, written),
        counts=outcome.counts,
        metrics=outcome.metrics,
        seconds=round(seconds, 3),
        created=datetime.now(UTC),
    )


def checksums(folder: Folder, names: list[str]) -> dict[str, FileEntry]:
    """Checksums of files of an artefact, computed where the cluster has room."""
    import ray

    checksum = ray.remote(num_cpus=1)(Folder.checksum)
    entries = ray.get([checksum.remote(folder, name) for name in names])
    return dict(zip(names, entries, strict=True))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def connect(config: Config) -> None:
    """Join the cluster of the Ray job, or the one named, or start one on this machine."""
    import logging
    import os

    import ray

    _quiet_data()
    settings: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": config.ray.worker_logs}
    if config.ray.log_encoding == "JSON":
        settings["logging_config"] = ray.LoggingConfig(encoding="JSON", log_level="WARNING")
    if address := config.ray.address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, **settings)
        return
    mib = config.ray.object_store_mib
    ray.init(
        address="local",  # never some other cluster that happens to run on this machine
        num_cpus=config.ray.num_cpus,
        object_store_memory=mib and mib * 2**20,
        include_dashboard=False,
        **settings,
    )


def _quiet_data() -> None:
    """Ray Data's own progress is for terminals; in a job's log it buries ours."""
    import logging

    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def main(stage_class: type[Stage], arguments: list[str] | None = None) -> int:
    """Run a job from its command line; returns the exit code (0 done, 2 wrong usage or input, 1 failed)."""
    options = _parser(stage_class).parse_intermixed_args(arguments)
    if options.help_config:
        for key, kind, description in known_keys():
            print(f"{key:40} {kind:40} {description}")
        return DONE
    result: dict[str, Any] = {"stage": stage_class.name, "artefact": None, "counts": {}, "metrics": {}}
    began = time.perf_counter()
    try:
        config = load(options.config, options.settings)
        with said_as(config.ray.log_encoding, run=config.run, stage=stage_class.name):
            code, facts = _told(stage_class(config), options)
    except UsageError as error:
        say(f"{stage_class.name}: {error}")
        code, facts = _refused(error)
    result |= facts | {"seconds": round(time.perf_counter() - began, 3)}
    sys.stderr.flush()
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return code


def _told(stage: Stage, options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Run a stage; where it fails, say why in a line."""
    try:
        return _run(stage, options)
    except UsageError as error:
        say(f"{stage.name}: {error}")
        return _refused(error)
    except Exception as error:
        message = _reason(error) + _advice(error, stage.config.run)
        if stage.config.ray.log_encoding == "TEXT":
            traceback.print_exc()
        say(f"{stage.name}: failed: {message}", traceback=traceback.format_exc())
        return FAILED, {"status": "failed", "error": message}


def _refused(error: UsageError) -> tuple[int, dict[str, Any]]:
    return USAGE, {"status": "refused", "error": str(error)}


def _run(stage: Stage, options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    config, run = stage.config, Run.at(stage.config.run)
    for each in _closure(stage):
        each.check()
    steps = plan(stage, run)
    if options.dry_run:
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        print("Plan:")
        for step in steps:
            print(f"  {step.stage.name}: {step.status}; asks for {step.stage.resources()}")
        estimates = _estimates(config, steps)
        print(estimates.text())
        planned = [step.summary() | estimates.summary(step.stage.name) for step in steps]
        return DONE, {"status": "planned", "plan": planned}
    if steps[-1].status == "up to date" and not options.force:
        say(f"{stage.name}: up to date")
        _announce(steps, run)
        return DONE, _facts(steps[-1], steps[-1].artefact.manifest, "up to date")  # type: ignore[union-attr]
    import ray

    connect(config)
    try:
        step, manifest, done = execute(stage, run, options.force)
    except ray.exceptions.RayError as error:
        raise _usage_behind(error) or error from None
    finally:
        ray.shutdown()
    return DONE, _facts(step, manifest, "done" if done else "up to date")


def _estimates(config: Config, steps: list[Planned]) -> Estimates:
    """Of the stages that would run; counts are those of the dataset, where it is there already."""
    ready = {step.stage.artefact: step.artefact for step in steps if step.status == "up to date"}
    dataset = ready.get("dataset")
    waiting = [step.stage.name for step in steps if step.status != "up to date"]
    return Estimates.of(config, waiting, dataset.manifest if dataset else None)


def _facts(step: Planned, manifest: Manifest, status: str) -> dict[str, Any]:
    assert step.artefact is not None
    where = step.artefact.folder.path
    return {"status": status, "artefact": where, "counts": manifest.counts, "metrics": manifest.metrics}


def _in_task(error: BaseException) -> tuple[str, str]:
    """Class and message of what a Ray task met first.

    Ray Data keeps the chain of causes as text only: the first traceback in it ends with the original exception, to
    whose message it adds how to have things tried again.
    """
    lines = str(error).split("\nThe above exception was the direct cause")[0].strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    told = lines[frames[-1] + 1 :] if frames else lines[-1:]
    said = " ".join(takewhile(lambda line: not _RAY_DATA_ADDS.match(line), told))
    kind, _, message = said.partition(": ")
    return kind.rsplit(".", 1)[-1], message


def _usage_behind(error: BaseException) -> UsageError | None:
    """The user's mistake that a Ray task met, if that is why it failed."""
    kind, message = _in_task(error)
    mistakes = {mistake.__name__: mistake for mistake in UsageError.__subclasses__()}
    return mistakes[kind](message) if kind in mistakes else None


def _reason(error: Exception) -> str:
    """One line that says what went wrong."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        return without_secrets(": ".join(_in_task(error)))
    return without_secrets(f"{type(error).__name__}: {str(error).strip() or 'no message'}")


def _advice(error: Exception, run: str) -> str:
    """What to do about it, where that does not follow from the reason. run: the run folder."""
    if "No space left on device" in str(error):
        return without_secrets(
            f". Make room in {run}, or in Ray's temporary folder if that is full, and give the job again."
        )
    return ""


def _parser(stage_class: type[Stage]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jobs/{stage_class.name}.py", description=stage_class.__doc__)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and the plan, start nothing")
    parser.add_argument("--force", action="store_true", help="run this stage even where it is up to date")
    parser.add_argument("--help-config", action="store_true", help="print every setting and what it is")
    return parser
