"""Examples on their way from parts to training."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.rank.examples import EXAMPLES, read_examples
from mmsrarec_ray.store import Folder

ROWS = [
    {
        "user_id": user,
        "cut": cut,
        "item_id": f"i{number}",
        "prompt": f"{user} {cut}",
        "answer": answer,
        "number": number,
    }
    for user in ("a", "b")
    for cut in (1, 2)
    for number, answer in ((3, "no"), (12, "yes"))
]


@pytest.mark.parametrize(
    "parts", [[[0, 1, 2, 3, 4, 5, 6, 7]], [[6, 1, 4], [5, 0], [7, 3, 2]], [[7, 6, 5, 4], [3, 2, 1, 0]]]
)
def test_the_order_does_not_depend_on_how_rows_were_divided(parts: list[list[int]], tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path / "train"))
    for part in parts:
        write_part(folder, pa.Table.from_pylist([ROWS[row] for row in part], EXAMPLES), ["user_id", "cut", "number"])
    read = read_examples(folder, tmp_path / "scratch").to_list()
    assert read == [{name: row[name] for name in ("prompt", "answer", "number")} for row in ROWS]
