"""The MeanFlow identity u = v - (t - r) du/dt (arXiv 2505.13447), for a denoiser in the place of u."""

from torch import Tensor

from cmcore.tensors import expand_like, sum_per_sample


def identity_error(D: Tensor, dD: Tensor, image: Tensor, origin: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """||u + (t - r) sg[du/dt] - v||^2 (B,), a sum over the pixels, for u = (x_t - D)/t and v = z - image.

    With x_t = (1 - t) image + t z and the derivative along (x_t - origin)/t, the residual times t is
    image - D + (1 - r/t) (D - origin) - (t - r) dD/dt: nothing large is formed.

    Args:
        D: the denoiser's output (B, ...) for a jump from t to r, with its graph.
        dD: its derivative in sigma (B, ...) along that direction, r fixed.
        image: (B, ...).
        origin: (B, ...), the prediction of the clean image that the direction comes from: `image` for the sample's own.
        t: times (B,) on the linear path.
        r: where jumps end, at most t.
    """
    dt = (t - r) / (1 - t) ** 2  # dsigma/dt = 1/(1 - t)^2
    # With r = t this is the image to the bit, and the row is flow matching.
    target = image + expand_like(1 - r / t, D) * (D.detach() - origin) - expand_like(dt, D) * dD.detach()
    return sum_per_sample((D - target) ** 2) / (t**2).to(D.dtype)
