"""Who may write into a folder that jobs share: one process at a time, on any filesystem that pyarrow knows.

Object stores have no locks and pyarrow no exclusive creation, so a process writes a claim of its own beside the folder
and then looks who else has one. Whoever writes first and looks afterwards is sure that of two at least one sees the
other; who sees another steps back. A claim is written again every ten seconds. One that is not is dead after two
minutes, by the clock of the filesystem; that of a process of this machine as soon as the process is gone.
"""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel

from mmsrarec_ray.errors import LeaseError
from mmsrarec_ray.progress import say
from mmsrarec_ray.store import Folder

BEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0
_LOOK_SECONDS = 1.0
_READS = 5
_CLAIM_BYTES = 1_024
_SUFFIX = ".lease"


class Claim(BaseModel):
    """What a process says of itself. space: where its pid means something; started: when the process did, in seconds
    since the epoch; held: whether it has the folder, or still looks who else wants it."""

    name: str
    host: str
    space: str
    pid: int
    started: float
    job: str
    since: datetime
    held: bool = False

    @classmethod
    def mine(cls) -> Claim:
        process = psutil.Process()
        return cls(
            name=uuid.uuid4().hex[:12],
            host=socket.gethostname(),
            space=_space(),
            pid=process.pid,
            started=process.create_time(),
            job=_ray_job(),
            since=datetime.now(UTC),
        )

    @property
    def here(self) -> bool:
        """Whether its process would be one of this machine, and not of another container."""
        return self.space == _space()

    @property
    def gone(self) -> bool:
        """Whether its process is one of this machine and has ended."""
        if not self.here:
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.started) > 2
        except psutil.NoSuchProcess:
            return True


@dataclass
class Seen:
    """A claim of another process. beat: nanoseconds, when it was written last; age: seconds since then."""

    claim: Claim
    beat: int
    age: float

    @property
    def dead(self) -> bool:
        return self.claim.gone or (self.age > SILENT_SECONDS and not (self.claim.here and self.claim.held))


