"""The projection of measured points to another size, worked out by hand; and the data that is drawn for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.scale import LENGTH, carried_on, grown, memory, points_of, project, tell_projection, write_interactions


def point(stage: str, size: int, seconds: float, driver: float = 1024) -> dict[str, Any]:
    return {
        "stage": stage,
        "items": size,
        "interactions": 10 * size,
        "seconds": seconds,
        "memory_mib": {"driver": driver, "engine core": 512, "other workers": 512, "object store": 2048},
        "cpu_seconds": {"driver": seconds, "other workers": seconds},
        "bytes": size * 2**30 // 1000,
    }


def test_memory_is_told_by_process() -> None:
    assert memory(point("prepare", 1_000, 1)) == {"driver": 1, "workers": 1, "object store": 2}


def test_beyond_its_start_a_value_grows_by_the_exponent_of_the_last_points() -> None:
    assert grown([10, 1_010, 10_010], [5.0, 6.0, 105.0], 100_010) == pytest.approx((5 + 100 * 10**2, 2))
    assert grown([10, 1_010, 10_010], [5.0, 6.0, 7.0], 20_010) == pytest.approx((5 + 2 * 2, 1)), (
        "at least in proportion"
    )
    assert grown([10, 110], [5.0, 6.0], 1_010) == pytest.approx((15, 1))
    assert grown([10, 110], [5.0, 4.0], 1_010) == (4, 0)
    assert grown([10], [5.0], 1_000) == (500, 1)


def test_memory_goes_on_by_the_line_of_the_last_points_and_never_falls() -> None:
    assert carried_on([10, 100, 200], [1.0, 5.0, 6.0], 400) == pytest.approx(8)
    assert carried_on([10, 100, 200], [1.0, 5.0, 4.0], 400) == 4
    assert carried_on([10], [5.0], 1_000) == 500


def test_points_with_other_interactions_an_item_are_left_out_where_there_are_any_alike() -> None:
    target = {"items": 1_000, "interactions": 10_000}
    alike, other = point("prepare", 100, 7), point("prepare", 100, 70) | {"interactions": 50_000}
    [row] = project({"prepare": [alike, other]}, target)
    assert row["from"] == 1_000
    assert row["cpu_hours"] == pytest.approx(10 * 2 * 7 / 3600)
    [row] = project({"prepare": [other]}, target)
    assert row["from"] == 50_000


def test_a_projection_goes_on_from_the_largest_point(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {
        f"{stage} {size}": point(stage, size, size, size) for stage in ("prepare", "summarize") for size in (900, 90)
    }
    points = points_of({"machine": {"cpus": 2}, **parts})
    assert [each["items"] for each in points["prepare"]] == [90, 900]
    target = {"items": 9_000, "interactions": 180_000}
    prepare, summarize = project(points, target)
    assert (prepare["of"], prepare["from"], summarize["of"], summarize["from"]) == ("interactions", 9_000, "items", 900)
    assert prepare["cpu_hours"] == pytest.approx(20 * 2 * 900 / 3600)
    assert summarize["driver_gib"] == pytest.approx(10 * 900 / 1024)
    assert summarize["storage_gib"] == pytest.approx(9)
    tell_projection([prepare, summarize], target)
    told = capsys.readouterr().out
    assert "| summarize | 900 items | 1.00 | 2 | 5.0 | 8.8 | 9.0 |" in told
    assert "9,000 items, 18,000 users" in told
    assert "GPU hours of configs/gpu.yaml" in told


def test_interactions_are_as_many_as_asked_for(tmp_path: Path) -> None:
    write_interactions(tmp_path, 50, 2_000)
    table = pq.read_table(tmp_path / "interactions-2000" / "interactions")
    assert table.num_rows == 2_000
    assert len(table["user_id"].unique()) == 2_000 / LENGTH
    counts = sorted((each["counts"] for each in table["item_id"].value_counts().to_pylist()), reverse=True)
    assert len(counts) == 50
    assert counts[0] > 4 * counts[-1]
