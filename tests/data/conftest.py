"""Runs the prepare stage on hand-made files and gives its tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsrarec_ray.config import load
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.job import execute
from mmsrarec_ray.store import Folder, Manifest, Run

Content = str | bytes | pa.Table


@dataclass(frozen=True)
class Prepared:
    """A published dataset."""

    folder: Folder
    manifest: Manifest

    @property
    def counts(self) -> dict[str, int]:
        return self.manifest.counts

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest.metrics

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, its files in the order of their names."""
        below = self.folder / table
        return [row for name in below.files() for row in self.table(f"{table}/{name}").to_pylist()]

    def table(self, name: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.folder.read_bytes(name)))

    def item(self, item_id: str) -> dict[str, Any]:
        (row,) = (row for row in self.rows("items") if row["item_id"] == item_id)
        return row

    def history(self, user_id: str) -> list[str]:
        rows = [row for row in self.rows("interactions") if row["user_id"] == user_id]
        return [row["item_id"] for row in sorted(rows, key=lambda row: row["position"])]

    def failure(self, table: str = "items") -> dict[str, Any]:
        """The one failure of a table."""
        (row,) = (row for row in self.rows("failures") if row["table"] == table)
        return row


def write_files(folder: Path, files: Mapping[str, Content]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def picture(width: int = 4, height: int = 4, colour: str = "red", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def spoil_pictures(file: Path, kept: set[int]) -> None:
    """Overwrite the pages of `image` in a Parquet file, but for some row groups: who reads others fails."""
    metadata, content = pq.read_metadata(file), bytearray(file.read_bytes())
    place = metadata.schema.names.index("image")
    for group in set(range(metadata.num_row_groups)) - kept:
        chunk = metadata.row_group(group).column(place)
        start, size = chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size
        content[start : start + size] = bytes(size)
    file.write_bytes(content)


def prepare_folder(data: str, run: str, *settings: str) -> Prepared:
    config = load(None, ["data.format=tables", f"data.path={data}", f"run={run}", *settings])
    stage = Prepare(config)
    stage.check()
    step, manifest, _ = execute(stage, Run.at(run))
    assert step.artefact is not None
    return Prepared(step.artefact.folder, manifest)


CSV = ("data.items=items.csv", "data.interactions=interactions.csv", "data.item_columns.image=null")
ITEMS_CSV = "item_id,title,text\na,Apple,red\nb,Bread,brown\nc,Cup,\n"


@pytest.fixture
def prepare(ray_session: str, tmp_path: Path) -> Callable[..., Prepared]:
    """Write files and prepare them: `prepare({"items.csv": …, "interactions.csv": …}, *settings)`."""

    def call(files: Mapping[str, Content], *settings: str, under: str = "one") -> Prepared:
        data = write_files(tmp_path / under / "data", files)
        return prepare_folder(str(data), str(tmp_path / under / "run"), *settings)

    return call
