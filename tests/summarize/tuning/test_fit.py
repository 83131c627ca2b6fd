"""A training that cannot do what was asked for is refused, and its adapter never taken for a tuned one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.data.schemas import ITEMS
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.reuse import Items
from mmsrarec_ray.summarize.tuning.examples import SPLITS, write_examples
from mmsrarec_ray.summarize.tuning.fit import train


def test_fewer_items_than_an_update_takes_are_refused(ray_session: str, tmp_path: Path) -> None:
    shop, given = shop_of(3, 1200), {"content_hash": "", "in_core": True}
    rows = [item_row(shop, n) | given | {"split": split} for n, split in enumerate([*SPLITS, "train"])]
    dataset = Folder.at(str(tmp_path / "dataset"))
    write_part(dataset, pa.Table.from_pylist(rows, ITEMS), ["item_id"])
    items = Items(dataset, parquet_files(dataset))
    words = ["data.format=shop", "run=/nowhere", "tune_summarizer.generations=4"]
    enough = load(None, [*words, "tune_summarizer.batch_size=8"])
    assert write_examples(enough, items, Folder.at(str(tmp_path / "enough")))["train_items"] == 2
    few = load(None, [*words, "tune_summarizer.batch_size=12"])
    with pytest.raises(InputError, match=r"tune_summarizer\.batch_size: .* of 3 items, .* 2 usable .* be 8 at most"):
        write_examples(few, items, Folder.at(str(tmp_path / "few")))


def test_a_training_that_ends_early_has_no_result() -> None:
    trainer = SimpleNamespace(train=lambda resume_from_checkpoint: None, args=SimpleNamespace(max_steps=6))
    trainer.state = SimpleNamespace(global_step=6)
    train(trainer, None)
    trainer.state.global_step = 0
    with pytest.raises(RuntimeError, match="after 0 of 6 steps"):
        train(trainer, None)
