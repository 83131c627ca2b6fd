"""The counting methods on MicroLens-50k give the figures that two other implementations gave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import read_log
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.evaluate.lists import cases_of, draw_negatives, pool_of
from mmsrarec_ray.evaluate.metrics import per_case
from mmsrarec_ray.evaluate.rank import rank_lists
from mmsrarec_ray.job import execute
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.methods.neighbours import ItemKnn
from mmsrarec_ray.methods.simple import Popularity
from mmsrarec_ray.store import Run

DATA = Path(os.environ.get("MMSRAREC_DATA", "/nowhere")) / "microlens"
# HR@5, AUC, NDCG@5 in percent; two standard errors of HR@5 are 2 points, and both draws of negatives have them.
EXPECTED = {
    ("core", "popularity"): (50.6, 69.2, 33.9),
    ("core", "itemknn"): (60.8, 75.0, 45.9),
    ("catalogue", "popularity"): (65.5, 80.9, 44.4),
    ("catalogue", "itemknn"): (72.0, 84.4, 54.1),
}


@pytest.mark.skipif(not DATA.is_dir(), reason="MMSRAREC_DATA does not name a folder with microlens/")
def test_counting_on_microlens(ray_session: str, tmp_path: Path) -> None:
    config = load(Path(__file__).parents[2] / "configs/microlens.yaml", [f"data.path={DATA}", f"run={tmp_path}"])
    step, _, _ = execute(Prepare(config), Run.at(config.run))
    assert step.artefact is not None
    log = read_log(step.artefact.folder)
    cases, train = cases_of(log), log.train()
    assert (len(log.users), len(cases)) == (25_411, 2_541)
    for (pool_name, name), expected in EXPECTED.items():
        pool = pool_of(log, config.evaluate.model_copy(update={"pool": pool_name}))
        dataset = Dataset(log.n_items, train, log.cases("validation"), pool)
        method: Method = ItemKnn(config.methods.itemknn) if name == "itemknn" else Popularity()
        method.fit(dataset)
        negatives = draw_negatives(log, cases, pool, 20, 0)
        rankings, _ = rank_lists(method, cases, negatives, dataset.counts > 0, 5)
        measured = per_case(rankings.ranks, (5,))
        found = [100 * measured[metric].mean() for metric in ("HR@5", "AUC", "NDCG@5")]
        assert found == pytest.approx(expected, abs=2.5), (pool_name, name)
