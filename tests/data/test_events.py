"""What our own API wrote: interactions and impressions, each event once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsrarec_ray.data.schemas import IMPRESSIONS
from mmsrarec_ray.errors import InputError
from tests.data.conftest import CSV, ITEMS_CSV, Prepared, prepare_folder
from tests.data.test_prepare import assert_counts_add_up
from tests.programs import ROOT

SETTINGS = (*CSV, "data.format=events", "data.interactions=events")


def event(event_id: str, item_id: str, timestamp: Any, user_id: str = "u", **more: Any) -> dict[str, Any]:
    fields = {"kind": "interaction", "weight": None, "request_id": None, "rank": None, "bundle": None}
    return {"event_id": event_id, "user_id": user_id, "item_id": item_id, "timestamp": timestamp} | fields | more


def shown(event_id: str, item_id: str, timestamp: int, rank: int, user_id: str = "u") -> dict[str, Any]:
    return event(event_id, item_id, timestamp, user_id, kind="impression", rank=rank, request_id="r1", bundle="2024-05")


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def test_impressions_are_no_interactions(prepare: Callable[..., Prepared]) -> None:
    files = {
        "items.csv": ITEMS_CSV,
        "events/2024-05-02.jsonl": lines(event("e4", "a", 1_700_000_000_900, weight=2.5, request_id="r1", rank=1)),
        "events/2024-05-01.jsonl": lines(
            shown("e2", "b", 1_700_000_000_000, 0),
            shown("e1", "a", 1_700_000_000_000, 1),
            shown("e0", "c", 1_700_000_000_000, 0, user_id="only looks"),
            {"event_id": "e3", "kind": "interaction", "user_id": "u", "item_id": "c", "timestamp": 1_700_000_000_500},
        ),
    }
    done = prepare(files, *SETTINGS)
    assert [(row["item_id"], row["timestamp"], row["weight"]) for row in done.rows("interactions")] == [
        ("c", 1_700_000_000_500, None),
        ("a", 1_700_000_000_900, 2.5),
    ]
    assert [(row["user_id"], row["event_id"], row["rank"]) for row in done.rows("impressions")] == [
        ("only looks", "e0", 0),
        ("u", "e2", 0),
        ("u", "e1", 1),
    ]
    first = done.rows("impressions")[1]
    assert (first["item_id"], first["request_id"], first["bundle"]) == ("b", "r1", "2024-05")
    assert pq.read_schema((done.folder / "impressions").file("part-00000.parquet")) == IMPRESSIONS
    assert [row["user_id"] for row in done.rows("users")] == ["u"]
    assert done.counts["filtered_impressions"] == 3
    assert done.counts["filtered_duplicates"] == 0
    assert_counts_add_up(done.counts)


def test_a_table_is_written_as_lines_as_the_docs_say(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    """So the users of the first training are in the next one."""
    log = pa.table({"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [10, 20]})
    (tmp_path / "shop" / "events").mkdir(parents=True)
    pq.write_table(log, tmp_path / "shop" / "interactions.parquet")
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data" / "events.md").read_text(), re.DOTALL)
    exec(code.replace("/data/shop", str(tmp_path / "shop")), {})
    before = (tmp_path / "shop" / "events" / "0-before.jsonl").read_text()
    files = {"items.csv": ITEMS_CSV, "events/0-before.jsonl": before, "events/1.jsonl": lines(event("e", "c", 15_000))}
    done = prepare(files, *SETTINGS)
    assert (done.history("u"), done.history("v")) == (["a", "c"], ["b"])
    assert [row["timestamp"] for row in done.rows("interactions")] == [10_000, 15_000, 20_000]


def test_an_event_counts_once_and_the_first_stays(prepare: Callable[..., Prepared]) -> None:
    files = {
        "items.csv": ITEMS_CSV,
        "events/1.jsonl": lines(shown("e1", "a", 5, 0), event("e2", "a", 9), event("e2", "b", 7)),
        "events/2.jsonl": lines(shown("e1", "a", 4, 3), event("e2", "c", 1), event("e3", "c", 8)),
    }
    done = prepare(files, *SETTINGS)
    assert [(row["item_id"], row["timestamp"]) for row in done.rows("interactions")] == [("c", 8), ("a", 9)]
    assert [(row["timestamp"], row["rank"]) for row in done.rows("impressions")] == [(5, 0)]
    assert (done.counts["filtered_duplicates"], done.counts["filtered_impressions"]) == (3, 1)
    assert_counts_add_up(done.counts)


def test_broken_lines_fail_alone(prepare: Callable[..., Prepared]) -> None:
    rows = [
        event("e1", "a", 5),
        event("", "a", 5),
        event("e2", "a", 5, kind="click"),
        event("e3", "a", 5, kind=None),
        event("e4", "unknown", 5),
        shown("e5", "unknown", 5, 1),
        event("e6", "a", "soon"),
        event("e7", "a", 5, rank="first"),
        event("e8", "a", 5, rank=1.5),
        event("e9", "a", 5, weight="much"),
        event("e10", "a", 5, bundle=["x"]),
        event("e11", None, 5),  # type: ignore[arg-type]
        "{",
    ]
    done = prepare({"items.csv": ITEMS_CSV, "events/1.jsonl": lines(*rows)}, *SETTINGS)
    failed = {row["row"]: (row["error"], row["message"].split(":")[0]) for row in done.rows("failures")}
    assert failed == {
        2: ("MissingId", "event_id"),
        3: ("WrongType", "kind"),
        4: ("WrongType", "kind"),
        5: ("UnknownItem", "item_id"),
        6: ("UnknownItem", "item_id"),
        7: ("BadTimestamp", "timestamp"),
        8: ("WrongType", "rank"),
        9: ("WrongType", "rank"),
        10: ("BadWeight", "weight"),
        11: ("WrongType", "bundle"),
        12: ("MissingId", "item_id"),
        13: ("MalformedRow", "line"),
    }
    assert done.counts["interactions_out"] == 1
    assert done.rows("impressions") == []
    assert_counts_add_up(done.counts)


def test_many_users_in_many_parts(prepare: Callable[..., Prepared], tmp_path: Any) -> None:
    """The same tables whatever the size of the partitions, each sorted over all its files."""
    rows = [event(f"e{n}", "abc"[n % 3], n, f"u{n % 7}") for n in range(60)]
    rows += [shown(f"s{n % 50}", "abc"[n % 3], n, n % 5, f"u{n % 5}") for n in range(60)]
    files = {"items.csv": ITEMS_CSV, "events/1.jsonl": lines(*rows)}
    whole = prepare(files, *SETTINGS)
    data = str(tmp_path / "one" / "data")
    parts = prepare_folder(data, str(tmp_path / "parts"), *SETTINGS, "data.rows_per_partition=20")
    assert len((parts.folder / "impressions").files()) > 1
    for table in "interactions", "impressions":
        assert parts.rows(table) == whole.rows(table)
    assert whole.counts["filtered_impressions"] == 50
    assert whole.counts["filtered_duplicates"] == 10
    assert parts.counts == whole.counts


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("data.interactions=null",), "data.interactions: must name"),
        (("data.interactions=items.csv",), "data.interactions must be .jsonl files. Got csv"),
        (("data.interactions=nowhere",), "data.interactions must be a file or a folder"),
    ],
)
def test_what_is_refused(prepare: Callable[..., Prepared], settings: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        prepare({"items.csv": ITEMS_CSV, "events/1.jsonl": lines(event("e1", "a", 5))}, *SETTINGS, *settings)


def test_lines_of_something_else_are_refused(prepare: Callable[..., Prepared]) -> None:
    with pytest.raises(Exception, match=r"1\.jsonl: expected the column\(s\) event_id, kind"):
        prepare({"items.csv": ITEMS_CSV, "events/1.jsonl": '{"user_id": 1, "item_id": 2, "timestamp": 3}'}, *SETTINGS)
