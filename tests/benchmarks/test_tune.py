"""The search for settings: as many trials for every method, and no look at a test user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.tune import SPACES, halves, trials_of
from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import Log, Sequences

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("data", ["microlens", "movies", "shop"])
@pytest.mark.parametrize("method", SPACES)
def test_every_method_has_as_many_different_trials(data: str, method: str) -> None:
    methods = load(CONFIGS / f"{data}.yaml", ["run=/nowhere", "data.path=/nowhere"]).methods
    said = getattr(methods, method).model_dump()
    tried = [said | choice for choice in trials_of(method, said, 4)]
    assert tried[0] == said
    assert len({str(each) for each in tried}) == 4
    assert all(set(choice) == set(SPACES[method]) for choice in trials_of(method, said, 4)[1:])


def test_a_validation_user_is_in_one_half_and_a_test_user_in_none() -> None:
    split = np.repeat(np.array([0, 1, 2] * 20, np.uint8), 3)  # three items a user
    users = pa.array([f"u{user:02d}" for user in range(60)])
    sequences = Sequences.of([[0, 1, 2]] * 60)
    log = Log(pa.array(["a", "b", "c"]), np.ones(3, bool), users, sequences, split, True)
    kept, judging = (set(half.queries.histories.users.tolist()) for half in halves(log))
    assert min(len(kept), len(judging)) > 4
    assert not kept & judging
    assert kept | judging == set(range(1, 60, 3))
