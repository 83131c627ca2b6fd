"""Files as blocks of rows, read in this process."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from mmsrarec_ray.data.importers.base import KINDS
from mmsrarec_ray.data.read import PROBLEM, ROW, SOURCE, Separated, Source, _read
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


def stray(between: str) -> str:
    """A thousand rows, two of them with a quote too many."""
    rows = [["item_id", "title"], *([str(number), f"Title {number}"] for number in range(1, 1001))]
    rows[5][1] = '"Title 5'
    rows[900][1] = 'Title 900"'
    return "".join(f"{between.join(row)}\n" for row in rows)


def test_quotes_in_tsv_are_text(tmp_path: Path) -> None:
    file = tmp_path / "items.tsv"
    file.write_text(stray("\t"))
    (got,) = blocks(file, "item_id", "title")
    assert got["item_id"].to_pylist() == [str(number) for number in range(1, 1001)]
    assert got[PROBLEM].null_count == 1000
    assert (got["title"][4].as_py(), got["title"][899].as_py()) == ('"Title 5', 'Title 900"')


@pytest.mark.parametrize("end", ['"', '"!'])
def test_a_stray_quote_in_csv_is_refused_with_the_line_where_it_stands(tmp_path: Path, end: str) -> None:
    """Also where what follows the next quote tells that something is wrong."""
    file = tmp_path / "items.csv"
    file.write_text(stray(",").replace('900"', f"900{end}"))
    with pytest.raises(InputError, match=r"items\.csv: line 6: a row of 896 lines begins here, expected at most 500"):
        blocks(file, "item_id", "title")


def test_a_malformed_row_tells_how_many_lines_it_took(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text('item_id,title\na,"one\nb,"two"\nc,three\n')
    (got,) = blocks(file, "item_id", "title")
    assert got[ROW].to_pylist() == [2, 4]
    assert "the lines up to 3 are lost" in got[PROBLEM][0].as_py()
    assert got["item_id"][1].as_py() == "c"


def test_a_text_may_have_hundreds_of_lines(tmp_path: Path) -> None:
    text = "\n".join(f"line {number}" for number in range(500))
    file = tmp_path / "items.csv"
    file.write_text(f'item_id,title\na,"{text}"\nb,B\n')
    (got,) = blocks(file, "item_id", "title")
    assert got["title"].to_pylist() == [text, "B"]


@pytest.mark.parametrize("name", ["items.csv", "items.tsv", "items.jsonl", "items.item"])
def test_long_rows_make_blocks_of_32_mib(tmp_path: Path, name: str) -> None:
    """Of letters of two bytes each."""
    between, text, rows = "," if name.endswith("csv") else "\t", "é" * 2**19, 70
    file = tmp_path / name
    with open(file, "w", encoding="utf-8") as lines:
        if name != "items.jsonl":
            lines.write(f"item_id{between}title\n")
        for number in range(rows):
            plain = f"{number}{between}{text}\n"
            lines.write(f'{{"item_id": {number}, "title": "{text}"}}\n' if name == "items.jsonl" else plain)
    found = blocks(file, "item_id", "title", separated=Separated("\t") if name == "items.item" else None)
    assert [len(block) for block in found] == [32, 32, 6]
