"""Ends `make demo`: a few items with their keywords, and where to look on."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

from mmsrarec_ray.store import Run
from mmsrarec_ray.summarize.contact_sheet import HTML

_TUNED = ("reward", "answer_tokens")


def main(run: str) -> None:
    keywords = Run.at(run).published("keywords")[0]
    folder = Path(keywords.folder.path)
    rows = pq.read_table(folder / "items").slice(0, 8).to_pylist()
    print(f"\n{'item':12} {'from the picture':32} from the text")
    for row in rows:
        print(f"{row['item_id']:12} {', '.join(row['image_keywords']):32} {', '.join(row['text_keywords'])}")
    counts = keywords.manifest.counts
    print(f"\n{counts['in']:,} items in, {counts['out']:,} with keywords, {counts['failed']:,} failed.")
    for summarizer in Run.at(run).published("summarizer")[:1]:
        measures = summarizer.manifest.metrics["test"]["measures"]
        reward, length = ([measures[name][side]["value"] for side in ("before", "after")] for name in _TUNED)
        print(
            f"Tuned by rewards: {reward[0]:.2f} before, {reward[1]:.2f} after, on items that were not learnt from; "
            f"{length[0]:.1f} tokens an answer before, {length[1]:.1f} after. More: {summarizer.folder.path}/report.md"
        )
    print(f"Open the contact sheet in a browser: {folder / HTML}")
    print(f"The report: {Path(run) / 'evaluation' / 'report.md'}")
    print("Its recommendations on a page: `make serve`, then http://127.0.0.1:8000/")
    print("Your own catalogue: docs/data.md; every setting: .venv/bin/python jobs/pipeline.py --help-config")


if __name__ == "__main__":
    main(sys.argv[1])
