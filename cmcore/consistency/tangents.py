"""TrigFlow and the continuous-time tangent of sCM (arXiv 2410.11081), carried through the network.

TrigFlow: x_t = cos t x_0 + sin t z with z ~ N(0, sigma_data^2 I), t in [0, pi/2], and
f(x_t, t) = cos t x_t - sin t sigma_data F(x_t/sigma_data, t). The denoiser's network is F up to its sign (see
diffusion/precond.py), so a diffusion model of this project is a TrigFlow model as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmcore.diffusion.path import TrigFlow
from cmcore.diffusion.precond import Denoiser, Labels, noise_coordinate, with_inputs
from cmcore.dual import Dual, Value, each, entrywise
from cmcore.tensors import expand_like, full_precision, norm_per_sample

TrigNet = Callable[[Any, Any], Any]
"""F_trig(x/sigma_data (B, ...), t (B,)) -> (B, ...), of tensors or of Duals."""

_precision: ContextVar[str] = ContextVar("jvp_precision", default="fp32")


@contextmanager
def jvp_precision(name: str) -> Iterator[None]:
    """A block whose derivatives are computed as `train.jvp_precision` says: see train/precision.py."""
    before = _precision.set(name)
    try:
        yield
    finally:
        _precision.reset(before)


def derivative_precision(device: torch.device) -> AbstractContextManager[object]:
    """A block of what a derivative is taken of and along: the run's autocast holds beside tangents in bf16 alone."""
    return nullcontext() if _precision.get() == "bf16" else full_precision(device)


class Tangent(NamedTuple):
    """F (B, ...) of the online network, with its graph, and cos t sin t sigma_data dF/dt (B, ...), without."""

    F: Tensor
    scaled_dF: Tensor  # noqa: N815 (the paper's symbol)


def conditional_trig_net(denoiser: Denoiser) -> Callable[[Any, Any, Labels], Any]:
    """F_trig(x/sigma_data, t, labels), for x/sigma_data (B, ...), t (B,): minus the network at sigma_data tan t."""
    path = TrigFlow(denoiser.sigma_data)

    def coordinate(t: Tensor) -> Tensor:
        return noise_coordinate(path.level(t), denoiser.sigma_data, denoiser.coordinate)

    def minus_net(u: Value, t: Value, labels: Labels) -> Value:
        return each(torch.neg, denoiser.raw(u, entrywise(coordinate, t), labels))

    return minus_net


def trig_net(denoiser: Denoiser, labels: Labels) -> TrigNet:
    """F_trig(x/sigma_data, t) for these labels: the function that is differentiated."""
    F = conditional_trig_net(denoiser)
    return lambda u, t: F(u, t, labels)


def scaled_jvp(F: TrigNet, x_t: Tensor, t: Tensor, dx_dt: Tensor, sigma_data: float) -> Tangent:
    """F and cos t sin t sigma_data dF/dt along the trajectory, in one pass (arXiv 2410.11081, sec. 4.1 and App. F).

    The factor cos t sin t sigma_data goes into the tangent before the differentiation, so nothing large is ever formed:
    near t = pi/2 the derivative of c_noise = ln(tan t)/4 alone would be 1/(4 cos t sin t).
    """
    scale = torch.cos(t) * torch.sin(t)
    half = torch.bfloat16 if _precision.get() == "bf16" else None
    u = Dual(x_t / sigma_data, expand_like(scale, x_t) * dx_dt, half)
    with derivative_precision(x_t.device):
        out = F(u, Dual(t, scale * sigma_data))
    return Tangent(F=out.value.to(x_t.dtype), scaled_dF=out.tangent.to(x_t.dtype))


def consistency_tangent(x_t: Tensor, t: Tensor, dx_dt: Tensor, tangent: Tangent, sigma_data: float, r: float) -> Tensor:
    """g = -cos^2 t (sigma_data F - dx/dt) - r cos t sin t (x_t + sigma_data dF/dt) (arXiv 2410.11081, Alg. 1).

    With r = 1 this is cos t times df/dt, so it vanishes at the exact consistency function; r < 1 is the warm-up.
    """
    cos, sin = expand_like(torch.cos(t), x_t), expand_like(torch.sin(t), x_t)
    F_sg = tangent.F.detach()
    return -(cos**2) * (sigma_data * F_sg - dx_dt) - r * (cos * sin * x_t + tangent.scaled_dF)


def normalise(g: Tensor, c: float) -> Tensor:
    """g / (||g|| + c) with the plain L2 norm of a whole image (arXiv 2410.11081, sec. 4.2, Alg. 1)."""
    return g / expand_like(norm_per_sample(g) + c, g)


def total_derivative(
    denoiser: Denoiser, x: Tensor, t: Tensor, dx_dt: Tensor, labels: Labels = None, *, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """f(x, t) with its graph, and its derivative df/dt along a trajectory in VE time, in one pass.

    With `graph` the derivative has a graph too: it is then the gradient of w -> <w J, (dx/dt, 1)> with the Jacobian J,
    where w J is a gradient itself.
    """
    ones = torch.ones_like(t)
    if not graph:
        half = torch.bfloat16 if _precision.get() == "bf16" else None
        with derivative_precision(x.device):
            out = denoiser(Dual(x, dx_dt, half), Dual(t, ones), labels)
        return out.value, out.tangent.to(x.dtype)
    # Fused attention has no second derivative.
    with full_precision(x.device), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
        f = denoiser(x, t, labels)
        w = torch.zeros_like(f, requires_grad=True)
        by_x, by_t = torch.autograd.grad(f, (x, t), w, create_graph=True)
        along = (by_x * dx_dt).sum() + (by_t * ones).sum()
        (df_dt,) = torch.autograd.grad(along, w, create_graph=True)
    return f, df_dt


def end_derivative(
    denoiser: Denoiser, x: Tensor, t: Tensor, name: str, end: Tensor, labels: Labels = None
) -> tuple[Tensor, Tensor]:
    """D(x, t) of a network whose input `name` is the level (B,) where a jump ends, and dD/dend; both with a graph.

    The derivative is the gradient of w -> <w, dD/dend>, which is a gradient itself.
    """
    with full_precision(x.device), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        end = end.detach().requires_grad_()
        D = denoiser(x, t, with_inputs(labels, **{name: end}))
        w = torch.zeros_like(D, requires_grad=True)
        (by_end,) = torch.autograd.grad(D, end, w, create_graph=True)
        (derivative,) = torch.autograd.grad(by_end.sum(), w, create_graph=True)
    return D, derivative
