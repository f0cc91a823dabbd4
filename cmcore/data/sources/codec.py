"""Training of a codec on the images of a data set: minutes of one core for small images."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cmcore.data.codec import Codec
from cmcore.data.feed import sent
from cmcore.data.order import indices
from cmcore.data.rows import take
from cmcore.data.settings import CodecConfig
from cmcore.layers.autoencoder import Shape, build_autoencoder, kl_divergence
from cmcore.layers.fitting import one_cycle, threads
from cmcore.rng import Draws
from cmcore.tensors import mean_per_sample, to_float


class Autoencoder(Protocol):
    """A map from images (B, C, H, W) to Gaussians over latents, as means and logarithms of variances, and back."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def decode(self, latents: Tensor) -> Tensor: ...


def train_codec(
    images: np.ndarray,
    config: CodecConfig,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Codec:
    """An autoencoder trained on uint8 images (N, C, H, W), with the exact bits on one kind of CPU.

    Adam with a one-cycle schedule; the images and the noise of a step are addressed by images seen.

    Args:
        images: an array, or a memory map.
        config: of network and training.
        device: of the training and of the codec.
        progress: called with (images seen, images in all).
    """
    net = build_autoencoder(Shape(images.shape[1], config.channels, config.factor, config.width), config.seed)
    net.to(device)
    batch = min(config.batch, len(images))
    steps = math.ceil(config.images / batch)
    optimiser = torch.optim.Adam(net.parameters(), config.lr)
    with threads(config.threads):
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = config.lr * one_cycle(step / steps)
            rows = indices(len(images), step * batch, batch, config.seed)
            x = to_float(sent(torch.from_numpy(take(images, rows)), torch.device(device)))
            loss = codec_loss(net, x, Draws(config.seed, step * batch, batch, device=device), config.kl).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if progress is not None:
                progress((step + 1) * batch, steps * batch)
    return Codec(net, device)


def codec_loss(net: Autoencoder, x: Tensor, draws: Draws, kl: float) -> Tensor:
    """Squared error of the decoded draw from the posterior, plus kl times its divergence from N(0, 1): (B,).

    Both are means over numbers; in sums the weight is kl C H W / (c h w). arXiv 2112.10752, App. G without its
    adversarial and perceptual terms.
    """
    mean, log_variance = net.encode(x)
    latents = mean + (0.5 * log_variance).exp() * draws.normal(mean.shape[1:], stream="posterior")
    return mean_per_sample((net.decode(latents) - x) ** 2) + kl * kl_divergence(mean, log_variance)
