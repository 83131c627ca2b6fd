"""One process at a time writes into a folder; who dies is followed, and who comes second is told whom to wait for."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmsrarec_ray import lease
from mmsrarec_ray.errors import LeaseError
from mmsrarec_ray.lease import Claim, Lease, held
from mmsrarec_ray.store import Folder, Run

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder.at(str(tmp_path)) / "keywords" / "f1"
    base, options = request.getfixturevalue("s3")
    return Folder.at(f"{base}/{tmp_path.name}{options}") / "keywords" / "f1"


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path)) / "keywords" / "f1"


def claims(folder: Folder) -> list[str]:
    above, _, name = folder.path.rpartition("/")
    return [each for each in Folder(folder.filesystem, above).files() if each.startswith(f"{name}.")]


def claim_elsewhere(folder: Folder, age: float = 0) -> Path:
    """A claim of a process on another machine, written so many seconds ago."""
    claim = Claim.mine().model_copy(update={"space": "elsewhere", "host": "node-7", "held": True})
    path = Path(f"{folder.path}.{claim.name}.lease")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(claim.model_dump_json())
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_the_second_is_told_who_has_it_until_it_is_given_back(folder: Folder) -> None:
    with held(folder) as first:
        who = rf"f1: process {os.getpid()} of host {socket.gethostname()} \(.*, since 20.*\) is making it. Wait"
        with pytest.raises(LeaseError, match=who), held(folder):
            pass
        first.confirm()
        assert len(claims(folder)) == 1
        with held(folder / "other"):
            pass
    assert claims(folder) == []
    with held(folder):
        pass


def test_of_many_at_once_one_has_it(folder: Folder) -> None:
    everybody = [Lease(folder) for _ in range(4)]
    begin = threading.Barrier(len(everybody))

    def take(each: Lease) -> bool:
        begin.wait()
        with suppress(LeaseError):
            each.take()
            return True
        return False

    with ThreadPoolExecutor(len(everybody)) as pool:
        took = list(pool.map(take, everybody))
    assert sum(took) == 1
    assert len(claims(folder)) == 1
    everybody[took.index(True)].confirm()
    everybody[took.index(True)].give_back()


def test_a_claim_withdrawn_and_made_again_while_it_is_read_is_read_again(folder: Folder) -> None:
    theirs, mine, over = Lease(folder), Lease(folder), threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            for theirs._claim.held in (False, True):
                theirs._write()
                time.sleep(random.uniform(0, 0.005))
            theirs._withdraw()

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(come_and_go)
        try:
            seen, until = [], time.monotonic() + 60
            while time.monotonic() < until and (len(seen) < 200 or set(seen) != {None, False, True}):
                claim = mine._read(mine._file(theirs._claim))
                seen.append(claim and claim.held)
        finally:
            over.set()
        going.result()
    assert set(seen) == {None, False, True}


def test_a_killed_process_of_this_machine_is_followed_at_once(folder: Folder) -> None:
    program = (
        "import sys, time; from mmsrarec_ray.lease import Lease; from mmsrarec_ray.store import Folder\n"
        "Lease(Folder.at(sys.argv[1])).take(); print('taken', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, folder.uri("")], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"taken\n"
    with pytest.raises(LeaseError, match=f"process {holder.pid} of"), held(folder):
        pass
    holder.kill()
    holder.wait()
    with held(folder):
        assert len(claims(folder)) == 1


def test_a_process_of_another_machine_is_refused_when_it_gives_a_sign(local: Folder) -> None:
    theirs = claim_elsewhere(local)
    threading.Timer(1.5, lambda: os.utime(theirs)).start()
    began = time.monotonic()
    with pytest.raises(LeaseError, match="of host node-7"), held(local):
        pass
    assert time.monotonic() - began < lease.BEAT_SECONDS


def test_a_silent_process_of_another_machine_is_followed_after_a_while(
    local: Folder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    claim_elsewhere(local, age=lease.SILENT_SECONDS + 1)
    with held(local):
        assert len(claims(local)) == 1
    assert "taken over from process" in capfd.readouterr().err
    claim_elsewhere(local)
    monkeypatch.setattr(lease, "SILENT_SECONDS", 3)
    began = time.monotonic()
    with held(local):
        assert len(claims(local)) == 1
    assert time.monotonic() - began > 2
    assert "waiting for a sign of life of process" in capfd.readouterr().err


def test_who_was_silent_for_too_long_stops(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine took it for dead: removed its claim, and made one."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.5)

    def work() -> None:
        with held(local) as mine:
            Path(local.path).with_name(claims(local)[0]).unlink()
            claim_elsewhere(local)
            with pytest.raises(LeaseError, match="another job has taken it over"):
                mine.confirm()
            time.sleep(60)

    began = time.monotonic()
    with pytest.raises(LeaseError, match="another job has taken it over"):
        work()
    assert time.monotonic() - began < 30
    assert len(claims(local)) == 1, "that of the other one"


def start(run: Path, address: str, *settings: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "tests.patient", f"run={run}", "data.format=shop", f"ray.address={address}"]
    return subprocess.Popen([*words, *settings], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(job: subprocess.Popen) -> tuple[int, dict[str, Any], str]:
    output, error = job.communicate(timeout=120)
    return job.returncode, json.loads(output.splitlines()[-1]), error


def until(check: Any) -> None:
    deadline = time.monotonic() + 120
    while not check():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.1)


def test_of_two_jobs_at_once_one_is_refused_and_the_other_whole(ray_session: str, tmp_path: Path) -> None:
    jobs = [start(tmp_path, ray_session) for _ in range(2)]
    until(lambda: any(job.poll() is not None for job in jobs))
    loser, winner = sorted(jobs, key=lambda job: job.poll() is None)
    code, last, error = end(loser)
    assert code == 2, error
    assert last["status"] == "refused"
    assert f"process {winner.pid} of host" in last["error"]
    assert f"of {ray_session}" in last["error"], "it names Ray's job and cluster"
    assert error.splitlines()[-1] == f"patient: {last['error']}"
    (tmp_path / "go").touch()
    code, last, error = end(winner)
    assert (code, last["status"]) == (0, "done"), error
    (made,) = Run.at(str(tmp_path)).published("patience")
    assert set(made.manifest.files) == {"half", "whole"}
    assert not list(tmp_path.rglob("*.lease"))
    assert end(start(tmp_path, ray_session))[1]["status"] == "up to date"


def test_a_killed_job_is_taken_over_at_once(ray_session: str, tmp_path: Path) -> None:
    killed = start(tmp_path, ray_session)
    until(lambda: list(tmp_path.glob("patience/*/half")))
    killed.kill()
    killed.communicate()
    (tmp_path / "go").touch()
    code, last, error = end(start(tmp_path, ray_session))
    assert (code, last["status"]) == (0, "done"), error
    assert last["counts"]["kept"] == 1
    assert f"taken over from process {killed.pid} of host" in error
    assert "waiting" not in error
