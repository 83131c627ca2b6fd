"""Weights between the language model and another method: learnt on validation users, and better than either."""

from __future__ import annotations

import numpy as np
import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.methods.blend import Blend
from mmsrarec_ray.methods.mmsrarec import MmsraRec
from mmsrarec_ray.methods.retrieval import Retrieval
from mmsrarec_ray.rank.evidence import Scale
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.retriever import Retriever
from mmsrarec_ray.settings import Blend as BlendSettings
from mmsrarec_ray.settings import Retrieval as RetrievalSettings

N_ITEMS, N_VALIDATION, N_TEST = 60, 400, 400
POSITIVES = np.random.default_rng(0).integers(1, N_ITEMS, 1000)  # of each user: what came next
MADE = {"keywords": 3.0, "retriever": 90.0, "sasrec/a": 10.0}  # seconds of what our part stands on
NOISE = np.random.default_rng(1).normal(size=(2, 1000, N_ITEMS))


def signal(kind: int, user: int) -> np.ndarray:
    """A noisy sign of the user's next item, of every item: float64 (n_items,)."""
    sign = NOISE[kind, user].copy()
    sign[POSITIVES[user]] += 1.5
    return sign


class LanguageModel(MmsraRec):
    """Half of the truth: an engine is not what is tested here."""

    def _ask(self, queries: Queries, candidates: list[np.ndarray]) -> list[np.ndarray]:
        users = queries.histories.users
        return [1 / (1 + np.exp(-signal(0, user)[items])) for user, items in zip(users, candidates, strict=True)]


class Other(Method):
    """The other half. Cheats about validation users that it was fitted on."""

    name = "other"
    learns_from_validation = True

    def learn(self, dataset: Dataset) -> None:
        self.seen = set(dataset.validation.queries.histories.users.tolist())

    def score_all(self, queries: Queries) -> np.ndarray:
        scores = np.stack([signal(1, user) for user in queries.histories.users])
        for row, user in enumerate(queries.histories.users.tolist()):
            if user in self.seen:
                scores[row, POSITIVES[user]] += 1000
        return scores


class Honest(Other):
    learns_from_validation = False

    def learn(self, dataset: Dataset) -> None:
        self.seen = set()


def cases(users: np.ndarray) -> Cases:
    """Everybody chose item 0, and then something."""
    histories = Sequences.of([[0]] * len(users), users)
    return Cases(Queries(histories, np.ones(len(users), np.int64)), POSITIVES[users].astype(np.int32))


@pytest.fixture
def dataset() -> Dataset:
    train = Sequences.of([[0, item] for item in range(1, N_ITEMS)], np.arange(2000, 2000 + N_ITEMS - 1))
    return Dataset(N_ITEMS, train, cases(np.arange(N_VALIDATION)), np.ones(N_ITEMS, bool))


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MmsraRec, "_ask", LanguageModel._ask)


def blend(other: Method, **settings: float) -> Blend:
    config = load(None, ["data.format=shop", "run=/nowhere"])
    together = Cooccurrence.of(Sequences.of([[0, 1]]), N_ITEMS, 5)
    retrieval = Retrieval(RetrievalSettings(), Retriever(None, None, together, None, False))  # type: ignore[arg-type]
    ours = MmsraRec(config, None, retrieval, Scale({}), None, None, MADE)  # type: ignore[arg-type]
    return Blend("mmsrarec+other", BlendSettings(**settings), 0, other, ours)


def auc(method: Method) -> float:
    asked = cases(np.arange(500, 500 + N_TEST))
    candidates = np.tile(np.arange(1, N_ITEMS), (N_TEST, 1))
    scores = method.score(asked.queries, candidates)
    positive = np.take_along_axis(scores, asked.positives[:, None].astype(np.int64) - 1, 1)
    return float((scores < positive).mean() / (1 - 1 / (N_ITEMS - 1)))


def test_together_they_are_better_than_either(dataset: Dataset) -> None:
    both, other = blend(Honest()), Honest()
    for each in (both, other):
        each.fit(dataset)
    ours = LanguageModel(both.config, None, both.retrieval, Scale({}), None, None, {})  # type: ignore[arg-type]
    assert auc(both) > max(auc(other), auc(ours)) + 0.03
    scores = both.score(cases(np.arange(3)).queries, np.array([[1, 2], [3, 4], [5, 6]]))
    assert ((scores > 0) & (scores < 1)).all()


def test_what_the_other_learnt_from_does_not_make_it_look_better(dataset: Dataset) -> None:
    """The weights are those of a method that does not know the validation users."""
    cheating, honest = blend(Other()), blend(Honest())
    for each in (cheating, honest):
        each.fit(dataset)
    np.testing.assert_allclose(cheating.weights, honest.weights, rtol=1e-6)
    assert len(cheating.other.seen) == N_VALIDATION  # type: ignore[attr-defined]  # at the end it knows them all


def test_weights_do_not_depend_on_test_users(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = blend(Honest())
    first.fit(dataset)
    changed = POSITIVES.copy()
    changed[500:] = 1
    monkeypatch.setattr("tests.methods.test_blend.POSITIVES", changed)
    second = blend(Honest())
    second.fit(dataset)
    np.testing.assert_array_equal(first.weights, second.weights)


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        ({}, 103),
        ({"retriever": 90.0, "sasrec/a": 10.0}, 103),  # it is what the other is as well
        ({"sasrec/a": 10.0, "sasrec/b": 20.0}, 123),  # a fusion with the retriever's encoder, and with another
    ],
)
def test_what_both_stand_on_took_its_seconds_once(dataset: Dataset, found: dict[str, float], seconds: float) -> None:
    other = Honest()
    other.earlier = found
    both = blend(other)
    for _ in range(2):
        both.fit(dataset)
        assert both.earlier_seconds == seconds


def test_it_needs_validation_users_and_a_pool(dataset: Dataset) -> None:
    nobody = Dataset(N_ITEMS, dataset.train, cases(np.arange(0)), dataset.pool)
    with pytest.raises(InputError, match=r"^mmsrarec\+other learns its weights on the validation users"):
        blend(Honest()).fit(nobody)
    with pytest.raises(InputError, match=r"^methods\.blend\.negatives: 59 are needed; got 58"):
        blend(Honest(), negatives=59).fit(dataset)
