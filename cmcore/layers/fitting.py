"""Training of the small networks that belong to the data: the schedule of their learning rate, and their threads."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_cycle(progress: float) -> float:
    """Factor of the learning rate: linear warm-up over the first fifth, cosine decay to 0 after it."""
    warm = 0.2
    return progress / warm if progress < warm else 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
