"""The retrieve stage on a world without any pattern: what looks like one there is a leak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import Log, Queries, Sequences, read_log
from mmsrarec_ray.data.parts import read_part
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.job import execute
from mmsrarec_ray.retrieve import stage
from mmsrarec_ray.retrieve.encoders import load_encoder
from mmsrarec_ray.retrieve.fit import read_training
from mmsrarec_ray.retrieve.moments import ALL_USERS, folds_of
from mmsrarec_ray.retrieve.retriever import ENCODER, FOLDS, Retriever
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.store import Folder, Manifest, Run
from tests.data.conftest import write_files

USERS, ITEMS = 300, 400
SETTINGS = (
    *("data.format=tables", "data.items=items.csv", "data.interactions=interactions.csv"),
    *("data.item_columns.image=null", "data.item_columns.text=null"),
    *("methods.sasrec.dim=16", "methods.sasrec.epochs=4", "methods.sasrec.layers=1", "methods.sasrec.heads=1"),
    *("train.threads=1", "retrieve.folds=2"),
)
BY_USER = ("split.validation=0.25", "split.test=0.25")


def histories() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.permutation(ITEMS)[: rng.integers(4, 9)].tolist() for _ in range(USERS)]


def files(all_histories: list[list[int]]) -> dict[str, str]:
    """Every user begins at another time and chooses one item a second."""
    items = "item_id,title\n" + "".join(f"i{item:03d},Item {item}\n" for item in range(ITEMS))
    rows = [
        f"u{user:03d},i{item:03d},{user % 50 + place}\n"
        for user, history in enumerate(all_histories)
        for place, item in enumerate(history)
    ]
    return {"items.csv": items, "interactions.csv": "user_id,item_id,timestamp\n" + "".join(rows)}


@dataclass(frozen=True)
class Retrieved:
    """A published retriever and the log it was made from."""

    log: Log
    folder: Folder
    manifest: Manifest

    def contexts(self) -> dict[tuple[str, int], dict[str, Any]]:
        tables = [read_part(self.folder / "contexts", name) for name in (self.folder / "contexts").files()]
        return {(row["user_id"], row["cut"]): row for row in pa.concat_tables(tables).to_pylist()}

    def history(self, user_id: str) -> list[str]:
        user = self.log.users.index(user_id).as_py()
        return self.log.items.take(pa.array(self.log.sequences[user])).to_pylist()


@pytest.fixture(scope="module")
def retrieve(ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Retrieved]:
    def call(all_histories: list[list[int]], *settings: str) -> Retrieved:
        folder: Path = tmp_path_factory.mktemp("retrieve")
        data = write_files(folder / "data", files(all_histories))
        config = load(None, [f"data.path={data}", f"run={folder / 'run'}", *SETTINGS, *settings])
        step, manifest, _ = execute(Retrieve(config), Run.at(config.run))
        assert step.artefact is not None
        dataset = Run.at(config.run).published("dataset")[0]
        return Retrieved(read_log(dataset.folder), step.artefact.folder, manifest)

    return call


@pytest.fixture(scope="module")
def retrieved(retrieve: Callable[..., Retrieved]) -> Retrieved:
    return retrieve(histories(), *BY_USER)


def test_counts_add_up(retrieved: Retrieved) -> None:
    log, counts = retrieved.log, retrieved.manifest.counts
    train = log.train()
    assert (len(train), counts["validation_contexts"], counts["test_contexts"]) == (150, 75, 75)
    assert counts["train_contexts"] == 150
    assert counts["moments"] == sum(train.lengths - 1)
    assert len(retrieved.contexts()) == 300


def test_contexts_tell_what_others_did_next(retrieved: Retrieved) -> None:
    train = set(retrieved.log.users.take(pa.array(retrieved.log.train().users)).to_pylist())
    alone = 0
    for (user, cut), context in retrieved.contexts().items():
        history = retrieved.history(user)
        assert cut == len(history) - 1
        assert context["history"] == history[:cut][-5:]
        alone += not context["neighbours"]  # nobody of the others has an item of this history
        if not context["neighbours"]:
            continue
        assert len(context["neighbours"]) == 3
        similarities = [each["similarity"] for each in context["neighbours"]]
        assert similarities == sorted(similarities, reverse=True)
        assert max(similarities) <= 1 + 1e-5
        for each in context["neighbours"]:
            assert each["user_id"] in train - {user}
            assert retrieved.history(each["user_id"])[each["position"]] == each["next_item_id"]
    assert alone < 10


def test_a_training_user_s_neighbours_come_from_other_folds(retrieved: Retrieved) -> None:
    training = [row for row in retrieved.contexts().values() if row["split"] == "train"]
    fold = dict(zip(ids := retrieved.log.users.to_pylist(), folds_of(ids, 2, 0), strict=True))
    for context in training:
        assert context["fold"] == fold[context["user_id"]]
        assert all(fold[each["user_id"]] != context["fold"] for each in context["neighbours"])
    assert {row["fold"] for row in retrieved.contexts().values() if row["split"] != "train"} == {-1}


def test_no_split_looks_better_supported_than_another(retrieved: Retrieved) -> None:
    """Without a pattern neighbours and counts hardly ever know the positive, for whoever is asked; with the user's
    own pairs counted, they would know every one of a training user."""
    support = retrieved.manifest.metrics["support"]
    assert {name: each["cases"] for name, each in support.items()} == {"train": 150, "validation": 75, "test": 75}
    for each in support.values():
        assert each["neighbours"] < 0.1
        assert each["cooccurrence"] < 0.25


def test_seconds_of_encoders_are_told_apart(retrieved: Retrieved) -> None:
    encoders, told = Folder.at(retrieved.folder.path) / "../../encoders", retrieved.manifest.metrics["encoder_seconds"]
    assert set(told) == {f"sasrec/{name}" for name in (encoders / "sasrec").folders()}
    assert len(told) == 3
    assert told == {name: read_training(encoders / name).seconds for name in told}


def test_a_fold_s_encoder_never_sees_the_fold(retrieved: Retrieved) -> None:
    work = stage._Work(load(None, ["run=/unused", "data.path=/unused", *SETTINGS]), retrieved.log, retrieved.folder)
    tasks = list(work.tasks().values())
    everyone, *without = [set(task.train.users.tolist()) for task in tasks]
    assert everyone == set(work.training.users.tolist())
    for fold, users in enumerate(without):
        assert users == set(work.training.users[work.fold != fold].tolist())
    assert len({task.folder.path for task in tasks}) == 3


def test_moments_of_one_fold_alone_are_refused_before_training(tmp_path: Path) -> None:
    """Contexts of the fold that has them all would have none to come from."""
    sequences = Sequences.of([[0, 1, 2, 3], *([user % 8] for user in range(11))])
    items, users = pa.array([f"i{item}" for item in range(8)]), pa.array([f"u{user:02d}" for user in range(12)])
    split = np.zeros(len(sequences.items), np.uint8)
    config, out = load(None, ["run=/unused", "data.path=/unused", *SETTINGS]), Folder.at(str(tmp_path))
    log = Log(items, np.ones(8, bool), users, sequences, split, True)
    with pytest.raises(
        InputError, match=r"^retrieve\.folds: .* in at least two folds\. All of them are in fold \d of 2"
    ):
        stage._Work(config, log, out)


def test_a_test_user_s_future_changes_nothing_else(retrieve: Callable[..., Retrieved], retrieved: Retrieved) -> None:
    """Another last item of one test user: the same weights, index and counts, and the same contexts of everybody."""
    others = histories()
    tested = retrieved.log.cases("test").queries.histories.users
    user = int(retrieved.log.users[int(tested[0])].as_py()[1:])
    others[user][-1] = next(item for item in range(ITEMS) if item not in others[user])
    changed = retrieve(others, *BY_USER)
    assert changed.manifest.inputs != retrieved.manifest.inputs
    for name in retrieved.folder.files():
        if not name.startswith("manifest"):
            assert changed.folder.read_bytes(name) == retrieved.folder.read_bytes(name), name


def test_a_positive_of_the_history_has_no_context(retrieve: Callable[..., Retrieved]) -> None:
    repeated = [own[:-1] + own[:1] if user % 2 else own for user, own in enumerate(histories())]
    done = retrieve(repeated, *BY_USER, "data.drop_repeats=false")
    for split, users in (("train", 150), ("validation", 75), ("test", 75)):
        left, out = (done.manifest.counts[f"{split}_{what}"] for what in ("contexts", "repeats"))
        assert left + out == users
        assert min(left, out) > users / 4
    for user, cut in done.contexts():
        assert done.history(user)[cut] not in done.history(user)[:cut]


def test_a_history_of_nothing_known_has_no_neighbours(retrieved: Retrieved) -> None:
    retriever = Retriever.load(retrieved.folder)
    unknown = np.flatnonzero(retriever.encoder.vocabulary.numbers < 0)
    known = retriever.encoder.vocabulary.items
    asked = Sequences.of([[], unknown[:3].tolist(), [int(unknown[0]), int(known[0])]], np.full(3, USERS))
    found = retriever.nearest(Queries(asked, np.full(3, 100)), 3)
    assert (found.rows[:2] == -1).all()
    assert (found.rows[2] >= 0).all()


def test_a_published_retriever_is_loaded_whole(retrieved: Retrieved) -> None:
    cases, contexts = retrieved.log.cases("test"), retrieved.contexts()
    for memory_map in (False, True):
        retriever = Retriever.load(retrieved.folder, memory_map)
        found = retriever.nearest(cases.queries, 3)
        users = retriever.index.moments.users[found.rows[0]]
        key = (retrieved.log.users[int(cases.queries.histories.users[0])].as_py(), len(cases.queries.histories[0]))
        expected = [each["user_id"] for each in contexts[key]["neighbours"]]
        assert retrieved.log.users.take(pa.array(users)).to_pylist() == expected


def test_contexts_tell_what_the_encoder_that_does_not_know_the_user_makes_of_the_history(retrieved: Retrieved) -> None:
    folders = {fold: retrieved.folder / FOLDS / str(fold) for fold in range(2)}
    encoders = {fold: load_encoder(each) for fold, each in folders.items()}
    encoders[ALL_USERS] = load_encoder(retrieved.folder / ENCODER)
    numbers = {item: number for number, item in enumerate(retrieved.log.items.to_pylist())}
    asked: dict[int, list[tuple[list[int], list[float]]]] = {fold: [] for fold in encoders}
    for (user, cut), context in retrieved.contexts().items():
        history = [numbers[item] for item in retrieved.history(user)[:cut]]
        asked[context["fold"]].append((history, context["vector"]))
    for fold, encoder in encoders.items():
        histories, vectors = zip(*asked[fold], strict=True)
        made = encoder.encode(Queries(Sequences.of(histories), np.zeros(len(histories))))
        np.testing.assert_allclose(made, vectors, atol=1e-6)


def test_a_split_by_time_never_looks_ahead(retrieve: Callable[..., Retrieved]) -> None:
    timed = retrieve(histories(), "evaluate.protocol=time", "split.validation=0.2", "split.test=0.2")
    places = {name: place for place, name in enumerate(timed.log.users.to_pylist())}

    def moment(user: str, position: int) -> int:
        return timed.log.sequences.times[timed.log.sequences.starts[places[user]] + position]

    found = 0
    for (user, cut), context in timed.contexts().items():
        for each in context["neighbours"]:
            assert moment(each["user_id"], each["position"]) < moment(user, cut)
            found += 1
    assert found > 300


def test_the_paper_s_form_has_one_moment_a_user(retrieve: Callable[..., Retrieved]) -> None:
    done = retrieve(
        histories(), *BY_USER, "retrieve.moments=users", "retrieve.encoder=gru4rec", "methods.gru4rec.dim=16"
    )
    assert done.manifest.counts["moments"] == 150
    for context in done.contexts().values():
        for each in context["neighbours"]:
            assert each["position"] == len(done.history(each["user_id"])) - 1
