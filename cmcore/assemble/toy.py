"""Every method on points of the plane, whose exact flow is known: real methods, losses, steps and samplers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcore import plugins
from cmcore.assemble.models import ModelShape, build_denoiser, start_from
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.run import NONE, RANDOM, Run
from cmcore.assemble.training import averaged
from cmcore.config import load_yaml, merge
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.precond import Denoiser, Labels
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, Method
from cmcore.oracles import GaussianMixture
from cmcore.report.toy import SPAN, Drawn, Scene
from cmcore.rng import Draws, NoiseSource, generator
from cmcore.sample.base import Sampler
from cmcore.train.state import new_state
from cmcore.train.steps import steps

DIFFUSION, FEW_STEP = "edm", "ect"  # runs of toy.yaml that others start from or learn from
SETTINGS = Path(__file__).with_name("toy.yaml")
SHAPE = (2, 1, 1)  # a point as an image of one pixel
SHOWN, PATHS, JUDGED = 700, 12, 1000  # points in a panel, of them with their ways; points that distances are taken of
LEVELS, GRID = 16, 90
SEED = 1


def _scaled(points: Tensor, std: float, sigma_data: float) -> GaussianMixture:
    """Equal Gaussians around points (K, 2), moved and scaled to mean 0 and a standard deviation of sigma_data."""
    centred = points - points.mean(0)
    scale = sigma_data / (centred.square().mean() + std**2).sqrt()
    K = len(points)
    weights, stds = torch.full((K,), 1 / K, dtype=torch.float64), torch.full((K,), std, dtype=torch.float64) * scale
    return GaussianMixture(weights, (centred * scale).reshape(K, *SHAPE), stds, steps=8)


def mixture(sigma_data: float) -> GaussianMixture:
    """Eight Gaussians on a circle."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return _scaled(torch.stack([angle.cos(), angle.sin()], 1), 0.1, sigma_data)


def checkerboard(sigma_data: float) -> GaussianMixture:
    """The eight dark squares of a 4 x 4 board, each of 6 x 6 Gaussians as wide as their spacing."""
    fine = (torch.arange(6, dtype=torch.float64) + 0.5) / 6
    inner = torch.cartesian_prod(fine, fine)
    corners = torch.tensor([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0], dtype=torch.float64)
    return _scaled((corners[:, None] + inner).flatten(0, 1), 0.6 / 6, sigma_data)


def spirals(sigma_data: float) -> GaussianMixture:
    """Two arms of a spiral of one and a quarter turns, 60 Gaussians each."""
    turn = torch.linspace(0.03, 1, 60, dtype=torch.float64).sqrt() * 2.5 * math.pi
    arm = torch.stack([turn * turn.cos(), turn * turn.sin()], 1)
    return _scaled(torch.cat([arm, -arm]), 0.4, sigma_data)


DATA: Mapping[str, Callable[[float], GaussianMixture]] = {
    "mixture": mixture,
    "checkerboard": checkerboard,
    "spirals": spirals,
}


def toy_project(changes: Mapping[str, Any] | None = None) -> Project:
    """The runs of toy.yaml with a run for every other method, and `changes` laid over them."""
    params = load_yaml(SETTINGS)
    covered = {entry["method"] for entry in params["runs"].values()}
    for name in plugins.available("cmcore.methods"):
        if name not in covered and not sees_images(name):
            params["runs"][name] = _entry(name)
    return parse_project(merge(params, changes or {}))


def sees_images(name: str) -> bool:
    """Whether a method's loss judges images through a classifier, which points cannot have."""
    module = plugins.load("cmcore.methods", name)
    return "extractor" in module.build(module.Config(), DiffusionConfig()).networks


def _entry(name: str) -> dict[str, Any]:
    """A run with a method's defaults, where its loss asks for no network from elsewhere."""
    module = plugins.load("cmcore.methods", name)
    traits = module.build(module.Config(), DiffusionConfig()).traits
    options = {"distance": "pseudo_huber"} if traits.services else {}
    teacher = {"none": NONE, "diffusion": DIFFUSION, "few_step": FEW_STEP}[traits.teacher]
    return {
        "method": name,
        "init": FEW_STEP if traits.teacher == "few_step" else DIFFUSION,
        "teacher": teacher,
        "options": options,
    }


