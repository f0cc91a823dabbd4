"""Addressed randomness: every random number is a pure function of a seed and of an address.

Nothing here has a state to save. A training step addresses its numbers by (run seed, stream, images seen), so a resumed
run continues the same stream; a generated image addresses its own by (seed, image index), so samples do not depend on
the batch size.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index

import torch
from torch import Tensor


def derive_seed(*address: int | str) -> int:
    """A 63-bit seed from an address; nearby addresses give unrelated seeds, and a numpy integer counts as its value.

    PyTorch's CPU generator reads only the low 32 bits: among 50,000 generators, two are equal with probability 1/4.
    """
    text = "/".join(f"str:{part}" if isinstance(part, str) else f"int:{index(part)}" for part in address)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*address: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded from the address."""
    return torch.Generator(device).manual_seed(derive_seed(*address))


_GENERATORS = threading.RLock()  # the global ones, which the threads of a process share


@contextmanager
def seeded(*address: int | str, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global generators of the CPU and of `device` from an address inside this context, then restore them.

    For code without a generator argument: initial weights, dropout. One thread at a time enters.
    """
    device = torch.device(device)
    devices = [device] if device.type != "cpu" else []
    with _GENERATORS, torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(derive_seed(*address))
        yield


class Draws:
    """The random numbers of one training step.

    Numbers are drawn for the whole global batch, of which `rows` are returned, so neither gradient accumulation nor the
    number of workers changes the noise of an image. The same stream name always gives the same numbers; a `prefix` of
    the names gives another turn of the same step its own numbers.
    """

    def __init__(
        self,
        seed: int,
        images: int,
        batch: int,
        rows: slice | None = None,
        device: torch.device | str = "cpu",
        *,
        prefix: str = "",
    ) -> None:
        self.seed, self.images, self.batch, self.device = seed, images, batch, torch.device(device)
        self.rows = rows if rows is not None else slice(0, batch)
        self.prefix = prefix

    def _generator(self, stream: str) -> torch.Generator:
        return generator(self.seed, self.prefix + stream, self.images, device=self.device)

    def normal(self, shape: Sequence[int] = (), *, stream: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers (rows, *shape)."""
        draw = torch.randn((self.batch, *shape), generator=self._generator(stream), device=self.device, dtype=dtype)
        return draw[self.rows]

    def uniform(self, shape: Sequence[int] = (), *, stream: str, dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform numbers in [0, 1), (rows, *shape). Float64 by default: they become noise levels."""
        draw = torch.rand((self.batch, *shape), generator=self._generator(stream), device=self.device, dtype=dtype)
        return draw[self.rows]

    def batches(self, shape: Sequence[int], count: int, *, stream: str) -> Iterator[Tensor]:
        """`count` batches (batch, *shape) of standard normal numbers, whole whatever the rows: of no training image."""
        source = self._generator(stream)
        for _ in range(count):
            yield torch.randn((self.batch, *shape), generator=source, device=self.device)

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """Make dropout inside this context draw one fixed mask per layer, whatever device the step runs on.

        Entered once for the student and once for the target, it gives both the same masks. Dropout reads the global
        generator of the device it runs on.
        """
        with seeded(self.seed, f"{self.prefix}dropout", self.images, self.rows.start or 0, device=self.device):
            yield


class NoiseSource:
    """Gaussian noise for generated images, one generator per image: image i has the same noise in any batch."""

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.indices, self.device = tuple(indices), torch.device(device)
        self._generators = [generator(seed, "sample", image) for image in indices]

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """The next standard normal numbers of every image: (B, *shape). Drawn on the CPU, so equal on all devices."""
        draws = [torch.randn(tuple(shape), generator=g, dtype=dtype) for g in self._generators]
        return torch.stack(draws).to(self.device)

    def integers(self, high: int) -> Tensor:
        """One integer in [0, high) per image: (B,)."""
        draws = [torch.randint(high, (), generator=g) for g in self._generators]
        return torch.stack(draws).to(self.device)
