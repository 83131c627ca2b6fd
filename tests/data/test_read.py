"""Files as blocks of rows, read in this process."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from mmsrarec_ray.data.importers.base import KINDS
from mmsrarec_ray.data.read import PROBLEM, SOURCE, Separated, Source, _read
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.store import Folder


def blocks(file: Path, *columns: str, separated: Separated | None = None) -> list[pa.Table]:
    kind = "separated" if separated else KINDS[file.suffix]
    source = Source(Folder.at(str(file.parent)), [file.name], kind, columns, separated)
    return list(_read(pa.table({"number": [0], "name": [file.name]}), source))


@pytest.mark.parametrize(
    ("name", "separated"), [("log.csv", None), ("log.tsv", None), ("log.inter", Separated("\t"))], ids=str
)
def test_a_header_that_is_not_utf_8_is_refused_by_name(tmp_path: Path, name: str, separated: Separated | None) -> None:
    between = "," if name == "log.csv" else "\t"
    file = tmp_path / name
    file.write_bytes(f"user{between}item_id{between}prénom\nu{between}a{between}x\n".encode("cp1252"))
    says = r"log\.inter: line 1: .*in UTF-8.*byte 16" if separated else r"line 1: column 3: .*UTF-8, got pr\\xe9nom"
    with pytest.raises(InputError, match=says):
        blocks(file, "user", separated=separated)


@pytest.mark.parametrize(
    ("name", "line", "separated"),
    [
        ("items.jsonl", '{"item_id": "a"}', None),
        ("ratings.dat", "a::1", Separated("::", ("item_id", "rating"))),
    ],
)
def test_a_byte_order_mark_costs_no_row(tmp_path: Path, name: str, line: str, separated: Separated | None) -> None:
    plain, marked = tmp_path / "plain" / name, tmp_path / "marked" / name
    for file, mark in (plain, ""), (marked, "\ufeff"):
        file.parent.mkdir()
        file.write_text(f"{mark}{line}\n{line}\n", encoding="utf-8")
    (expected,), (got,) = (blocks(file, "item_id", separated=separated) for file in (plain, marked))
    assert got.drop_columns(SOURCE).equals(expected.drop_columns(SOURCE))
    assert got[PROBLEM].null_count == len(got) == 2
