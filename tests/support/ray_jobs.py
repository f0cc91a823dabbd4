"""What the tests of the Ray edge run as jobs: importable by name, as every job must be."""

import os
import time
from collections.abc import Callable
from pathlib import Path


class OddError(ValueError):
    """Its constructor takes two arguments, so it does not survive pickling by itself."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")


def trained(seed: int, emit: Callable) -> bytes:
    """Gradients of a convolution whose last bits depend on the number of threads, and numpy's linear algebra."""
    import numpy as np
    import torch

    g = torch.Generator().manual_seed(seed)
    conv = torch.nn.utils.skip_init(torch.nn.Conv2d, 32, 32, 3)
    torch.nn.init.normal_(conv.weight, generator=g)
    torch.nn.init.zeros_(conv.bias)
    for step in range(3):
        conv(torch.randn(32, 32, 16, 16, generator=g)).square().mean().backward()
        emit(("step", step, torch.get_num_threads()))
    gradient = conv.weight.grad.numpy()
    matrix = gradient.reshape(32, -1).astype(np.float64)
    return gradient.tobytes() + np.linalg.eigvalsh(matrix @ matrix.T).tobytes()


def fails(kind: str) -> None:
    raise {"plain": KeyError("the original message"), "odd": OddError("train.lr", "is too odd")}[kind]


def dies(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(600)


def pid_then_sleeps(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def where() -> int:
    return os.getpid()
