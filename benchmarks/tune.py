"""Random search over the settings of the methods, every method with the same number of trials.

    python benchmarks/tune.py --config configs/microlens.yaml --trials 6 --out tuning.json data.path=… run=…

Each trial is fitted on the training users and judged on the validation users, never on test users: by the expected
NDCG@5 among 20 uniform negatives of the known items, whatever the protocol. The first trial is the default. Encoders
that the run folder has already are not trained again, so a search that was killed goes on. Prints the best settings as
words for a job.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import read_log
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.evaluate.lists import pool_of
from mmsrarec_ray.evaluate.rank import rank_pool
from mmsrarec_ray.evaluate.recipes import recipe_of
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.progress import say
from mmsrarec_ray.retrieve.validate import expected_ndcg
from mmsrarec_ray.store import Run, code_fingerprint, fingerprint

_ENCODER: dict[str, list[Any]] = {
    "dim": [64, 96, 128],
    "layers": [1, 2],
    "dropout": [0.2, 0.3, 0.4, 0.5],
    "negatives": [512, 1024, 2048],
    "learning_rate": [1e-3, 2e-3, 3e-3],
    "weight_decay": [0.0, 0.01, 0.1],
    "batch_users": [64, 128],
}
SPACES: dict[str, dict[str, list[Any]]] = {
    "itemknn": {"neighbours": [50, 200, 1000, None], "shrink": [0.0, 1.0, 5.0, 20.0]},
    "session_knn": {"neighbours": [50, 100, 300, 1000], "last": [3, 5, 10, 20]},
    "ease": {"regularisation": [10.0, 50.0, 100.0, 300.0, 1000.0, 3000.0]},
    "sasrec": _ENCODER,
    "gru4rec": _ENCODER,
    "bert4rec": _ENCODER | {"mask_share": [0.15, 0.3, 0.5], "epochs": [30], "patience": [4]},
}


def settings_of(method: str, trial: int) -> dict[str, Any]:
    """The settings of a trial: the defaults first, then the method's space in an order drawn once, none twice."""
    if trial == 0:
        return {}
    space = SPACES[method]
    sizes = [len(values) for values in space.values()]
    order = np.random.default_rng(list(method.encode())).permutation(math.prod(sizes))
    places = np.unravel_index(order[(trial - 1) % len(order)], sizes)
    return {name: values[place] for (name, values), place in zip(space.items(), places, strict=True)}


def words(method: str, settings: dict[str, Any]) -> list[str]:
    """The settings as a job takes them."""
    return [f"methods.{method}.{name}={json.dumps(value)}" for name, value in settings.items()]


def judge(method: Method, dataset: Dataset) -> dict[str, float]:
    """Fit one trial and score it on the validation users."""
    began = time.perf_counter()
    method.fit(dataset)
    fitted = time.perf_counter() - began
    known = dataset.counts > 0
    shares = []
    for _, rankings in rank_pool(method, dataset.validation, known, known):
        ranks = rankings.ranks
        shares.append((ranks.greater + ranks.equal / 2) / np.maximum(ranks.others, 1))
    return {"score": float(expected_ndcg(np.concatenate(shares)).mean()), "seconds_fit": round(fitted, 1)}


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
    step, _, _ = execute(Prepare(base), Run.at(base.run))
    assert step.artefact is not None
    log = read_log(step.artefact.folder)
    dataset = Dataset(log.n_items, log.train(), log.cases("validation"), pool_of(log, base.evaluate))
    tried = json.loads(options.out.read_text()) if options.out.exists() else {}
    for method in options.methods.split(","):
        scored = []
        for trial in range(options.trials):
            chosen = settings_of(method, trial)
            config = load(options.config, [*options.settings, *words(method, chosen)])
            recipe = recipe_of(method, config)
            decides = [step.artefact.manifest.digest, recipe.settings, code_fingerprint(recipe.code)]
            key = f"{method} {trial} {fingerprint(decides)}"
            if key not in tried:
                found = judge(recipe.build(0, log, {}), dataset)
                tried[key] = {"method": method, "settings": chosen, **found}
                options.out.write_text(json.dumps(tried, indent=2))
            say(f"{key}: {tried[key]}")
            scored.append(tried[key])
        best = max(scored, key=lambda each: each["score"])
        print(method, round(best["score"], 4), *words(method, best["settings"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
