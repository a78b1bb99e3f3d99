"""Reading Parquet, with pyarrow, which is imported when it is needed: it brings numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cosmos_hpc.errors import RequestError


def read_parquet(path: Path, needed: list[str], also: list[str]) -> list[dict[str, Any]]:
    """Some columns of a Parquet file.

    Args:
        path: of the file.
        needed: columns that must be there.
        also: columns that may be.

    Raises:
        RequestError: it cannot be read, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            if lacks := [name for name in needed if name not in there]:
                raise RequestError(f"{path} has no column {lacks[0]!r}; it has {', '.join(there)}")
            columns = [*needed, *(name for name in also if name in there)]
            rows: list[dict[str, Any]] = file.read(columns=columns).to_pylist()
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror or e}") from None
    except pa.ArrowException as e:
        raise RequestError(f"{path} cannot be read: {str(e).partition(chr(10))[0]}") from None
    return rows
