"""The encoder of images into latents: one that is trained on them, or Stable Diffusion's through diffusers.

Apart from the decoders, so that how a codec is trained is no part of the code of runs.
"""

from functools import partial

import numpy as np
import torch

from cmcore.data.settings import CodecConfig
from cmcore.data.sources.codec import train_codec
from cmcore.data.sources.prepare import MakeEncoder, Progress
from cmcore.edge.autoencoder import Autoencoder, load_decoder
from cmcore.errors import DataError
from cmcore.evaluate.settings import DecoderConfig


def encoder_maker(config: CodecConfig, device: torch.device | str) -> MakeEncoder:
    """What makes the encoder of images by the config."""
    if config.kind == "kl":
        return partial(train_codec, config=config, device=device)

    def make(images: np.ndarray, /, *, progress: Progress) -> Autoencoder:
        del progress  # it is ready
        codec = load_decoder(
            DecoderConfig(path=config.path, sha256=config.sha256), device, channels=config.channels, own=True
        )
        shape = codec.encode(torch.from_numpy(images[:1].copy())).shape[2:]
        if tuple(config.factor * side for side in shape) != images.shape[2:]:
            raise DataError(
                f"{config.path}: expected latents of a side {config.factor} times shorter (data.codec.factor), got "
                f"{tuple(shape)} for {images.shape[2:]}"
            )
        return codec

    return make
