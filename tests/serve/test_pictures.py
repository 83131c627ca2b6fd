"""Thumbnails: each is found without reading the pictures of the whole catalogue."""

from __future__ import annotations

import asyncio
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
from mmsrarec_ray.serve import pictures as module
from mmsrarec_ray.serve.pictures import Pictures
from mmsrarec_ray.serve.sqlite import SqliteStore
from mmsrarec_ray.serve.store import Item, StoreUnavailable
from mmsrarec_ray.store import Folder
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
    return Pictures(config, [done.folder], store), store, names


def red(thumbnail: bytes) -> int:
    return Image.open(io.BytesIO(thumbnail)).getpixel((0, 0))[0]


def thumbnail(pictures: Pictures, item: str, version: int | None = None) -> bytes | None:
    return asyncio.run(pictures.thumbnail(item, version))


def test_each_item_has_its_own_picture_and_unknown_ones_none(
    pictures: tuple[Pictures, SqliteStore, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, _, names = pictures
    read: list[int] = []
    before = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, *more: Any) -> Any:
        read.append(file.metadata.row_group(group).num_rows)
        return before(file, group, *more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for name in names:
        number = int(name.split()[1])
        small = thumbnail(shown, name)
        if number % 10 == 0:
            assert small is None
            continue
        assert small is not None
        assert red(small) == number % 256
    assert len(read) == 2 * N
    assert max(read) <= 64
    assert [thumbnail(shown, name) for name in ("", "item", "item 15x", "zzz")] == [None] * 4
    assert len(read) == 2 * N


def test_a_picture_is_decoded_once_for_all_who_ask_and_anew_when_the_item_changes(
    pictures: tuple[Pictures, SqliteStore, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, store, _ = pictures
    decoded: list[int] = []
    before = module.load_image
    monkeypatch.setattr(module, "load_image", lambda *given: (decoded.append(1), before(*given))[1])

    async def asked(item: Item) -> list[bytes | None]:
        return await asyncio.gather(*(shown.thumbnail(item.item_id, item.version) for _ in range(5)))

    for turn, colour in enumerate((50, 90), 1):
        put = store.put_item("item 1", "x", None, picture(colour=f"rgb({colour},0,0)"))
        for each in asyncio.run(asked(put)):
            assert each is not None
            assert red(each) == colour
        assert len(decoded) == turn


def test_an_item_has_the_picture_of_the_first_dataset_that_has_it(tmp_path: Path) -> None:
    for name, reds in {"main": {"both": 200}, "trial": {"both": 10, "trial's": 100}}.items():
        content = [picture(colour=f"rgb({red},0,0)") for red in reds.values()]
        table = {"item_id": list(reds), "image": content, "image_uri": pa.nulls(len(reds), pa.string())}
        (tmp_path / name / "items").mkdir(parents=True)
        pq.write_table(pa.table(table), tmp_path / name / "items" / "part-0.parquet")
    datasets = [Folder.at(str(tmp_path / name)) for name in ("main", "trial")]
    config = load(None, ["data.format=shop", "run=/nowhere"])
    shown = Pictures(config, datasets, SqliteStore(f"{tmp_path}/store.sqlite"))
    found = [thumbnail(shown, item) for item in ("both", "trial's")]
    assert [red(each) for each in found if each is not None] == [200, 100]
    assert thumbnail(shown, "nobody's") is None


def test_no_more_thumbnails_are_kept_than_fit(
    pictures: tuple[Pictures, SqliteStore, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, _, names = pictures
    monkeypatch.setattr(module, "_KEPT", 3)
    for name in (*names[:4], names[1], names[4]):
        thumbnail(shown, name)
    assert [name for name, _ in shown._made] == [names[3], names[1], names[4]]


def test_a_picture_that_could_not_be_asked_for_is_asked_for_again(
    pictures: tuple[Pictures, SqliteStore, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, store, _ = pictures
    put = store.put_item("item 1", "x", None, picture(colour="red"))
    with monkeypatch.context() as away:
        away.setattr(store, "path", "/nowhere/store.sqlite")
        with pytest.raises(StoreUnavailable):
            thumbnail(shown, "item 1", put.version)
    assert thumbnail(shown, "item 1", put.version) is not None
