"""Thumbnails: each is found without reading the pictures of the whole catalogue."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsrarec_ray.config import load
from mmsrarec_ray.serve.pictures import Pictures
from mmsrarec_ray.serve.sqlite import SqliteStore
from tests.data.conftest import Prepared, picture, prepare  # noqa: F401 - a fixture

N = 150


@pytest.fixture
def pictures(prepare: Callable[..., Prepared], tmp_path: Path) -> tuple[Pictures, SqliteStore, list[str]]:  # noqa: F811
    """Of a catalogue in two files, whose ids are in no order; the red of an item's picture is its number."""
    order = np.random.default_rng(0).permutation(2 * N).tolist()
    names = [f"item {number}" for number in order]
    files: dict[str, Any] = {}
    for part in (0, 1):
        some = order[part * N : (part + 1) * N]
        content = [None if number % 10 == 0 else picture(colour=f"rgb({number % 256},0,0)") for number in some]
        table = {"item_id": names[part * N : (part + 1) * N], "title": ["x"] * N, "image": content}
        files[f"items/{part}.parquet"] = table
    done = prepare(
        {name: pa.table(table) for name, table in files.items()},
        *("data.items=items", "data.interactions=null", "data.item_columns.text=null"),
    )
    store = SqliteStore(f"{tmp_path}/store.sqlite")
    config = load(None, ["data.format=shop", "run=/nowhere"])
    return Pictures(config, done.folder, store), store, names


def test_each_item_has_its_own_picture_and_unknown_ones_none(
    pictures: tuple[Pictures, SqliteStore, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, store, names = pictures
    read: list[int] = []
    before = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, *more: Any) -> Any:
        read.append(file.metadata.row_group(group).num_rows)
        return before(file, group, *more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for name in names:
        number = int(name.split()[1])
        thumbnail = shown.thumbnail(name)
        if number % 10 == 0:
            assert thumbnail is None
            continue
        assert thumbnail is not None
        assert Image.open(io.BytesIO(thumbnail)).getpixel((0, 0)) == (number % 256, 0, 0)
    assert len(read) == 2 * N
    assert max(read) <= 64
    assert [shown.thumbnail(name) for name in ("", "item", "item 15x", "zzz")] == [None] * 4
    assert len(read) == 2 * N
    store.delete_item("item 1")
    assert shown.thumbnail("item 1") is None
