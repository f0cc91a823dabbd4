"""Label dropout and guided distillation: the losses against what they are by hand."""

import math

import pytest
import torch
from tiny import DIFFUSION, SHAPE, make_method, make_train
from torch import Tensor

from cmcore.consistency.distances import distance
from cmcore.consistency.pairs import uniform_pair
from cmcore.consistency.trigflow import WEIGHT, continuous_loss, sample_point
from cmcore.diffusion import ode
from cmcore.diffusion.guidance import with_scale
from cmcore.diffusion.inputs import GUIDANCE, NO_LABEL
from cmcore.diffusion.precond import Denoiser
from cmcore.methods.base import STUDENT, Batch, Nets, Progress
from cmcore.nets import mlp
from cmcore.oracles import GaussianMixture
from cmcore.rng import Draws
from cmcore.tensors import expand_like
from cmcore.train.state import State, new_state
from cmcore.train.steps import steps

HALFWAY = Progress(images=160, total=320, batch=16)
DRAWS = Draws(1, 160, 16)


def labelled(*, guidance: bool = False, seed: int = 0, noise: float = 0.3, hidden: int = 16) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = mlp.Config(hidden=hidden, blocks=1, embedding_width=16, features=8, residual_gain=1.0)
        inputs = (GUIDANCE,) if guidance else ()
        net = mlp.build(config, channels=SHAPE[0], resolution=SHAPE[1], classes=2, inputs=inputs)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += noise * torch.randn_like(parameter)
    return Denoiser(net, sigma_data=DIFFUSION.sigma_data, inputs=inputs)


def batches(draws: Draws) -> Batch:
    """Images 0.5 of class 0 and -0.5 of class 1, with a little noise."""
    labels = (draws.uniform(stream="class") < 0.5).long()
    x = (0.5 - labels.float())[:, None, None, None] + 0.05 * draws.normal(SHAPE, stream="data")
    return Batch(x, labels)


def state_of(name: str, **options: object) -> State:
    student = labelled(guidance="guidance" in options)
    return new_state(make_method(name, **options), student, make_train(), teacher=labelled(seed=7))


def test_with_all_labels_dropped_the_loss_is_that_of_no_label():
    batch = batches(DRAWS)
    state = state_of("edm", label_dropout=1.0)
    dropped = make_method("edm", label_dropout=1.0).loss(state.nets, batch, HALFWAY, DRAWS).loss
    nothing = batch._replace(labels=torch.full((16,), NO_LABEL))
    torch.testing.assert_close(dropped, make_method("edm").loss(state.nets, nothing, HALFWAY, DRAWS).loss)
    dropped.sum().backward()
    weight = state.nets.student.net.get_parameter("embedding.label.weight")
    assert weight.grad is not None
    assert bool((weight.grad == 0).all())


def test_each_image_has_its_label_or_none():
    """Level and noise are those of a step without dropout: dropping draws from a stream of its own."""
    batch, state = batches(DRAWS), state_of("edm", label_dropout=0.5)
    some = make_method("edm", label_dropout=0.5).loss(state.nets, batch, HALFWAY, DRAWS).loss
    nothing = batch._replace(labels=torch.full((16,), NO_LABEL))
    all_labels, no_labels = (make_method("edm").loss(state.nets, b, HALFWAY, DRAWS).loss for b in (batch, nothing))
    dropped = DRAWS.uniform(stream="label_dropout") < 0.5
    assert 0 < int(dropped.sum()) < 16
    torch.testing.assert_close(some, torch.where(dropped, no_labels, all_labels))


def test_dropped_labels_teach_the_denoiser_of_all_classes_together():
    """Against the exact denoisers: of each class under its label, of the mixture under none."""
    config = make_train(images=20_000, batch=100, lr=1e-2, lr_decay="linear", ema={}, eval_ema="raw")
    method = make_method("edm", label_dropout=0.5, P_mean=math.log(0.7), P_std=0.1)
    state = new_state(method, labelled(noise=0.0, hidden=32), config)
    for _ in steps(state, method, batches, config):
        pass
    denoiser = state.nets.student.eval()
    sigma = torch.full((64,), 0.7, dtype=torch.float64)
    z = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(5))
    x = 0.5 * torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)[:, None, None, None] + 0.7 * z
    means, std = torch.stack([torch.full(SHAPE, 0.5), torch.full(SHAPE, -0.5)]), torch.tensor([0.05, 0.05])
    both = GaussianMixture(torch.tensor([0.5, 0.5]), means, std).denoise(x, sigma)
    first = GaussianMixture(torch.tensor([1.0]), means[:1], std[:1]).denoise(x, sigma)
    with torch.no_grad():
        unlabelled = denoiser(x, sigma, torch.full((64,), NO_LABEL))
        labelled_0 = denoiser(x, sigma, torch.zeros(64, dtype=torch.int64))

    def rms(error: Tensor) -> float:
        return float(error.square().mean().sqrt())

    assert rms(both - first) > 0.3
    assert rms(unlabelled - both) < 0.15
    assert rms((labelled_0 - first)[::2]) < 0.15  # images of the class, as in training


