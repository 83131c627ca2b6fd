"""What each part of the recommender is worth: every row trained anew with as many steps, all on the same lists.

    python benchmarks/ablate.py --config configs/shop.yaml run=/runs/shop
    python benchmarks/ablate.py --config configs/shop.yaml run=/runs/shop --split validation \
        --row "as it is" --row "one negative: tune_recommender.negatives=1"

A row is the configuration with some settings changed, the first the one that all others are compared with. Settings are
chosen on validation users; the lists of test users are those of `jobs/evaluate.py`. What comes before the recommender,
keywords and contexts, is made in the run folder where it is not there. Training is that of `jobs/tune_recommender.py`
but for Ray and checkpoints, on a GPU with `train.gpu=true`; scores are those of transformers, not of the engine. A row
is kept in `<run>/ablation/` when it is done, so a killed run goes on, and rows may be made by several processes at once
(`--only`). Prints steps, seconds and figures with 95 % intervals over users, and paired differences to the first row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from mmsrarec_ray.adapters import training_arguments
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.log import Log
from mmsrarec_ray.data.parts import read_parts, write_part
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.data.schemas import CONTEXTS
from mmsrarec_ray.evaluate.lists import draw_negatives, pool_of
from mmsrarec_ray.evaluate.metrics import Ranks, per_case
from mmsrarec_ray.intervals import interval, paired
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.progress import say
from mmsrarec_ray.rank.contexts import Contexts
from mmsrarec_ray.rank.examples import EXAMPLES, Source, Writer, read_examples
from mmsrarec_ray.rank.packing import IGNORED, Collator
from mmsrarec_ray.rank.stage import TuneRecommender
from mmsrarec_ray.rank.tune import trainer
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.store import Artefact, Folder, Run, code_fingerprint, fingerprint
from mmsrarec_ray.summarize.stage import Summarize

METRICS = ("HR@5", "NDCG@5", "AUC")
SPLITS = ("validation", "test")
ROWS = (
    "the whole",
    "titles for summaries: rank.said=titles",
    "summaries untuned: summarize.tuned=false",
    "no pictures: rank.said=text_keywords",
    "no similar users: rank.similar_users=false rank.evidence=[segments,popularity]",
    "no segments: rank.liked=0 rank.evidence=[cooccurrence,moments,popularity]",
    "no evidence: rank.evidence=[]",
    "no other tasks: tune_recommender.tasks.next_item=0 tune_recommender.tasks.item_keywords=0 "
    "tune_recommender.tasks.interests=0",
    "one negative: tune_recommender.negatives=1",
    "whole users for moments: retrieve.moments=users",
    "GRU4Rec finds similar users: retrieve.encoder=gru4rec",
)


@dataclass(frozen=True)
class Row:
    """A row of the table. made: what the recommender is made from; key: what decides its figures."""

    name: str
    config: Config
    made: dict[str, Artefact]
    key: str

    @classmethod
    def of(cls, said: str, options: argparse.Namespace) -> Row:
        """said: `NAME: key=value key=value …`. Makes what is not there."""
        name, _, words = said.partition(":")
        config = load(options.config, [*options.settings, *words.split()])
        made = artefacts(config)
        digests = {name: artefact.manifest.digest for name, artefact in made.items()}
        lists = [config.evaluate.pool, config.evaluate.negatives, config.evaluate.seeds[0]]
        stage = TuneRecommender(config)
        code = [code_fingerprint((*stage.code, "evaluate/lists", "evaluate/metrics")), Path(__file__).read_text()]
        return cls(name, config, made, fingerprint([stage.settings(), stage.engine(), digests, lists, code]))


def artefacts(config: Config) -> dict[str, Artefact]:
    """What a recommender is made from."""
    made = {}
    for stage in (Prepare(config), Summarize(config), Retrieve(config)):
        artefact = execute(stage, Run.at(config.run))[0].artefact
        assert artefact is not None
        made[stage.artefact] = artefact
    return made


def contexts(made: dict[str, Artefact], log: Log, split: str) -> Contexts:
    """Those of a split, in the order of users and cuts."""
    table = read_parts(made["retriever"].folder / "contexts", CONTEXTS.names)
    table = table.filter(pc.equal(table["split"], split))
    return Contexts.of(log, table.sort_by([("user_id", "ascending"), ("cut", "ascending")]))


def train(material: Source, writer: Writer, learnt: Contexts) -> Any:
    """The trainer when it is done."""
    config = material.config
    with tempfile.TemporaryDirectory() as scratch:
        folder, here = Folder.at(scratch) / "train", Path(scratch)
        write_part(folder, pa.Table.from_pylist(writer.rows(learnt, True), EXAMPLES), ["user_id", "cut", "round"])
        arguments = training_arguments(config, config.tune_recommender, 1, here) | {"save_strategy": "no"}
        training = trainer(config, writer.asker, arguments, read_examples(folder, here))
        training.train()
    return training


def judge(material: Source, writer: Writer, model: torch.nn.Module, asked: Contexts, split: str) -> np.ndarray:
    """METRICS of each context: float64 (n, len(METRICS))."""
    log, settings = material.log, material.config.evaluate
    cases = log.cases(split)
    drawn = draw_negatives(log, cases, pool_of(log, settings), settings.negatives, settings.seeds[0])
    lists = np.column_stack([cases.positives, drawn])
    at = {user: row for row, user in enumerate(cases.queries.histories.users.tolist())}
    scores = [
        scored(material, writer, model, asked, row, liked, lists[at[int(user)]])
        for row, (user, liked) in enumerate(zip(asked.users, material.liked(asked), strict=True))
    ]
    found = per_case(Ranks.of(np.stack(scores), np.zeros(len(scores), np.int64)), (5,))
    return np.column_stack([found[name] for name in METRICS])


def scored(
    material: Source,
    writer: Writer,
    model: torch.nn.Module,
    asked: Contexts,
    row: int,
    liked: list[str],
    candidates: np.ndarray,
) -> np.ndarray:
    """What the model says of a context's candidates, logit of yes less that of no: float32 (n,)."""
    asker = writer.asker
    [signs] = material.signs(asked.asking.take(np.array([row])), [candidates])
    lines = asker.user(asked.histories[row], asked.neighbours[row], liked)
    examples = []
    for number, said in zip(candidates.tolist(), material.scale.lines(signs), strict=True):
        question = asker.question(lines, number, said)
        picture = number if question.image is not None else None
        examples.append({"task": "choice", "prompt": question.prompt, "answer": "no", "picture": picture})
    batch = Collator(asker, material.config.tune_recommender.shared_prefix)([{"examples": examples}])
    labels = batch.pop("labels")
    with torch.inference_mode():
        read = model(**{name: values.to(model.device) for name, values in batch.items()}).logits.cpu()
    logits = read[:, :-1][labels[:, 1:] != IGNORED].float()
    yes, no = asker.answers
    return (logits[:, yes] - logits[:, no]).numpy()


