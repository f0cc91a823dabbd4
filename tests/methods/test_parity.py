"""Details in which papers and official code differ: as in the code that made the published numbers."""

import pytest
import torch
from tiny import SHAPE, batches, flat, make_method, make_state, make_train

from cmcore.methods.base import Progress
from cmcore.rng import Draws
from cmcore.train.steps import steps

PIXELS = SHAPE[0] * SHAPE[1] * SHAPE[2]


def edm_gradient(reduction: str | None) -> torch.Tensor:
    method, config = make_method("edm", **({"reduction": reduction} if reduction else {})), make_train(images=32)
    state = make_state(method, config, noise=0.3)
    next(steps(state, method, batches, config))
    return flat(p.grad for p in state.parameters)


def test_edm_back_propagates_the_sum_over_the_pixels():
    """NVlabs/edm, training/training_loop.py: loss.sum() over pixels and images, over the batch size."""
    method, config = make_method("edm"), make_train(images=32)
    state, draws = make_state(method, config, noise=0.3), Draws(config.seed, 0, 32)
    images = batches(draws)
    sigma = (-1.2 + 1.2 * draws.normal(stream="level", dtype=torch.float64)).exp()
    column = sigma.float()[:, None, None, None]
    noisy = images.x + column * draws.normal(SHAPE, stream="noise")
    weight = (column**2 + 0.5**2) / (column * 0.5) ** 2
    loss = (weight * (state.nets.student(noisy, sigma, None) - images.x) ** 2).sum() / 32
    expected = flat(torch.autograd.grad(loss, list(state.parameters)))
    assert float(expected.norm()) > 1
    torch.testing.assert_close(edm_gradient(None), expected, rtol=1e-4, atol=1e-5)


def test_the_mean_over_the_pixels_is_there_for_the_teachers_of_cm():
    torch.testing.assert_close(PIXELS * edm_gradient("mean"), edm_gradient("sum"), rtol=1e-5, atol=1e-6)


def test_adams_eps_means_what_it_means_beside_the_gradients_of_the_sum():
    """The mean takes the steps of the sum where its eps is divided by the pixels, and others where eps is the same."""

    def trained(reduction: str, eps: float) -> torch.Tensor:
        method = make_method("edm", reduction=reduction)
        config = make_train(images=320, optimiser="adam", eps=eps)
        state = make_state(method, config)
        for _ in steps(state, method, batches, config):
            pass
        return flat(state.parameters)

    of_sum = trained("sum", 0.1)
    torch.testing.assert_close(trained("mean", 0.1 / PIXELS), of_sum, rtol=1e-5, atol=1e-6)
    assert float((trained("mean", 0.1) - of_sum).norm()) > 1e-2


@pytest.mark.parametrize(("mu0", "gaps", "points"), [(0.9, 0.81, 0.9), (0.95, 0.9025, 0.95)])
def test_the_first_decay_of_ct_counts_gaps_unless_told_otherwise(mu0: float, gaps: float, points: float):
    """cm/script_util.py and jcm/losses.py: mu = exp(s0 ln mu0 / (N - 1)), of two points at the start."""
    first = Progress(0, 1000, 10)
    for options, expected in (({}, gaps), ({"mu_counts": "points"}, points)):
        (target,) = make_method("ct", s0=2, s1=150, mu0=mu0, **options).after(first)
        assert target.decay == pytest.approx(expected, rel=1e-12)


def test_the_stages_of_ect_change_one_iteration_late():
    """locuslab/ect, training/ct_training_loop.py: tick 0 is one batch, and every stage ends with a whole tick."""
    method, batch, iterations, stages = make_method("ect", stages=4), 8, 40, 4
    state = make_state(method, make_train())

    def stage(iteration: int) -> float:
        draws = Draws(1, iteration * batch, batch)
        progress = Progress(iteration * batch, iterations * batch, batch)
        return float(method.loss(state.nets, batches(draws), progress, draws).scalars["stage"])

    seen = [stage(k) for k in range(iterations)]
    assert [k for k in range(1, iterations) if seen[k] != seen[k - 1]] == [11, 21, 31]
    assert (seen[0], seen[-1]) == (0, stages - 1)