def in_order(project: Project) -> Iterator[Run]:
    """The runs, each after those that it starts from or learns from, else in the order of the file."""
    done: set[str] = set()

    def visit(run: Run) -> Iterator[Run]:
        if run.name not in done:
            done.add(run.name)
            for parent in run.parents:
                yield from visit(project.runs[parent])
            yield run

    for run in project.runs.values():
        yield from visit(run)


def batches(oracle: GaussianMixture) -> Callable[[Draws], Batch]:
    """Points by address, drawn from the distribution."""

    def drawn(draws: Draws) -> Batch:
        chosen = (draws.uniform(stream="component") * len(oracle.means)).long()
        z = draws.normal(SHAPE, stream="data", dtype=torch.float64)
        return Batch((oracle.means[chosen] + oracle.std[chosen].reshape(-1, 1, 1, 1) * z).float(), None)

    return drawn


def train(run: Run, oracle: GaussianMixture, trained: Mapping[str, Denoiser]) -> Denoiser:
    """The averaged model of a run, trained as the pipeline does."""
    method = run.objective
    shape = ModelShape(SHAPE[0], SHAPE[1], 0)
    student = build_denoiser(run.net, shape, run.diffusion, boundary=method.traits.boundary, seed=run.train.seed)
    init = None if run.init == RANDOM else trained[run.init]
    if init is not None:
        start_from(student.net, init.net.state_dict())
    state = new_state(
        method, student, run.train, init=init, teacher=None if run.teacher == NONE else trained[run.teacher]
    )
    for record in steps(state, method, batches(oracle), run.train):
        record.settle()
    return averaged(state, run.train.eval_ema)


@dataclass(frozen=True)
class Exact:
    """The exact flow of common noise, in steps."""

    oracle: GaussianMixture
    diffusion: DiffusionConfig
    levels: Tensor  # (L,) descending
    states: Tensor  # (L, N, 2, 1, 1)

    @classmethod
    def of(cls, oracle: GaussianMixture, diffusion: DiffusionConfig, count: int) -> "Exact":
        """From the noise of the first `count` samples of a seed."""
        levels = karras_grid(LEVELS, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho)
        x = diffusion.sigma_max * NoiseSource(SEED, range(count)).normal(SHAPE)
        states = [x]
        for sigma, after in pairwise(levels):
            states.append(oracle.flow(states[-1], sigma.expand(count), after.expand(count)))
        return cls(oracle, diffusion, levels, torch.stack(states))

    @property
    def ends(self) -> Tensor:
        """(N, 2, 1, 1)."""
        return self.states[-1]

    def seen(self, x: Tensor, sigma: Tensor | float) -> np.ndarray:
        """Points (N, 2, 1, 1) at a level as points (N, 2) of TrigFlow's scale."""
        sd = self.diffusion.sigma_data
        scale = sd / (sd**2 + torch.as_tensor(sigma, dtype=torch.float64) ** 2) ** 0.5
        return (scale * x).flatten(1).numpy()


def draw(run: Run, denoiser: Denoiser, exact: Exact, real: Tensor, sampler: Sampler | None = None) -> Drawn:
    """Samples of a run's sampler, by default the first, from the common noise, measured."""
    method: Method = run.objective
    sampler = sampler or method.samplers(run.sampling(steps=18))[0]
    function, source = method.model(denoiser), NoiseSource(SEED, range(JUDGED))
    path: list[tuple[Tensor, Tensor]] = []

    def watched(x: Tensor, sigma: Tensor, labels: Labels = None) -> Tensor:
        path.append((x[:PATHS].double(), sigma[:1].double()))
        return function(x, sigma, labels)

    with torch.no_grad():
        ends = sampler(watched, SHAPE, source)
    ways = [exact.seen(x, sigma) for x, sigma in path] + [exact.seen(ends[:PATHS], 0.0)]
    gap = (ends - exact.ends[: len(ends)]).flatten(1).square().sum(1).mean().sqrt()
    return Drawn(
        name=run.name, nfe=sampler.nfe, ends=exact.seen(ends[:SHOWN], 0.0), paths=np.stack(ways),
        map_error=float(gap), energy=energy_distance(ends, real),
    )  # fmt: skip


