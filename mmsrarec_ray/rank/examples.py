"""Yes/no examples for the recommender: the item that came next, and others the user never touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.frames import iter_tables
from mmsrarec_ray.data.log import Log
from mmsrarec_ray.data.negatives import untouched
from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.data.splits import hashes
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.progress import Progress
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.prompts import NO, YES
from mmsrarec_ray.store import Folder

if TYPE_CHECKING:
    import datasets

EXAMPLES = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("cut", pa.int32(), nullable=False),  # length of the history
        pa.field("item_id", pa.string(), nullable=False),  # the candidate
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),  # yes or no
        pa.field("number", pa.int64(), nullable=False),  # of the candidate in the catalogue, for its picture
    ]
)
_ROWS = 2_000  # contexts in a block


def write_examples(
    config: Config, log: Log, catalogue: Catalogue, retriever: Folder, contexts: dict[str, int], out: Folder
) -> Counter[str]:
    """Write the examples of the splits' contexts as Parquet parts below `out/SPLIT`, through Ray Data.

    contexts: how many of each split there are. Returns counts: SPLIT_contexts, SPLIT_examples.

    A negative is drawn uniformly from the core's items that the user never touched; it depends on the seed, the user
    and the cut alone. retriever: its folder, whose contexts of training users are cross-fitted.
    """
    folder = retriever / "contexts"
    files = [folder.file(name) for name in folder.files() if name.split("-")[0] in contexts]
    rows = ray.data.read_parquet(files, filesystem=folder.filesystem, override_num_blocks=max(1, len(files)))
    written = rows.repartition(target_num_rows_per_block=_ROWS).map_batches(
        _Write,
        fn_constructor_args=(config, ray.put(catalogue), ray.put(log), list(contexts), out),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.engine.preprocess_concurrency),
        num_cpus=1,
    )
    totals, progress = Counter[str](), Progress("examples", sum(contexts.values()), "contexts")
    for part in iter_tables(written, name="examples"):
        for row in part.to_pylist():
            totals.update(row)
        progress.update(sum(totals[f"{split}_contexts"] for split in contexts))
    return totals


def read_examples(folder: Folder, scratch: Path) -> datasets.Dataset:
    """Examples as TRL takes them, `prompt`, `answer` and `number`, on disk below `scratch`.

    The order is that of user, cut and candidate: which rows share a part, and where a part begins, depends on which
    of Ray's tasks was ready first, and the same data shall teach the same.
    """
    import datasets

    local = scratch / Path(folder.path).name
    folder.download(local)
    files = sorted(str(path) for path in local.iterdir())
    rows = datasets.Dataset.from_parquet(files, cache_dir=str(scratch / "cache"))
    return rows.sort(["user_id", "cut", "number"]).select_columns(["prompt", "answer", "number"])


class _Write:
    """CPU actor: contexts in, a part of examples written, counts out."""

    def __init__(self, config: Config, catalogue: ray.ObjectRef, log: ray.ObjectRef, splits: list[str], out: Folder):
        self.catalogue, self.log, self.splits, self.out = ray.get(catalogue), ray.get(log), splits, out
        self.asker, self.settings = Asker(config, self.catalogue), config.tune_recommender
        self.core = np.flatnonzero(self.log.in_core)

    def __call__(self, batch: pa.Table) -> dict[str, list[int]]:
        counts: dict[str, list[int]] = {}
        for split in self.splits:
            contexts = batch.filter(pc.equal(batch["split"], split))
            rows = [example for context in self._with_users(contexts) for example in self._examples(*context)]
            write_part(self.out / split, pa.Table.from_pylist(rows, EXAMPLES), ["user_id", "cut", "number"])
            counts |= {f"{split}_contexts": [len(contexts)], f"{split}_examples": [len(rows)]}
        return counts

    def _with_users(self, contexts: pa.Table) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Each context, and all that its user touched."""
        users = pc.index_in(contexts["user_id"], value_set=self.log.users).to_numpy()
        for context, user in zip(contexts.to_pylist(), users, strict=True):
            yield context, self.log.sequences[user]

    def _examples(self, context: dict[str, Any], whole: np.ndarray) -> Iterator[dict[str, Any]]:
        """whole: int32 (n,), all that the user touched."""
        user_id, cut = context["user_id"], context["cut"]
        neighbours = [each["next_item_id"] for each in context["neighbours"]]
        user = self.asker.user(self._numbers(context["history"]), self._numbers(neighbours))
        candidates = [int(whole[cut]), *self._negatives(user_id, cut, whole)]
        for number, answer in zip(candidates, [YES] + [NO] * len(candidates), strict=False):
            question = self.asker.question(user, number)
            self.asker.tokens(question)  # refuses now what would not fit when it is scored
            values = (user_id, cut, self.catalogue.ids[number].as_py(), question.prompt, answer, number)
            yield dict(zip(EXAMPLES.names, values, strict=True))

    def _numbers(self, ids: list[str]) -> np.ndarray:
        return self.catalogue.numbers(pa.array(ids, pa.string()))

    def _negatives(self, user_id: str, cut: int, touched: np.ndarray) -> list[int]:
        """Raises InputError where the core has too few items that the user never touched."""
        wanted = self.settings.negatives
        key = int(hashes([f"{user_id}\0{cut}"], self.settings.seed, "example")[0])
        fresh = untouched(self.core, touched, wanted, key)
        if len(fresh) < wanted:
            raise InputError(
                f"tune_recommender.negatives: {wanted} core items that a user never touched are needed; user {user_id} "
                f"has {len(fresh)}."
            )
        return fresh.tolist()
