"""Folders of the library `datasets`, written by the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsrarec_ray.data.importers.tables import table_item
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.settings import ItemColumns
from mmsrarec_ray.store import Folder
from tests.data.conftest import Prepared, picture, prepare_folder
from tests.data.test_prepare import assert_counts_add_up

FORMAT = ("data.format=huggingface", "data.items=items", "data.interactions=log")
COLUMNS = ("data.item_columns.text=null", "data.item_columns.attributes=[tags]")


BLUE = picture(colour="blue")


def items(**columns: Any) -> Any:
    from datasets import Dataset, Features, Image, List, Value

    features = Features(
        {"item_id": Value("int64"), "title": Value("large_string"), "image": Image(), "tags": List(Value("string"))}
    )
    rows = {
        "item_id": [1, 2, 3],
        "title": ["One", "Two", None],
        "image": [{"bytes": picture(), "path": "a.png"}, None, {"bytes": BLUE, "path": None}],
        "tags": [["a", "b"], [], None],
    }
    return Dataset.from_dict(rows | columns, features=features)


def log(users: list[str], chosen: list[int]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"user_id": users, "item_id": chosen, "timestamp": list(range(1, len(users) + 1))})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def prepared(folder: Path, *settings: str) -> Prepared:
    return prepare_folder(str(folder), str(folder.parent / "run"), *FORMAT, *COLUMNS, *settings)


def check(done: Prepared) -> None:
    assert (done.item("1")["title"], dict(done.item("1")["attributes"])) == ("One", {"tags": "a|b"})
    assert (done.item("1")["image"], done.item("1")["image_uri"]) == (picture(), None)
    assert (done.item("2")["image"], done.item("2")["attributes"]) == (None, [])
    assert (done.item("3")["title"], done.item("3")["image"]) == (None, BLUE)
    assert done.history("u") == ["2", "1"]
    assert done.rows("failures") == []
    assert_counts_add_up(done.counts)


def test_what_save_to_disk_writes(ray_session: str, folder: Path) -> None:
    from datasets import DatasetDict

    items().save_to_disk(folder / "items", num_shards=2)
    (folder / "items" / "cache-1.arrow").write_bytes(b"of the library, and no part of the dataset")
    DatasetDict({"train": log(["u", "u"], [2, 1]), "test": log(["v"], [3])}).save_to_disk(folder / "log")
    done = prepared(folder)
    check(done)
    assert done.history("v") == ["3"]


def test_a_picture_that_is_a_path() -> None:
    """The library keeps it so where it was told to; a folder on the hub may hold such files."""
    row = {"item_id": "a", "image": {"bytes": None, "path": "my pictures/a.png"}}
    columns = ItemColumns(title=None, text=None)
    assert table_item(row, columns, Folder.at("/data"))["image_uri"] == "/data/my pictures/a.png"


def test_one_split(ray_session: str, folder: Path) -> None:
    from datasets import DatasetDict

    DatasetDict({"items": items(), "log": log(["u", "u"], [2, 1])}).save_to_disk(folder / "shop")
    check(prepared(folder, "data.items=shop/items", "data.interactions=shop/log"))


def test_a_snapshot_of_the_hub(ray_session: str, folder: Path) -> None:
    """Parquet files, which its cache keeps as links."""
    for name, table in ("items", items()), ("log", log(["u", "u"], [2, 1])):
        (folder / name / "data").mkdir(parents=True)
        blob = folder.parent / f"{name}.blob"
        table.to_parquet(blob)
        (folder / name / "data" / "train-00000-of-00001.parquet").symlink_to(blob)
        (folder / name / "README.md").write_text("A card.")
    check(prepared(folder))


def test_broken_rows_fail_alone(ray_session: str, folder: Path) -> None:
    pictures = [{"bytes": b"no picture", "path": None}, {"bytes": picture(), "path": None}, None]
    items(image=pictures, item_id=[1, None, 3]).save_to_disk(folder / "items")
    log(["u", "u", "u"], [3, 1, 9]).save_to_disk(folder / "log")
    done = prepared(folder)
    assert {(row["table"], row["row"]): row["error"] for row in done.rows("failures")} == {
        ("items", 1): "UnreadableImage",
        ("items", 2): "MissingId",
        ("interactions", 2): "UnknownItem",
        ("interactions", 3): "UnknownItem",
    }
    assert_counts_add_up(done.counts)


@pytest.mark.parametrize("content", [b"", b"this is text", None])
def test_a_shard_that_is_damaged_is_refused(ray_session: str, folder: Path, content: bytes | None) -> None:
    items().save_to_disk(folder / "items")
    log(["u"], [1]).save_to_disk(folder / "log")
    (shard,) = (folder / "items").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:900] if content is None else content)
    with pytest.raises(Exception, match=r"data-00000-of-00001\.arrow: this is not an Arrow stream, or it is cut off"):
        prepared(folder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("state.json", "{", "expected what `save_to_disk`"),
        ("state.json", '{"_data_files": []}', "expected a list under '_data_files'"),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}', "files that are not there: gone.arrow"),
        ("dataset_dict.json", '{"splits": ["train"]}', "state.json"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, name: str, content: str, says: str) -> None:
    items().save_to_disk(folder / "items")
    log(["u"], [1]).save_to_disk(folder / "log")
    (folder / "items" / name).write_text(content)
    with pytest.raises(InputError, match=says):
        prepared(folder)
