"""Guided losses of normal classes: their fixed point is the flow of the guided class, which is known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from classes import MEAN, SHAPE, STD, Mean, at, class_denoiser, class_map, of_class, told
from exact import SD, START, nets_of
from maps import residual
from tiny import DIFFUSION, make_method
from torch import Tensor, nn

from cmcore.diffusion.inputs import GUIDANCE, NO_LABEL
from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.ode import euler_prediction, euler_step
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Condition, Denoiser, Labels, as_condition, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import TEACHER, Batch, Nets, Progress
from cmcore.methods.meanflow import END
from cmcore.methods.shortcut import HALVINGS
from cmcore.oracles import Gaussian
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.builtin import BuiltIn
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.settings import Sampling

B = 200
SAMPLING = Sampling(diffusion=DIFFUSION, steps=3, two_step=0.8)


def labelled(draws: Draws, share: float) -> Tensor:
    """The rows that keep their label."""
    return draws.uniform(stream="label_dropout") >= share


@pytest.mark.parametrize(("omega", "kappa"), [(1.0, 0.5), (2.0, 0.0), (1.2, 0.4), (0.5, 0.0)])
def test_meanflow_s_fixed_point_is_the_guided_flow(omega: float, kappa: float):
    method = make_method("meanflow", omega=omega, kappa=kappa, label_dropout=0.1, power=0.0)
    draws = Mean(3, B, lambda d: method.levels(d)[0])
    rows = labelled(draws, 0.1)
    assert 0 < int((~rows).sum()) < B

    def loss(s: float) -> Tensor:
        student = class_map(END, method.traits.inputs, at(s))
        return method.loss(nets_of(student), draws.data, START, draws).loss.detach()[rows]

    s = omega / (1 - kappa)
    assert float(loss(s).max()) < 1e-18
    assert float(loss(s + 0.2).median()) > 1e-4


def test_an_image_without_a_label_has_meanflow_s_own_target():
    """Of any network: such rows have the loss of a batch without labels under no guidance."""
    method, plain = (make_method("meanflow", power=0.0, **more) for more in ({"kappa": 0.5, "label_dropout": 0.3}, {}))
    student, draws = class_map(END, method.traits.inputs, at(1.7)), Draws(3, 0, B)
    batch = of_class(draws)
    found = method.loss(nets_of(student), batch, START, draws).loss.detach()
    nothing = batch._replace(labels=torch.full((B,), NO_LABEL))
    expected = plain.loss(nets_of(student), nothing, START, draws).loss.detach()
    rows = labelled(draws, 0.3)
    torch.testing.assert_close(found[~rows], expected[~rows])
    assert not bool(torch.isclose(found, expected)[rows].all())


@pytest.mark.parametrize("scales", [(1.0, 8.0), (0.5, 3.0)])
def test_imf_s_fixed_point_is_the_guided_flow_at_every_scale(scales: tuple[float, float]):
    method = make_method("imf", guidance=scales, label_dropout=0.1, power=0.0, equal=0.3)
    draws = Mean(3, B, lambda d: method.levels(d)[0])
    rows = labelled(draws, 0.1)
    w = method.scales(scales, draws)
    assert scales[0] <= float(w.min()) < float(w.max()) <= scales[1]
    assert float(w.log().mean()) == pytest.approx(sum(torch.tensor(scales).log().tolist()) / 2, abs=0.2)

    def loss(scale: Callable[[Condition], Tensor | float]) -> Tensor:
        student = class_map(SECOND_TIME.name, method.traits.inputs, scale)
        return method.loss(nets_of(student), draws.data, START, draws).loss.detach()[rows]

    assert float(loss(told).max()) < 1e-18
    assert float(loss(at(1.0))[(w - 1)[rows].abs() > 0.5].median()) > 1e-4


@pytest.mark.parametrize("mix", [1.0, 0.25])
def test_soflow_guided_is_soflow_of_the_guided_class(mix: float):
    """At the exact map of the guided class every row's Q is that of the class itself, for any mix."""
    s, shared = 2.5, {"equal": 0.3, "last_gap": 0.1, "first_gap": 0.1}
    method = make_method("soflow", guidance=s, mix=mix, label_dropout=0.1, **shared)
    plain = make_method("soflow", **shared)
    draws = Mean(3, B, lambda d: Linear().level(method.times(START, d)[0]))
    rows = labelled(draws, 0.1)
    student = class_map(SECOND_TIME.name, method.traits.inputs, at(s))
    found = residual(method, student, draws.data, START, draws)
    sigma = Linear().level(method.times(START, draws)[0])
    image = Gaussian(s * MEAN, STD).denoise(draws.x, sigma)
    draws.z = (draws.x - image) / sigma[:, None, None, None]
    expected = residual(plain, student, Batch(image, draws.data.labels), START, draws)
    torch.testing.assert_close(found[rows], expected[rows], rtol=1e-8, atol=1e-10)
    t, _, end = method.times(START, draws)
    assert float(found[rows & (t == end)].abs().max()) < 1e-9  # rows of flow matching have none left


