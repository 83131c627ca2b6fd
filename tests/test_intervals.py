"""Intervals and the paired test: by hand where they can be, by simulation where they cannot."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmsrarec_ray import intervals
from mmsrarec_ray.intervals import interval, paired


def test_without_spread_the_interval_is_a_point() -> None:
    low, high = interval(np.tile([0.25, 1.0], (40, 1)), 100, 0)
    np.testing.assert_allclose([low, high], [[0.25, 1.0]] * 2)


def test_the_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).random((2_000, 1)) < 0.6
    low, high = interval(values.astype(float), 4_000, 0)
    expected = 2 * 1.96 * np.sqrt(0.24 / 2_000)
    assert (high - low)[0] == pytest.approx(expected, rel=0.06)
    assert low[0] < values.mean() < high[0]


def test_equal_seeds_give_equal_resamples_whatever_stands_beside() -> None:
    values = np.random.default_rng(2).random((60, 3))
    low, high = interval(values, 300, 5)
    again_low, again_high = interval(values[:, 1:2], 300, 5)
    np.testing.assert_allclose([low[1], high[1]], [again_low[0], again_high[0]], rtol=1e-12)
    assert interval(values, 300, 6)[0].tolist() != low.tolist()


def test_memory_is_bounded_and_no_resample_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_ENTRIES", 100)
    for make in (intervals._weights, intervals._signs):
        shapes = [part.shape for part in make(np.random.default_rng(0), 30, 10)]
        assert shapes == [(3, 30), (3, 30), (3, 30), (1, 30)]
    assert [part.shape for part in intervals._signs(np.random.default_rng(0), 500, 2)] == [(1, 500)] * 2


def test_weights_are_multinomial() -> None:
    weights = np.concatenate(list(intervals._weights(np.random.default_rng(0), 20, 5_000)))
    assert (weights.sum(1) == 20).all()
    assert weights.mean() == 1
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.06)
    np.testing.assert_allclose(weights.var(0), 1 - 1 / 20, atol=0.1)


def test_signs_are_fair() -> None:
    signs = np.concatenate(list(intervals._signs(np.random.default_rng(0), 13, 5_000)))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    np.testing.assert_allclose(signs.mean(0), 0, atol=0.06)


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(200):
        low, high = interval(rng.exponential(1.0, (150, 1)), 300, seed)
        covered += int(low[0] <= 1 <= high[0])
    assert 0.88 <= covered / 200 <= 0.99


def test_a_nan_is_refused_by_place() -> None:
    values = np.zeros((4, 2))
    values[2, 1] = np.nan
    with pytest.raises(ValueError, match="Row 2, column 1"):
        interval(values, 10, 0)
    with pytest.raises(ValueError, match="Row 2, column 1"):
        paired(np.zeros((4, 2)), values, 10, 0)


def test_the_comparison_has_the_interval_of_the_difference() -> None:
    first, second = np.random.default_rng(4).random((2, 80, 2))
    found = paired(first, second, 200, 9)
    np.testing.assert_allclose(found.difference, first.mean(0) - second.mean(0))
    low, high = interval(first - second, 200, 9)
    np.testing.assert_array_equal([found.low, found.high], [low, high])


def test_p_is_near_that_of_all_sign_flips() -> None:
    difference = np.array([0.5, 1.0, 0.25, -0.5, 1.0, 0.75, 0.0, 1.0])
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product([-1, 1], repeat=8)]
    exact = np.mean([total >= difference.sum() for total in sums])
    found = paired(difference[:, None], np.zeros((8, 1)), 20_000, 0)
    assert found.p[0] == pytest.approx(exact, abs=0.01)


def test_equal_methods_have_p_one() -> None:
    values = np.random.default_rng(5).random((50, 2))
    found = paired(values, values, 100, 0)
    assert found.p.tolist() == [1, 1]
    assert found.difference.tolist() == found.low.tolist() == found.high.tolist() == [0, 0]


def test_a_clear_effect_has_the_smallest_p() -> None:
    rng = np.random.default_rng(6)
    second = rng.random((500, 1))
    found = paired(second + 0.2 + 0.1 * rng.random((500, 1)), second, 999, 0)
    assert found.p[0] == 1 / 1000
    assert found.low[0] > 0.2


def test_swapping_the_methods_changes_the_sign_alone() -> None:
    first, second = np.random.default_rng(7).random((2, 100, 1))
    there, back = paired(first, second, 500, 0), paired(second, first, 500, 0)
    assert there.p[0] == back.p[0]
    assert there.difference[0] == -back.difference[0]


def test_p_is_uniform_where_methods_are_alike() -> None:
    rng = np.random.default_rng(8)
    first, second = rng.random((2, 100, 400))
    p = paired(first, second, 400, 0).p
    for share in (0.05, 0.25, 0.5, 0.75):
        # four standard errors of a share of 400; the columns share their signs, but not their values
        assert np.mean(p <= share) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 400))
