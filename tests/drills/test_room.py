"""No room left, too small a store, data that is damaged: a clear message, nothing half-published, and on it goes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.store import Run
from tests.drills.conftest import Book
from tests.drills.jobs import Job

N = 400


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, shop = tmp_path_factory.mktemp("data"), shop_of(99, 1200)
    rows = [item_row(shop, index) for index in range(N)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "items.parquet", row_group_size=50)
    return folder


def words(data: Path, run: Path, *more: str) -> list[str]:
    return [f"data.path={data}", f"run={run}", "data.format=tables", "data.interactions=null", "ray.num_cpus=4", *more]


@pytest.fixture
def little(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"only root may make a small disk: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_no_room_in_the_run_folder(data: Path, little: Path, book: Book) -> None:
    run = little / "run"
    code, last, error = Job.start("prepare", *words(data, run)).end()
    assert code == 1, error
    assert last["status"] == "failed"
    assert f"No space left on device. Make room in {run}" in last["error"]
    assert "\n" not in last["error"]
    assert not Run.at(str(run)).published("dataset")
    subprocess.run(["mount", "-o", "remount,size=64m", little], check=True)
    code, again, error = Job.start("prepare", *words(data, run)).end()
    assert code == 0, error
    assert again["counts"]["items_out"] == N
    book.tell("prepare", "no room in the run folder", lost=N - again["counts"]["items_out"], said=last["error"])


def test_a_small_object_store_spills(data: Path, tmp_path: Path, book: Book) -> None:
    """Ray's smallest is 75 MiB; the job's own limit is that of `engine.object_store_mib`."""
    code, last, error = Job.start("summarize", *words(data, tmp_path, "ray.object_store_mib=76")).end()
    assert code == 0, error
    assert last["counts"] == {"in": N, "out": N, "failed": 0, "reused": 0}
    book.tell("summarize", "an object store of 76 MiB", 0.0, said="goes on: Ray writes what does not fit to the disk")


def test_an_object_store_that_ray_refuses(data: Path, tmp_path: Path, book: Book) -> None:
    code, last, _ = Job.start("prepare", *words(data, tmp_path, "ray.object_store_mib=10")).end()
    assert code == 2
    assert "ray.object_store_mib" in last["error"]
    assert "75" in last["error"]
    book.tell("prepare", "an object store of 10 MiB", said=last["error"])


def test_a_corrupt_input(data: Path, tmp_path: Path, book: Book) -> None:
    """A file cut off: the whole job is refused, and names it."""
    damaged = tmp_path / "data"
    damaged.mkdir()
    whole = (data / "items.parquet").read_bytes()
    (damaged / "items.parquet").write_bytes(whole[: len(whole) // 2])
    code, last, error = Job.start("prepare", *words(damaged, tmp_path / "run")).end()
    assert code == 2, error
    assert last["error"].endswith("this is not a parquet file.")  # without what Ray Data adds
    assert "items.parquet" in last["error"]
    assert not Run.at(str(tmp_path / "run")).published("dataset")
    book.tell("prepare", "a Parquet file that was cut off", said=last["error"].replace(str(tmp_path), ""))


def test_a_corrupt_picture_and_a_corrupt_artefact(data: Path, tmp_path: Path, book: Book) -> None:
    """The picture costs its item alone; a changed byte of an artefact is found before anything reads it."""
    damaged, run = tmp_path / "data", tmp_path / "run"
    damaged.mkdir()
    rows = pq.read_table(data / "items.parquet").slice(0, 40).to_pylist()
    rows[5]["image"] = rows[5]["image"][:100]
    pq.write_table(pa.Table.from_pylist(rows), damaged / "items.parquet")
    code, last, error = Job.start("summarize", *words(damaged, run)).end()
    assert code == 0, error
    assert last["counts"] == {"in": 40, "out": 39, "failed": 1, "reused": 0}
    book.tell("summarize", "a picture that was cut off", 0.0, said="1 of 40 items is in the failures table, 39 done")
    [dataset] = Run.at(str(run)).published("dataset")
    name = next(name for name in dataset.folder.files() if name.startswith("items/"))
    dataset.folder.write_bytes(name, dataset.folder.read_bytes(name)[:-1])
    code, last, error = Job.start("summarize", *words(damaged, run, "summarize.max_keywords=5")).end()
    assert code == 2, error
    assert "damaged after it was written" in last["error"]
    book.tell("summarize", "a byte of an artefact gone", said=last["error"].replace(str(tmp_path), ""))
    dataset.folder.remove()
    code, last, error = Job.start("summarize", *words(damaged, run, "summarize.max_keywords=5")).end()
    assert code == 0, error
