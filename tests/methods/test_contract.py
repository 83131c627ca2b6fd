"""What holds of every method alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.data.shop import law
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.methods.content import ContentKnn
from mmsrarec_ray.methods.fusion import Content, Fusion
from mmsrarec_ray.methods.linear import Ease
from mmsrarec_ray.methods.neighbours import ItemKnn, SessionKnn
from mmsrarec_ray.methods.oracle import HistoryOracle, TasteOracle
from mmsrarec_ray.methods.retrieval import Retrieval
from mmsrarec_ray.methods.segments import SegmentsMethod
from mmsrarec_ray.methods.sequential import Sequential
from mmsrarec_ray.methods.simple import Popularity, Random
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.index import MomentIndex, Moments
from mmsrarec_ray.retrieve.moments import last_cuts
from mmsrarec_ray.retrieve.retriever import Retriever
from mmsrarec_ray.retrieve.train import train_encoders
from mmsrarec_ray.settings import ContentKnn as ContentKnnSettings
from mmsrarec_ray.settings import Ease as EaseSettings
from mmsrarec_ray.settings import Encoder, Retrieve, Train
from mmsrarec_ray.settings import Fusion as FusionSettings
from mmsrarec_ray.settings import ItemKnn as ItemKnnSettings
from mmsrarec_ray.settings import Retrieval as RetrievalSettings
from mmsrarec_ray.settings import Segments as SegmentsSettings
from mmsrarec_ray.settings import SessionKnn as SessionKnnSettings
from mmsrarec_ray.store import Run
from tests.methods.conftest import N_ITEMS, TEXTS

TRAIN = Train(threads=1)
SMALL = Encoder(dim=16, layers=1, heads=1, epochs=12, batch_users=32, learning_rate=1e-2)
FUSION = FusionSettings(epochs=5, negatives=10)


def sequential(kind: str, run: str) -> Sequential:
    return Sequential(kind, SMALL, TRAIN, 0, Run.at(run))


def retrieval(world: Dataset, run: str) -> Retrieval:
    method = sequential("sasrec", run)
    method.fit(world)
    moments = last_cuts(world.train, 100)
    histories = moments.queries.histories
    table = Moments(histories.users, histories.lengths.astype(np.int32), moments.positives, moments.queries.now)
    index = MomentIndex.build(method.encoder.encode(moments.queries), table, Retrieve())
    together = Cooccurrence.of(world.train, N_ITEMS, 5)
    return Retrieval(RetrievalSettings(neighbours=20), Retriever(method.encoder, index, together, None, False))


def shop() -> law.Shop:
    """As many items as the world has, on sale since ever."""
    return replace(law.draw_shop(5, N_ITEMS), launch=np.full(N_ITEMS, -np.inf))


def tastes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A look, a habit and a circle for every number that a user has here."""
    users = np.arange(1000)
    return users % law.LOOKS, users % law.HABITS, users % law.CIRCLES


BUILD: dict[str, Callable[[Dataset, str], Method]] = {
    "random": lambda world, run: Random(3),
    "popularity": lambda world, run: Popularity(),
    "itemknn": lambda world, run: ItemKnn(ItemKnnSettings(neighbours=5, shrink=1)),
    "session_knn": lambda world, run: SessionKnn(SessionKnnSettings(neighbours=20)),
    "ease": lambda world, run: Ease(EaseSettings(regularisation=10)),
    "sasrec": lambda world, run: sequential("sasrec", run),
    "gru4rec": lambda world, run: sequential("gru4rec", run),
    "bert4rec": lambda world, run: sequential("bert4rec", run),
    "retrieval": retrieval,
    "content_knn": lambda world, run: ContentKnn(ContentKnnSettings(), TEXTS),
    "segments": lambda world, run: SegmentsMethod(SegmentsSettings(count=4), [TEXTS], 0),
    "fusion": lambda world, run: Fusion("fusion", FUSION, 0, [ItemKnn(ItemKnnSettings())], None, 5),
    "fusion_content": lambda world, run: Fusion("fusion_content", FUSION, 0, [], Content(TEXTS, None), 5),
    "history_oracle": lambda world, run: HistoryOracle(shop()),
    "taste_oracle": lambda world, run: TasteOracle(shop(), *tastes()),
}
LEARNS_TASTE = sorted(set(BUILD) - {"random", "popularity", "history_oracle", "taste_oracle"})