class Lease:
    """The right to write into a folder, kept while it is needed."""

    def __init__(self, folder: Folder):
        above, _, name = folder.path.rpartition("/")
        self._above, self._prefix = Folder(folder.filesystem, above), f"{name}."
        self._what, self._claim = folder.path, Claim.mine()
        self._over, self._beating = threading.Event(), threading.Thread(target=self._beat, daemon=True)
        self.lost = False

    def take(self) -> None:
        """Wait until it is clear whether another process has the folder. Raises LeaseError where one has."""
        try:
            self._wait()
            self._claim.held = True
            self._write()
        except BaseException:
            self._withdraw()
            raise
        self._beating.start()

    def _wait(self) -> None:
        """Until nobody else claims it, and our claim stands."""
        first: dict[str, int] = {}  # when claims that we wait for were written, as we saw them first
        pause = 0.2
        while others := self._claimed():
            self._withdraw()
            holders = [each for each in others if each.claim.held]
            for each in holders:
                if each.claim.here or each.beat != first.get(each.claim.name, each.beat):
                    raise LeaseError(
                        f"{self._what}: {_who(each.claim)} is making it. Wait until it is done, or end it, and give "
                        "this job again."
                    )
                if each.claim.name not in first:
                    say(f"{self._what}: waiting for a sign of life of {_who(each.claim)}")
                    first[each.claim.name] = each.beat
            # Those that come at once must not come again at once.
            time.sleep(_LOOK_SECONDS if holders else random.uniform(0, pause))
            pause = min(2 * pause, 5)

    def _claimed(self) -> list[Seen]:
        """Claim the folder; gives who else does. Claims of the dead are removed."""
        self._write()
        found = self._look()
        for each in found:
            if each.dead:
                say(f"{self._what}: taken over from {_who(each.claim)}, which is gone")
                self._remove(each.claim)
        return [each for each in found if not each.dead]

    def confirm(self) -> None:
        """Raises LeaseError where another process has taken the folder over."""
        if self.lost or not self._kept():
            raise self.taken_over()

    def taken_over(self) -> LeaseError:
        return LeaseError(
            f"{self._what}: another job has taken it over, since this one gave no sign of life for "
            f"{SILENT_SECONDS:.0f} s. Give the job again when that one is done."
        )

    def give_back(self) -> None:
        self._over.set()
        if self._beating.is_alive():
            self._beating.join()
        self._withdraw()

    def _beat(self) -> None:
        """Write the claim again and again; interrupt the main thread where it is lost."""
        while not self._over.wait(BEAT_SECONDS):
            try:
                if not self._kept():
                    self.lost = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                    return
                self._write()
            except OSError as error:  # a filesystem that is away for a moment
                say(f"{self._what}: the claim could not be written: {error}")

    def _kept(self) -> bool:
        return self._above.exists(self._file(self._claim)) and not any(each.claim.held for each in self._look())

    def _look(self) -> list[Seen]:
        """The claims of others."""
        entries = self._above.entries(recursive=False)
        mine = entries.get(self._file(self._claim))
        found = []
        for name, info in entries.items():
            if not (name.startswith(self._prefix) and name.endswith(_SUFFIX)) or name == self._file(self._claim):
                continue
            if claim := self._read(name):
                age = (mine.mtime_ns - info.mtime_ns) / 1e9 if mine else 0.0
                found.append(Seen(claim, info.mtime_ns, age))
        return found

    def _read(self, name: str) -> Claim | None:
        """None where it has just been withdrawn. Looking comes before reading, and in between it may be withdrawn and
        made again: that is read again."""
        for left in reversed(range(_READS)):
            try:
                return Claim.model_validate_json(self._above.read_bytes(name))
            except OSError:
                if not self._above.exists(name):
                    break
                if not left:
                    raise
        return None

    def _write(self) -> None:
        """Always as long: pyarrow asks an object store for the length first, and takes so many bytes whatever comes."""
        self._above.write_bytes(self._file(self._claim), self._claim.model_dump_json().encode().ljust(_CLAIM_BYTES))

    def _withdraw(self) -> None:
        self._remove(self._claim)

    def _remove(self, claim: Claim) -> None:
        with suppress(OSError):  # it is gone already; or it stays, and its process tells that it is dead
            self._above.filesystem.delete_file(self._above.file(self._file(claim)))

    def _file(self, claim: Claim) -> str:
        return f"{self._prefix}{claim.name}{_SUFFIX}"


@contextmanager
def held(folder: Folder) -> Iterator[Lease]:
    """Have the folder for oneself; from the main thread, which is interrupted where the lease is lost.

    Raises LeaseError where another process has it, or takes it over because this one was silent for too long.
    """
    lease = Lease(folder)
    with _interruptible():
        lease.take()
        try:
            yield lease
        except _Lost:
            if lease.lost:
                raise lease.taken_over() from None
            raise
        finally:
            lease.give_back()


class _Lost(BaseException):
    """Raised in the main thread, whatever it does there."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGUSR1 raises _Lost: Ctrl-C would not do, it is ignored in what a shell has put into the background."""

    def lost(*_: object) -> None:
        raise _Lost

    before = signal.signal(signal.SIGUSR1, lost)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _who(claim: Claim) -> str:
    since = claim.since.isoformat(sep=" ", timespec="seconds")
    return f"process {claim.pid} of host {claim.host} ({claim.job}, since {since})"


def _ray_job() -> str:
    """What people find this process by."""
    import ray

    if not ray.is_initialized():
        return "no Ray job"
    here = ray.get_runtime_context()
    return f"Ray job {here.get_job_id()} of {here.gcs_address}"


def _space() -> str:
    """Names the machine and, in it, the processes that see each other's pids: those of a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{uuid.getnode():x}"
