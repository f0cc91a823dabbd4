"""How fast a run samples, and on what machine.

Two equal runs differ in it, so it stands in a file of its own, beside the results and not among them. Imports no torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

from cmcore.closure import UNKNOWN
from cmcore.config import read


@dataclass(frozen=True, kw_only=True)
class RowTime:
    """The speed of one row of a run."""

    nfe: int
    sampler: str
    latency: float  # seconds until a batch of one image is done, the median of several
    images_per_second: float  # of one worker, in batches of `batch`
    batch: int


@dataclass(frozen=True, kw_only=True)
class SamplingTimes:
    """The content of times/sampling/<run>.json."""

    device: str  # the hardware, and the threads of a CPU
    rows: tuple[RowTime, ...]
    code: str = UNKNOWN  # git commit of the code that sampled and measured

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> "SamplingTimes":
        """Times from `to_json`'s data.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type.
        """
        return read(cls, data)
