"""The cost of passes through a network, in operations and memory, counted on the meta device without any compute.

The network is the real one and so are the passes, tangents included, so what a method wastes is counted
too. A convolution or a matrix product counts 2 operations per multiply-add; everything else counts none.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from cmcore.consistency.tangents import scaled_jvp, trig_net
from cmcore.diffusion.precond import Denoiser
from cmcore.tensors import meta_dtype, meta_precision

Flops = Counter[torch.dtype]  # operations by the precision they run in
M = TypeVar("M", bound=nn.Module)
PassKind = Literal["forward", "forward+backward", "jvp", "jvp+backward"]

F = nn.functional
# CUDA's autocast: what it runs in 16 bits, and what it runs in 32 (torch.amp, "Op Eligibility").
LOWERED: set[Any] = {
    F.conv1d, F.conv2d, F.conv_transpose2d, F.linear, torch.conv2d, torch.matmul, torch.mm, torch.bmm, torch.baddbmm,
    torch.addmm, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, F.scaled_dot_product_attention,
}  # fmt: skip
RAISED: set[Any] = {
    F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, torch.norm, torch.linalg.vector_norm,
    torch.exp, Tensor.exp, torch.log, Tensor.log, torch.rsqrt, Tensor.rsqrt, torch.pow, Tensor.pow, Tensor.__pow__,
    Tensor.sum, torch.sum, Tensor.square, torch.square, F.mse_loss,
}  # fmt: skip


class Meter(TorchDispatchMode):
    """Counts the operations that run inside, and the most bytes that tensors made inside occupied at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Flops = Counter()
        self.live = self.peak = 0
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            dtype = next(leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            self.flops[dtype] += int(count(*args, **(kwargs or {}), out_val=out))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = None
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


class Autocast(TorchFunctionMode):
    """CUDA's automatic mixed precision on the meta device, in the type that `meta_precision` sets."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        dtype = meta_dtype.get()
        if dtype is not None and (func in LOWERED or func in RAISED):
            args, kwargs = _cast((args, kwargs), dtype if func in LOWERED else torch.float32)
        if func is F.scaled_dot_product_attention and not kwargs:
            # The kernel that CUDA takes, in place of the decomposition that the meta device would.
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args[:3], None, True)[0]
        return func(*args, **kwargs)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    floats = (torch.float32, torch.float16, torch.bfloat16)
    return tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.dtype in floats else v, values)


@dataclass(frozen=True)
class PassCost:
    """One pass of one image, and the memory of a pass of a batch: `base` bytes and `per_image` for each image."""

    flops: Flops
    base: int
    per_image: int

    def bytes(self, rows: int) -> int:
        """Peak of what the pass allocates, gradients included, for a micro-batch."""
        return self.base + self.per_image * rows


def on_meta(build: Callable[[], M]) -> M:
    """A module of which only the shapes exist."""
    with torch.device("meta"):
        return build()


def parameter_count(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def pass_cost(
    denoiser: Denoiser,
    kind: PassKind,
    shape: tuple[int, int, int],
    *,
    labels_of: Callable[[int], Tensor | None],
    dtype: torch.dtype | None,
) -> PassCost:
    """Count a pass of a denoiser that is on the meta device.

    Args:
        denoiser: the network with its preconditioning.
        kind: what is passed through it; "jvp" is sCM's derivative by time beside the value, under `jvp_precision`.
        shape: (C, H, W) of an image.
        labels_of: labels of so many rows; None for a network that sees none.
        dtype: of automatic mixed precision, or None for full precision.
    """

    def count(rows: int) -> Meter:
        with torch.device("meta"):
            x, level = torch.empty(rows, *shape), torch.empty(rows, dtype=torch.float64)
            labels = labels_of(rows)
        trained = kind.endswith("backward")
        denoiser.requires_grad_(trained).train(trained)
        meter = Meter()
        with meter, meta_precision(dtype), Autocast(), torch.set_grad_enabled(trained):
            if kind.startswith("jvp"):
                out = scaled_jvp(trig_net(denoiser, labels), x, level, x, denoiser.sigma_data).F
            else:
                out = denoiser(x, level, labels)
            if trained:
                out.backward(torch.empty_like(out))
            del out
        for parameter in denoiser.parameters():
            parameter.grad = None
        return meter

    two = count(2)
    flops = Counter({precision: round(total / 2) for precision, total in two.flops.items()})
    per_image = (count(4).peak - two.peak) // 2
    return PassCost(flops, max(0, two.peak - 2 * per_image), per_image)


VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # channels; 0 halves the size


def lpips_cost() -> PassCost:
    """LPIPS of a pair of images at 224x224, with the gradient to one of them: the convolutions of VGG-16."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in VGG16:
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        inputs = width or inputs
    trunk = nn.Sequential(*layers).to("meta").requires_grad_(False)
    image = torch.empty(1, 3, 224, 224, device="meta", requires_grad=True)
    with Meter() as meter:
        features = trunk(image)
        with torch.no_grad():
            trunk(image)
        features.backward(torch.empty_like(features))
    return PassCost(meter.flops, 4 * sum(p.numel() for p in trunk.parameters()), meter.peak)
