"""The evaluation as a job: what is made, kept and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.log import Log, Queries, Sequences
from mmsrarec_ray.data.parts import read_part
from mmsrarec_ray.data.shop import law, oracle
from mmsrarec_ray.data.shop.generate import YEAR_BEGINS_MS, YEAR_MS
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.evaluate.lists import cases_of
from mmsrarec_ray.evaluate.stage import Evaluate, _unknown, slices
from mmsrarec_ray.evaluate.stages import read_rankings
from mmsrarec_ray.job import execute, plan
from mmsrarec_ray.methods.oracle import HistoryOracle, TasteOracle
from mmsrarec_ray.store import Run
from tests.data.conftest import write_files
from tests.retrieve.test_stage import ITEMS, USERS, files, histories

TABLES = (
    *("data.format=tables", "data.items=items.csv", "data.interactions=interactions.csv"),
    *("data.item_columns.image=null", "data.item_columns.text=null", "evaluate.bootstrap=200"),
)

TINY = (
    *("methods.sasrec.dim=16", "methods.sasrec.epochs=4", "methods.sasrec.heads=1", "train.threads=1"),
    *("split.validation=0.2", "split.test=0.2", "methods.fusion.epochs=5"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_files(folder / "data", files(histories()))
    return folder


def config(folder: Path, methods: str, *settings: str) -> Config:
    words = [f"data.path={folder / 'data'}", f"run={folder / 'run'}", f"evaluate.methods={methods}"]
    return load(None, [*words, *TABLES, *settings])


def evaluate(folder: Path, methods: str, *settings: str) -> dict[str, Any]:
    """Run the job; gives the report at its well-known place."""
    execute(Evaluate(config(folder, methods, *settings)), Run.at(str(folder / "run")))
    return json.loads((folder / "run" / "evaluation" / "report.json").read_text())


def status(folder: Path, methods: str, *settings: str) -> dict[str, str]:
    stage = Evaluate(config(folder, methods, *settings))
    return {step.stage.name: step.status for step in plan(stage, Run.at(str(folder / "run")))}


def test_the_report_names_what_it_compares(ray_session: str, folder: Path) -> None:
    report = evaluate(folder, "[popularity, random]", "evaluate.ks=[1, 5]")
    assert (report["protocol"], report["pool"], report["split"], report["negatives"]) == ("paper", "core", "ratio", 20)
    assert (report["dataset"], report["cases"]) == (str(folder / "data"), 30)
    assert {row["method"] for row in report["rows"]} == {"popularity", "random"}
    for row in report["rows"]:
        assert 0 <= row["HR@5"]["low"] <= row["HR@5"]["value"] <= row["HR@5"]["high"] <= 1
        assert row["seconds_fit"] >= 0 < row["seconds_score"]
        assert {f"{name}@{k}" for name in ("HR", "NDCG", "Recall", "MRR") for k in (1, 5)} | {"MRR", "AUC"} <= set(row)
        assert sum(row["slices"][name]["cases"] for name in ("new items", "head", "tail")) == 30
    for name in ("report.md", "plots/methods.png"):
        assert (folder / "run" / "evaluation" / name).stat().st_size > 0


def test_another_method_runs_alone(ray_session: str, folder: Path) -> None:
    evaluate(folder, "[popularity, random]")
    steps = status(folder, "[popularity, random, itemknn]")
    assert steps.pop("score itemknn") == "to run"
    assert steps.pop("evaluate") == "to run after score itemknn"
    assert set(steps.values()) == {"up to date"}


def test_the_report_in_view_is_the_one_that_was_asked_for(ray_session: str, folder: Path) -> None:
    first = evaluate(folder, "[random]")
    full = evaluate(folder, "[random]", "evaluate.protocol=full")
    assert (full["protocol"], full["split"], full["cases"], full["negatives"]) == ("full", "leave_one_out", 300, None)
    assert evaluate(folder, "[random]") == first


def test_a_test_user_s_future_changes_nobody_else_s_ranking(ray_session: str, tmp_path: Path) -> None:
    """Another last item of one test user: the same lists and rankings of all others, by every method that counts."""
    methods = ("popularity", "itemknn", "session_knn", "ease", "content_knn")

    def rankings(name: str, all_histories: list[list[int]]) -> dict[str, dict[str, dict[str, Any]]]:
        """What each method said, by user."""
        write_files(tmp_path / name / "data", files(all_histories))
        evaluate(tmp_path / name, f"[{', '.join(methods)}]")
        run = Run.at(str(tmp_path / name / "run"))
        tables = {method: read_rankings(run.published(f"scores/{method}")[0].folder, 0) for method in methods}
        return {method: {row["user_id"]: row for row in table.to_pylist()} for method, table in tables.items()}

    before = rankings("before", histories())
    user, changed = next(iter(before["popularity"])), histories()
    own = changed[int(user[1:])]
    own[-1] = next(item for item in range(ITEMS) if item not in own)
    after = rankings("after", changed)
    for method in methods:
        assert before[method].pop(user)["items"] != after[method].pop(user)["items"]
        assert before[method] == after[method]


@pytest.mark.parametrize("protocol", ["full", "time"])
def test_no_method_sees_what_it_shall_tell(ray_session: str, folder: Path, protocol: str) -> None:
    """There is no pattern in this world: whoever ranks better than by chance has looked."""
    settings = (f"evaluate.protocol={protocol}", "methods.fusion.of=[itemknn, sasrec]", *TINY)
    also = ", retrieval" if protocol == "time" else ""
    report = evaluate(folder, f"[popularity, itemknn, session_knn, sasrec, fusion{also}]", *settings)
    assert report["split"] == {"full": "leave_one_out", "time": "time"}[protocol]
    for row in report["rows"]:
        spread = 0.29 / report["cases"] ** 0.5
        assert abs(row["AUC"]["value"] - 0.5) < 4 * spread, row["method"]


def test_a_positive_of_the_history_is_no_case(ray_session: str, tmp_path: Path) -> None:
    """There is no pattern: half of the users end with an item that they had, and a ranker could tell by that alone."""
    repeated = [own[:-1] + own[:1] if user % 2 else own for user, own in enumerate(histories())]
    write_files(tmp_path / "data", files(repeated))
    for protocol, users in (("paper", 30), ("full", USERS)):
        settings = ("data.drop_repeats=false", f"evaluate.protocol={protocol}")
        report = evaluate(tmp_path, "[random, popularity]", *settings)
        assert report["cases"] + report["repeats"] == users
        assert min(report["cases"], report["repeats"]) > users / 4
        told = (tmp_path / "run" / "evaluation" / "report.md").read_text()
        assert f"Left out: {report['repeats']} whose positive stands in the history." in told
    lists = Run.at(str(tmp_path / "run")).published("lists")[0]
    assert lists.manifest.counts == {"in": USERS, "out": report["cases"], "repeats": report["repeats"], "seeds": 1}
    for row in read_part(lists.folder, "seed-0.parquet").to_pylist():
        assert row["positive"] not in {f"i{item:03d}" for item in repeated[int(row["user_id"][1:])][: row["cut"]]}


def test_seeds_draw_other_lists(ray_session: str, folder: Path) -> None:
    report = evaluate(folder, "[random, popularity]", "evaluate.seeds=[0, 1, 2]")
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["random"]["HR@5"]["std_over_seeds"] > 0
    assert report["seeds"] == [0, 1, 2]


def test_a_forced_job_trains_each_encoder_anew_and_once(
    ray_session: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Retrieval, the encoder itself and a fusion stand on the same one."""

    class Everything(Evaluate):
        force_all: ClassVar[bool] = True

    def trained(force: bool) -> list[str]:
        execute(stage, Run.at(str(tmp_path / "run")), force)
        return [
            line.partition(": epoch 1 of")[0] for line in capfd.readouterr().err.splitlines() if "epoch 1 of" in line
        ]

    write_files(tmp_path / "data", files(histories()))
    stage = Everything(config(tmp_path, "[retrieval, sasrec, fusion]", "methods.fusion.of=[sasrec]", *TINY))
    once = [f"sasrec {whose}" for whose in ("of all training users", "without fold 0", "without fold 1")]
    assert [line[-len(name) :] for line, name in zip(trained(False), once, strict=True)] == once
    assert [line[-len(name) :] for line, name in zip(trained(True), once, strict=True)] == once
    assert trained(False) == []


