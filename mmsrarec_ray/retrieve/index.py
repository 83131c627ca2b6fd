"""Nearest moments by cosine, in FAISS (Douze et al. 2024, arXiv:2401.08281).

A moment is a beginning of a training user's history, as a vector, with the item that came next. A query sees no
moment of its own user and none that is not earlier than itself.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, fields
from typing import Any

import faiss
import numpy as np
from pyarrow import fs as pafs

from mmsrarec_ray.errors import ArtefactError, ConfigError, InputError
from mmsrarec_ray.settings import Retrieve
from mmsrarec_ray.store import Folder

INDEX, MOMENTS, ABOUT = "index.faiss", "moments.npy", "index.json"

_Index = Any  # a faiss.Index: the stubs of FAISS lack what its Python classes have

_CHUNK = 1024  # queries searched at a time
_SEQUENTIAL = 120_000  # queries x dimension: with more FAISS picks lists by BLAS, and similarities change in rounding
_PAST_TIES = 8  # moments fetched beyond k, to see that no tie was cut
_PAST_FORBIDDEN = 32  # and where some are forbidden: about a user's own
_MOST_FETCHED = 1024  # beyond it, one filtered scan costs less than searching a graph or lists so far
_SCAN_SCORES = 1 << 24  # similarities that a scan holds at a time: 64 MiB
_ROUNDING = 4e-6  # bound on what two float32 sums of the same cosine differ by; FAISS and BLAS add in other orders
_POINTS_PER_LIST = 64  # to learn a list's centre from: FAISS's 256 take three times as long for a hundredth of recall
_LEAST_TRAINING = 256  # codes of a byte: product quantization cannot learn from fewer vectors
_RECORD = np.dtype([("users", "<i8"), ("times", "<i8"), ("positions", "<i4"), ("next_items", "<i4")])


@dataclass(frozen=True)
class Moments:
    """What is known of each moment, one row each.

    users: int64 (m,); positions: int32 (m,), length of the beginning; next_items: int32 (m,); times: int64 (m,), when
    the next item was chosen, milliseconds or positions.
    """

    users: np.ndarray
    positions: np.ndarray
    next_items: np.ndarray
    times: np.ndarray

    def __post_init__(self) -> None:
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if set(shapes.values()) != {(len(self.users),)}:
            raise InputError(f"moments: all columns must have one value a moment. Got shapes {shapes}.")

    def __len__(self) -> int:
        return len(self.users)

    def extended(self, others: Moments) -> Moments:
        """These, then the others."""
        return Moments(*(np.concatenate([getattr(self, f.name), getattr(others, f.name)]) for f in fields(self)))


@dataclass(frozen=True)
class Neighbours:
    """The most similar moments, the best first, ties by row.

    rows: int64 (n, k), rows of the moments, -1 where there are fewer; similarity: float32 (n, k), cosines, -inf there.
    """

    rows: np.ndarray
    similarity: np.ndarray

    def first(self, k: int) -> Neighbours:
        """The k most similar of each query alone."""
        return Neighbours(self.rows[:, :k], self.similarity[:, :k])

    def shares(self, temperature: float) -> np.ndarray:
        """Softmax of cosine / temperature over a query's neighbours: float (n, k), 0 where there is none."""
        nearest = self.similarity[:, :1]  # -inf where there is none
        share = np.exp((self.similarity - np.where(np.isfinite(nearest), nearest, 0)) / temperature)
        return share / np.maximum(share.sum(1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class _Queries:
    """Queries with vectors of length 1 (or 0), and what each may see."""

    vectors: np.ndarray
    users: np.ndarray | None
    before: np.ndarray | None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def restricted(self) -> bool:
        return self.users is not None or self.before is not None

    def take(self, rows: np.ndarray | slice) -> _Queries:
        users = None if self.users is None else self.users[rows]
        return _Queries(self.vectors[rows], users, None if self.before is None else self.before[rows])

    def allowed(self, moments: Moments, rows: np.ndarray) -> np.ndarray:
        """Whether each query may see the moments fetched for it. rows: int64 (n, c), -1 is none; bool (n, c)."""
        seen = rows >= 0
        if self.users is not None:
            seen &= moments.users[rows] != self.users[:, None]
        if self.before is not None:
            seen &= moments.times[rows] < self.before[:, None]
        return seen

    def visible(self, query: int, moments: Moments) -> np.ndarray:
        """Which of all moments one query may see: bool (m,)."""
        seen = np.ones(len(moments), bool)
        if self.users is not None:
            seen &= moments.users != self.users[query]
        if self.before is not None:
            seen &= moments.times < self.before[query]
        return seen


class MomentIndex:
    """An index over moments: `build` or `load` one.

    `exact` compares with all moments. `hnsw` walks a graph (Malkov and Yashunin 2018, arXiv:1603.09320). `ivf_pq`
    looks into the nearest lists at vectors compressed to some bytes (Jégou et al. 2011, doi:10.1109/TPAMI.2010.57).
    The last two may miss near moments, but never return fewer than k where k are allowed.
    """

    def __init__(self, index: _Index, moments: Moments, read_only: bool = False) -> None:
        self.index, self.moments, self.kind = index, moments, _kind(index)
        self._read_only = read_only
        self._sorted_times: np.ndarray | None = None

    @classmethod
    def build(cls, vectors: np.ndarray, moments: Moments, settings: Retrieve) -> MomentIndex:
        """Vectors float32 (m, d) of any length; they are scaled to length 1, zero vectors stay zero.

        Raises InputError where a vector is not finite or the numbers of vectors and moments differ; ConfigError
        where `ivf_pq` cannot be made of these vectors.
        """
        if np.ndim(vectors) != 2:
            raise InputError(f"vectors must have two axes, (moments, dimension). Got shape {np.shape(vectors)}.")
        vectors = _normalised(vectors, vectors.shape[1])
        _check_count(vectors, moments)
        index = _empty(vectors.shape[1], len(vectors), settings)
        index.train(vectors)
        index.add(vectors)
        return cls(index, moments)

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def dimension(self) -> int:
        return self.index.d

    def add(self, vectors: np.ndarray, moments: Moments) -> None:
        """Further moments, after those there are; lists and codes of `ivf_pq` stay as they were learnt.

        Raises InputError as `build` does, and where the dimension is another; ValueError where the index is mapped.
        """
        if self._read_only:  # FAISS would end the process
            raise ValueError("A memory-mapped index cannot be added to. Load it without memory_map.")
        vectors = _normalised(vectors, self.dimension)
        _check_count(vectors, moments)
        self.index.add(vectors)
        self.moments, self._sorted_times = self.moments.extended(moments), None

    def save(self, folder: Folder) -> None:
        """Write index.faiss, moments.npy and, last, index.json, which says what the others must be."""
        record = np.empty(len(self), _RECORD)
        for name in _RECORD.names or ():
            record[name] = getattr(self.moments, name)
        table = io.BytesIO()
        np.save(table, record)
        files = {INDEX: faiss.serialize_index(self.index).tobytes(), MOMENTS: table.getvalue()}
        for name, content in files.items():
            folder.write_bytes(name, content)
        sizes = {name: len(content) for name, content in files.items()}
        about = {"kind": self.kind, "dimension": self.dimension, "moments": len(self), "bytes": sizes}
        folder.write_bytes(ABOUT, json.dumps(about, indent=2).encode())

    @classmethod
    def load(cls, folder: Folder, memory_map: bool = False) -> MomentIndex:
        """What `save` wrote. memory_map: leave vectors and moments on this machine's disk, shared by its processes.

        Raises ArtefactError naming the file that is missing, damaged or does not fit the others, or where files of
        another machine shall be mapped.
        """
        if memory_map and not isinstance(folder.filesystem, pafs.LocalFileSystem):
            raise ArtefactError(
                f"{folder.uri(INDEX)}: only an index on this machine's disk can be memory mapped. Copy the folder "
                "there, or load it without memory_map."
            )
        about = _read_about(folder)
        index, moments = _read_index(folder, memory_map), _read_moments(folder, memory_map)
        found = {"kind": _kind(index), "dimension": index.d, "moments": index.ntotal}
        expected = {name: about[name] for name in found}
        if found != expected:
            raise ArtefactError(f"{folder.file(INDEX)}: must hold {expected}. Got {found}.")
        if len(moments) != index.ntotal:
            raise ArtefactError(f"{folder.file(MOMENTS)}: must hold {index.ntotal} moments. Got {len(moments)}.")
        return cls(index, moments, read_only=memory_map)

    def search(
        self, vectors: np.ndarray, k: int, users: np.ndarray | None = None, before: np.ndarray | None = None
    ) -> Neighbours:
        """The k most similar moments of other users that are earlier: time < before.

        vectors: float32 (n, d) of any length; users: int64 (n,), the queries' own, of which no moment is returned (-1
        is nobody); before: int64 (n,). A zero vector, an empty history, is similar to nothing and has no neighbours.
        The answer to a query does not depend on the others. `exact` returns the k best of the allowed moments, by
        cosines summed in float64 and rounded to float32; the others return k allowed moments where there are k.
        Raises InputError where a vector is not finite (naming the row) or has another dimension, or where users or
        before are not one a query; ValueError where k < 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1. Got {k}.")
        queries = _Queries(_normalised(vectors, self.dimension), users, before)
        for name, given in ("users", users), ("before", before):
            if given is not None and given.shape != (len(queries),):
                raise InputError(f"{name} must have one value a query, ({len(queries)},). Got shape {given.shape}.")
        size = max(1, min(_CHUNK, _SEQUENTIAL // self.dimension))
        if len(queries) <= size:
            return Neighbours(*self._search(queries, k))
        parts = [self._search(queries.take(slice(i, i + size)), k) for i in range(0, len(queries), size)]
        rows, similarity = zip(*parts, strict=True)
        return Neighbours(np.concatenate(rows), np.concatenate(similarity))

    def _search(self, queries: _Queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Over-fetch, drop what is forbidden, fetch more for those that lack neighbours, and scan for the rest."""
        known = queries.vectors.any(1)
        if not len(self) or not known.all():
            return self._search_known(queries, k, np.flatnonzero(known))
        past = _PAST_FORBIDDEN if queries.restricted else _PAST_TIES if self.kind == "exact" else 0
        fetched = min(k + past, len(self))
        if queries.before is None:
            answered, rows, similarity = self._fetch_once(queries, k, fetched)
            if answered.all():
                return rows, similarity
            pending = np.flatnonzero(~answered)
            if self.kind != "exact":  # there all of the index was compared: a scan is as cheap as a second search
                pending = self._fetch_more(queries, k, 4 * fetched, pending, rows, similarity)
        else:
            rows, similarity = _nothing(len(queries), k)
            pending = self._fetch_more(queries, k, fetched, np.arange(len(queries)), rows, similarity)
        if len(pending):
            scan = self._scan_lists if self.kind == "ivf_pq" else self._scan_vectors
            rows[pending], similarity[pending] = scan(queries.take(pending), k)
        return rows, similarity

    def _search_known(self, queries: _Queries, k: int, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, similarity = _nothing(len(queries), k)
        if len(self) and len(known):
            rows[known], similarity[known] = self._search(queries.take(known), k)
        return rows, similarity

    def _fetch_more(
        self, queries: _Queries, k: int, fetched: int, pending: np.ndarray, rows: np.ndarray, similarity: np.ndarray
    ) -> np.ndarray:
        """Fill rows and similarity of the pending queries with growing searches, from `fetched` on; returns those that
        still lack neighbours."""
        least, most = min(k + _PAST_FORBIDDEN, len(self)), min(_MOST_FETCHED, len(self))
        share = self._share_allowed(queries)
        while len(pending) and fetched <= max(least, most):
            likely = share[pending] * fetched >= min(k, len(self))  # the others would be searched in vain
            tried = pending[likely]
            if len(tried):
                answered, rows[tried], similarity[tried] = self._fetch_once(queries.take(tried), k, fetched)
                pending = np.concatenate([pending[~likely], tried[~answered]])
            if self.kind == "exact":  # as above
                return pending
            fetched *= 4
        return pending

    def _fetch_once(self, queries: _Queries, k: int, fetched: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One search; returns which queries it answered, and the rows and similarity of all."""
        similarity, rows = self.index.search(queries.vectors, fetched)
        if self.kind == "exact":
            edge = similarity[:, -1] + 2 * _ROUNDING  # what was not fetched is not more similar
            similarity = _cosines(queries.vectors, _stored(self.index), rows)
        if (similarity[:, 1:] < similarity[:, :-1]).all():
            rows, similarity = _first(rows, similarity, queries.allowed(self.moments, rows), k)
        else:
            similarity[~queries.allowed(self.moments, rows)] = -np.inf
            rows, similarity = _best(rows, similarity, k)
        last = similarity[:, min(k, len(self)) - 1]
        if self.kind == "exact" and fetched < len(self):
            return last > edge, rows, similarity
        return last > -np.inf, rows, similarity

    def _share_allowed(self, queries: _Queries) -> np.ndarray:
        """Share of the moments that are earlier than each query: float64 (n,)."""
        if queries.before is None:
            return np.ones(len(queries))
        if self._sorted_times is None:
            self._sorted_times = np.sort(self.moments.times)
        return np.searchsorted(self._sorted_times, queries.before) / len(self)

    def _scan_vectors(self, queries: _Queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the allowed moments, by similarities to all of them, some queries at a time."""
        stored = _stored(self.index)
        rows, similarity = _nothing(len(queries), k)
        step = max(1, _SCAN_SCORES // len(stored))
        for start in range(0, len(queries), step):
            scores = queries.vectors[start : start + step] @ stored.T
            for query, cosines in enumerate(scores, start):
                near = np.flatnonzero(queries.visible(query, self.moments))
                cosines = cosines[near]
                if len(near) > k:
                    edge = np.partition(cosines, len(near) - k)[len(near) - k] - 2 * _ROUNDING
                    near = near[cosines >= edge]
                exact = _cosines(queries.vectors[query : query + 1], stored, near[None, :])
                rows[query], similarity[query] = _best(near[None, :], exact, k)
        return rows, similarity

    def _scan_lists(self, queries: _Queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the allowed moments by their compressed vectors, in all lists."""
        found = []
        for query in range(len(queries)):
            bits = np.packbits(queries.visible(query, self.moments), bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            every = faiss.SearchParametersIVF(sel=selector, nprobe=self.index.nlist)
            similarity, rows = self.index.search(queries.vectors[query : query + 1], k, params=every)
            similarity[rows < 0] = -np.inf
            found.append(_best(rows, similarity, k))
        all_rows, similarities = zip(*found, strict=True)
        return np.concatenate(all_rows), np.concatenate(similarities)


def _empty(dimension: int, count: int, settings: Retrieve) -> _Index:
    if settings.index == "exact":
        return faiss.IndexFlatIP(dimension)
    if settings.index == "hnsw":
        index: _Index = faiss.IndexHNSWFlat(dimension, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings.hnsw_ef_construction
        index.hnsw.efSearch = settings.hnsw_ef_search
        return index
    if dimension % settings.pq_bytes:
        raise ConfigError(
            f"retrieve.pq_bytes: the dimension of the vectors, {dimension}, must be a multiple of it. "
            f"Got {settings.pq_bytes}."
        )
    if count < _LEAST_TRAINING:
        raise ConfigError(
            f"retrieve.index: 'ivf_pq' learns its codes from at least {_LEAST_TRAINING} moments. Got {count}; "
            "'exact' suits so few."
        )
    lists = min(settings.ivf_lists or round(4 * math.sqrt(count)), count)
    # np: no polysemous codes, whose training takes most of the time and which inner products do not use.
    index = faiss.index_factory(dimension, f"IVF{lists},PQ{settings.pq_bytes}np", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = settings.ivf_probes
    index.cp.max_points_per_centroid = _POINTS_PER_LIST
    return index


def _kind(index: _Index) -> str:
    kinds = {faiss.IndexFlat: "exact", faiss.IndexFlatIP: "exact", faiss.IndexHNSWFlat: "hnsw"}
    return kinds.get(type(index), "ivf_pq" if isinstance(index, faiss.IndexIVFPQ) else type(index).__name__)


def _normalised(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """Vectors of length 1, zero vectors as they are: float32 (n, d), a copy. Raises InputError."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise InputError(f"vectors must have the shape (n, {dimension}). Got {vectors.shape}.")
    # Squares in float64: in float32 those of a tiny vector vanish, and those of a huge one overflow.
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64, casting="same_kind"))
    if not np.isfinite(lengths).all():
        row = int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise InputError(f"vectors: row {row} is not finite. Its length is {lengths[row]}.")
    lengths[lengths == 0] = 1
    return np.divide(vectors, lengths[:, None], out=np.empty_like(vectors), casting="same_kind")


def _check_count(vectors: np.ndarray, moments: Moments) -> None:
    if len(vectors) != len(moments):
        raise InputError(f"There must be one vector a moment. Got {len(vectors)} vectors and {len(moments)} moments.")


def _stored(index: _Index) -> np.ndarray:
    """The vectors of `exact` and `hnsw`, without a copy: float32 (m, d)."""
    flat: _Index = index if isinstance(index, faiss.IndexFlat) else faiss.downcast_index(index.storage)
    return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


def _cosines(vectors: np.ndarray, stored: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosines that equal vectors have equal, however they were found. rows: int64 (n, c); float32 (n, c)."""
    # In float64 the order of the sum is lost in the rounding to float32.
    return np.einsum("ncd,nd->nc", stored[rows].astype(np.float64), vectors.astype(np.float64)).astype(np.float32)


def _first(rows: np.ndarray, similarity: np.ndarray, seen: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_best`, of rows in the order of falling similarity without ties. seen: bool (n, c), which may be taken."""
    if not seen[:, :k].all():
        order = np.arange(len(seen))[:, None], np.argsort(~seen, axis=1, kind="stable")[:, :k]
        there = seen[order]
        rows, similarity = np.where(there, rows[order], -1), np.where(there, similarity[order], np.float32(-np.inf))
    return _padded(rows[:, :k], similarity[:, :k], k)


def _best(rows: np.ndarray, similarity: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar of each row, ties by row; where similarity is -inf there is none. Both (n, k)."""
    order = np.lexsort([rows, -similarity])[:, :k]
    rows, similarity = np.take_along_axis(rows, order, 1), np.take_along_axis(similarity, order, 1)
    rows[np.isneginf(similarity)] = -1
    return _padded(rows, similarity, k)


def _padded(rows: np.ndarray, similarity: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """With columns of nothing up to k."""
    if rows.shape[1] == k:
        return rows, similarity
    missing = ((0, 0), (0, k - rows.shape[1]))
    return np.pad(rows, missing, constant_values=-1), np.pad(similarity, missing, constant_values=-np.inf)


def _nothing(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32)


def _read_about(folder: Folder) -> dict:
    """index.json, with the sizes of the other files checked: FAISS may map a file that lacks its end."""
    where = folder.file(ABOUT)
    if not folder.exists(ABOUT):
        raise ArtefactError(f"{where}: there is no such index, or it is unfinished.")
    try:
        about = json.loads(folder.read_bytes(ABOUT))
        sizes = {name: about["bytes"][name] for name in (INDEX, MOMENTS)}
        about = {name: about[name] for name in ("kind", "dimension", "moments")}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{where}: the description is damaged: {error}") from None
    for name, size in sizes.items():
        if not folder.exists(name):
            raise ArtefactError(f"{folder.file(name)}: the file is missing.")
        found = folder.filesystem.get_file_info(folder.file(name)).size
        if found != size:
            raise ArtefactError(f"{folder.file(name)}: must have {size} bytes. Got {found}.")
    return about


def _read_index(folder: Folder, memory_map: bool) -> _Index:
    try:
        if memory_map:
            return faiss.read_index(folder.file(INDEX), faiss.IO_FLAG_MMAP_IFC)
        return faiss.deserialize_index(np.frombuffer(folder.read_bytes(INDEX), np.uint8))
    except RuntimeError as error:
        raise ArtefactError(f"{folder.file(INDEX)}: the index is damaged: {error}") from None


def _read_moments(folder: Folder, memory_map: bool) -> Moments:
    try:
        if memory_map:
            record = np.load(folder.file(MOMENTS), mmap_mode="r")
        else:
            record = np.load(io.BytesIO(folder.read_bytes(MOMENTS)))
        columns = [record[field.name] for field in fields(Moments)]
    except (ValueError, IndexError, EOFError) as error:
        raise ArtefactError(f"{folder.file(MOMENTS)}: the table of moments is damaged: {error}") from None
    return Moments(*(columns if memory_map else map(np.ascontiguousarray, columns)))
