"""A few-step model as a pipeline of diffusers: one exported program, called at descending noise levels.

`cmlab export` copies this file beside the program; it needs torch and diffusers alone. Images follow the multistep
sampling of arXiv 2303.01469, Algorithm 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput  # pyright: ignore[reportMissingImports]
from torch import Tensor


class FewStepPipeline(DiffusionPipeline):
    """Noise to images in one evaluation for every level.

    Args:
        levels: noise levels, descending from sigma_max, with commas between.
        sigma_min: the level at which the model's images are.
        shape: channels, height and width, with commas between.
        classes: of the model, 0 for none.
    """

    def __init__(
        self, levels: str = "80.0", sigma_min: float = 0.002, shape: str = "3,32,32", classes: int = 0
    ) -> None:  # with defaults, as diffusers takes the others for modules
        super().__init__()
        self.register_to_config(levels=levels, sigma_min=sigma_min, shape=shape, classes=classes)
        self._program: Any = None

    @property
    def program(self) -> Any:
        """(x (B, C, H, W), sigma (B,), labels (B,) where there are classes), float64 -> images at sigma_min."""
        if self._program is None:
            self._program = torch.export.load(str(Path(self.config["_name_or_path"]) / "program.pt2")).module()
        return self._program

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        levels: Sequence[float] = (),
        class_labels: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images.

        Args:
            batch_size: how many.
            levels: by default those of the pipeline.
            class_labels: one for each image, by default drawn at random.
            generator: of the noise.
            latents: the initial noise (B, C, H, W) of unit variance, by default drawn.
            output_type: "pil", "np" for (B, H, W, C) in [0, 1], or "pt" for float64 (B, C, H, W) in [-1, 1].
            return_dict: whether the images come as an ImagePipelineOutput.
        """
        config: Any = self.config
        shape = (batch_size, *(int(part) for part in config["shape"].split(",")))
        through = list(levels) or [float(part) for part in config["levels"].split(",")]

        def noise() -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        told = ()
        if config["classes"]:
            drawn = torch.randint(config["classes"], (batch_size,), generator=generator)
            told = (drawn if class_labels is None else torch.tensor(list(class_labels)),)
        x = through[0] * (noise() if latents is None else latents.double())
        for index, sigma in enumerate(through):
            if index:
                x = x + (sigma**2 - config["sigma_min"] ** 2) ** 0.5 * noise()
            x = self.program(x, torch.full((batch_size,), sigma, dtype=torch.float64), *told)
        images: Any = x
        if output_type != "pt":
            images = (x.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
