"""The prepare stage on tables a person can check: what stays, what fails and why, and that the counts add up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsrarec_ray import job
from mmsrarec_ray.config import load
from mmsrarec_ray.data.check import _FETCHED_ROWS, Convert
from mmsrarec_ray.data.deletions import Deletions
from mmsrarec_ray.data.importers import open_import
from mmsrarec_ray.data.prepare import Prepare, _Work
from mmsrarec_ray.errors import InputError, UsageError
from mmsrarec_ray.store import Folder
from tests.conftest import Page, Web
from tests.data.conftest import CSV, ITEMS_CSV, Prepared, picture, prepare_folder, write_files

ROOT = Path(__file__).parents[2]
LOG_CSV = "user_id,item_id,timestamp\nu,a,10\nu,b,20\nv,c,15\n"


def assert_counts_add_up(counts: dict[str, int]) -> None:
    filtered = sum(count for name, count in counts.items() if name.startswith("filtered"))
    assert counts["items_in"] == counts["items_out"] + counts["items_failed"] + counts.get("items_deleted", 0)
    assert counts["interactions_in"] == counts["interactions_out"] + counts["interactions_failed"] + filtered


def test_a_good_data_set_goes_through_whole(prepare: Callable[..., Prepared]) -> None:
    done = prepare({"items.csv": ITEMS_CSV, "interactions.csv": LOG_CSV}, *CSV)
    assert_counts_add_up(done.counts)
    assert done.counts["items_out"] == 3
    assert done.counts["interactions_out"] == 3
    assert {(r["user_id"], r["item_id"], r["timestamp"], r["position"]) for r in done.rows("interactions")} == {
        ("u", "a", 10_000, 0),
        ("u", "b", 20_000, 1),
        ("v", "c", 15_000, 0),
    }
    assert {(r["user_id"], r["interactions"]) for r in done.rows("users")} == {("u", 2), ("v", 1)}
    assert done.item("a")["title"] == "Apple"
    assert done.item("c")["text"] is None
    assert done.rows("failures") == []
    assert done.metrics["missing_images"] == 3
    assert done.metrics["users"] == 2
    assert done.metrics["density"] == 0.5
    assert done.metrics["max_length"] == 2
    assert (done.metrics["first"], done.metrics["last"]) == ("1970-01-01T00:00:10+00:00", "1970-01-01T00:00:20+00:00")
    assert not [name for name in done.folder.files() if "staging" in name]


@pytest.mark.parametrize(
    ("lines", "row", "error", "says"),
    [
        ("a,Apple,red\na,Again,x\n", 3, "DuplicateId", ["item_id", "items.csv", "row 2"]),
        ("a,Apple,red\n,Nameless,x\n", 3, "MissingId", ["item_id"]),
        ("a,Apple,red\nb,too,many,fields\n", 3, "MalformedRow", ["3", "4"]),
        ("a,Apple,red\nb,Few\n", 3, "MalformedRow", ["3", "2"]),
    ],
)
def test_a_bad_item_fails_alone(
    prepare: Callable[..., Prepared], lines: str, row: int, error: str, says: list[str]
) -> None:
    done = prepare({"items.csv": f"item_id,title,text\n{lines}"}, *CSV, "data.interactions=null")
    failure = done.failure()
    assert failure["stage"] == "prepare"
    assert failure["source"].endswith("items.csv")
    assert (failure["row"], failure["error"]) == (row, error)
    assert all(word in failure["message"] for word in says)
    assert [item["item_id"] for item in done.rows("items")] == ["a"]
    assert done.item("a")["title"] == "Apple"
    assert_counts_add_up(done.counts)


def test_broken_encoding_fails_its_row(prepare: Callable[..., Prepared]) -> None:
    files = {
        "items.csv": b"item_id,title,text\na,Apple,caf\xe9\nb,Bread,caf\xc3\xa9\n",
        "interactions.csv": b"user_id,item_id,timestamp\nu\xff,b,1\nu,b,2\n",
    }
    done = prepare(files, *CSV)
    for table, row in ("items", 2), ("interactions", 2):
        assert (done.failure(table)["error"], done.failure(table)["row"]) == ("BrokenEncoding", row)
    assert done.item("b")["text"] == "café"
    assert done.counts["interactions_out"] == 1


def test_malformed_json_and_wrong_types_fail_their_rows(prepare: Callable[..., Prepared]) -> None:
    lines = [
        '{"item_id": "a", "title": "Apple"}',
        '{"item_id": "b", "title"',
        "[1, 2]",
        '{"item_id": {"x": 1}, "title": "Cup"}',
        '{"item_id": "d", "title": ["no", "title"]}',
        '{"item_id": "e\\ud800", "title": "half a pair"}',
        '{"item_id": 6, "title": 1984}',
        "",
        '{"item_id": true, "title": "yes"}',
    ]
    done = prepare(
        {"items.jsonl": "\n".join(lines)},
        *("data.items=items.jsonl", "data.interactions=null"),
        *("data.item_columns.text=null", "data.item_columns.image=null"),
    )
    failures = {row["row"]: row["error"] for row in done.rows("failures")}
    assert set(failures) == {2, 3, 4, 5, 6, 9}
    assert failures[2] == failures[3] == "MalformedRow"
    assert failures[4] == failures[5] == failures[9] == "WrongType"
    assert failures[6] == "BrokenEncoding"
    assert {(item["item_id"], item["title"]) for item in done.rows("items")} == {("a", "Apple"), ("6", "1984")}
    assert_counts_add_up(done.counts)


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("u,zzz,1,1", "UnknownItem", "zzz"),
        (",a,1,1", "MissingId", "user_id"),
        ("u,,1,1", "MissingId", "item_id"),
        ("u,a,nan,1", "BadTimestamp", "nan"),
        ("u,a,-5,1", "BadTimestamp", "-5"),
        ("u,a,soon,1", "BadTimestamp", "soon"),
        ("u,a,,1", "BadTimestamp", "timestamp"),
        ("u,a,1969-12-31,1", "BadTimestamp", "1969-12-31"),
        ("u,a,2024-13-01,1", "BadTimestamp", "2024-13-01"),
        ("u,a,1700000000000,1", "BadTimestamp", "1700000000000"),  # milliseconds where seconds were promised
        ("u,a,99999999999999999999999999,1", "BadTimestamp", "9999999"),
        ("u,a,1,heavy", "BadWeight", "heavy"),
        ("u,a,1,inf", "BadWeight", "inf"),
    ],
)
def test_a_bad_interaction_fails_alone(prepare: Callable[..., Prepared], line: str, error: str, says: str) -> None:
    log = f"user_id,item_id,timestamp,weight\nu,b,1,2.5\n{line}\nv,c,2,\n"
    files = {"items.csv": ITEMS_CSV, "interactions.csv": log}
    done = prepare(files, *CSV, "data.interaction_columns.weight=weight")
    failure = done.failure("interactions")
    assert (failure["row"], failure["error"]) == (3, error)
    assert failure["source"].endswith("interactions.csv")
    assert says in failure["message"]
    assert {(row["item_id"], row["weight"]) for row in done.rows("interactions")} == {("b", 2.5), ("c", None)}
    assert_counts_add_up(done.counts)


def test_an_interaction_with_a_failed_item_fails_too(prepare: Callable[..., Prepared]) -> None:
    items = pa.table(
        {"item_id": ["a", "b"], "title": ["A", "B"], "text": ["", ""], "image": [picture(), b"no picture"]}
    )
    done = prepare({"items.parquet": items, "interactions.csv": LOG_CSV}, "data.interactions=interactions.csv")
    assert done.failure("items")["error"] == "UnreadableImage"
    unknown = [row for row in done.rows("failures") if row["table"] == "interactions"]
    assert [(row["error"], row["row"]) for row in sorted(unknown, key=lambda row: row["row"])] == [
        ("UnknownItem", 3),
        ("UnknownItem", 4),
    ]


def _dies_once(row: Mapping[str, Any], convert: Convert, marker: Path) -> dict[str, Any]:
    item = convert(row)
    if item["item_id"] == "last" and not marker.exists():
        marker.touch()
        os._exit(1)
    return item


def test_a_task_that_ends_otherwise_the_second_time_leaves_no_doubles(
    ray_session: str, web: Web, tmp_path: Path
) -> None:
    """At first a server is at fault, and the worker dies after it has written that; then all is good."""
    address = web.put("/a.png", Page(status=503), Page(picture()))
    rows = [f"a,{address}", *(f"i{number}," for number in range(1, _FETCHED_ROWS)), "last,"]
    data = write_files(tmp_path / "data", {"items.csv": "item_id,image\n" + "\n".join(rows)})
    words = ["data.format=tables", f"data.path={data}", f"run={tmp_path}/run", *CSV, "data.interactions=null"]
    words += ["data.item_columns.title=null", "data.item_columns.text=null", "data.item_columns.image=image"]
    words += ["data.fetch.enabled=true", "data.fetch.schemes=[http]", "data.fetch.networks=[127.0.0.1/32]"]
    config = load(None, [*words, "data.fetch.attempts=1"])
    source, out = open_import(config.data, Folder.at(str(data))), Folder.at(str(tmp_path / "out"))
    once = replace(source, item=partial(_dies_once, convert=source.item, marker=tmp_path / "died"))
    work = _Work(config, once, Deletions.none(), out)
    work.items()
    counts, _ = work.publish()
    assert (tmp_path / "died").exists()
    assert web.asked == ["/a.png"] * 2
    assert counts["items_in"] == counts["items_out"] == _FETCHED_ROWS + 1
    assert (out / "failures").files() == []


def test_the_first_good_row_of_an_id_stays(prepare: Callable[..., Prepared]) -> None:
    """A row that fails does not hold its id: the next one with it takes its place."""
    items = pa.table(
        {"item_id": ["a", "a", "a"], "title": ["1", "2", "3"], "text": [""] * 3, "image": [b"bad", None, None]}
    )
    done = prepare({"items.parquet": items}, "data.interactions=null")
    assert done.item("a")["title"] == "2"
    errors = {row["row"]: row["error"] for row in done.rows("failures")}
    assert errors == {1: "UnreadableImage", 3: "DuplicateId"}


def test_filters_are_counted_apart(prepare: Callable[..., Prepared]) -> None:
    log = "user_id,item_id,timestamp,stars\nu,a,1,5\nu,a,2,5\nu,b,3,1\nu,b,4,5\nv,a,1,5\nv,b,2,4\nw,a,1,5\nv,none,9,5\n"
    done = prepare(
        {"items.csv": ITEMS_CSV, "interactions.csv": log},
        *CSV,
        *("data.interaction_columns.weight=stars", "data.min_weight=3", "data.k_core_user=2", "data.k_core_item=2"),
    )
    counts = done.counts
    assert counts["interactions_in"] == 8
    assert counts["interactions_failed"] == 1
    assert counts["filtered_weight"] == 1
    assert counts["filtered_repeats"] == 1
    assert counts["filtered_core"] == 1  # w has one interaction
    assert counts["interactions_out"] == 4
    assert done.history("u") == ["a", "b"]
    assert {item["item_id"]: item["in_core"] for item in done.rows("items")} == {"a": True, "b": True, "c": False}


def test_ties_keep_the_order_of_the_input_and_are_counted(prepare: Callable[..., Prepared]) -> None:
    log = "user_id,item_id,timestamp\nu,c,5\nv,a,5\nu,a,5\nu,b,5\nu,b,1\n"
    done = prepare({"items.csv": ITEMS_CSV, "interactions.csv": log}, *CSV, "data.drop_repeats=false")
    assert done.history("u") == ["b", "c", "a", "b"]
    assert done.metrics["ties_in_time"] == 2


def test_the_first_of_repeats_stays(prepare: Callable[..., Prepared]) -> None:
    log = "user_id,item_id,timestamp\nu,a,9\nu,b,5\nu,a,1\n"
    done = prepare({"items.csv": ITEMS_CSV, "interactions.csv": log}, *CSV)
    assert [(row["item_id"], row["timestamp"]) for row in done.rows("interactions")] == [("a", 1000), ("b", 5000)]


def test_a_catalogue_without_interactions(prepare: Callable[..., Prepared]) -> None:
    done = prepare({"items.csv": ITEMS_CSV}, *CSV, "data.interactions=null")
    assert done.counts["items_out"] == 3
    assert done.counts["interactions_in"] == 0
    assert done.rows("interactions") == []


def test_no_usable_item_is_refused(prepare: Callable[..., Prepared]) -> None:
    with pytest.raises(UsageError, match="item"):
        prepare({"items.csv": "item_id,title,text\n,x,y\n"}, *CSV, "data.interactions=null")


def test_the_same_input_gives_the_same_files(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    log = "user_id,item_id,timestamp\n" + "".join(f"u{n % 11},{'abcx'[n % 4]},{n * 37 % 50}\n" for n in range(120))
    files = {"items.csv": ITEMS_CSV + "a,twice,x\n", "interactions.csv": log}
    options = (*CSV, "data.rows_per_partition=25", "data.k_core_user=2", "data.k_core_item=2")
    first = prepare(files, *options)
    second = prepare_folder(str(tmp_path / "one" / "data"), str(tmp_path / "another run"), *options)
    assert first.manifest.counts == second.manifest.counts
    for table in "items", "interactions", "users":
        checksums = [
            {name: e.sha256 for name, e in each.manifest.files.items() if name.startswith(table)}
            for each in (first, second)
        ]
        assert checksums[0] == checksums[1]
        assert checksums[0]
    assert first.manifest.digest == second.manifest.digest
    places = [(row["user_id"], row["position"]) for row in first.rows("interactions")]
    assert places == sorted(places)  # over all files
    assert len((first.folder / "interactions").files()) > 1
    users = [row["user_id"] for row in first.rows("users")]
    assert users == sorted(set(users))


def test_no_interaction_left_is_refused(prepare: Callable[..., Prepared]) -> None:
    with pytest.raises(InputError, match=r"no interaction is left.*'filtered_core': 3"):
        prepare({"items.csv": ITEMS_CSV, "interactions.csv": LOG_CSV}, *CSV, "data.k_core_user=9")


def test_what_a_killed_run_left_does_not_count(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    files = {"items.csv": ITEMS_CSV, "interactions.csv": LOG_CSV}
    done = prepare(files, *CSV)
    files_then = done.folder.files()
    done.folder.filesystem.delete_file(done.folder.file("manifest.json"))
    for table in "items", "interactions", "users", "failures", "staging/items":
        (done.folder / table).write_bytes("part-left.parquet", b"half of a file")
    again = prepare_folder(str(tmp_path / "one" / "data"), str(tmp_path / "one" / "run"), *CSV)
    assert again.manifest.digest == done.manifest.digest
    assert again.folder.files() == files_then


SHORT = st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdq"), st.integers(0, 9)), max_size=40)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=SHORT, k_user=st.integers(0, 3), k_item=st.integers(0, 3), repeats=st.booleans())
def test_counts_add_up_and_the_core_holds(
    prepare: Callable[..., Prepared], rows: list[tuple[str, str, int]], k_user: int, k_item: int, repeats: bool
) -> None:
    log = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    items = "item_id,title,text\n" + "".join(f"{i},Title,text\n" for i in "abcd")
    # three users and items that no filter removes: a log of which nothing is left is refused
    stay = [(user, item) for user in ("s1", "s2", "s3") for item in ("i1", "i2", "i3")]
    items += "".join(f"{item},Stays,\n" for item in ("i1", "i2", "i3"))
    log += "".join(f"{user},{item},1\n" for user, item in stay)
    done = prepare(
        {"items.csv": items, "interactions.csv": log},
        *CSV,
        *(f"data.k_core_user={k_user}", f"data.k_core_item={k_item}", f"data.drop_repeats={str(repeats).lower()}"),
        "data.rows_per_partition=20",
        under=str(abs(hash((tuple(rows), k_user, k_item, repeats)))),
    )
    assert_counts_add_up(done.counts)
    assert done.counts["interactions_in"] == len(rows) + len(stay)
    left = done.rows("interactions")
    assert len(left) == done.counts["interactions_out"]
    core = {item["item_id"] for item in done.rows("items") if item["in_core"]}
    for user in {row["user_id"] for row in left}:
        assert sum(row["user_id"] == user for row in left) >= k_user
    for item in core:
        assert sum(row["item_id"] == item for row in left) >= k_item
    assert {row["item_id"] for row in left} <= core


def _job(*arguments: str, **environment: str) -> tuple[int, dict, str]:
    command = [sys.executable, "jobs/prepare.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]), done.stderr


def test_the_command_line(ray_session: str, tmp_path: Path) -> None:
    data = write_files(tmp_path / "data", {"items.csv": ITEMS_CSV, "interactions.csv": LOG_CSV})
    common = ["data.format=tables", f"data.path={data}", f"run={tmp_path}/run", f"ray.address={ray_session}", *CSV]
    code, result, said = _job(*common)
    assert code == 0, said
    assert result["status"] == "done"
    assert result["counts"]["interactions_out"] == 3
    assert result["metrics"]["users"] == 2
    assert "density" in said
    code, result, said = _job(*common, RAY_ADDRESS="127.0.0.1:1")
    assert (code, result["status"]) == (0, "up to date")
    assert "up to date" in said
    code, result, said = _job(*common, "data.item_columns.title=name")
    assert code == 2, said
    assert "items.csv" in result["error"]
    assert "name" in result["error"]
    assert "item_id, title, text" in result["error"]
    manifests = list((tmp_path / "run").rglob("manifest.json"))
    assert len(manifests) == 1


def test_a_dry_run_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "connect", lambda config: pytest.fail("Ray was started"))
    data = write_files(tmp_path / "data", {"items.csv": ITEMS_CSV, "interactions.csv": LOG_CSV})
    words = ["data.format=tables", f"data.path={data}", f"run={tmp_path}/run", *CSV]
    assert job.main(Prepare, [*words, "--dry-run"]) == 0
    assert not (tmp_path / "run").exists()
    assert job.main(Prepare, [*words, "data.items=nowhere.csv", "--dry-run"]) == 2
    assert job.main(Prepare, [*words, f"data.path={tmp_path}/nowhere", "--dry-run"]) == 2


def test_a_run_inside_the_data_is_refused(tmp_path: Path) -> None:
    """Its own results would change the fingerprint of its input."""
    data = write_files(tmp_path, {"items.csv": ITEMS_CSV})
    words = ["data.format=tables", f"data.path={data}", f"run={data}/run", *CSV, "data.interactions=null"]
    assert job.main(Prepare, [*words, "--dry-run"]) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.parquet", b"this is text\n" * 10),
        ("items.parquet", b""),
        ("items.csv", b"PAR1\x00\x00\x01\x02" * 20),
        ("items.csv", b""),
        ("items.jsonl", b"\x1f\x8b\x08\x00\x00" * 20),
        ("items.jsonl", b"item_id,title\na,Apple\n"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(
    prepare: Callable[..., Prepared], tmp_path: Path, name: str, content: bytes
) -> None:
    with pytest.raises(Exception, match=name) as caught:
        prepare({name: content}, f"data.items={name}", "data.interactions=null")
    assert isinstance(caught.value, InputError) or job._usage_behind(caught.value)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("table", ["items", "interactions"])
def test_a_missing_column_is_refused(prepare: Callable[..., Prepared], tmp_path: Path, table: str) -> None:
    files = {
        "items.parquet": pa.table({"item_id": ["a"], "title": ["A"]}),
        "interactions.jsonl": '{"user_id": "u", "item_id": "a", "time": 1}\n',
    }
    settings = ["data.item_columns.text=null", "data.item_columns.image=null"] if table == "interactions" else []
    with pytest.raises(Exception, match=rf"{table}\.") as caught:
        prepare(files, "data.interactions=interactions.jsonl", *settings)
    error = caught.value if isinstance(caught.value, InputError) else job._usage_behind(caught.value)
    assert error is not None
    missing, there = ("text", "title") if table == "items" else ("timestamp", "time")
    assert missing in str(error)
    assert there in str(error)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "log.csv",
            "user_id,item_id,prénom\nu,a,x\n".encode("cp1252"),
            r"column 3: expected a name in UTF-8, got pr\\xe9",
        ),
        (
            "log.jsonl",
            b'{"user_id": "u", "item_id": "a", "\\ud83d": 1}\n',
            r"timestamp\. Got user_id, item_id, \\ud83d\.",
        ),
    ],
    ids=["CSV", "JSON lines"],
)
def test_names_that_are_not_unicode_are_told_by_the_worker_that_reads_them(
    prepare: Callable[..., Prepared], name: str, content: bytes, says: str
) -> None:
    with pytest.raises(Exception, match=says) as caught:
        prepare({"items.csv": ITEMS_CSV, name: content}, *CSV, f"data.interactions={name}")
    error = job._usage_behind(caught.value)
    assert error is not None
    assert name in str(error)


def test_everything_works_on_an_object_store(ray_session: str, s3: tuple[str, str]) -> None:
    bucket, options = s3
    folder = Folder.at(f"{bucket}/data{options}")
    folder.write_bytes("items.csv", b"item_id,title,text,image\na,Apple,red,my pictures/a #1.png\nb,Bread,,gone.png\n")
    folder.write_bytes("my pictures/a #1.png", picture())
    folder.write_bytes("interactions.csv", LOG_CSV.replace("v,c", "v,b").encode())
    settings = ("data.items=items.csv", "data.interactions=interactions.csv")
    done = prepare_folder(f"{bucket}/data{options}", f"{bucket}/run{options}", *settings)
    assert done.counts["interactions_out"] == 3
    assert done.metrics["missing_images"] == 1
    uri = done.item("a")["image_uri"]
    assert uri.startswith(f"{bucket}/data/my%20pictures/a%20%231.png")
    place = Folder.at(uri)
    assert place.filesystem.open_input_stream(place.path).read() == picture()
    stage = Prepare(
        job.load(
            None, ["data.format=tables", f"data.path={bucket}/data{options}", f"run={bucket}/run{options}", *settings]
        )
    )
    assert job.plan(stage, job.Run.at(f"{bucket}/run{options}"))[-1].status == "up to date"
