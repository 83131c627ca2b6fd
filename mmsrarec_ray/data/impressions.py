"""What was shown and what was chosen, taken apart: impressions are a table of their own and no interactions."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.check import STAGED_INTERACTIONS, Staging
from mmsrarec_ray.data.partition import first_of_each
from mmsrarec_ray.data.parts import to_parquet
from mmsrarec_ray.data.read import ORDER
from mmsrarec_ray.data.schemas import IMPRESSIONS
from mmsrarec_ray.store import Folder


def take_impressions(block: pa.Table, staging: Staging, out: Folder) -> pa.Table:
    """Write a partition's impressions, ordered by user and time; gives its interactions.

    block: `STAGED_EVENTS` and `partition`. Of an event that came twice, the first in input order stays: it comes from
    one user, so both lie in one partition.
    """
    once = first_of_each(block.sort_by(ORDER), ["user_id", "event_id"])
    again = block.filter(pc.invert(pc.is_in(block[ORDER], value_set=once[ORDER])))
    staging.count("duplicates", again)
    shown = once.filter(once["impression"])
    staging.count("impressions", shown)
    if shown.num_rows:
        ordered = shown.sort_by([("user_id", "ascending"), ("timestamp", "ascending"), (ORDER, "ascending")])
        part = f"part-{shown['partition'][0].as_py():05d}.parquet"
        out.write_bytes(part, to_parquet(ordered.select(IMPRESSIONS.names).cast(IMPRESSIONS)))
    return once.filter(pc.invert(once["impression"])).select([*STAGED_INTERACTIONS.names, "partition"])
