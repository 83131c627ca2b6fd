"""Nearest moments: the right ones, never the forbidden ones, the same however they are asked for or stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import pytest

from mmsrarec_ray.errors import ArtefactError, ConfigError, InputError
from mmsrarec_ray.retrieve.index import ABOUT, INDEX, MOMENTS, MomentIndex, Moments
from mmsrarec_ray.settings import Retrieve
from mmsrarec_ray.store import Folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of FAISS wait for each other by spinning: beside other tests that takes minutes, not milliseconds."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    assert faiss.omp_get_max_threads() == 1  # the index leaves it alone
    faiss.omp_set_num_threads(before)


Kind = Literal["exact", "hnsw", "ivf_pq"]
KINDS: list[Kind] = ["exact", "hnsw", "ivf_pq"]


def settings(kind: Kind) -> Retrieve:
    return Retrieve(index=kind, hnsw_ef_construction=40, ivf_lists=16, ivf_probes=8, pq_bytes=8)


def moments(users: list[int] | np.ndarray, times: list[int] | np.ndarray | None = None) -> Moments:
    """Rows are their own next items."""
    rows = np.arange(len(users))
    when = rows if times is None else np.asarray(times)
    return Moments(np.asarray(users, np.int64), rows.astype(np.int32), rows.astype(np.int32), when.astype(np.int64))


def clustered(count: int, seed: int, dimension: int = 16) -> np.ndarray:
    """Points around 40 centres, which are the same for every seed; every seventh is a copy of another."""
    centres = np.random.default_rng(0).normal(size=(40, dimension))
    rng = np.random.default_rng(seed)
    points = centres[rng.integers(0, 40, count)] + 0.3 * rng.normal(size=(count, dimension))
    points[::7] = points[rng.integers(0, count, len(points[::7]))]
    return points.astype(np.float32)


def world(count: int = 1500) -> tuple[np.ndarray, Moments]:
    rng = np.random.default_rng(1)
    return clustered(count, 1), moments(rng.integers(0, count // 20, count), rng.integers(0, 1000, count))


@cache
def built(kind: Kind) -> MomentIndex:
    """The index of the world, for tests that leave it as it is: learning codes takes long."""
    return MomentIndex.build(*world(), settings(kind))


def brute_force(
    vectors: np.ndarray,
    table: Moments,
    queries: np.ndarray,
    k: int,
    users: np.ndarray | None,
    before: np.ndarray | None,
) -> tuple[list[list[int]], list[list[float]]]:
    unit = [(v / np.sqrt(np.einsum("nd,nd->n", v, v))[:, None]).astype(np.float64) for v in (vectors, queries)]
    rows, similarity = [], []
    for query, vector in enumerate(unit[1]):
        cosines = (unit[0] @ vector).astype(np.float32)
        seen = np.ones(len(table), bool)
        if users is not None:
            seen &= table.users != users[query]
        if before is not None:
            seen &= table.times < before[query]
        found = sorted(np.flatnonzero(seen), key=lambda row: (-cosines[row], row))[:k]
        rows.append([int(row) for row in found])
        similarity.append([float(cosines[row]) for row in found])
    return rows, similarity


def by_hand(kind: Kind = "exact") -> MomentIndex:
    """East, north-east (long), north, west and east again, of users 1, 1, 2, 3, 4 at times 10 to 50."""
    vectors = np.array([[1, 0], [5, 5], [0, 2], [-1, 0], [3, 0]], np.float32)
    return MomentIndex.build(vectors, moments([1, 1, 2, 3, 4], [10, 20, 30, 40, 50]), Retrieve(index=kind))


EAST = np.array([[7, 0]], np.float32)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_cosine_orders_and_ties_go_by_row(kind: Kind) -> None:
    found = by_hand(kind).search(EAST, 5)
    assert found.rows.tolist() == [[0, 4, 1, 2, 3]]
    assert found.similarity[0] == pytest.approx([1, 1, 0.5**0.5, 0, -1], abs=1e-6)
    assert (found.rows.dtype, found.similarity.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_neither_own_moments_nor_any_that_are_not_earlier(kind: Kind) -> None:
    index = by_hand(kind)
    assert index.search(EAST, 2, users=np.array([1])).rows.tolist() == [[4, 2]]
    assert index.search(EAST, 2, users=np.array([-1])).rows.tolist() == [[0, 4]]
    assert index.search(EAST, 3, before=np.array([50])).rows.tolist() == [[0, 1, 2]]
    both = index.search(np.repeat(EAST, 3, 0), 2, np.array([1, 1, 2]), np.array([31, 30, 10]))
    assert both.rows.tolist() == [[2, -1], [-1, -1], [-1, -1]]
    assert both.similarity[0].tolist() == [0, -np.inf]


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_more_neighbours_than_moments(kind: Kind) -> None:
    found = by_hand(kind).search(EAST, 7)
    assert found.rows.tolist() == [[0, 4, 1, 2, 3, -1, -1]]
    assert found.similarity[0, 5:].tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_an_empty_index_finds_nothing_until_it_is_added_to(kind: Kind) -> None:
    index = MomentIndex.build(np.zeros((0, 2), np.float32), moments([]), Retrieve(index=kind))
    assert index.search(EAST, 2).rows.tolist() == [[-1, -1]]
    index.add(EAST, moments([3]))
    assert index.search(EAST, 2).rows.tolist() == [[0, -1]]


def test_an_empty_history_is_like_nothing() -> None:
    queries = np.array([[0, 0], [7, 0], [0, 0]], np.float32)
    assert by_hand().search(queries, 2).rows.tolist() == [[-1, -1], [0, 4], [-1, -1]]


@pytest.mark.parametrize("kind", KINDS)
def test_no_query_no_answer(kind: Kind) -> None:
    nobody = np.zeros(0, np.int64)
    for restricted in [(None, None), (nobody, nobody)]:
        assert built(kind).search(np.zeros((0, 16), np.float32), 2, *restricted).rows.shape == (0, 2)


def test_length_does_not_matter() -> None:
    index = by_hand()
    for length in (1e-30, 1e-20, 1e25):
        found = index.search(EAST * np.float32(length), 3)
        assert found.rows.tolist() == [[0, 4, 1]]
        assert found.similarity[0] == pytest.approx([1, 1, 0.5**0.5], abs=1e-6)


def test_what_cannot_be_searched_is_named() -> None:
    index = by_hand()
    with pytest.raises(InputError, match="row 1 is not finite"):
        index.search(np.array([[1, 0], [np.nan, 0]], np.float32), 1)
    with pytest.raises(InputError, match=r"shape \(n, 2\). Got \(1, 3\)"):
        index.search(np.ones((1, 3), np.float32), 1)
    with pytest.raises(InputError, match="users must have one value a query"):
        index.search(EAST, 1, users=np.array([1, 2]))
    with pytest.raises(InputError, match="1 vectors and 2 moments"):
        index.add(EAST, moments([1, 2]))
    with pytest.raises(ValueError, match=r"k must be at least 1. Got 0"):
        index.search(EAST, 0)
    with pytest.raises(InputError, match="one value a moment"):
        Moments(np.zeros(2, np.int64), np.zeros(1, np.int32), np.zeros(2, np.int32), np.zeros(2, np.int64))


def test_compressed_vectors_need_a_fitting_dimension_and_enough_moments() -> None:
    with pytest.raises(ConfigError, match=r"retrieve.pq_bytes: .* 16, must be a multiple of it. Got 32"):
        MomentIndex.build(*world(), Retrieve(index="ivf_pq"))
    with pytest.raises(ConfigError, match=r"at least 256 moments. Got 140"):
        MomentIndex.build(*world(140), settings("ivf_pq"))


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("restricted", ["", "users", "before", "users before"])
def test_exact_is_brute_force(k: int, restricted: str) -> None:
    vectors, table = world()
    rng = np.random.default_rng(k)
    of = rng.integers(0, len(table), 60)
    queries = vectors[of] + 0.1 * rng.normal(size=(60, 16)).astype(np.float32) * (rng.random((60, 1)) < 0.7)
    users = table.users[of] if "users" in restricted else None
    before = rng.integers(-5, 1005, 60) ** 2 // 1000 if "before" in restricted else None  # many see little
    found = built("exact").search(queries, k, users, before)
    rows, similarity = brute_force(vectors, table, queries, k, users, before)
    for query in range(60):
        count = len(rows[query])
        assert found.rows[query, :count].tolist() == rows[query]
        assert found.similarity[query, :count] == pytest.approx(similarity[query], abs=2e-7)
        assert (found.rows[query, count:] == -1).all()


def test_thousands_of_equal_moments_come_in_order() -> None:
    """The histories of one item are many, and equal where the item is."""
    vectors = np.tile(np.random.default_rng(3).normal(size=(2, 16)).astype(np.float32), (2000, 1))
    index = MomentIndex.build(vectors, moments(np.arange(4000) // 10), Retrieve())
    assert index.search(vectors[1:2], 5).rows.tolist() == [[1, 3, 5, 7, 9]]
    assert index.search(vectors[1:2], 3, before=np.array([4])).rows.tolist() == [[1, 3, 0]]
    assert index.search(vectors[1:2], 3, np.array([0])).rows.tolist() == [[11, 13, 15]]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing(kind: Kind) -> None:
    vectors, table = world()
    index, queries, users, before = built(kind), vectors[:1100], table.users[:1100], table.times[:1100]
    for restricted in [(None, None), (users, before)]:
        whole = index.search(queries, 5, *restricted)
        for query in [0, 1, 700, 1050, 1099]:
            one = (None if column is None else column[query : query + 1] for column in restricted)
            alone = index.search(queries[query : query + 1], 5, *one)
            assert np.array_equal(alone.rows[0], whole.rows[query])
            assert np.array_equal(alone.similarity[0], whole.similarity[query])


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_allowed_moments_come_as_there_are(kind: Kind) -> None:
    vectors, table = world()
    queries, users = vectors[:80], table.users[:80]
    before = np.repeat([0, 1, 5, 600], 20)
    found = built(kind).search(queries, 10, users, before)
    seen = (table.users[found.rows] != users[:, None]) & (table.times[found.rows] < before[:, None])
    assert seen[found.rows >= 0].all()
    allowed = (table.users[None, :] != users[:, None]) & (table.times[None, :] < before[:, None])
    assert ((found.rows >= 0).sum(1) == np.minimum(allowed.sum(1), 10)).all()
    assert all(len(set(rows[rows >= 0])) == (rows >= 0).sum() for rows in found.rows)
    assert (found.similarity[:, 1:] <= found.similarity[:, :-1]).all()


@pytest.mark.parametrize(("kind", "floor"), [("hnsw", 0.97), ("ivf_pq", 0.6)])
def test_recall(kind: Kind, floor: float) -> None:
    queries = clustered(300, 4)
    found, right = (built(k).search(queries, 10).rows for k in (kind, "exact"))
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, right, strict=True)])
    assert recall >= floor


@pytest.mark.parametrize("kind", KINDS)
def test_adding_is_building_on(kind: Kind) -> None:
    vectors, table = world()
    first, rest = (
        (vectors[part], Moments(*(getattr(table, name)[part] for name in table.__dataclass_fields__)))
        for part in (slice(0, 1000), slice(1000, None))
    )
    index = MomentIndex.build(*first, settings(kind))
    index.search(vectors[:1], 1, before=np.array([500]))
    index.add(*rest)
    found = index.search(vectors[1000:1100], 5, before=np.full(100, 2000))
    assert len(index) == 1500
    assert np.array_equal(index.moments.times, table.times)
    assert (found.rows >= 1000).any(1).mean() > 0.9
    if kind == "exact":
        whole = built(kind).search(vectors[1000:1100], 5)
        assert np.array_equal(found.rows, whole.rows)
        assert np.array_equal(found.similarity, whole.similarity)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_mapped_it_is_the_same(kind: Kind, tmp_path: Path) -> None:
    vectors, table = world()
    index, folder = built(kind), Folder.at(str(tmp_path / "index"))
    index.save(folder)
    asked = (vectors[:50], 5, table.users[:50], table.times[:50])
    found = index.search(*asked)
    for memory_map in (False, True):
        loaded = MomentIndex.load(folder, memory_map)
        again = loaded.search(*asked)
        assert (loaded.kind, loaded.dimension, len(loaded)) == (kind, 16, 1500)
        assert np.array_equal(again.rows, found.rows)
        assert np.array_equal(again.similarity, found.similarity)
        for name in table.__dataclass_fields__:
            assert np.array_equal(getattr(loaded.moments, name), getattr(table, name))
            assert getattr(loaded.moments, name).dtype == getattr(table, name).dtype
    with pytest.raises(ValueError, match="memory-mapped index cannot be added to"):
        loaded.add(vectors[:1], moments([1]))
    assert str(folder.file(INDEX)) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_store_holds_it_but_cannot_be_mapped(kind: Kind, s3: tuple[str, str], tmp_path: Path) -> None:
    base, options = s3
    folder = Folder.at(f"{base}/{tmp_path.name}{options}")
    built(kind).save(folder)
    queries = clustered(20, 5)
    assert np.array_equal(MomentIndex.load(folder).search(queries, 3).rows, built(kind).search(queries, 3).rows)
    with pytest.raises(ArtefactError, match="only an index on this machine's disk can be memory mapped"):
        MomentIndex.load(folder, memory_map=True)


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named(kind: Kind, memory_map: bool, tmp_path: Path) -> None:
    folder, path = Folder.at(str(tmp_path)), tmp_path
    built(kind).save(folder)
    good = {name: (path / name).read_bytes() for name in (INDEX, MOMENTS, ABOUT)}

    def refused(name: str, content: bytes | None, sizes_agree: bool = False) -> str:
        for each, whole in good.items():
            (path / each).write_bytes(whole)
        (path / name).unlink() if content is None else (path / name).write_bytes(content)
        if sizes_agree and content is not None:
            about = json.loads(good[ABOUT])
            about["bytes"][name] = len(content)
            (path / ABOUT).write_text(json.dumps(about))
        with pytest.raises(ArtefactError) as error:
            MomentIndex.load(folder, memory_map)
        assert str(path / name) in str(error.value)
        return str(error.value)

    for name in (INDEX, MOMENTS):
        assert "is missing" in refused(name, None)
        assert f"must have {len(good[name])} bytes" in refused(name, good[name][:-3])
        assert "is damaged" in refused(name, good[name][: len(good[name]) // 2], sizes_agree=True)
        assert "is damaged" in refused(name, b"", sizes_agree=True)
    assert "unfinished" in refused(ABOUT, None)
    assert "is damaged" in refused(ABOUT, b"{}")
    other = faiss.serialize_index(faiss.IndexFlatIP(3)).tobytes()
    assert "Got {'kind': 'exact', 'dimension': 3, 'moments': 0}" in refused(INDEX, other, sizes_agree=True)
    MomentIndex.build(*world(1501), settings("exact")).save(Folder.at(str(tmp_path / "longer")))
    longer = (tmp_path / "longer" / MOMENTS).read_bytes()
    assert "must hold 1500 moments. Got 1501" in refused(MOMENTS, longer, sizes_agree=True)
