"""Co-occurrence, worked out by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mmsrarec_ray.data.log import Sequences
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence

SEQUENCES = Sequences.of([[0, 1, 2], [0, 2], [2, 1, 3, 0]])


def test_ordered_pairs_within_the_window() -> None:
    together = Cooccurrence.of(SEQUENCES, 4, window=2)
    assert together.count.toarray().tolist() == [[0, 1, 2, 0], [1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]]
    assert together.distance.toarray()[0].tolist() == [0, 1, 3, 0]  # item 2 came two places after 0, then one
    assert Cooccurrence.of(SEQUENCES, 4, window=1).count.toarray()[0].tolist() == [0, 1, 1, 0]
    assert Cooccurrence.of(SEQUENCES, 4, window=9).count.toarray()[2].tolist() == [1, 1, 0, 1]


def test_an_item_does_not_follow_itself() -> None:
    assert Cooccurrence.of(Sequences.of([[1, 1, 1]]), 2, window=5).count.nnz == 0


def test_the_table_holds_the_mean_distance_and_reads_back() -> None:
    items = pa.array(["a", "b", "c", "d"])
    together = Cooccurrence.of(SEQUENCES, 4, window=2)
    table = together.table(items)
    row = {(r["item_id"], r["next_item_id"]): r for r in table.to_pylist()}[("a", "c")]
    assert (row["count"], row["distance"]) == (2, 1.5)
    again = Cooccurrence.read(table, items, 2)
    np.testing.assert_array_equal(again.count.toarray(), together.count.toarray())
    np.testing.assert_array_equal(again.distance.toarray(), together.distance.toarray())


def test_a_user_s_own_pairs_are_left_out() -> None:
    """For every training user the counts are those of a world without that user."""
    together = Cooccurrence.of(SEQUENCES, 4, window=2)
    others = [Cooccurrence.of(SEQUENCES.take(np.arange(3) != user), 4, window=2) for user in range(3)]
    expected = np.stack([each.count.toarray() for each in others] + [together.count.toarray()])
    own = Sequences.of([*map(list, SEQUENCES), []])  # the fourth is not a training user
    rows, before, after = (axis.ravel() for axis in np.indices((4, 4, 4)))
    np.testing.assert_array_equal(together.without(own, rows, before, after), expected.ravel())
    nobody = Sequences.of([[]])
    np.testing.assert_array_equal(
        together.without(nobody, before * 0, before, after), together.count.toarray()[before, after]
    )


def test_where_no_pair_is_asked_there_is_no_count() -> None:
    nothing = np.zeros(0, np.int64)
    assert Cooccurrence.of(SEQUENCES, 4, window=2).without(Sequences.of([[]]), nothing, nothing, nothing).shape == (0,)


def test_nobody_has_no_pairs() -> None:
    assert Cooccurrence.of(Sequences.of([]), 3, window=5).count.shape == (3, 3)
    assert Cooccurrence.of(Sequences.of([[1], []]), 3, window=5).count.nnz == 0
