"""Ray datasets as streams of Arrow tables, the one form in which this project works on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray

from mmsrarec_ray.store import Folder


def read_parquet(folder: Folder, files: list[str]) -> ray.data.Dataset:
    """Parquet files on the filesystem of a folder, a block each: left alone, Ray cuts a few rows into hundreds."""
    # The newer reader starts 32 processes to look into the files' footers, anew at each read: seconds a core.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    return ray.data.read_parquet(files, filesystem=folder.filesystem, override_num_blocks=max(1, len(files)))


def map_tables(
    dataset: ray.data.Dataset,
    function: Callable[..., Any],
    *arguments: Any,
    batch_size: int | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """Apply `function(table, *arguments)` to the blocks of a dataset, or to so many rows at a time.

    function: gives a table, a dict of columns, or an iterator of them. options: of Ray's `map_batches`.
    """
    return dataset.map_batches(
        function, fn_args=arguments, batch_size=batch_size, batch_format="pyarrow", zero_copy_batch=True, **options
    )


def iter_tables(
    dataset: ray.data.Dataset, batch_size: int | None = None, name: str | None = None
) -> Iterator[pa.Table]:
    """The blocks of a dataset as soon as they are there, or so many rows at a time, without empty ones.

    name: of the work in Ray's dashboard and metrics.
    """
    if name:
        dataset.set_name(name)
    for batch in dataset.iter_batches(batch_size=batch_size, batch_format="pyarrow", prefetch_batches=0):
        if batch.num_rows:  # type: ignore[union-attr]
            yield batch