def test_slices_by_hand() -> None:
    """Items 0 to 3 were chosen 3, 2, 1 and 1 times in training; the head is a fifth of these four, item 0."""
    items, users = pa.array([f"i{item}" for item in range(5)]), pa.array([f"u{user}" for user in range(6)])
    sequences = Sequences.of([[0, 1], [0, 1], [0, 2, 3], [1, 0], [1, 2, 3], [4]])
    split = np.repeat(np.array([0, 0, 0, 2, 2, 2], np.uint8), sequences.lengths)
    log = Log(items, np.ones(5, bool), users, sequences, split, True)
    found = slices(load(None, ["data.format=shop", "run=/nowhere", "evaluate.short_history=1"]), log, cases_of(log))
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "new items": [False, False, True],
        "tail": [False, True, False],
        "head": [True, False, False],
        "history up to 1": [True, False, True],
        "history over 1": [False, True, False],
    }


def test_how_items_without_training_interactions_stand_by_hand() -> None:
    """Of 40 candidates 3 are such items, of which one and a half stand above their positives; five stand above in
    all."""
    table = pa.table(
        {"unknown": [1, 2], "unknown_above": [0, 1.5], "others": [20, 20], "greater": [3, 1], "equal": [0, 2]}
    )
    once = {"share_of_candidates": 3 / 40, "above_positive": 1.5 / 3, "known_above_positive": 3.5 / 37}
    assert _unknown([table]) == _unknown([table, table]) == once


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("split.users=leave_one_out",),
            r"split\.users: evaluate\.protocol 'paper' needs 'ratio'\. Got 'leave_one_out'",
        ),
        (("evaluate.protocol=time", "split.users=ratio"), "needs 'time'"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(folder: Path, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Evaluate(config(folder, "[random]", *settings)).check()


def test_oracles_are_of_the_shop(folder: Path) -> None:
    *_, scores = Evaluate(config(folder, "[history_oracle]")).requires()
    with pytest.raises(ConfigError, match=r"evaluate\.methods: history_oracle knows the law of the drawn shop"):
        scores.check()


def test_oracles_score_what_the_law_says() -> None:
    shop = law.draw_shop(5, 1200)
    users = law.draw_users(shop, 0)
    rows = range(20)
    known = [users.histories[u][:-1].tolist() for u in rows]
    sequences = Sequences.of(known)
    stamp = [YEAR_BEGINS_MS + (users.times[u] * YEAR_MS).astype(np.int64) for u in rows]
    times = np.concatenate([each[:-1] for each in stamp])
    queries = Queries(
        Sequences(sequences.users, sequences.starts, sequences.items, times), np.array([each[-1] for each in stamp])
    )
    moments = oracle.Moments(
        [np.array(history) for history in known],
        [users.times[u][:-1] for u in rows],
        np.array([users.times[u][-1] for u in rows]),
    )
    np.testing.assert_allclose(HistoryOracle(shop).score_all(queries), oracle.history_oracle(shop, moments), atol=1e-12)
    hidden = users.look[:20], users.habit[:20], users.circle[:20]
    np.testing.assert_allclose(
        TasteOracle(shop, *hidden).score_all(queries), oracle.taste_oracle(shop, moments, *hidden), atol=1e-12
    )
