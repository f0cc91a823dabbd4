"""A U-Net beside the linear network that is exact for Gaussian images: for training times of minutes and hours.

A U-Net of CIFAR-10 takes thousands of steps to come to the loss that the best linear denoiser has, which this one has
after some hundred. The rest is that of cmcore/nets/unet.py, and F = 0 at the start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cmcore.config import require
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Labels
from cmcore.dual import Value, add
from cmcore.layers.gaussian import GaussianSkip
from cmcore.layers.unet import check_halvings
from cmcore.nets import unet


@dataclass(frozen=True, kw_only=True)
class Config(unet.Config):
    """That of the U-Net, and the data's standard deviation."""

    sigma_data: float = 0.5  # as `diffusion.sigma_data`

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sigma_data > 0, "sigma_data", "a positive number", self.sigma_data)


class GaussianUNet(unet.UNet):
    """F(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W)."""

    def __init__(
        self, config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()
    ) -> None:
        super().__init__(config, channels=channels, resolution=resolution, classes=classes, inputs=inputs)
        self.skip = GaussianSkip(channels, resolution, sigma_data=config.sigma_data, coordinate=config.c_noise)

    def forward(self, x: Value, c_noise: Value, labels: Labels = None) -> Value:
        return add(super().forward(x, c_noise, labels), self.skip(x, c_noise))


def build(
    config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = ()
) -> GaussianUNet:
    """The network for images (channels, resolution, resolution); classes=0 means unconditional.

    `inputs` are those that the method declares beside images, noise levels and labels.

    Raises:
        ValueError: the resolution cannot be halved as often as channel_mult asks.
    """
    check_halvings(resolution, len(config.channel_mult))
    return GaussianUNet(config, channels=channels, resolution=resolution, classes=classes, inputs=inputs)
