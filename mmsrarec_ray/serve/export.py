"""Events of the online store as JSON lines, for the next training:

python -m mmsrarec_ray.serve.export sqlite:///data/runs/shop/online/store.sqlite /data/events.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import closing
from pathlib import Path

from mmsrarec_ray.errors import UsageError
from mmsrarec_ray.progress import say
from mmsrarec_ray.serve.store import Store, StoreUnavailable, export, open_store


def write(store: Store, out: Path, after: int = 0) -> tuple[int, int]:
    """Write all events after a place, one a line; the file appears whole or not at all.

    Returns how many there were, and the place of the last.
    """
    part, count, last = out.with_name(out.name + ".part"), 0, after
    with part.open("w", encoding="utf-8") as stream:
        for place, row in export(store, after):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count, last = count + 1, place
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(out)
    return count, last


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong usage or a store that does not answer."""
    parser = argparse.ArgumentParser(prog="python -m mmsrarec_ray.serve.export", description="Events as JSON lines.")
    parser.add_argument("store", help="its address: sqlite:///…, postgresql://…, redis://… or env:NAME")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--after", type=int, default=0, help="only events after this place, as the last export said it")
    options = parser.parse_args(arguments)
    try:
        with closing(open_store(options.store)) as store:
            count, place = write(store, options.out, options.after)
    except (UsageError, StoreUnavailable) as error:
        say(str(error))
        return 2
    say(f"{count:,} events; next time --after {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
