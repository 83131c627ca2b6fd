"""Ends `make demo`: a few items with their keywords, and where to look on."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

from mmsrarec_ray.store import Run
from mmsrarec_ray.summarize.contact_sheet import HTML


def main(run: str) -> None:
    keywords = Run.at(run).published("keywords")[0]
    folder = Path(keywords.folder.path)
    rows = pq.read_table(folder / "items").slice(0, 8).to_pylist()
    print(f"\n{'item':12} {'from the picture':32} from the text")
    for row in rows:
        print(f"{row['item_id']:12} {', '.join(row['image_keywords']):32} {', '.join(row['text_keywords'])}")
    counts = keywords.manifest.counts
    print(f"\n{counts['in']:,} items in, {counts['out']:,} with keywords, {counts['failed']:,} failed.")
    print(f"Open the contact sheet in a browser: {folder / HTML}")
    print(f"The report: {Path(run) / 'evaluation' / 'report.md'}")
    print("Your own catalogue: docs/data.md; every setting: .venv/bin/python jobs/pipeline.py --help-config")


if __name__ == "__main__":
    main(sys.argv[1])
