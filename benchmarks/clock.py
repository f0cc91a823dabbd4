"""Times of several jobs on a machine that others use too: in turns, and the least of each."""

import time
from collections.abc import Callable, Mapping

import torch

Job = Callable[[], object]


class Clock:
    """Seconds of the wall, or of the processor: where others compute as well, only the latter say what a job costs.

    With several threads the processor's seconds are divided by their number, as if all had been busy all the time.
    """

    def __init__(self, kind: str, device: torch.device) -> None:
        self.kind, self.device = kind, device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() if self.kind == "wall" else time.process_time() / torch.get_num_threads()

    def least(self, jobs: Mapping[str, Job], repeats: int) -> dict[str, float]:
        """The least seconds of every job, after one run that does not count."""
        best = dict.fromkeys(jobs, float("inf"))
        for turn in range(repeats + 1):
            for name, job in jobs.items():
                start = self()
                job()
                if turn:
                    best[name] = min(best[name], self() - start)
        return best


def matrix_rate(clock: Clock, dtype: torch.dtype, size: int = 1024, repeats: int = 10) -> float:
    """Operations a second of a square matrix product: what the arithmetic floor is measured against."""
    size = 8 * size if clock.device.type == "cuda" else size
    a, b = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / clock.least({"product": lambda: a @ b}, repeats)["product"]
