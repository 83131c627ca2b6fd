"""A bundle is parts that were made from each other, whole, under a version that follows their content."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ray.serve import Application

from mmsrarec_ray.config import load
from mmsrarec_ray.errors import ArtefactError, ConfigError, UsageError
from mmsrarec_ray.serve.bundle import PARTS, Bundle
from mmsrarec_ray.serve.graph import application
from mmsrarec_ray.serve.store import StoreUnavailable
from mmsrarec_ray.store import Artefact, Manifest, Run

STAGES = ("prepare", "summarize", "retrieve", "tune_recommender")


def publish(run: Run, name: str, mark: str, content: str, inputs: dict[str, str], minute: int) -> Artefact:
    made = run.artefact(name, mark)
    made.folder.write_bytes("file", content.encode())
    config = load(None, ["data.format=shop", f"run={run.folder.path}", "serve.deadline_ms=77", "rank.shortlist=9"])
    manifest = Manifest(
        artefact=name,
        fingerprint=mark,
        code="",
        package="",
        engine={},
        config=config.model_dump(mode="json"),
        inputs=inputs,
        files={"file": made.folder.checksum("file")},
        counts={"items_out": 3},
        metrics={},
        seconds=0,
        created=datetime(2026, 1, 1, 0, minute, tzinfo=UTC),
    )
    made.publish(manifest)
    return made


def make(run: Run, mark: str, minute: int = 0) -> dict[str, Artefact]:
    """A line of artefacts, each made from those before."""
    parts: dict[str, Artefact] = {}
    for name in PARTS:
        inputs = {other: part.manifest.digest for other, part in parts.items()}
        parts[name] = publish(run, name, mark, f"{name} {mark}", inputs, minute)
    return parts


def summarise(run: Run, parts: dict[str, Artefact], mark: str, minute: int = 0) -> None:
    pipeline = publish(run, "pipeline", mark, "", {}, minute)
    rows = {stage: {"artefact": parts[name].folder.path} for stage, name in zip(STAGES, PARTS, strict=True)}
    pipeline.folder.write_bytes("summary.json", json.dumps(rows).encode())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(str(tmp_path / "run"))


def test_the_newest_recommender_comes_with_what_it_was_made_from(run: Run) -> None:
    make(run, "new", 2)
    make(run, "old", 1)
    publish(run, "keywords", "later", "others", {}, 5)
    bundle = Bundle.of(run.folder.path)
    assert {part.fingerprint for part in bundle.parts.values()} == {"new"}
    bundle.verify()
    assert bundle.summary()["items"] == 3


def test_of_a_recommender_that_reads_titles_people_see_the_newest_keywords_of_its_dataset(run: Run) -> None:
    dataset = publish(run, "dataset", "d", "dataset", {}, 0)
    made_of = {"dataset": dataset.manifest.digest}
    retriever = publish(run, "retriever", "r", "retriever", made_of, 1)
    publish(run, "recommender", "t", "recommender", made_of | {"retriever": retriever.manifest.digest}, 2)
    publish(run, "keywords", "others", "keywords of others", {"dataset": "another"}, 3)
    with pytest.raises(ArtefactError, match=r"keywords: expected keywords of the dataset that .*/recommender/t was"):
        Bundle.of(run.folder.path)
    for mark, minute in (("old", 4), ("new", 5)):
        publish(run, "keywords", mark, f"keywords {mark}", made_of, minute)
    assert Bundle.of(run.folder.path).parts["keywords"].fingerprint == "new"


def test_a_pipeline_is_taken_by_its_name_else_the_newest(run: Run) -> None:
    summarise(run, make(run, "a", 1), "first", 1)
    summarise(run, make(run, "b", 2), "second", 2)
    make(run, "c", 3)
    assert Bundle.of(run.folder.path).parts["keywords"].fingerprint == "b"
    assert Bundle.of(run.folder.path, pipeline="first").parts["keywords"].fingerprint == "a"
    with pytest.raises(ArtefactError, match="there is no such pipeline"):
        Bundle.of(run.folder.path, pipeline="third")


def test_a_version_names_the_content_wherever_it_lies(run: Run, tmp_path: Path) -> None:
    make(run, "a")
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = Bundle.of(str(tmp_path / "moved"))
    make(run, "a")
    assert moved.version == Bundle.of(run.folder.path).version
    make(run, "b", 1)
    assert moved.version != Bundle.of(run.folder.path).version


def test_parts_of_different_lines_are_refused(run: Run) -> None:
    parts = make(run, "a") | {"keywords": make(run, "b")["keywords"]}
    summarise(run, parts, "mixed")
    with pytest.raises(ArtefactError, match=r"expected a keywords made from .* got one made from another dataset"):
        Bundle.of(run.folder.path)


def test_a_damaged_part_is_refused(run: Run) -> None:
    parts = make(run, "a")
    parts["retriever"].folder.write_bytes("file", b"retriever X")
    with pytest.raises(ArtefactError, match="retriever/a/file: expected SHA-256"):
        Bundle.of(run.folder.path).verify()
    parts["dataset"].folder.write_bytes("file", b"short")
    with pytest.raises(ArtefactError, match="dataset/a/file: expected 9 bytes, got 5"):
        Bundle.of(run.folder.path).verify()


def test_a_run_without_a_recommender_is_refused(run: Run) -> None:
    with pytest.raises(ArtefactError, match="expected a recommender, got none"):
        Bundle.of(run.folder.path)


def test_settings_stand_over_those_the_recommender_was_made_with(run: Run) -> None:
    make(run, "a")
    bundle = Bundle.of(run.folder.path, ["serve.candidates=5"])
    assert (bundle.config.serve.deadline_ms, bundle.config.serve.candidates) == (77, 5)
    assert bundle.config.rank.shortlist == 9
    with pytest.raises(ConfigError, match=r"serve\.deadline: there is no such setting\. Did you mean"):
        Bundle.of(run.folder.path, ["serve.deadline=5"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "run: expected the run folder, got None"),
        ({"run": "relative"}, "neither an absolute path nor a URI"),
        ({"serve": {"k": 1}}, r"serve\.k: there is no such setting"),
        ({"serve.deadline_ms": "soon"}, r"serve\.deadline_ms: input should be a valid integer"),
        ({"serve": {"store": "mysql://here"}}, r"serve\.store: expected 'sqlite:///' and an absolute path"),
        ({"serve": {"store": "redis://:pw@here"}}, r"serve\.store: must hold no password"),
        ({"serve.store": "env:NO_SUCH_VARIABLE"}, r"serve\.store: expected an address in the environment variable NO_"),
        ({"serve.write_keys_env": "NO_SUCH_VARIABLE"}, r"serve\.write_keys_env: expected API keys"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(run: Run, arguments: dict, said: str) -> None:
    make(run, "a")
    given = arguments if not arguments or "run" in arguments else {"run": run.folder.path} | arguments
    with pytest.raises(UsageError, match=said):
        application(given)


def test_a_store_that_does_not_answer_is_told_before_anything_starts(run: Run) -> None:
    make(run, "a")
    with pytest.raises(StoreUnavailable, match=r"the store redis://127\.0\.0\.1:1/ does not answer: .*refused"):
        application({"run": run.folder.path, "serve.store": "redis://127.0.0.1:1/"})


def test_a_trial_is_a_bundle_of_the_same_run(run: Run) -> None:
    summarise(run, make(run, "a", 1), "first", 1)
    summarise(run, make(run, "b", 2), "second", 2)
    application({"run": run.folder.path, "serve.trial.pipeline": "first", "serve.trial.share": "0.2"})
    with pytest.raises(ArtefactError, match="there is no such pipeline"):
        application({"run": run.folder.path, "serve.trial.pipeline": "third"})


def test_the_graph_is_made_without_a_cluster(run: Run) -> None:
    make(run, "a")
    made = application({"run": run.folder.path, "serve": {"ranker": {"max_replicas": 3}}, "serve.deadline_ms": "500"})
    assert isinstance(made, Application)
