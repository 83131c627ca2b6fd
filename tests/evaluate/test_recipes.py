"""What a method's scores are made of: all of it decides whether they are up to date."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

import mmsrarec_ray
from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import Cases, Log, Queries, Sequences
from mmsrarec_ray.data.parts import to_parquet
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.evaluate.recipes import BlendRecipe, MmsraRecRecipe, recipe_of, seconds_of
from mmsrarec_ray.evaluate.stage import Evaluate
from mmsrarec_ray.evaluate.stages import Lists, Scores
from mmsrarec_ray.job import Stage
from mmsrarec_ray.methods.fusion import Fusion
from mmsrarec_ray.rank.stage import TuneRecommender
from mmsrarec_ray.retrieve.folders import encoder_folder
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.settings import MethodName
from mmsrarec_ray.store import Artefact, Folder, Manifest, Run
from mmsrarec_ray.summarize.build import BuildModel
from mmsrarec_ray.summarize.stage import Summarize
from mmsrarec_ray.summarize.tuning.stage import TuneSummarizer

PACKAGE = Path(mmsrarec_ray.__file__).parent
CONFIG = load(None, ["data.format=shop", "run=/nowhere", "summarize.tuned=true", "build.model=compact"])
# Settings stand in the fingerprint by their values; the others decide nothing.
BESIDE = {"config", "errors", "job", "lease", "metrics", "progress", "settings", "store"}
SHOWN = {"data/shop/draw", "data/shop/write"}  # what an oracle knows has no pictures and texts


def imports(module: str, without: set[str]) -> set[str]:
    """Modules of the package that one of them names, as paths without `.py`. without: modules, and names in modules,
    that do not count."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmsrarec_ray":
            inside = "/".join((node.module or "").split(".")[1:])
            named = {f"{inside}/{alias.name}".lstrip("/") for alias in node.names} - without
            names |= named | {inside} if named else named
    return {name for name in names - without if (PACKAGE / f"{name}.py").is_file()}


def files(code: tuple[str, ...]) -> set[str]:
    """Entries of `code` are modules or whole folders."""
    folders = (sorted((PACKAGE / entry).glob("**/*.py")) or [PACKAGE / f"{entry}.py"] for entry in code)
    return {str(file.relative_to(PACKAGE).with_suffix("")) for folder in folders for file in folder}


@pytest.mark.parametrize("method", get_args(MethodName))
def test_the_code_behind_a_score_is_all_that_it_imports(method: str) -> None:
    stage = Scores(CONFIG, method)
    assert reached(files(stage.recipe.code) - {"evaluate/recipes"}, earlier(stage) | SHOWN) <= files(stage.code)


@pytest.mark.parametrize(
    "stage", [Prepare, TuneSummarizer, Summarize, Retrieve, TuneRecommender, Lists, Evaluate, BuildModel]
)
def test_the_code_behind_an_artefact_is_all_that_it_imports(stage: type[Stage]) -> None:
    made = stage(CONFIG)
    # How methods are made decides their scores, which are inputs of the evaluation.
    makers = {"evaluate/recipes", "evaluate/stages"} if stage is Evaluate else set()
    without = earlier(made) | makers | (set() if stage is BuildModel else SHOWN)
    own = {module_of(stage)} - ({"evaluate/stages"} if stage is Lists else set())  # which is that of scores too
    assert reached(files(made.code) - makers | own, without) <= files(made.code)


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("segments", "evaluate.ks=[5]"),
        ("fusion", "methods.fusion.of=[segments]"),
        ("fusion_content", "methods.fusion_content.of=[segments]"),
        ("mmsrarec", "rank.evidence=[segments]"),
        ("mmsrarec+retrieval", "rank.liked=3"),
        ("mmsrarec+segments", "evaluate.ks=[5]"),
        ("mmsrarec+fusion", "methods.fusion.of=[segments]"),
    ],
)
def test_who_hears_of_segments_names_the_libraries_that_make_them(method: str, setting: str) -> None:
    recipe = recipe_of(method, load(None, ["data.format=shop", "run=/nowhere", setting]))
    assert {"scipy", "scikit-learn", "numpy"} <= recipe.engine().keys()


def test_a_recommender_names_the_libraries_of_its_segments() -> None:
    words = ["data.format=shop", "run=/nowhere"]
    for setting, named in (("rank.evidence=[segments]", True), ("rank.liked=3", True), ("rank.evidence=[]", False)):
        made = TuneRecommender(load(None, [*words, setting]))
        assert made.engine()["name"] == "trl"
        assert ({"scipy", "scikit-learn", "numpy"} <= made.engine().keys()) == named


def test_weights_of_encoders_depend_on_where_they_are_trained() -> None:
    """On a GPU sums are others than on a CPU."""
    one, other = (load(None, ["data.format=shop", "run=/nowhere", f"train.gpu={gpu}"]) for gpu in ("false", "true"))
    assert Retrieve(one).settings() != Retrieve(other).settings()
    for method in ("sasrec", "gru4rec", "bert4rec", "fusion"):
        assert recipe_of(method, one).settings != recipe_of(method, other).settings
    nobody = Sequences.of([])
    about = "sasrec", one.methods.sasrec, 0, 1, nobody, Cases(Queries(nobody, np.zeros(0)), np.zeros(0, np.int32))
    run = Run.at("/nowhere")
    assert encoder_folder(run, one.train, *about).path != encoder_folder(run, other.train, *about).path