def halves(world: Dataset) -> tuple[Dataset, Dataset]:
    """Every other user, and the others."""
    first, second = (replace(world, train=world.train.take(np.arange(half, 200, 2))) for half in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def run(ray_session: str, world: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the encoders of all these tests lie, trained together: each method takes its own from there."""
    folder = str(tmp_path_factory.mktemp("methods"))
    tasks = [sequential(kind, folder).task(world) for kind in ("sasrec", "gru4rec", "bert4rec")]
    train_encoders([*tasks, *(sequential("sasrec", folder).task(half) for half in halves(world))], TRAIN)
    return folder


@pytest.fixture(scope="module")
def fitted(run: str, world: Dataset) -> Callable[[str], Method]:
    """A method by name, fitted once."""
    made: dict[str, Method] = {}

    def get(name: str) -> Method:
        if name not in made:
            made[name] = BUILD[name](world, run)
            made[name].fit(world)
        return made[name]

    return get


@pytest.mark.parametrize("name", BUILD)
def test_scores_depend_on_the_query_and_the_item_alone(name: str, fitted: Callable, cases: Cases) -> None:
    method, queries = fitted(name), cases.queries
    everything = method.score_all(queries)
    assert everything.shape == (len(queries), N_ITEMS)
    assert np.isfinite(everything).all()
    assert (np.ptp(everything, 1) > 0).all()
    candidates = np.random.default_rng(0).permuted(np.tile(np.arange(N_ITEMS), (len(queries), 1)), axis=1)[:, :7]
    scores = method.score(queries, candidates)
    np.testing.assert_allclose(scores, np.take_along_axis(everything, candidates, 1), atol=1e-5)
    np.testing.assert_allclose(method.score(queries, candidates[:, ::-1]), scores[:, ::-1], atol=1e-5)
    one = np.concatenate([method.score_all(queries.take(np.array([row]))) for row in range(5)])
    np.testing.assert_allclose(one, everything[:5], atol=1e-5)


@pytest.mark.parametrize("name", BUILD)
def test_recommendations_are_the_best_of_the_pool(name: str, fitted: Callable, cases: Cases, world: Dataset) -> None:
    method, queries = fitted(name), cases.queries
    items, scores = method.recommend(queries, 6)
    assert (np.diff(scores, axis=1) <= 0).all()
    everything = method.score_all(queries)
    for row, history in enumerate(queries.histories):
        assert not set(items[row]) & {*history.tolist(), 4}  # item 4 is outside the pool
        rest = np.setdiff1d(np.flatnonzero(world.pool), [*history, *items[row]])
        assert everything[row, rest].max() <= scores[row, -1] + 1e-5
    seen, _ = method.recommend(queries, N_ITEMS, exclude_seen=False)
    assert (np.sort(seen, 1) == [-1, *np.flatnonzero(world.pool)]).all()


@pytest.mark.parametrize("name", BUILD)
def test_both_answers_at_once_are_those_given_one_by_one(name: str, fitted: Callable, cases: Cases) -> None:
    method, queries = fitted(name), cases.queries
    candidates = np.random.default_rng(0).integers(0, N_ITEMS, (len(queries), 5))
    scores, items = method.answer(queries, candidates, 6)
    np.testing.assert_allclose(scores, method.score(queries, candidates), atol=1e-5)
    assert (items == method.recommend(queries, 6)[0]).all()
    nobody = method.answer(Queries(Sequences.of([]), np.zeros(0, np.int64)), candidates[:0], 6)
    assert [array.shape for array in nobody] == [(0, 5), (0, 6)]


@pytest.mark.parametrize("name", BUILD)
def test_an_empty_history_and_unknown_items_are_answered(name: str, fitted: Callable) -> None:
    method = fitted(name)
    histories = Sequences.of([[], [N_ITEMS - 1], [0, 2, 4, 6]], np.array([900, 901, 902]))
    scores = method.score_all(Queries(histories, np.zeros(3, np.int64)))
    assert np.isfinite(scores).all()
    nobody = method.recommend(Queries(Sequences.of([]), np.zeros(0, np.int64)), 3)
    assert [array.shape for array in nobody] == [(0, 3), (0, 3)]


@pytest.mark.parametrize("name", LEARNS_TASTE)
def test_taste_is_learnt(name: str, fitted: Callable, cases: Cases) -> None:
    """Users of even items are recommended even ones, more than nine times out of ten."""
    items, _ = fitted(name).recommend(cases.queries, 2)
    wanted = np.array([history[0] % 2 for history in cases.queries.histories])
    assert (items % 2 == wanted[:, None]).mean() > 0.9


@pytest.mark.parametrize("name", sorted(set(BUILD) - {"random", "retrieval", "gru4rec", "bert4rec"}))
def test_a_second_fit_forgets_the_first(name: str, fitted: Callable, run: str, world: Dataset, cases: Cases) -> None:
    """Fitted on one half of the users after the other, a method is as if it had seen the second alone."""
    first, second = halves(world)
    again, fresh = BUILD[name](world, run), BUILD[name](world, run)
    again.fit(first)
    again.fit(second)
    fresh.fit(second)
    np.testing.assert_array_equal(again.score_all(cases.queries), fresh.score_all(cases.queries))
