"""Reading Parquet, with pyarrow, which is imported when it is needed: it brings numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cosmos_hpc.errors import RequestError

#: Rows that are made Python's own at a time.
_AT_A_TIME = 10_000


def column_names(path: Path) -> list[str]:
    """Names of the columns of a Parquet file.

    Raises:
        RequestError: it cannot be read.
    """
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def read_columns(
    path: Path, names: Sequence[str], needed: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, with some of its columns.

    Args:
        path: of the file.
        names: columns that are read where they are there.
        needed: those of them that must be.

    Raises:
        RequestError: it cannot be read, or lacks a column.
    """
    with _opened(path) as file:
        there = file.schema_arrow.names
        if lacks := [name for name in needed if name not in there]:
            raise RequestError(f"{path} has no column {lacks[0]!r}; it has {', '.join(there)}")
        columns = [name for name in names if name in there]
        for batch in file.iter_batches(_AT_A_TIME, columns=columns, use_threads=False):
            yield from batch.to_pylist()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open file, whose errors name it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror or e}") from None
    except pa.ArrowException as e:
        reason = str(e).partition("\n")[0]
        raise RequestError(f"{path} cannot be read: {reason}") from None
