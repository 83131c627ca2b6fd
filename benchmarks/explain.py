"""Where the figures of a sequence encoder come from: the same test cases with one thing taken away at a time.

    python benchmarks/explain.py --config configs/microlens.yaml data.path=… run=… train.threads=1

SASRec (`methods.sasrec`; the run's own where it has one) ranks each positive among 20 negatives of the pool: as it is;
with one more random item in the place of the positive, which must give chance; with the history of another user, which
must give what the candidates alone tell; with the user's own items in random order. Beside it stand popularity and
random walks without any training: from the items of the history over their users to other items, once to three times,
divided by the root of an item's popularity.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import Queries, Sequences, read_log
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.evaluate.lists import cases_of, draw_negatives, pool_of
from mmsrarec_ray.evaluate.metrics import Ranks, per_case
from mmsrarec_ray.evaluate.recipes import recipe_of
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.methods.base import Dataset
from mmsrarec_ray.methods.neighbours import incidence
from mmsrarec_ray.store import Run

STEPS = 3


def shuffled(histories: Sequences) -> Sequences:
    """The items of each row in random order."""
    order = np.lexsort([np.random.default_rng(0).random(len(histories.items)), histories.rows])
    return Sequences(histories.users, histories.starts, histories.items[order], histories.times)


def of_another(histories: Sequences) -> Sequences:
    """Each row's items are those of the row before it."""
    return histories.take(np.roll(np.arange(len(histories)), 1))


def walks(dataset: Dataset, queries: Queries) -> Iterator[np.ndarray]:
    """Where a walker is after each step from item to item: float64 (n, n_items), over the root of popularity."""
    users = incidence(dataset.train, dataset.n_items)
    to_users = sparse.diags_array(1 / np.maximum(dataset.counts, 1)) @ users.T
    to_items = sparse.diags_array(1 / users.sum(1)) @ users
    place = incidence(queries.histories, dataset.n_items).toarray()
    for _ in range(STEPS):
        place = (place @ to_users) @ to_items
        yield place / np.sqrt(np.maximum(dataset.counts, 1))


def line(name: str, scores: np.ndarray) -> str:
    """A row of the table. scores: float (n, c), the positive's first."""
    measured = per_case(Ranks.of(scores, np.zeros(len(scores), np.int64)), (5,))
    return f"| {name} | " + " | ".join(f"{100 * measured[m].mean():.1f}" for m in ("HR@5", "AUC", "NDCG@5")) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.settings)
    connect(config)
    step, _, _ = execute(Prepare(config), Run.at(config.run))
    assert step.artefact is not None
    log = read_log(step.artefact.folder)
    cases, pool = cases_of(log), pool_of(log, config.evaluate)
    dataset = Dataset(log.n_items, log.train(), log.cases("validation"), pool)
    method = recipe_of("sasrec", config).build(0, log, {})
    method.fit(dataset)

    drawn = draw_negatives(log, cases, pool, config.evaluate.negatives + 1, config.evaluate.seeds[0])
    lists = np.column_stack([cases.positives, drawn[:, :-1]]).astype(np.int64)
    histories, now = cases.queries.histories, cases.queries.now
    print("| | HR@5 | AUC | NDCG@5 |\n|---|---|---|---|")
    print(line("sasrec", method.score(cases.queries, lists)))
    print(line("a random item in the positive's place", method.score(cases.queries, drawn)))
    print(line("another user's history", method.score(Queries(of_another(histories), now), lists)))
    print(line("its own history in random order", method.score(Queries(shuffled(histories), now), lists)))
    print(line("popularity", dataset.counts[lists]))
    for number, places in enumerate(walks(dataset, cases.queries), 1):
        print(line(f"walk, {number} step(s)", np.take_along_axis(places, lists, 1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