def errors_along(run: Run, denoiser: Denoiser, exact: Exact, count: int = 500) -> np.ndarray | None:
    """Root mean square distances (L - 1,) of f(x_t, t) from the exact end, along exact trajectories.

    None for a method whose network is no function to the end from any level; of a diffusion model, the denoiser's.
    """
    method = run.objective
    if method.traits.few_step and not method.scan(run.sampling(steps=2), [run.diffusion.sigma_max / 2]):
        return None
    function, found, count = method.model(denoiser), [], min(count, len(exact.ends))
    for x, sigma in zip(exact.states[:-1, :count], exact.levels, strict=False):
        with torch.no_grad():
            f = function(x, sigma.expand(count), None)
        found.append((f - exact.ends[:count]).flatten(1).square().sum(1).mean().sqrt())
    return torch.stack(found).numpy()


def energy_distance(a: Tensor, b: Tensor) -> float:
    """sqrt(2 E|A - B| - E|A - A'| - E|B - B'|) of two samples (N, ...); 0 for one distribution."""

    def mean(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x.flatten(1), y.flatten(1)).sum() / (len(x) * (len(y) - (x is y)))

    return math.sqrt(max(0.0, float(2 * mean(a, b) - mean(a, a) - mean(b, b))))


def density(oracle: GaussianMixture) -> np.ndarray:
    """The data's density (GRID, GRID) over the axes of the panels, over its mean where there are data."""
    side = torch.linspace(-SPAN, SPAN, GRID, dtype=torch.float64)
    points = torch.cartesian_prod(side, side).flip(1)
    square = torch.cdist(points, oracle.means.flatten(1)) ** 2
    p = (oracle.weights * (-square / (2 * oracle.std**2)).exp() / oracle.std**2).sum(1)
    return (p / p.quantile(0.97)).reshape(GRID, GRID).numpy()


def scene(
    data: str, project: Project, on_run: Callable[[str], None] = lambda _: None
) -> tuple[Scene, dict[str, list[Drawn]]]:
    """Train every run on a data set, and draw.

    Args:
        data: an entry of DATA.
        project: of `toy_project`.
        on_run: told the name of every run that begins.

    Returns:
        What the figures show, and the samples of every row of every run, for the table.
    """
    diffusion = project.sections.diffusion
    oracle = DATA[data](diffusion.sigma_data)
    exact = Exact.of(oracle, diffusion, JUDGED)
    real = _real(oracle, JUDGED)
    trained: dict[str, Denoiser] = {}
    rows: dict[str, list[Drawn]] = {}
    errors: dict[str, np.ndarray] = {}
    for run in in_order(project):
        on_run(run.name)
        trained[run.name] = train(run, oracle, trained)
        method = run.objective
        samplers = [one for one in method.samplers(run.sampling(steps=18)) if method.moment(one) == 1]
        rows[run.name] = [draw(run, trained[run.name], exact, real, one) for one in samplers]
        if (along := errors_along(run, trained[run.name], exact)) is not None and (
            run.objective.traits.few_step or run.name == DIFFUSION  # one diffusion model is enough
        ):
            errors[run.name] = along
    ways = [exact.seen(x[:PATHS], sigma) for x, sigma in zip(exact.states, exact.levels, strict=True)]
    flow = Drawn(
        name="exact flow", nfe=0, ends=exact.seen(exact.ends[:SHOWN], 0.0), paths=np.stack(ways), map_error=0.0,
        energy=energy_distance(exact.ends, real),
    )  # fmt: skip
    seen = Scene(
        data=data, noise=exact.seen(exact.states[0, :SHOWN], diffusion.sigma_max), density=density(oracle), exact=flow,
        drawn=[rows[name][0] for name in project.runs], levels=exact.levels[:-1].numpy(), errors=errors,
    )  # fmt: skip
    return seen, {name: rows[name] for name in project.runs}


def _real(oracle: GaussianMixture, count: int) -> Tensor:
    source = generator(SEED, "real")
    chosen = torch.multinomial(oracle.weights, count, replacement=True, generator=source)
    z = torch.randn((count, *SHAPE), generator=source, dtype=torch.float64)
    return oracle.means[chosen] + oracle.std[chosen].reshape(-1, 1, 1, 1) * z
