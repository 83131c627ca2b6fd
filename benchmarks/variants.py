"""Settings of the recommender, compared on validation users: each trained anew on the same contexts.

    python benchmarks/variants.py --config configs/demo.yaml run=/runs/demo train.threads=1 \
        --variant "as it is" --variant "one negative: tune_recommender.negatives=1"

Test users are never looked at. A variant is a name and settings of `rank` and `tune_recommender`; what comes before,
the keywords and the contexts, is that of the run folder, made where it is not there. Training is that of
`jobs/tune_recommender.py` but for Ray and checkpoints, and scores are those of transformers. Prints steps, seconds
and, of each validation user's item among 20 uniform negatives of the core, HR@5, AUC and NDCG@5 with 95 % intervals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from mmsrarec_ray.adapters import load_base, lora_config, training_arguments
from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.log import Log
from mmsrarec_ray.data.negatives import untouched
from mmsrarec_ray.data.parts import read_parts, write_part
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.data.schemas import CONTEXTS
from mmsrarec_ray.evaluate.metrics import Ranks, per_case
from mmsrarec_ray.intervals import interval
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.rank.contexts import Contexts
from mmsrarec_ray.rank.examples import EXAMPLES, Source, Writer, read_examples
from mmsrarec_ray.rank.packing import IGNORED, Collator
from mmsrarec_ray.rank.stage import TuneRecommender
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.store import Artefact, Folder, Run
from mmsrarec_ray.summarize.stage import Summarize

METRICS = ("HR@5", "AUC", "NDCG@5")
NEGATIVES = 20


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
    from trl import SFTConfig, SFTTrainer

    config, settings = material.config, material.config.tune_recommender
    with tempfile.TemporaryDirectory() as scratch:
        folder, here = Folder.at(scratch) / "train", Path(scratch)
        write_part(folder, pa.Table.from_pylist(writer.rows(learnt, True), EXAMPLES), ["user_id", "cut", "round"])
        arguments = training_arguments(config, settings, 1, here) | {"save_strategy": "no", "num_train_epochs": 1}
        unprepared = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}, "report_to": []}
        trainer = SFTTrainer(
            model=load_base(config),
            args=SFTConfig(**arguments, **unprepared),
            train_dataset=read_examples(folder, here),
            data_collator=Collator(writer.asker, settings.shared_prefix),
            processing_class=writer.asker.processor,
            peft_config=lora_config(settings.lora),
        )
        trainer.train()
    return trainer


def judge(material: Source, writer: Writer, model: torch.nn.Module, asked: Contexts) -> np.ndarray:
    """HR@5, AUC and NDCG@5 of each context: float64 (n, 3)."""
    log, asker, collate = material.log, writer.asker, Collator(writer.asker, True)
    core, (yes, no), scores = np.flatnonzero(log.in_core), asker.answers, []
    for row, (user, cut) in enumerate(zip(asked.users, asked.cuts, strict=True)):
        whole = log.sequences[user]
        candidates = np.array([whole[cut], *untouched(core, whole, NEGATIVES, int(user))], np.int64)
        [signs] = material.signs([asked.histories[row]], [asked.votes[row]], [candidates])
        lines = asker.user(asked.histories[row], asked.neighbours[row])
        examples = []
        for number, said in zip(candidates.tolist(), material.scale.lines(signs), strict=True):
            question = asker.question(lines, number, said)
            picture = number if question.image is not None else None
            examples.append({"task": "choice", "prompt": question.prompt, "answer": "no", "picture": picture})
        batch = collate([{"examples": examples}])
        labels = batch.pop("labels")
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1][labels[:, 1:] != IGNORED]
        scores.append((logits[:, yes] - logits[:, no]).numpy())
    found = per_case(Ranks.of(np.stack(scores), np.zeros(len(scores), np.int64)), (5,))
    return np.column_stack([found[name] for name in METRICS])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--variant", action="append", required=True, help="NAME: key=value key=value …")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.settings)
    connect(config)
    made = artefacts(config)
    ray.shutdown()
    torch.set_num_threads(config.train.threads or torch.get_num_threads())
    print(f"| | steps | seconds | {' | '.join(METRICS)} |\n|---|---|---" + "|---" * len(METRICS) + "|", flush=True)
    for variant in options.variant:
        name, _, words = variant.partition(":")
        material = TuneRecommender(load(options.config, [*options.settings, *words.split()])).material(made)
        writer = Writer(material)
        trainer = train(material, writer, contexts(made, material.log, "train"))
        values = judge(material, writer, trainer.model.eval(), contexts(made, material.log, "validation"))
        low, high = interval(values, config.evaluate.bootstrap, 0)
        figures = zip(*(100 * each for each in (values.mean(0), low, high)), strict=True)
        cells = [f"{mean:.1f} [{one:.1f}, {other:.1f}]" for mean, one, other in figures]
        seconds = trainer.state.log_history[-1]["train_runtime"]
        print(f"| {name} | {trainer.state.global_step} | {seconds:.0f} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
