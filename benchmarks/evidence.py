"""How well each kind of evidence tells the item that came next from random ones, by split: it must not by itself know.

    python benchmarks/evidence.py --config configs/demo.yaml run=/runs/demo

AUC of the positive among 20 uniform negatives of the core, for the contexts of training, validation and test users,
with standard errors over users. `with own` leaves a user's own training interactions in the counts, and asks the
segments and the encoder that were learnt from them too: what a ranker would learn to trust if they stayed there.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc

from mmsrarec_ray.config import load
from mmsrarec_ray.data.log import Log, Queries, Sequences, read_log
from mmsrarec_ray.data.negatives import untouched
from mmsrarec_ray.data.parts import read_parts
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.data.schemas import CONTEXTS
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.rank.contexts import Contexts
from mmsrarec_ray.rank.evidence import NOBODY, Signs
from mmsrarec_ray.rank.expectation import FoldedTables
from mmsrarec_ray.rank.segments import learn_segments
from mmsrarec_ray.retrieve.encoders import SequenceEncoder
from mmsrarec_ray.retrieve.retriever import Retriever
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.store import Run
from mmsrarec_ray.summarize.stage import Summarize

NEGATIVES = 20


def aucs(signs: Signs, log: Log, contexts: Contexts, encoder: SequenceEncoder | None = None) -> np.ndarray:
    """Of each context: float64 (n, kinds). encoder: of all training users, where their own choices shall count."""
    core, candidates = np.flatnonzero(log.in_core), []
    for user, cut in zip(contexts.users, contexts.cuts, strict=True):
        touched = log.sequences[user]
        candidates.append(np.array([touched[cut], *untouched(core, touched, NEGATIVES, int(user))], np.int64))
    asking = contexts.asking
    if encoder is not None:
        histories = [
            log.sequences[user][:cut].tolist() for user, cut in zip(contexts.users, contexts.cuts, strict=True)
        ]
        vectors = encoder.encode(Queries(Sequences.of(histories), np.zeros(len(histories), np.int64)))
        asking = replace(asking, users=np.full(len(contexts), NOBODY), vectors=vectors, folds=None)
    found = np.stack(signs(asking, candidates))
    positive, others = found[:, :, :1], found[:, :, 1:]
    return ((others < positive) + 0.5 * (others == positive)).mean(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.settings)
    connect(config)
    run = Run.at(config.run)
    made = {stage.artefact: execute(stage, run)[0].artefact for stage in (Prepare(config), Retrieve(config))}
    if "segments" in config.rank.evidence:
        made["keywords"] = execute(Summarize(config), run)[0].artefact
    dataset, retriever = made["dataset"], made["retriever"]
    assert dataset is not None
    assert retriever is not None
    log = read_log(dataset.folder)
    table = read_parts(retriever.folder / "contexts", CONTEXTS.names)
    keywords = made.get("keywords")
    segments = learn_segments(config, log, dataset.folder, keywords.folder) if keywords else None
    found, tables = Retriever.load(retriever.folder), FoldedTables.read(retriever.folder)
    signs = Signs(config.rank.evidence, log.train(), found.cooccurrence, log.n_items, tables, segments)
    print("| AUC, % | " + " | ".join(signs.kinds) + " | contexts |\n|---" + "|---" * (1 + len(signs.kinds)) + "|")
    for split in ("train", "validation", "test"):
        contexts = Contexts.of(log, table.filter(pc.equal(table["split"], split)))
        for own in (False, True) if split == "train" else (False,):
            shares = 100 * aucs(signs, log, contexts, found.encoder if own else None)
            error = shares.std(0) / np.sqrt(len(shares))
            cells = [f"{mean:.1f} ± {one:.1f}" for mean, one in zip(shares.mean(0), error, strict=True)]
            print(f"| {split}{', with own' if own else ''} | {' | '.join(cells)} | {len(shares):,} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
