"""The report: what it says about results a person can check."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsrarec_ray.evaluate.metrics import Ranks, per_case
from mmsrarec_ray.evaluate.plots import plot_methods, plot_slices
from mmsrarec_ray.evaluate.report import MethodResult, Setting, build, write
from mmsrarec_ray.evaluate.words import markdown, table
from mmsrarec_ray.store import Folder

CASES = 60
SETTING = Setting("shop", "paper", "core", "ratio", CASES, 20, (0, 1), 1200, {"users": 3000, "mean_length": 8.25})
SLICES = {"head": np.arange(CASES) < 20, "tail": np.arange(CASES) >= 20, "nobody": np.zeros(CASES, bool)}
STRENGTHS = {"random": 0.0, "fusion": 1.5, "oracle": 3.0, "popularity": 0.5, "sasrec": 1.0}
KINDS: dict[str, Any] = {"fusion": "ours", "oracle": "oracle"}


def result(method: str, ks: tuple[int, ...] = (1, 5, 10)) -> MethodResult:
    scores = np.random.default_rng(len(method)).normal(size=(CASES, 21))
    scores[:, 0] += STRENGTHS.get(method, 0.0)
    measured = per_case(Ranks.of(scores, np.zeros(CASES, np.int64)), ks)
    return MethodResult(
        method=method,
        kind=KINDS.get(method, "baseline"),
        per_case=measured,
        seconds_fit=1234.5,
        seconds_score=0.25,
        spread={"NDCG@5": 0.0123},
        lists={"coverage": 0.5, "novelty": 9.5, "popularity": 0.75},
        unknown={"share_of_candidates": 0.125},
        settings={"dim": 64},
    )


def made(methods: tuple[str, ...] = tuple(STRENGTHS), **changes: Any) -> dict[str, Any]:
    results = [result(method) for method in methods]
    return build(replace(SETTING, **changes), results, SLICES, 200, 0, "python jobs/evaluate.py run=/r")


REPORT = made()


def row(report: dict[str, Any], method: str) -> dict[str, Any]:
    return next(one for one in report["rows"] if one["method"] == method)


def test_rows_are_ordered_with_oracles_first() -> None:
    assert [one["method"] for one in REPORT["rows"]] == ["oracle", "fusion", "sasrec", "popularity", "random"]
    assert REPORT["best_baseline"] == "sasrec"
    assert REPORT["main_k"] == 5
    assert REPORT["ks"] == [1, 5, 10]


def test_an_oracle_comes_first_even_when_it_is_beaten() -> None:
    strong = replace(result("fusion"), kind="baseline")
    weak = replace(result("random"), method="weak_oracle", kind="oracle")
    report = build(SETTING, [strong, weak], {}, 50, 0, "x")
    assert [one["method"] for one in report["rows"]] == ["weak_oracle", "fusion"]
    assert report["best_baseline"] == "fusion"


def test_values_are_fractions_with_intervals() -> None:
    expected = result("sasrec").per_case
    for name, values in expected.items():
        one = row(REPORT, "sasrec")[name]
        assert one["value"] == pytest.approx(values.mean())
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
    assert row(REPORT, "sasrec")["NDCG@5"]["std_over_seeds"] == 0.0123
    assert "std_over_seeds" not in row(REPORT, "sasrec")["HR@5"]


def test_a_row_holds_all_that_was_measured() -> None:
    one = row(REPORT, "fusion")
    assert (one["kind"], one["seconds_fit"], one["seconds_score"]) == ("ours", 1234.5, 0.25)
    assert (one["coverage"], one["novelty"], one["popularity"]) == (0.5, 9.5, 0.75)
    assert one["unknown"] == {"share_of_candidates": 0.125}
    assert one["settings"] == {"dim": 64}


def test_slices_hold_their_cases_and_empty_ones_are_left_out() -> None:
    slices = row(REPORT, "popularity")["slices"]
    assert list(slices) == ["head", "tail"]
    assert (slices["head"]["cases"], slices["tail"]["cases"]) == (20, 40)
    values = result("popularity").per_case["HR@5"]
    assert slices["head"]["HR@5"]["value"] == pytest.approx(values[:20].mean())
    assert slices["tail"]["HR@5"]["value"] == pytest.approx(values[20:].mean())
    assert slices["head"]["HR@5"]["low"] <= slices["head"]["HR@5"]["value"] <= slices["head"]["HR@5"]["high"]


def test_all_but_the_best_baseline_are_tested_against_it() -> None:
    assert "against_best_baseline" not in row(REPORT, "sasrec")
    for method in ("oracle", "fusion", "popularity", "random"):
        tested = row(REPORT, method)["against_best_baseline"]
        assert list(tested) == ["baseline", "HR@5", "NDCG@5", "AUC"]
        assert tested["baseline"] == "sasrec"
        for name in ("HR@5", "NDCG@5", "AUC"):
            expected = row(REPORT, method)[name]["value"] - row(REPORT, "sasrec")[name]["value"]
            assert tested[name]["difference"] == pytest.approx(expected)
            assert tested[name]["low"] <= tested[name]["difference"] <= tested[name]["high"]
    assert row(REPORT, "oracle")["against_best_baseline"]["AUC"]["p"] < 0.01


def test_the_main_length_is_the_middle_where_five_is_not_measured() -> None:
    results = [replace(result(method, (1, 3, 10, 20)), spread={}) for method in ("sasrec", "random")]
    report = build(SETTING, results, {}, 50, 0, "x")
    assert report["main_k"] == 3
    assert list(row(report, "random")["against_best_baseline"]) == ["baseline", "HR@3", "NDCG@3", "AUC"]


def test_without_a_baseline_nothing_is_tested() -> None:
    report = made(("fusion", "oracle"))
    assert report["best_baseline"] is None
    assert all("against_best_baseline" not in one for one in report["rows"])
    assert "best baseline" not in markdown(report)


def test_published_figures_stand_apart() -> None:
    assert REPORT["published"] == []
    assert "Published" not in markdown(REPORT)
    report = made(dataset="microlens")
    assert all(one["measured_by_us"] is False for one in report["published"])
    ours = next(one for one in report["published"] if one["method"] == "MMSRARec")
    assert (ours["HR@5"], ours["AUC"], ours["NDCG@5"]) == (0.8509, 0.8436, 0.6612)
    text = markdown(report)
    assert text.index("| fusion |") < text.index("not measured by us") < text.index("| MMSRARec |")
    assert made(dataset="microlens", protocol="full")["published"] == []


def test_equal_values_have_an_interval_of_their_value_alone() -> None:
    constant = per_case(Ranks(np.zeros(CASES, int), np.full(CASES, 20), np.full(CASES, 20)), (5,))
    report = build(SETTING, [replace(result("random"), per_case=constant, spread={})], {}, 50, 0, "x")
    for name in constant:
        one = report["rows"][0][name]
        assert one["low"] == one["value"] == one["high"]


def test_a_nan_is_refused() -> None:
    broken = result("random")
    with pytest.raises(ValueError, match="must not be NaN"):
        build(SETTING, [replace(broken, per_case={**broken.per_case, "AUC": np.full(CASES, np.nan)})], {}, 50, 0, "x")


def test_what_is_written(tmp_path: Path) -> None:
    write(REPORT, Folder.at(str(tmp_path)))
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert written == ["plots/methods.png", "plots/slices.png", "report.json", "report.md"]
    assert json.loads((tmp_path / "report.json").read_text()) == REPORT
    assert (tmp_path / "report.md").read_text() == markdown(REPORT)


def test_without_slices_there_is_no_picture_of_them(tmp_path: Path) -> None:
    report = build(SETTING, [result("random")], {"nobody": SLICES["nobody"]}, 50, 0, "x")
    write(report, Folder.at(str(tmp_path)))
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["methods.png"]
    assert "slice" not in (tmp_path / "report.md").read_text()


def test_the_text_says_what_was_done() -> None:
    text = markdown(REPORT)
    one = row(REPORT, "fusion")["NDCG@5"]
    assert f"**{one['value'] * 100:.1f} ± {(one['high'] - one['low']) * 50:.1f}**" in text
    assert "60 test cases against 20 sampled negatives each" in text
    assert "*oracle*" in text
    assert "1,234" in text
    assert "python jobs/evaluate.py run=/r" in text
    assert "head (20)" in text
    assert "nobody" not in text
    assert "the full ranking" in markdown(made(negatives=None))


def test_all_lines_of_a_markdown_table_have_its_columns() -> None:
    for part in markdown(made(dataset="microlens")).split("\n\n"):
        if part.startswith("|"):
            assert len({line.count("|") for line in part.splitlines()}) == 1


def test_the_terminal_table_is_narrow_and_sets_oracles_apart() -> None:
    results = [result(method) for method in STRENGTHS]
    results.append(replace(result("random"), method="a_method_with_a_very_long_name", seconds_fit=1e6))
    lines = table(build(SETTING, results, SLICES, 50, 0, "x")).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2].startswith("oracle")
    assert set(lines[1]) == set(lines[3]) == {"-"}
    assert lines[4].startswith("fusion")
    assert lines[-1] == "Best baseline: sasrec"


@pytest.mark.parametrize("methods", [("random",), ("oracle",), tuple(STRENGTHS)])
def test_pictures_are_drawn_whatever_methods_there_are(methods: tuple[str, ...]) -> None:
    report = made(methods)
    for draw in (plot_methods, plot_slices):
        picture = Image.open(io.BytesIO(draw(report)))
        assert picture.format == "PNG"
        assert picture.width > picture.height > 100