def test_the_tangent_of_guided_scd_is_the_one_by_hand():
    method, state, batch = make_method("scd", guidance=(1.0, 2.0)), state_of("scd", guidance=(1.0, 2.0)), batches(DRAWS)
    out, nets, sd = method.loss(state.nets, batch, HALFWAY, DRAWS), state.nets, DIFFUSION.sigma_data
    s = 1 + DRAWS.uniform(stream="guidance")
    point = sample_point(batch.x, method.config, sd, DRAWS)
    nothing = torch.full((16,), NO_LABEL)
    with torch.no_grad():  # F_trig is minus the network, at c_noise = ln(sigma_data tan t)/4
        c_noise = ((sd * point.t.tan()).log() / 4).float()
        known, unknown = (-nets.teacher.net(point.x_t / sd, c_noise, y) for y in (batch.labels, nothing))
        dx_dt = sd * (unknown + expand_like(s, unknown) * (known - unknown))
    r = method.config.warmup(HALFWAY.images)
    head, scaled = nets[WEIGHT], with_scale(batch.labels, s)
    by_hand, scalars = continuous_loss(nets.student, head, scaled, point, dx_dt, method.config, r)
    torch.testing.assert_close(out.loss, by_hand)
    torch.testing.assert_close(out.scalars["tangent_norm"], scalars["tangent_norm"])
    plain = make_method("scd").loss(Nets({**nets.modules, STUDENT: labelled()}), batch, HALFWAY, DRAWS)
    assert (plain.scalars["tangent_norm"] - scalars["tangent_norm"]).abs() > 1e-4


def test_guided_cd_steps_along_the_guided_flow():
    options = {"guidance": (1.0, 2.0), "solver": "euler"}
    method, state, batch = make_method("cd", **options), state_of("cd", **options), batches(DRAWS)
    out, nets = method.loss(state.nets, batch, HALFWAY, DRAWS), state.nets
    s, (t, r) = 1 + DRAWS.uniform(stream="guidance"), uniform_pair(DRAWS.uniform(stream="level"), 18, DIFFUSION)
    teacher, nothing = nets.teacher, torch.full((16,), NO_LABEL)

    def guided(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        D = teacher(x, sigma, nothing)
        return D + expand_like(s, D) * (teacher(x, sigma, labels) - D)

    x_t = batch.x + expand_like(t, batch.x) * DRAWS.normal(SHAPE, stream="noise")
    labels = with_scale(batch.labels, s)
    with torch.no_grad():
        target = nets.student(ode.euler_step(guided, x_t, t, r, batch.labels), r, labels)
    by_hand = distance("pseudo_huber", method.config.huber_c)(nets.student(x_t, t, labels), target)
    torch.testing.assert_close(out.loss, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cd", "scd"])
def test_a_range_of_one_scale_at_one_is_plain_distillation_of_a_fresh_student(name: str):
    """As the embedding is zero at first, and s = 1 is no guidance."""
    state, plain = state_of(name, guidance=(1.0, 1.0)), state_of(name)
    own = {n: t * 0 for n, t in state.nets.student.net.state_dict().items() if n.startswith("embedding.inputs.")}
    weights = state.nets.student.net.state_dict() | plain.nets.student.net.state_dict() | own
    state.nets.student.net.load_state_dict(weights)
    guided = make_method(name, guidance=(1.0, 1.0)).loss(state.nets, batches(DRAWS), HALFWAY, DRAWS).loss
    torch.testing.assert_close(guided, make_method(name).loss(plain.nets, batches(DRAWS), HALFWAY, DRAWS).loss)
