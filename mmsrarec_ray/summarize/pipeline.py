"""The pipeline: items in, keywords and failures out, in parts, through Ray Data and vLLM.

    read -> drop what is known -> render (CPU actors) -> vLLM (engine actors) -> parse and write parts

Every part is written whole by the task that holds it, under a name made from the ids in it, so a task that
runs twice writes the same file. The parts of an unfinished run are what a later run finds done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.frames import iter_tables, map_tables
from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.data.schemas import FAILURES, KEYWORDS
from mmsrarec_ray.metrics import Metrics
from mmsrarec_ray.models.engine import ERROR, adapter_arguments, asked, engines_heard, rows_in_block
from mmsrarec_ray.progress import Progress
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.keywords import parse
from mmsrarec_ray.summarize.render import Renderer
from mmsrarec_ray.summarize.reuse import Items, contains, keys

KEYWORD_PARTS, FAILURE_PARTS = "keywords", "failures"
_ITEM_COLUMNS = ["item_id", "title", "text", "image", "image_uri", "content_hash"]
_REQUEST_COLUMNS = (
    *("item_id", "content_hash", "has_image", "has_text"),
    *("tokenized_prompt", "multimodal_data", "sampling_params", ERROR),
)
_ANSWER_COLUMNS = (
    *("item_id", "content_hash", "has_image", "has_text"),
    *("generated_text", "num_generated_tokens", ERROR),
)
_PART = pa.schema([("summarised", pa.int64()), ("errors", pa.list_(pa.string())), ("tokens", pa.int64())])


@dataclass(frozen=True)
class Recipe:
    """What every keyword row names, the weights and the prompt it comes from; and where the adapter lies."""

    model: str
    prompt_version: str
    adapter: str | None = None
    """The local folder of the summariser's adapter; None for the model as it is."""


def summarise(
    config: Config, items: Items, known: np.ndarray, pending: int, recipe: Recipe, out: Folder, metrics: Metrics
) -> None:
    """Summarise the items that are not `known`; write keyword and failure parts below `out`.

    known: keys as `reuse.index` gives them. pending: how many items are not known, for the progress.
    """
    kept = config.summarize.rows_per_part
    fresh = map_tables(items.read(_ITEM_COLUMNS), _drop_known, ray.put(known)).repartition(
        target_num_rows_per_block=min(kept, rows_in_block(config))
    )
    rendered = fresh.map_batches(
        _Render,
        fn_constructor_args=(config, recipe.adapter),
        batch_size=config.engine.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.engine.preprocess_concurrency),
        num_cpus=1,
    )
    lora = adapter_arguments(config.tune_summarizer.lora) if recipe.adapter else {}
    written = asked(config, _answer, **lora)(rendered).map_batches(
        _write, fn_args=(recipe, out), batch_size=kept, batch_format="numpy"
    )
    done = 0
    progress = Progress("summarize", pending, "items")
    with engines_heard():
        for part in (part for table in iter_tables(written, name="summarize") for part in table.to_pylist()):
            done += part["summarised"] + len(part["errors"])
            progress.update(done)
            metrics.done(part["summarised"], part["errors"], part["tokens"], waiting=pending - done)


def _drop_known(batch: pa.Table, known: ray.ObjectRef) -> pa.Table:
    return batch.filter(pa.array(~contains(ray.get(known), keys(batch))))


def failure(item: dict[str, Any], error: str, message: str, stage: str = "summarize") -> dict[str, Any]:
    """A row of the failures table."""
    return {
        "stage": stage,
        "table": "items",
        "id": item["item_id"],
        "error": error,
        "message": message,
        "content_hash": item["content_hash"],
    }


def write_failures(folder: Folder, failures: list[dict[str, Any]]) -> None:
    """Write rows of the failures table as one part."""
    write_part(folder, pa.Table.from_pylist(failures, FAILURES), ["id"])


class _Render:
    """CPU actor: decodes pictures and renders prompts. An item that cannot be rendered goes on as an error."""

    def __init__(self, config: Config, adapter: str | None):
        self.render, self.adapter = Renderer(config), adapter

    def __call__(self, batch: pa.Table) -> dict[str, list]:
        rows = [self._request(item) for item in batch.to_pylist()]
        adapter = {"model": [self.adapter] * len(rows)} if self.adapter else {}
        return {name: [row[name] for row in rows] for name in _REQUEST_COLUMNS} | adapter

    def _request(self, item: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(_REQUEST_COLUMNS)
        row |= {"item_id": item["item_id"], "content_hash": item["content_hash"], ERROR: ""}
        try:
            request = self.render(item)
        except (ValueError, OSError) as error:
            return row | {ERROR: f"{type(error).__name__}: {error}", "has_image": False, "has_text": False}
        return row | {
            "tokenized_prompt": request.tokens,
            "multimodal_data": {"image": request.image} if request.image is not None else {},
            "sampling_params": request.sampling,
            "has_image": request.image is not None,
            "has_text": request.has_text,
        }


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in _ANSWER_COLUMNS}


def _write(batch: dict[str, np.ndarray], recipe: Recipe, out: Folder) -> pa.Table:
    """Parse answers and write them. batch: the columns of `_answer`.

    Returns one row: how many were summarised, the error class of each that failed, and the tokens.
    """
    keywords, failures = [], []
    for position in range(len(batch["item_id"])):
        row = {name: batch[name][position] for name in batch}
        try:
            keywords.append(_keyword_row(row, recipe))
        except ValueError as error:
            kind, _, message = str(error).partition(": ")
            failures.append(failure(row, kind, message))
    write_part(out / KEYWORD_PARTS, pa.Table.from_pylist(keywords, KEYWORDS), ["item_id"])
    write_failures(out / FAILURE_PARTS, failures)
    tokens = sum(row["tokens"] for row in keywords)
    errors = [row["error"] for row in failures]
    return pa.Table.from_pylist([{"summarised": len(keywords), "errors": errors, "tokens": tokens}], _PART)


def _keyword_row(row: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Raises ValueError('Class: message') for an answer that is an error or does not parse."""
    if row[ERROR]:
        raise ValueError(row[ERROR])
    try:
        keywords = parse(row["generated_text"], bool(row["has_image"]), bool(row["has_text"]))
    except ValueError as error:
        raise ValueError(f"Unparseable: {error}") from None
    return {
        "item_id": row["item_id"],
        "image_keywords": list(keywords.image),
        "text_keywords": list(keywords.text),
        "content_hash": row["content_hash"],
        "model": recipe.model,
        "prompt_version": recipe.prompt_version,
        "tokens": int(row["num_generated_tokens"]),
    }
