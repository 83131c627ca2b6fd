"""Ray datasets as tables: how they are read."""

from __future__ import annotations

from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from mmsrarec_ray.data.frames import iter_tables, read_parquet
from mmsrarec_ray.store import Folder


def test_a_few_files_are_a_block_each_and_read_by_the_processes_there_are(ray_session: str, tmp_path: Path) -> None:
    files = [f"part-{number}.parquet" for number in range(3)]
    for number, name in enumerate(files):
        pq.write_table(pa.table({"number": range(10 * number, 10 * number + 10)}), tmp_path / name)
    folder = Folder.at(str(tmp_path))

    def read() -> list[list[int]]:
        rows = read_parquet(folder, [folder.file(name) for name in files])
        return sorted(table["number"].to_pylist() for table in iter_tables(rows))

    assert read() == [list(range(first, first + 10)) for first in (0, 10, 20)]
    before = set(psutil.Process().children(recursive=True))
    read()
    begun = set(psutil.Process().children(recursive=True)) - before
    assert len(begun) <= len(files)