def test_soflow_s_guidance_fades():
    method = make_method("soflow", guidance=3.0, mix=0.25, fade=0.8, equal=0.75, label_dropout=0.1)
    t = torch.tensor([0.1, 0.8, 0.8001, 0.9, 1 - 1e-9], dtype=torch.float64)
    strength = method.strength(t)
    assert strength[:2].tolist() == [1.0, 1.0]
    assert float(strength[3]) == pytest.approx(0.0246901, abs=1e-7)  # 1 - exp(-0.025)
    assert float(strength[2]) > 0.999
    assert float(strength[4]) == pytest.approx(0.0, abs=1e-6)
    assert make_method("soflow").strength(t).tolist() == [1.0] * 5


def steps_of(method: Any, scale: float) -> Denoiser:
    """Denoisers of the smallest steps, and maps of the others at a scale."""

    def end_of(sigma: Tensor, condition: Condition) -> Tensor:
        k = condition.inputs[HALVINGS]
        r = (Linear().time(sigma) - method.way / 2**k).clamp(min=0)
        return torch.where(k == method.config.finest, sigma, Linear().level(r))

    net = class_map(HALVINGS, method.traits.inputs, lambda c: torch.where(c.inputs[HALVINGS] == 3, 1.0, scale)).net
    net.end_of = end_of
    return Denoiser(net, sigma_data=SD, inputs=method.traits.inputs)


def test_shortcut_s_smallest_steps_are_guided_where_they_are_targets():
    method = make_method("shortcut", steps=8, guidance=2.0, label_dropout=0.1)
    plain, target = make_method("shortcut", steps=8), steps_of(method, 2.0)
    draws, nets = Draws(1, 0, 64), nets_of(target, target=target)
    labels, x = torch.zeros(64, dtype=torch.int64), draws.normal(SHAPE, stream="x").double()
    k = (3 * draws.uniform(stream="size")).long()
    t = method.way * ((draws.uniform(stream="level") * 2**k).floor() + 1) / 2**k
    found = method.bootstrap(nets, x, k, t, labels)
    fine = k == 2
    torch.testing.assert_close(found[~fine], plain.bootstrap(nets, x, k, t, labels)[~fine])
    start, middle, end = (Linear().level(v[fine]) for v in (t, t - method.way / 8, t - method.way / 4))

    def guided(x: Tensor, sigma: Tensor, labels: Labels) -> Tensor:
        return Gaussian(2.0 * MEAN, STD).denoise(x, sigma)

    landed = euler_step(guided, euler_step(guided, x[fine], start, middle), middle, end)
    torch.testing.assert_close(found[fine], euler_prediction(x[fine], landed, start, end))
    rest = k < 2  # steps of the guided class itself, two of which are one
    exact = class_map(HALVINGS, method.traits.inputs, at(2.0))
    exact.net.end_of = lambda sigma, c: Linear().level(Linear().time(sigma) - method.way / 2 ** c.inputs[HALVINGS])
    one = exact(x[rest], Linear().level(t[rest]), with_inputs(labels[rest], halvings=k[rest].double()))
    torch.testing.assert_close(found[rest], one)


