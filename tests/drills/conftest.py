"""Drills: what goes wrong in operation, done on purpose. `make drills` runs them and writes build/drills.md."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

REPORT = Path(__file__).parents[2] / "build" / "drills.md"
_HEADING = "| during | what | back after | lost | doubled | what people see |\n|---|---|---|---|---|---|"


@dataclass
class Drill:
    """What one drill found; a line of the report.

    recovered: seconds until work went on, None where the job is over and has to be given again; lost, doubled: rows,
    answers or events; said: the message that people see, or what happens without one.
    """

    during: str
    what: str
    recovered: float | None = None
    lost: int = 0
    doubled: int = 0
    said: str = ""

    def line(self) -> str:
        back = "given again" if self.recovered is None else f"{self.recovered:.1f} s"
        said = self.said.replace("|", "\\|").replace("\n", " ")
        return f"| {self.during} | {self.what} | {back} | {self.lost} | {self.doubled} | {said} |"


@dataclass
class Book:
    """The drills of this session, in the order in which they were told."""

    drills: list[Drill] = field(default_factory=list)

    def tell(self, *arguments: object, **named: object) -> None:
        self.drills.append(Drill(*arguments, **named))  # type: ignore[arg-type]

    def text(self) -> str:
        return "\n".join([_HEADING, *(drill.line() for drill in self.drills)]) + "\n"


_BOOK = Book()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.drill)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Continuous integration ends in time on a slow machine too: what would begin too late is left out, and said."""
    begin_by = os.environ.get("MMSRAREC_DRILLS_BEGIN_BY")
    if begin_by and time.time() > float(begin_by):
        pytest.skip(f"{item.name}: too late to begin (MMSRAREC_DRILLS_BEGIN_BY)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _BOOK.drills:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(_BOOK.text())
        terminalreporter.write_line(_BOOK.text())


@pytest.fixture
def book() -> Book:
    return _BOOK


@pytest.fixture(scope="module")
def cluster(environment: None) -> Iterator[Cluster]:
    """A head that only coordinates, and two nodes of which either can do all the work."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=4)
    cluster.add_node(num_cpus=4)
    yield cluster
    cluster.shutdown()


def until(check: Callable[[], object], seconds: float = 300.0, what: str = "it") -> float:
    """Seconds until `check` holds. Fails when it never does."""
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.05)
    return time.monotonic() - began