@pytest.mark.parametrize("method", ["content_knn", "fusion_content", "segments"])
def test_content_is_the_texts_or_the_keywords(method: str, tmp_path: Path) -> None:
    def part(name: str, rows: list[dict[str, Any]]) -> Artefact:
        folder = Folder.at(str(tmp_path / name))
        (folder / "items").write_bytes("part-0.parquet", to_parquet(pa.Table.from_pylist(rows)))
        return Artefact(name, "", folder)

    texts = [
        {"item_id": "b", "title": "Bread", "text": "brown"},
        {"item_id": "c", "title": "Cup", "text": None},
        {"item_id": "a", "title": "Apple", "text": "red"},
    ]
    keywords = [  # the cup failed
        {"item_id": "b", "image_keywords": ["loaf"], "text_keywords": ["brown", "rye"]},
        {"item_id": "a", "image_keywords": None, "text_keywords": ["red"]},
    ]
    inputs = {"dataset": part("dataset", texts), "keywords": part("keywords", keywords)}
    users, nobody = pa.array([], pa.string()), Sequences.of([])
    log = Log(pa.array(["a", "b", "c"]), np.ones(3, bool), users, nobody, np.zeros(0, np.uint8), True)
    said = {}
    for source, needs in (("texts", []), ("keywords", ["keywords"])):
        settings = ["data.format=shop", "run=/nowhere", f"methods.{method}.source={source}"]
        recipe = recipe_of(method, load(None, settings))
        assert [stage.artefact for stage in recipe.requires] == needs
        made = recipe.build(0, log, inputs)
        said[source] = made.content.texts if isinstance(made, Fusion) else made.texts
    texts, halves = ["Apple. red", "Bread. brown", "Cup"], [["", "loaf", ""], ["red", "brown, rye", ""]]
    if method == "segments":  # in facets
        assert said == {"texts": [texts], "keywords": halves}
    else:
        assert said == {"texts": texts, "keywords": ["red", "loaf, brown, rye", ""]}


def published(folder: Path, name: str, seconds: float, metrics: dict[str, Any]) -> Artefact:
    made = Artefact(name, "f", Folder.at(str(folder / name)))
    texts = dict.fromkeys(("code", "package"), "") | {"artefact": name, "fingerprint": "f"}
    empty: dict[str, Any] = {key: {} for key in ("engine", "config", "inputs", "files", "counts")}
    made.publish(Manifest(**texts, **empty, metrics=metrics, seconds=seconds, created=datetime(2026, 1, 1, tzinfo=UTC)))
    return made


def test_seconds_of_an_artefact_are_those_of_its_encoders_and_the_rest(tmp_path: Path) -> None:
    encoders = {"sasrec/a": 60.0, "sasrec/b": 30.0}
    for seconds, rest in ((100.0, 10.0), (50.0, 0.0)):  # a resumed training began in a job before
        made = published(tmp_path, "retriever", seconds, {"encoder_seconds": encoders})
        assert seconds_of(made) == {"retriever": rest, **encoders}
    assert seconds_of(published(tmp_path, "keywords", 7.0, {})) == {"keywords": 7}


@pytest.mark.parametrize("method", ["mmsrarec", "mmsrarec+retrieval"])
def test_answers_are_renewed_before_they_are_looked_into(method: str, tmp_path: Path) -> None:
    inputs = {name: published(tmp_path, name, 1.0, {}) for name in ("dataset", "keywords", "recommender")}
    renewed: list[str] = []
    recipe = recipe_of(method, CONFIG, lambda folder: renewed.append(folder.path))
    ours = recipe.ours if isinstance(recipe, BlendRecipe) else recipe
    assert isinstance(ours, MmsraRecRecipe)
    assert renewed == [ours.answers(inputs).folder.path]


def test_what_is_asked_of_more_items_or_users_finds_what_was_answered_of_some(tmp_path: Path) -> None:
    """Another shortlist, or another retrieval behind it, asks the same question of an item."""
    inputs = {name: published(tmp_path, name, 1.0, {}) for name in ("dataset", "keywords", "recommender")}

    def told(setting: str) -> tuple[str, dict[str, Any]]:
        recipe = recipe_of("mmsrarec", load(None, ["data.format=shop", f"run={tmp_path}", setting]))
        assert isinstance(recipe, MmsraRecRecipe)
        return recipe.answers(inputs).folder.path, recipe.settings

    answers, settings = told("rank.shortlist=200")
    for same in ("rank.shortlist=20", "methods.retrieval.neighbours=7"):
        assert told(same)[0] == answers
        assert told(same)[1] != settings  # its scores are others all the same
    for other in ("rank.max_text_chars=100", "rank.candidate=keywords", "model.dtype=bfloat16"):
        assert told(other)[0] != answers


def earlier(stage: Stage) -> set[str]:
    """The stages that one reads from, directly or not, as `module/Class`. What they make is its input; what else it
    imports of their modules is its own code: their artefacts may stay the same where it changes."""
    needs = stage.requires()
    return {f"{module_of(type(need))}/{type(need).__name__}" for need in needs}.union(*map(earlier, needs))


def module_of(stage: type[Stage]) -> str:
    """As a path without `.py`."""
    return stage.__module__.removeprefix("mmsrarec_ray.").replace(".", "/")


def reached(modules: set[str], without: set[str]) -> set[str]:
    """These and all that they import, and those, but for what is left out."""
    found, waiting = set[str](), set(modules)
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imports(module, without) - found - BESIDE
    return found
