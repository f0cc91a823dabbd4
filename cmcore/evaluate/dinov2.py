"""DINOv2's vision transformers (arXiv 2304.07193) as feature extractors, with the preprocessing of EDM2's FD_DINOv2.

The layout is that of the public files dinov2_vit{s,b,l}14_pretrain.pth, whose names of tensors are the names here.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmcore.errors import DataError

SIDE = 224  # of the images that it sees
_PATCH, _HEAD = 14, 64  # pixels of a patch's side; channels of an attention head, in every size
_OFFSET = 0.1  # DINOv2's code adds it to the number of patches before it interpolates positions
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_BATCH = 50  # images at a time
NAMES = {384: "dinov2_vits14", 768: "dinov2_vitb14", 1024: "dinov2_vitl14"}  # by width


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, D // _HEAD, _HEAD).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D))


class _Scale(nn.Module):
    """LayerScale (arXiv 2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(width, eps=1e-6), _Attention(width), _Scale(width)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(width, eps=1e-6), _Mlp(width), _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, _PATCH, _PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Normalised images (B, 3, H, W), sides multiples of 14 -> the class token after the last norm, (B, width)."""

    def __init__(self, width: int, depth: int, grid: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of training; it is in the files
        self.patch_embed = _Patches(width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // _PATCH, x.shape[3] // _PATCH
        patches = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1) + self._positions(height, width)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])

    def _positions(self, height: int, width: int) -> Tensor:
        """Embeddings of the positions in a grid, interpolated from that of the training."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = round(grid.shape[1] ** 0.5)
        if (height, width) != (side, side):
            grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            factors = ((height + _OFFSET) / side, (width + _OFFSET) / side)
            grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic")
            grid = grid.permute(0, 2, 3, 1).reshape(1, height * width, -1)
        return torch.cat([first, grid], 1)


def transformer(state: Mapping[str, Tensor], where: str) -> VisionTransformer:
    """The network with the tensors of a public file, whose shapes give its size.

    Raises:
        DataError: they are those of something else.
    """
    blocks = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d{1,3})\.", name))}
    token, positions = state.get("cls_token"), state.get("pos_embed")
    expected = f"{where}: expected the weights of DINOv2, dinov2_vit{{s,b,l}}14_pretrain.pth"
    if token is None or positions is None or token.ndim != 3 or positions.ndim != 3 or not blocks:
        raise DataError(f"{expected}, got tensors {', '.join(sorted(state)[:3])}, ...")
    width, grid = token.shape[2], round(max(0, positions.shape[1] - 1) ** 0.5)
    if width % _HEAD:
        raise DataError(f"{expected}, got {width} channels")
    with torch.device("meta"):  # its size is that of the tensors, whatever their names say
        net = VisionTransformer(width, max(blocks) + 1, grid)
    try:
        net.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except RuntimeError as error:
        raise DataError(f"{expected}, got other tensors ({' '.join(str(error).split())[:200]})") from error
    return net.eval().requires_grad_(False)


def preprocessed(images: Tensor) -> Tensor:
    """uint8 images (B, 1 or 3, H, W) -> (B, 3, 224, 224) as EDM2's calculate_metrics.py prepares them.

    Bicubic, antialiased, not rounded and not clipped; then [0, 1], then ImageNet's mean and deviation.
    """
    x = images.expand(-1, 3, -1, -1).float()
    x = functional.interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True) / 255
    mean, std = (torch.tensor(values, device=x.device).reshape(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (x - mean) / std


class Dinov2Extractor:
    """Class tokens (B, width) of uint8 images, named after the size and the weights."""

    fidelity = False

    def __init__(self, net: VisionTransformer, digest: str, device: torch.device | str = "cpu") -> None:
        self._net, self._device, self.digest = net.to(device), device, digest
        self.dim = net.cls_token.shape[2]
        self.name = f"{NAMES.get(self.dim, 'dinov2_vit')}_{digest[:8]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images: expected uint8 (B, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}")
        parts = images.to(self._device).split(_BATCH)
        return torch.cat([self._net(preprocessed(part)).cpu() for part in parts])

    def logits(self, features: Tensor) -> None:
        """It has no classes."""
        del features
