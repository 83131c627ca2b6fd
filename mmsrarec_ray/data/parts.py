"""Parquet parts that tasks write themselves: whole or not at all, and the same file when a task runs twice."""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from mmsrarec_ray.store import Folder


def to_parquet(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def write_part(folder: Folder, table: pa.Table, name_columns: list[str]) -> None:
    """Write rows as one part, named by the hash of these columns in any row order. An empty table writes nothing."""
    if table.num_rows == 0:
        return
    rows = sorted(map(repr, zip(*(table[column].to_pylist() for column in name_columns), strict=True)))
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
    folder.write_bytes(f"part-{digest}.parquet", to_parquet(table))