def measure(row: Row) -> dict[str, Any]:
    """A row's steps, seconds of training and values of every case of each split, as JSON has them."""
    material = TuneRecommender(row.config).material(row.made)
    writer = Writer(material)
    training = train(material, writer, contexts(row.made, material.log, "train"))
    model = training.model.eval()
    values = {
        split: judge(material, writer, model, contexts(row.made, material.log, split), split).tolist()
        for split in SPLITS
    }
    seconds = next(entry["train_runtime"] for entry in training.state.log_history if "train_runtime" in entry)
    return {"steps": training.state.global_step, "seconds": seconds, **values}


def cells(values: np.ndarray, whole: np.ndarray, resamples: int) -> list[str]:
    """A row's values and, of another row than the whole, differences to it, in percent."""
    low, high = interval(values, resamples, 0)
    out = [
        f"{mean:.1f} [{one:.1f}, {other:.1f}]"
        for mean, one, other in zip(*(100 * each for each in (values.mean(0), low, high)), strict=True)
    ]
    if values is whole:
        return out
    test = paired(values, whole, resamples, 0)
    differences = zip(*(100 * each for each in (test.difference, test.low, test.high)), strict=True)
    return [
        f"{cell}, {d:+.1f} [{one:+.1f}, {other:+.1f}]" for cell, (d, one, other) in zip(out, differences, strict=True)
    ]


def tell(rows: list[tuple[str, dict[str, Any]]], split: str, resamples: int) -> None:
    """The table, in Markdown."""
    print(f"| | steps | seconds | {' | '.join(METRICS)} |\n|---|---|---{'|---' * len(METRICS)}|")
    whole = np.array(rows[0][1][split])
    for number, (name, found) in enumerate(rows):
        values = np.array(found[split]) if number else whole
        print(f"| {name} | {found['steps']} | {found['seconds']:.0f} | {' | '.join(cells(values, whole, resamples))} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--row", action="append", help="NAME: key=value key=value … (default: those in the file)")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the rows to make, from 0; no table")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.settings)
    connect(config)
    said = options.row or ROWS
    rows = [Row.of(each, options) for number, each in enumerate(said) if not options.only or number in options.only]
    ray.shutdown()
    torch.set_num_threads(config.train.threads or torch.get_num_threads())
    kept, done = Run.at(config.run).folder / "ablation", []
    for row in rows:
        if not kept.exists(f"{row.key}.json"):
            say(f"ablate: {row.name}")
            kept.write_bytes(f"{row.key}.json", json.dumps(measure(row)).encode())
        done.append((row.name, json.loads(kept.read_bytes(f"{row.key}.json"))))
    if not options.only:
        tell(done, options.split, config.evaluate.bootstrap)
    return 0


if __name__ == "__main__":
    sys.exit(main())