class Seen(nn.Module):
    """A denoiser of zeros that keeps the labels it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.zero, self.labels = nn.Parameter(torch.zeros(())), list[Tensor]()

    def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        del sigma
        found = as_condition(labels).labels
        assert found is not None
        self.labels.append(found)
        return self.zero * x


def test_shortcut_drops_the_labels_of_rectified_flow_alone():
    method, student, draws = make_method("shortcut", label_dropout=1.0), Seen(), Draws(1, 0, 64)
    nets = Nets({"student": student, "target": student})
    method.loss(nets, of_class(draws), START, draws)
    bootstrapped = method.step(draws)[0]
    *targets, rows = student.labels
    assert torch.equal(rows == NO_LABEL, ~bootstrapped)
    assert all((labels == 0).all() for labels in targets)


def test_shortcut_guides_the_smallest_steps_when_it_samples():
    rows = make_method("shortcut", steps=4, guidance=2.0, label_dropout=0.1).samplers(SAMPLING)
    assert [(row.nfe, row.name) for row in rows] == [
        (1, "flow_map, guidance 2.0"), (2, "flow_map, guidance 2.0"), (8, "flow_map, guidance 2.0"),
    ]  # fmt: skip
    assert [isinstance(row, BuiltIn) for row in rows] == [True, True, False]


def test_guided_jumps_of_imm_are_those_of_the_guided_class():
    """The prediction of a jump is affine in the mean of the class, so two of them are one of the guided class."""
    method = make_method("imm", label_dropout=0.1)
    model = method.model(class_map(SECOND_TIME.name, method.traits.inputs, at(1.0)))
    labels, x_T = torch.zeros(3, dtype=torch.int64), 20 * NoiseSource(0, range(3)).normal(SHAPE)
    levels = torch.full((3,), 20.0, dtype=torch.float64)
    expected = Gaussian(1.5 * MEAN, STD).flow(x_T, levels, 0 * levels + 0.002)
    for row in method.samplers(Sampling(diffusion=DIFFUSION, steps=3, two_step=0.8, guidance=1.5)):
        assert isinstance(row, GuidedSampler)
        assert row.nfe == 2 * row.inner.nfe
        torch.testing.assert_close(row.from_noise(model, x_T, NoiseSource(0, range(3)), labels), expected)
    assert [row.nfe for row in method.samplers(SAMPLING)] == [1, 2, 4]


def test_imm_without_any_label_is_imm_of_no_label():
    method, plain = make_method("imm", label_dropout=1.0), make_method("imm")
    student, draws = class_map(SECOND_TIME.name, method.traits.inputs, at(2.0)), Draws(1, 0, 64)
    batch = of_class(draws)
    nothing = batch._replace(labels=torch.full((64,), NO_LABEL))
    found, expected = (m.loss(nets_of(student), b, START, draws).loss for m, b in ((method, batch), (plain, nothing)))
    assert torch.equal(found, expected)


def test_ctm_s_fixed_point_is_the_guided_flow_at_every_scale():
    diffusion, residuals = DiffusionConfig(sigma_min=0.05, sigma_max=10.0), []
    for N in (11, 21, 41):
        method = make_method("ctm", diffusion, N=N, most=N - 1, distance="l1", guidance=(1.0, 4.0), denoising=0.0)
        draws, inputs = Draws(1, 0, 1000), method.traits.inputs
        student, wrong = (class_map("s", inputs, scale) for scale in (told, at(1.0)))
        for known in (student, wrong):
            nets = nets_of(known, class_denoiser(at(1.0)), known)
            with torch.no_grad():
                residuals.append(float(method.loss(nets, of_class(draws), START, draws).scalars["distance"]))
    good, bad = residuals[::2], residuals[1::2]
    assert good[0] / good[1] > 3.5
    assert good[1] / good[2] > 3.5
    assert bad[2] > 20 * good[2]


def test_ctm_s_denoising_loss_is_that_of_the_guided_class():
    method = make_method("ctm", guidance=(1.0, 4.0))

    def levels(draws: Draws) -> Tensor:
        seen = []

        class Student(nn.Module):
            def forward(self, x: Tensor, sigma: Tensor, labels: Labels) -> Tensor:
                seen.append(sigma)
                return x

        nets = Nets({"student": Student(), TEACHER: class_denoiser(at(1.0))})
        method._denoising(nets, of_class(draws), Draws(draws.seed, 0, draws.batch))
        return seen[0]

    draws = Mean(3, B, levels, "denoising_noise")

    def loss(scale: Callable[[Condition], Tensor | float]) -> float:
        student = class_map("s", method.traits.inputs, scale)
        return float(method._denoising(nets_of(student, class_denoiser(at(1.0))), draws.data, draws).detach().max())

    assert loss(told) < 1e-18
    assert loss(at(1.0)) > 1e-3


def test_ctm_has_no_likelihood_where_it_is_always_guided():
    denoiser = class_map("s", make_method("ctm", guidance=(1.0, 2.0)).traits.inputs, told)
    assert make_method("ctm", guidance=(1.0, 2.0)).diffusion_model(denoiser) is not None
    assert make_method("ctm", guidance=(2.0, 4.0)).diffusion_model(denoiser) is None


def test_pd_guided_is_pd_of_the_guided_class():
    """In its first stage by the teacher, then by the student of the stage before, which is told the scale."""
    method, plain = make_method("pd", steps=4, long=0, guidance=(2.5, 2.5)), make_method("pd", steps=4, long=0)
    student, draws = class_denoiser(at(0.5), (GUIDANCE,)), Draws(1, 0, 64)
    expected = plain.loss(nets_of(student, class_denoiser(at(2.5))), of_class(draws), START, draws).loss
    found = method.loss(nets_of(student, class_denoiser(at(1.0))), of_class(draws), START, draws).loss
    torch.testing.assert_close(found, expected)
    later = Progress(images=400, total=1000, batch=100)
    assert method.stage(later) == 1
    expected = plain.loss(nets_of(student, class_denoiser(at(2.5))), of_class(draws), later, draws).loss
    nets = Nets({**nets_of(student).modules, "earlier": class_denoiser(told, (GUIDANCE,))})
    nets.modules[TEACHER] = class_denoiser(at(-3.0))  # not asked any more
    torch.testing.assert_close(method.loss(nets, of_class(draws), later, draws).loss, expected)


def test_reflow_s_pairs_end_where_the_guided_flow_does():
    method, seen = make_method("reflow", nfe=255, guidance=2.0, steps=1), []

    class Student(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, labels: Labels) -> Tensor:
            seen.append(x)
            return Gaussian(2.0 * MEAN, STD).flow(x, sigma, 0 * sigma)

    draws = Draws(1, 0, 64)
    loss = method.loss(
        Nets({"student": Student(), TEACHER: class_denoiser(at(1.0))}), of_class(draws), START, draws
    ).loss
    assert float(loss.max()) < 1e-5
    (row,) = method.samplers(SAMPLING)
    assert (row.name, row.nfe) == ("euler_linear, guidance 2.0", 1)
    assert isinstance(row, BuiltIn)


@pytest.mark.parametrize("name", ["dmd2", "sid"])
def test_generators_of_the_guided_class_have_nothing_to_learn(name: str):
    class Generator(nn.Module):
        def __init__(self, mean: float) -> None:
            super().__init__()
            self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))

        def forward(self, x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
            return self.mean + STD * x / sigma[:, None, None, None]

    method, draws = make_method(name, guidance=2.0), Draws(1, 0, 500)

    def gradient(s: float) -> float:
        generator = Generator(s * MEAN)
        nets = Nets({"student": generator, TEACHER: class_denoiser(at(1.0)), "fake": class_denoiser(at(s))})
        loss = method.loss(nets, of_class(draws), START, draws).loss.mean()
        return float(torch.autograd.grad(loss, generator.mean)[0])

    assert abs(gradient(2.0)) < 1e-12
    assert gradient(1.0) < -1e-3 < 1e-3 < gradient(3.0)
    (row,) = method.samplers(SAMPLING)
    assert row.name == "multistep, guidance 2.0"


@pytest.mark.parametrize(
    ("name", "options"),
    [("ctm", {"guidance": (1.0, 1.0)}), ("pd", {"guidance": (1.0, 1.0), "steps": 4, "long": 0}),
     ("imf", {"guidance": (1.0, 1.0), "label_dropout": 1e-9})],
)  # fmt: skip
def test_at_a_scale_of_one_the_loss_is_the_plain_one(name: str, options: dict[str, Any]):
    method = make_method(name, **options)
    plain = make_method(name, **{k: v for k, v in options.items() if k not in ("guidance", "label_dropout")})
    inputs, draws = method.traits.inputs, Draws(1, 0, 64)
    student = class_denoiser(at(0.7), inputs) if name == "pd" else class_map("s", inputs, at(0.7))
    nets = nets_of(student, class_denoiser(at(1.0)), student)
    found, expected = (m.loss(nets, of_class(draws), START, draws).loss.detach() for m in (method, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_built_in_scale_asks_the_network_once_and_tells_it_nothing():
    method = make_method("meanflow", kappa=0.5, label_dropout=0.1)
    assert method.traits.guidance == (2.0, 2.0)
    for row, nfe in zip(method.samplers(SAMPLING), (1, 2, 4), strict=True):
        assert (row.nfe, row.name) == (nfe, "flow_map, guidance 2.0")
        x_T = 20 * NoiseSource(0, range(3)).normal(SHAPE)
        model, labels = class_map(END, method.traits.inputs, at(2.0)), torch.zeros(3, dtype=torch.int64)
        levels = torch.full((3,), 20.0, dtype=torch.float64)
        expected = Gaussian(2 * MEAN, STD).flow(x_T, levels, 0 * levels + 0.002)
        torch.testing.assert_close(row.from_noise(model, x_T, NoiseSource(0, range(3)), labels), expected)
