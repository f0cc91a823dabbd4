"""The choices that iCT and sCM leave behind: each is one switch, and leads back to a known loss."""

import pytest
import torch
from exact import SD, START, TwoNumbers, data, nets_of
from tiny import make_method
from torch import Tensor

from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, Blend, Nets
from cmcore.oracles import Gaussian
from cmcore.rng import Draws

ORACLE, DRAWS = Gaussian(0.2, 0.8), Draws(4, 0, 64)
PIXELS = 4


def wrong(seed: float = 0.4) -> Denoiser:
    net = TwoNumbers()
    net.ab.data[0] = seed
    return Denoiser(net, sigma_data=SD, epsilon=DiffusionConfig().sigma_min)


def test_ict_without_its_improvements_is_ct():
    """Fixed grid, uniform levels, no weight, EMA target: the loss of 2023, whose s counts points and not gaps."""
    nets = nets_of(wrong(), target=wrong(-0.7))
    ict = make_method("ict", s0=10, s1=10, levels="uniform", weighting="none", mu=0.9, huber_c=0.03)
    ct = make_method("ct", s0=11, s1=11, distance="pseudo_huber", huber_c=0.03)
    batch = data(ORACLE, DRAWS)
    losses = [method.loss(nets, batch, START, DRAWS).loss for method in (ict, ct)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    assert set(ict.networks) == set(ct.networks)
    (action,) = ict.after(START)
    assert isinstance(action, Blend)
    assert (action.source, action.decay) == (STUDENT, 0.9)


@pytest.mark.parametrize("change", [{"levels": "uniform"}, {"weighting": "none"}, {"mu": 0.9}])
def test_every_switch_of_ict_tells(change: dict[str, object]):
    nets, batch = nets_of(wrong(), target=wrong(-0.7)), data(ORACLE, DRAWS)
    usual, changed = (make_method("ict", **options).loss(nets, batch, START, DRAWS).loss for options in ({}, change))
    assert not torch.allclose(usual, changed)


def test_ect_weighs_the_same_distance_by_the_gap_or_not():
    nets, batch = nets_of(wrong()), data(ORACLE, DRAWS)
    made = [make_method("ect", weighting=kind).loss(nets, batch, START, DRAWS) for kind in ("gap", "none")]
    weighed, plain = (one.loss.detach() for one in made)
    torch.testing.assert_close(plain.mean(), made[0].scalars["distance"])  # of which the gap alone makes the loss
    assert not torch.allclose(weighed, plain)


def sct_loss(**options: object) -> Tensor:
    """Per sample, with w = 0, as it is at the start of training."""
    method = make_method("sct", warmup_images=0, **options)
    made = {name: network.make() for name, network in method.networks.items() if network.make is not None}
    return method.loss(Nets({**made, **nets_of(wrong()).modules}), data(ORACLE, DRAWS), START, DRAWS).loss.detach()


def test_the_tangent_of_scm_plain_normalised_and_clipped():
    """||g||^2/D, (||g||/(||g|| + c))^2/D, and less than either 1 or the first."""
    plain, clipped = sct_loss(tangent="plain"), sct_loss(tangent="clipped")
    norm = (plain * PIXELS).sqrt()
    torch.testing.assert_close(sct_loss(c=0.3), (norm / (norm + 0.3)) ** 2 / PIXELS, rtol=1e-5, atol=0)
    assert (clipped <= plain.clamp(max=1) + 1e-9).all()
    assert (clipped < plain).any()
    small = norm < 1
    assert small.any()
    torch.testing.assert_close(clipped[small], plain[small])


def test_the_adaptive_weight_of_scm_can_be_left_out():
    assert make_method("sct", weighting="none").networks == {}
    assert set(make_method("scd", weighting="none").networks) == {"teacher"}
    torch.testing.assert_close(sct_loss(weighting="none"), sct_loss())
