"""Random search over the settings of the methods, every method with the same number of trials.

    python benchmarks/tune.py --config configs/microlens.yaml --trials 6 --out tuning.json data.path=… run=…

Each trial learns from the training users; one half of the validation users stops its epochs and fits the fusions, the
other half judges it: by the expected NDCG@5 among 20 uniform negatives of the known items, whatever the protocol. Test
users are never looked at. The encoder of `retrieval` alone stops on all of them: its trials compare with one another,
not with the other methods. The first trial is what the configuration says, the others come from the method's space.
Encoders and retrievers that the run folder has already are not trained again, so a search that was killed goes on.
Prints the best settings as words for a job.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import Cases, Log, read_log
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.data.splits import hashes
from mmsrarec_ray.evaluate.lists import pool_of
from mmsrarec_ray.evaluate.rank import rank_pool
from mmsrarec_ray.evaluate.recipes import recipe_of
from mmsrarec_ray.evaluate.stages import Scores
from mmsrarec_ray.job import Stage, connect, execute
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.progress import say
from mmsrarec_ray.retrieve.validate import expected_ndcg
from mmsrarec_ray.store import Artefact, Run, code_fingerprint, fingerprint

_VERSION = 2  # of how trials are judged
# Softmax over all 11,896 items of MicroLens is not searched: an epoch takes about ten times as long as over 1,024.
_ENCODER: dict[str, list[Any]] = {
    "dim": [64, 128],
    "layers": [1, 2],
    "dropout": [0.2, 0.3, 0.4, 0.5],
    "negatives": [512, 1024, 2048],
    "learning_rate": [1e-3, 2e-3, 3e-3],
    "weight_decay": [0.0, 0.01, 0.1],
    "batch_users": [64, 128],
    "max_length": [20, 50],
}
_FUSION: dict[str, list[Any]] = {
    "hidden": [16, 32, 64],
    "negatives": [20, 100, 300],
    "epochs": [30, 60, 120],
    "learning_rate": [1e-3, 3e-3, 1e-2],
    "weight_decay": [0.0, 1e-4, 1e-2],
}
SPACES: dict[str, dict[str, list[Any]]] = {
    "itemknn": {"neighbours": [50, 200, 1000, None], "shrink": [0.0, 1.0, 5.0, 20.0]},
    "session_knn": {"neighbours": [100, 300, 1000, 3000], "last": [3, 5, 10, 20]},
    "ease": {"regularisation": [10.0, 50.0, 100.0, 300.0, 1000.0, 3000.0], "negative": [True, False]},
    "sasrec": _ENCODER,
    "gru4rec": _ENCODER,
    "bert4rec": _ENCODER | {"mask_share": [0.15, 0.3, 0.5]},
    "retrieval": {"neighbours": [30, 100, 300, 1000], "temperature": [0.03, 0.1, 0.3], "cooccurrence": [0.3, 1.0, 3.0]},
    "content_knn": {"decay": [0.0, 0.5, 0.9, 0.95, 1.0]},
    "segments": {"count": [16, 32, 64, 128], "prior": [0.3, 1.0, 3.0, 10.0], "words": [500, 2_000, 8_000]},
    "fusion": _FUSION,
    "fusion_content": _FUSION,
}


def trials_of(method: str, said: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """What each trial changes: nothing first, then the method's space in its order, none twice.

    said: the settings that the configuration gives the method.
    """
    space = SPACES[method].items()
    drawn = ({name: values[at] for (name, values), at in zip(space, row, strict=True)} for row in space_of(method))
    others = (choice for choice in drawn if choice.items() - said.items())
    return [{}, *itertools.islice(others, count - 1)]


def space_of(method: str) -> np.ndarray:
    """All choices of a method's space, in an order drawn once: int64 (n, settings), places in the lists of values."""
    sizes = [len(values) for values in SPACES[method].values()]
    order = np.random.default_rng(list(method.encode())).permutation(math.prod(sizes))
    return np.column_stack(np.unravel_index(order, sizes))


def words(method: str, settings: dict[str, Any]) -> list[str]:
    """The settings as a job takes them."""
    return [f"methods.{method}.{name}={json.dumps(value)}" for name, value in settings.items()]


def halves(log: Log) -> tuple[Cases, Cases]:
    """The validation cases in two halves, by the user's id."""
    cases = log.cases("validation")
    first = hashes(log.users.take(pa.array(cases.queries.histories.users)).to_pylist(), 0, "tuning") % np.uint64(2) == 0
    return cases.take(np.flatnonzero(first)), cases.take(np.flatnonzero(~first))


def judge(method: Method, dataset: Dataset, cases: Cases) -> dict[str, float]:
    """Fit one trial and score it on the cases."""
    began = time.perf_counter()
    method.fit(dataset)
    fitted = time.perf_counter() - began
    known = dataset.counts > 0
    shares = []
    for _, rankings in rank_pool(method, cases, known, known, 1):
        ranks = rankings.ranks
        shares.append((ranks.greater + ranks.equal / 2) / np.maximum(ranks.others, 1))
    score = float(expected_ndcg(np.concatenate(shares)).mean())
    return {"score": score, "seconds_fit": round(fitted + method.earlier_seconds, 1)}


def made(stage: Stage) -> Artefact:
    """What a stage publishes, made now if it is not there."""
    step, _, _ = execute(stage, Run.at(stage.config.run))
    assert step.artefact is not None
    return step.artefact


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--methods", default=",".join(SPACES), help=f"of {', '.join(SPACES)} (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="JSON of all trials; what it has is not tried again")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    base = load(options.config, options.settings)
    connect(base)
    prepared = made(Prepare(base))
    log = read_log(prepared.folder)
    kept, judging = halves(log)
    dataset = Dataset(log.n_items, log.train(), kept, pool_of(log, base.evaluate))
    tried = json.loads(options.out.read_text()) if options.out.exists() else {}
    for method in options.methods.split(","):
        scored, said = [], getattr(base.methods, method).model_dump()
        for trial, chosen in enumerate(trials_of(method, said, options.trials)):
            config = load(options.config, [*options.settings, *words(method, chosen)])
            recipe = recipe_of(method, config)
            inputs = {"dataset": prepared} | {need.artefact: made(need) for need in recipe.requires}
            reads = {name: artefact.manifest.digest for name, artefact in inputs.items()}
            code = code_fingerprint((*Scores.code, *recipe.code))
            decides = [reads, recipe.settings, recipe.engine(), code, base.evaluate.pool, _VERSION]
            key = f"{method} {trial} {fingerprint(decides)}"
            if key not in tried:
                found = judge(recipe.build(0, log, inputs), dataset, judging)
                tried[key] = {"method": method, "settings": chosen, **found}
                options.out.write_text(json.dumps(tried, indent=2))
            say(f"{key}: {tried[key]}")
            scored.append(tried[key])
        best = max(scored, key=lambda each: each["score"])
        print(method, round(best["score"], 4), *words(method, best["settings"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
