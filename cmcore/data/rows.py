"""Fast reads of random rows of a memory map."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

LARGE = 2**15  # bytes of a row from which on its transfer costs more than the request
THREADS = 8  # concurrent reads


def take(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """rows[index], copied. Several threads read large rows of a map, whose pages would fault one by one."""
    if isinstance(rows, np.memmap) and rows[:1].nbytes >= LARGE and len(index) > 1 and hasattr(os, "preadv"):
        return _read(rows, index)
    return np.take(rows, index, axis=0)


def _read(rows: np.memmap, index: np.ndarray) -> np.ndarray:
    if len(index) and (index.min() < 0 or index.max() >= len(rows)):
        raise IndexError(f"expected rows from 0 to {len(rows) - 1}, got {index.min()} to {index.max()}")
    result = np.empty((len(index), *rows.shape[1:]), rows.dtype)
    size = result[0].nbytes
    file = os.open(str(rows.filename), os.O_RDONLY)

    def read(places: range) -> None:
        for place in places:
            buffer = memoryview(result[place]).cast("B")
            offset, done = rows.offset + int(index[place]) * size, 0
            while done < size:
                got = os.preadv(file, [buffer[done:]], offset + done)
                if not got:
                    raise OSError(f"{rows.filename}: ends before row {index[place]}")
                done += got

    try:
        list(_threads().map(read, (range(first, len(index), THREADS) for first in range(THREADS))))
    finally:
        os.close(file)
    return result


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="rows")
