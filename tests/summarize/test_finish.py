"""The last step of a summary run: each item once, with keywords or with a reason."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmsrarec_ray.data.parts import write_part
from mmsrarec_ray.data.schemas import KEYWORDS
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.finish import parquet_files, publish
from mmsrarec_ray.summarize.pipeline import FAILURE_PARTS, KEYWORD_PARTS, failure, write_failures
from mmsrarec_ray.summarize.reuse import index, keys

SAID = {"image_keywords": ["red"], "text_keywords": [], "model": "m", "prompt_version": "1", "tokens": 1}


def test_a_task_that_failed_at_an_item_and_ran_again_has_not_failed(ray_session: str, tmp_path: Path) -> None:
    """Of c the text has changed since it was summarised, and the new one fails."""
    out = Folder.at(str(tmp_path))
    staging = out / "staging"
    said = [SAID | {"item_id": item, "content_hash": "1"} for item in "abc"]
    write_part(staging / KEYWORD_PARTS, pa.Table.from_pylist(said, KEYWORDS), ["item_id"])
    failed = {"b": "1", "c": "2", "d": "1"}
    rows = [{"item_id": item, "content_hash": content} for item, content in failed.items()]
    write_failures(staging / FAILURE_PARTS, [failure(row, "Timeout", "late") for row in rows])
    catalogue = pa.table({"item_id": list("abcd"), "content_hash": ["1", "1", "2", "1"]})
    known = parquet_files(staging / KEYWORD_PARTS)
    counts, _ = publish(index([keys(catalogue)]), known, staging, out)
    assert counts == {"out": 2, "failed": 2}
    assert pq.read_table(tmp_path / "items")["item_id"].to_pylist() == ["a", "b"]
    assert pq.read_table(tmp_path / "failures")["id"].to_pylist() == ["c", "d"]
