"""The noise range that every run of a workload shares."""

from dataclasses import dataclass

from cmcore.config import require


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Range of noise levels and the data's scale; the defaults are EDM's (arXiv 2206.00364, Table 1)."""

    sigma_data: float = 0.5  # standard deviation of the images in [-1, 1]
    sigma_min: float = 0.002  # also the consistency models' eps
    sigma_max: float = 80.0  # the papers' T
    rho: float = 7.0  # warp of the Karras grid

    def __post_init__(self) -> None:
        require(self.sigma_data > 0, "sigma_data", "a positive number", self.sigma_data)
        require(self.sigma_min > 0, "sigma_min", "a positive number", self.sigma_min)
        require(self.sigma_max > self.sigma_min, "sigma_max", f"more than sigma_min = {self.sigma_min}", self.sigma_max)
        require(self.rho >= 1, "rho", "at least 1", self.rho)
