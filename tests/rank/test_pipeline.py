"""The whole chain on a small shop: items in, keywords, neighbours, an adapter and a table out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.adapters import ADAPTER, CHECKPOINTS
from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import read_log
from mmsrarec_ray.data.parts import read_part, read_parts
from mmsrarec_ray.evaluate.lists import pool_of
from mmsrarec_ray.evaluate.recipes import recipe_of
from mmsrarec_ray.evaluate.stages import read_negatives, read_rankings
from mmsrarec_ray.job import plan
from mmsrarec_ray.methods.base import Dataset
from mmsrarec_ray.pipeline import SUMMARY, Pipeline
from mmsrarec_ray.rank.answers import Answers, keys_of
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.score import Questions
from mmsrarec_ray.rank.stage import TuneRecommender
from mmsrarec_ray.store import Artefact, Run


@pytest.fixture(scope="module")
def done(pipeline: Config) -> dict[str, Artefact]:
    """All artefacts."""
    run = Run.at(pipeline.run)
    names = ("dataset", "keywords", "retriever", "recommender", "scores/mmsrarec", "evaluation", "pipeline")
    return {name: run.published(name)[0] for name in names}


def test_the_report_has_our_row(done: dict[str, Artefact], pipeline: Config) -> None:
    report: dict[str, Any] = json.loads((Path(pipeline.run) / "evaluation" / "report.json").read_text())
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["mmsrarec"]["kind"] == "ours"
    assert 0 <= rows["mmsrarec"]["AUC"]["value"] <= 1
    assert rows["mmsrarec"]["against_best_baseline"]["baseline"] == "popularity"
    made = sum(done[name].manifest.seconds for name in ("keywords", "retriever", "recommender"))
    assert rows["mmsrarec"]["seconds_fit"] >= made - 1e-6
    # The blend finds what the model said of the lists, and its row counts the seconds that this took all the same.
    assert rows["mmsrarec+retrieval"]["seconds_score"] > rows["mmsrarec"]["seconds_score"] / 2


def test_no_question_is_asked_twice(
    done: dict[str, Artefact], pipeline: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsrarec_ray.rank.score.asked", None)  # from here on no engine can start
    log, run = read_log(done["dataset"].folder), Run.at(pipeline.run)
    cases = log.cases("test")
    dataset = Dataset(log.n_items, log.train(), log.cases("validation"), pool_of(log, pipeline.evaluate))
    lists = np.column_stack([cases.positives, read_negatives(run.published("lists")[0].folder, 0, log)])
    for name in ("mmsrarec", "mmsrarec+retrieval"):
        method = recipe_of(name, pipeline).build(0, log, done)
        method.fit(dataset)
        kept = read_rankings(run.published(f"scores/{name}")[0].folder, 0)
        order = np.argsort(-method.score(cases.queries, lists), axis=1, kind="stable")
        ids = log.items.to_numpy(zero_copy_only=False)[np.take_along_axis(lists, order, 1)]
        assert ids.tolist() == kept["items"].to_pylist()


def test_the_engine_is_asked_at_once_what_a_blend_learns_from(
    done: dict[str, Artefact], pipeline: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Questions, Questions | None]] = []

    def answered(
        config: Config, catalogue: Catalogue, adapter: str, now: Questions, answers: Answers, ahead: Questions | None
    ) -> list[np.ndarray]:
        asked.append((now, ahead))
        return [np.full(len(each), 0.5) for each in now.candidates]

    monkeypatch.setattr("mmsrarec_ray.methods.mmsrarec.score", answered)
    log = read_log(done["dataset"].folder)
    cases, validation = log.cases("test"), log.cases("validation")
    dataset = Dataset(log.n_items, log.train(), validation, pool_of(log, pipeline.evaluate))
    ours, blend = (recipe_of(name, pipeline).build(0, log, done) for name in ("mmsrarec", "mmsrarec+retrieval"))
    ours.fit(dataset)
    for _ in range(2):
        ours.score(cases.queries, cases.positives[:, None])
    blend.fit(dataset)
    (_, ahead), (_, again), (learnt, _) = asked
    assert ahead is not None
    assert again is None
    assert len(ahead) == len(validation)
    for before, after in zip(ahead.users(), learnt.users(), strict=True):
        np.testing.assert_array_equal(keys_of(*before), keys_of(*after))
    alone = pipeline.model_copy(update={"evaluate": pipeline.evaluate.model_copy(update={"methods": ("mmsrarec",)})})
    assert recipe_of("mmsrarec", alone).build(0, log, done).ahead is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(("said", "keywords"), [("titles", []), ("text_keywords", ["summarize"])])
def test_nothing_is_summarised_for_prompts_of_titles(pipeline: Config, said: str, keywords: list[str]) -> None:
    config = pipeline.model_copy(update={"rank": pipeline.rank.model_copy(update={"said": said})})
    assert [stage.name for stage in TuneRecommender(config).requires()] == ["prepare", *keywords, "retrieve"]
    recipe = recipe_of("mmsrarec+retrieval", config)
    assert [stage.name for stage in recipe.requires] == [*keywords, "retrieve", "tune_recommender"]


def test_the_summary_says_where_every_result_lies(done: dict[str, Artefact]) -> None:
    summary = json.loads(done["pipeline"].folder.read_bytes(SUMMARY))
    assert list(summary) == ["prepare", "summarize", "retrieve", "tune_recommender", "evaluate"]
    for name, stage in (("keywords", "summarize"), ("recommender", "tune_recommender"), ("evaluation", "evaluate")):
        assert summary[stage]["artefact"] == done[name].folder.path
        assert summary[stage]["counts"] == done[name].manifest.counts


def test_examples_are_positives_and_negatives_that_the_user_never_touched(done: dict[str, Artefact]) -> None:
    counts = done["recommender"].manifest.counts
    assert (counts["train_contexts"], counts["train_choice"], counts["validation_choice"]) == (72, 288, 48)
    assert 0 < counts["train_next_item"] < 72
    columns = ["user_id", "cut", "examples"]
    contexts = read_parts(done["recommender"].folder / "examples" / "train", columns).to_pylist()
    examples = [
        {"user_id": context["user_id"], "cut": context["cut"], **example}
        for context in contexts
        for example in context["examples"]
        if example["task"] == "choice"
    ]
    touched = read_parts(done["dataset"].folder / "interactions", ["user_id", "item_id", "position"]).to_pylist()
    of_user = {(row["user_id"], row["position"]): row["item_id"] for row in touched}
    owned = {(row["user_id"], row["item_id"]) for row in touched}
    for example in examples:
        positive = of_user[example["user_id"], example["cut"]] == example["item_id"]
        assert example["answer"] == ("yes" if positive else "no")
        assert positive or (example["user_id"], example["item_id"]) not in owned
        assert example["prompt"].startswith("<|im_start|>user\nUser history, oldest first:\n")
    assert sum(example["answer"] == "yes" for example in examples) == len(contexts) == 144


def test_the_adapter_is_what_stays_of_the_training(done: dict[str, Artefact]) -> None:
    facts, folder = done["recommender"].manifest.metrics, done["recommender"].folder
    assert facts["steps"] == 18  # 72 contexts, 8 a step, 2 epochs
    assert facts["resumed_at"] == 0
    assert CHECKPOINTS not in folder.folders()
    assert (folder / ADAPTER).exists("adapter_model.safetensors")


def test_the_whole_catalogue_is_ranked_below_the_shortlist(done: dict[str, Artefact], pipeline: Config) -> None:
    log = read_log(done["dataset"].folder)
    cases = log.cases("test").take(np.arange(5))
    method = recipe_of("mmsrarec", pipeline).build(0, log, done)
    method.fit(Dataset(log.n_items, log.train(), log.cases("validation"), log.in_core))
    scores = method.score_all(cases.queries)
    assert scores.shape == (5, log.n_items)
    assert ((scores > 1).sum(1) == 6).all()  # rank.shortlist, above all that retrieval alone put in order
    assert np.isfinite(scores).all()
    for row, history in enumerate(cases.queries.histories):
        assert not set(history) & set(np.flatnonzero(scores[row] > 1))
    asked = read_part(done["scores/mmsrarec"].folder, "seed-0.parquet").slice(0, 5)["recommended"].to_pylist()
    for row, items in enumerate(asked):
        found = log.items.take(pa.array(np.argsort(-scores[row])[:5])).to_pylist()
        assert found == items[:5]


def test_nothing_runs_twice(done: dict[str, Artefact], pipeline: Config) -> None:
    assert {step.status for step in plan(Pipeline(pipeline), Run.at(pipeline.run))} == {"up to date"}
