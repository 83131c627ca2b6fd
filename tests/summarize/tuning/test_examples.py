"""Examples: in the order of their ids, each with its own picture, and read without the pictures of others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsrarec_ray.adapters import load_processor
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.data.schemas import ITEMS
from mmsrarec_ray.data.splits import TEST, TRAIN, VALIDATION
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.reuse import Items
from mmsrarec_ray.summarize.tuning.examples import Examples, write_examples
from tests.data.conftest import picture, spoil_pictures

N = 60
BARE, ON_THE_WEB = 4, (5, N - 1)  # items without a picture, and with one that was not fetched


@pytest.fixture(scope="module")
def config() -> Config:
    return load(None, ["data.format=shop", "run=/nowhere"])


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Items:
    """A catalogue in two parts, in no order; the red of an item's picture is its number."""
    dataset = Folder.at(str(tmp_path_factory.mktemp("examples") / "dataset"))
    order = np.random.default_rng(0).permutation(N).tolist()
    rows = [
        {
            "item_id": f"{n:02}",
            "title": f"Mug {n}",
            "text": None,
            "content_hash": "",
            "in_core": True,
            "image": None if n == BARE or n in ON_THE_WEB else picture(colour=f"rgb({n},0,0)"),
            "image_uri": f"https://example.org/{n}.png" if n in ON_THE_WEB else None,
            "split": TRAIN,
        }
        for n in order
    ]
    others = [rows[0] | {"item_id": split, "split": split} for split in (VALIDATION, TEST)]
    for some in (rows[: N // 2] + others, rows[N // 2 :]):
        write_part(dataset / "items", pa.Table.from_pylist(some, ITEMS), ["item_id"])
    return Items(dataset, parquet_files(dataset / "items"))


@pytest.fixture(scope="module")
def staged(ray_session: str, config: Config, items: Items, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of the catalogue."""
    out = tmp_path_factory.mktemp("staged")
    counts = write_examples(config, items, Folder.at(str(out)))
    assert counts == {"train_items": N, "validation_items": 1, "test_items": 1, "failed": 0}
    return out / TRAIN


@pytest.fixture
def folder(staged: Path, tmp_path: Path) -> Path:
    """Of a test alone."""
    return Path(shutil.copytree(staged, tmp_path / TRAIN))


def examples_in(folder: Path, config: Config) -> Examples:
    return Examples(config, Folder.at(str(folder)), load_processor(config))


def red(examples: Examples, number: int, other: bool = False) -> int | None:
    image = examples.other_picture(number) if other else examples.picture(number)
    return None if image is None else image.getpixel((0, 0))[0]


def test_each_example_has_its_text_its_picture_and_the_next_as_another(folder: Path, config: Config) -> None:
    examples = examples_in(folder, config)
    assert len(examples) == N
    assert [examples[n].item_id for n in range(N)] == [f"{n:02}" for n in range(N)]
    assert [examples[n].text for n in range(N)] == examples.texts() == [f"Mug {n}" for n in range(N)]
    pictured = [n for n in range(N) if n != BARE and n not in ON_THE_WEB]
    assert [red(examples, n) for n in range(N)] == [n if n in pictured else None for n in range(N)]
    assert [examples[n].has_image for n in range(N)] == [n in pictured for n in range(N)]
    assert [red(examples, n, other=True) for n in (0, 3, BARE, *ON_THE_WEB, N - 2)] == [1, 6, 6, 6, 0, 0]


def test_where_no_other_item_has_a_picture_there_is_none(folder: Path, config: Config) -> None:
    for file in folder.iterdir():
        table = pq.read_table(file)
        alone = pa.array([item == "07" for item in table["item_id"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("has_image"), "has_image", alone), file)
    examples = examples_in(folder, config)
    assert red(examples, 7, other=True) is None
    assert red(examples, 8, other=True) == 7


def test_an_example_is_read_without_the_pictures_of_others_but_for_a_few(folder: Path, config: Config) -> None:
    files = sorted(folder.iterdir())
    parts = [pq.read_metadata(file) for file in files]
    assert max(part.row_group(group).num_rows for part in parts for group in range(part.num_row_groups)) <= 8
    first = pq.read_table(files[0], columns=["item_id"])["item_id"].to_pylist()[: parts[0].row_group(0).num_rows]
    for place, file in enumerate(files):
        spoil_pictures(file, {0} if place == 0 else set())
    examples = examples_in(folder, config)
    assert examples.texts() == [f"Mug {n}" for n in range(N)]
    for item in first:
        assert examples[int(item)].item_id == item
    with pytest.raises(OSError, match="page header"):
        [examples[n] for n in range(N)]


def test_all_workers_read_pictures_where_they_gather_weights_together(
    ray_session: str, items: Items, tmp_path: Path
) -> None:
    sharded = load(None, ["data.format=shop", "run=/nowhere", "tune_summarizer.deepspeed=zero3", "train.gpu=true"])
    out = Folder.at(str(tmp_path))
    counts = write_examples(sharded, items, out)
    without = [f"{n:02}" for n in (BARE, *ON_THE_WEB)]
    assert (counts["train_items"], counts["failed"]) == (N - len(without), len(without))
    failures = pq.read_table(tmp_path / "failures").to_pylist()
    assert sorted(row["id"] for row in failures) == without
    assert {row["message"].split(" each item")[0] for row in failures} == {"with tune_summarizer.deepspeed=zero3"}
