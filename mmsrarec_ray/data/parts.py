"""Parquet parts: tasks write them themselves, whole or not at all, and the same file when a task runs twice.

Where the rows may be others the second time, a part is named by what they are made of, else by the rows themselves.
"""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from mmsrarec_ray.store import Folder


def to_parquet(table: pa.Table, group: int | None = None) -> bytes:
    """The table as the bytes of a Parquet file. group: rows that can only be read together, None: a million."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=group)
    return buffer.getvalue()


def read_part(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file, or some of its columns."""
    with folder.filesystem.open_input_file(folder.file(name)) as stream:
        return pq.read_table(stream, columns=columns)


def read_parts(folder: Folder, columns: list[str]) -> pa.Table:
    """Some columns of all Parquet files of a folder; a table without rows or types where there are none."""
    tables = [read_part(folder, name, columns) for name in folder.files()]
    return pa.concat_tables(tables) if tables else pa.table({name: pa.nulls(0) for name in columns})


def replace_part(folder: Folder, name: str, table: pa.Table) -> None:
    """Write rows as the part of this name; without rows, take away what an earlier attempt left under it."""
    if table.num_rows:
        folder.write_bytes(f"{name}.parquet", to_parquet(table))
    else:
        folder.discard(f"{name}.parquet")


def write_part(folder: Folder, table: pa.Table, name_columns: list[str], group: int | None = None) -> None:
    """Write rows as one part, named by the hash of these columns in any row order. An empty table writes nothing.
    group: as for `to_parquet`."""
    if table.num_rows == 0:
        return
    rows = sorted(map(repr, zip(*(table[column].to_pylist() for column in name_columns), strict=True)))
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
    folder.write_bytes(f"part-{digest}.parquet", to_parquet(table, group))
