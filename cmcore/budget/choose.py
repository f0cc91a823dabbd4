"""The choice of a workload for images, a machine and a time: resolution, network, images of each run, evaluation."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from cmcore import plugins
from cmcore.assemble.models import ModelShape
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.run import RANDOM, Run
from cmcore.budget.host import Host
from cmcore.budget.machines import Machine
from cmcore.budget.measure import feature_seconds, forward_seconds, sample_data, training_seconds
from cmcore.budget.plan import Costs, RunPlan, plan_run
from cmcore.budget.plan import Setting as PlanSetting
from cmcore.budget.recipes import (
    AUGMENT,
    DROPOUT,
    DROPOUT_EPOCHS,
    EPOCHS,
    FEW_EPOCHS,
    IMAGES_PER_PARAMETER,
    TEACHER,
    Net,
    Setting,
    book,
    classifier,
    evaluation,
    least_images,
    level_shift,
    networks,
    round_to,
    sigma_data,
    sigma_max,
    written,
)
from cmcore.budget.times import STARTING, Times, probe_rows, stage_seconds, total_seconds
from cmcore.config import ConfigError, plain
from cmcore.data.settings import AUGMENT_DIM
from cmcore.data.sources.survey import Survey
from cmcore.layers.fitting import threads
from cmcore.numbers import duration, size

T = TypeVar("T")

PLANNED = 0.8  # share of the budget: other work on the machine, and what no measurement of seconds sees
EVALUATED = 0.2  # share of the budget, of all cores, that sampling and measuring may take
PROCESS = 1.2e9  # bytes of a process before its networks
DRIVER = 1.5e9  # bytes of the processes that run the stages
USED = 0.9  # share of the free memory
SAMPLES = (5000, 2000, 1000, 500, 200)
RESOLUTIONS = {"cpu": (32, 16, 8), "cuda": (64, 32)}  # that are chosen from, where none is asked for
MODEST_GPU = 1e12  # operations a second that a small network reaches on a GPU, for a hint
DATA = ("source", "path", "subfolder", "channels", "background")  # that the images decide
SMALLEST = 8  # micro-batch
FEWEST = 20  # images: nothing is measured by fewer
ENOUGH = 1000  # images from which on a tenth is held out
HALVINGS = 12  # of a bisection: a four-thousandth
STUDENT = 4  # a student sees at least this part of what a teacher has to


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    name: str
    survey: Survey
    host: Host
    budget: float  # seconds
    methods: tuple[str, ...]
    resolution: int = 0  # 0: to be chosen
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # what was measured, by its key


@dataclass(frozen=True)
class Choice:
    """A workload that fits, and how that is known."""

    request: Request
    parameters: dict[str, Any]
    project: Project
    resolution: int
    jobs: int
    about: str  # of the network
    weights: int  # parameters of the network
    count: int  # training images
    seconds: Mapping[str, float]  # of every stage
    total: float  # seconds from start to end
    memory: Mapping[str, float]  # bytes of each run, with its process on a CPU
    capped: bool  # whether EPOCHS ended the training before the budget did


@functools.cache
def costs_of(channels: int, resolution: int) -> Costs:
    """Costs of passes, each counted once."""
    return Costs(ModelShape(channels, resolution, 0))


class UnfitError(ValueError):
    """Nothing sensible fits; the message says what would."""


class Candidate:
    """A network at a resolution, with so many jobs at a time."""

    def __init__(self, request: Request, resolution: int, net: Net, jobs: int) -> None:
        self.request, self.resolution, self.net = request, resolution, net
        self.threads = max(1, request.host.cores // jobs)
        self.held_out = held_out(request.survey.count)
        self.count = request.survey.count - round(self.held_out * request.survey.count)
        self.least = round_to(min(least_images(resolution), EPOCHS * self.count), net.batch)
        self.asked, self.jobs, self.micro, self.most_generated = jobs, jobs, 0, 0
        self._costs = costs_of(request.survey.data.channels, resolution)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """A value that is made once for all candidates of a request."""
        known = self.request.known
        if key not in known:
            known[key] = make()
        return known[key]

    @property
    def images(self) -> np.ndarray:
        """The images that measurements are made on, and what they say of noise levels."""
        return self.once(("images", self.resolution), lambda: self.request.survey.at(self.resolution))

    @property
    def section(self) -> dict[str, Any]:
        """The network in the parameter file."""
        section = self.net.section(self.resolution)
        told = {"sigma_data": self.diffusion["sigma_data"]}
        return section | {
            key: told[key] for key in told if hasattr(plugins.load("cmcore.nets", section["kind"]).Config, key)
        }

    @property
    def diffusion(self) -> dict[str, float]:
        """The section of the parameter file."""

        def levels() -> dict[str, float]:
            return {"sigma_data": sigma_data(self.images), "sigma_min": 0.002, "sigma_max": sigma_max(self.images),
                    "rho": 7.0}  # fmt: skip

        return self.once(("levels", self.resolution), levels)

    def parameters(self, teacher: int, student: int, samples: int) -> dict[str, Any]:
        """The parameter file, for so many images of the teacher and of each student, and samples of a row."""
        request, device = self.request, self.request.host.device
        epochs = max(teacher, student) / self.count
        augment = epochs > FEW_EPOCHS
        shift = level_shift(self.diffusion["sigma_data"], self.resolution)
        batch, pixels = self.net.batch, request.survey.data.channels * self.resolution**2
        dropout = DROPOUT if epochs > DROPOUT_EPOCHS else 0.0
        net = {**self.section, "dropout": dropout, **({"augment_dim": AUGMENT_DIM} if augment else {})}
        runs: dict[str, Any] = {}
        for method in request.methods:
            recipe, init = book().methods[method], book().init(method)
            own = teacher if init == RANDOM else student
            s = Setting(shift, pixels, own, self.net)
            options, train = written(recipe.options, s), written(recipe.train, s)
            if own != student:
                train = {"images": own, "lr_ref_images": own // 2, "ema": averages(own), **train}
            entry: dict[str, Any] = {"method": method, "init": init, "teacher": recipe.teacher}
            entry |= {"options": options} if options else {}
            entry |= {"train": train} if train else {}
            if recipe.two_step:
                entry["sample"] = {"two_step": two_step(self.diffusion)}
            runs[method] = entry
        train: dict[str, Any] = {
            "images": student, "batch": batch, "micro_batch": self.micro, "seed": 1, "optimiser": "radam",
            "lr": self.net.tuned,
            "betas": [0.9, 0.99], "lr_decay": "linear", "lr_ref_images": student // 2,
            **({"augment": AUGMENT} if augment else {"flip": True}), "ema": averages(student), "eval_ema": "long",
            "snapshots": 3, "log_images": round_to(student / 40, batch), "checkpoint_seconds": 30.0,
        }  # fmt: skip
        if device == "cuda":
            half = "bf16" if request.host.bf16 else "fp16"
            train |= {"precision": half, **({"jvp_precision": "bf16"} if half == "bf16" else {})}
        test = request.survey.count - self.count
        steps = 18 if self.resolution <= 16 or device == "cuda" else 10
        many = 1000 if not self.net.widths or device == "cuda" else 250
        many = min(many, samples, self.most_generated or many)
        measured = evaluation(
            self.count, test, samples, steps, many,
            classifier(self.count, self.resolution),
        )  # fmt: skip
        levels = [x for x in (0.3, 1.0, 3.0) if x < self.diffusion["sigma_max"] / 2]
        data = {key: value for key, value in plain(request.survey.data).items() if key in DATA and value}
        data |= {"resolution": self.resolution, **({"test": self.held_out} if self.held_out else {})}
        if request.survey.classes:
            data["classes"] = request.survey.classes
        keys = (
            "samples", "batch", "seed", "teacher_steps", "bootstrap", "kid_subsets", "kid_size", "neighbours",
            "nearest", "endpoints", "scan_samples", "snapshot_samples",
        )  # fmt: skip
        every = plain(measured)
        wanted = {key: every[key] for key in keys} | {"scan": levels}
        wanted["reference"] = {key: every["reference"][key] for key in ("width", "features", "images", "batch")}
        return {
            "workload": request.name, "replicates": 1, "data": data, "diffusion": dict(self.diffusion),
            "conditional": False, "net": net, "train": train, "runs": runs, "eval": wanted,
            "compute": {"backend": "ray", "threads": self.threads}, "tracking": {"mlflow": True},
        }  # fmt: skip

    def usual(self) -> Project:
        """A project with the shapes that count for measurements."""
        return parse_project(self.parameters(self.least, self.least, SAMPLES[-1]))

    @property
    def teacher_seconds(self) -> float:
        """Of an image of the diffusion model's training, measured."""
        return self.training_of(book().teacher)

    def training_of(self, method: str) -> float:
        """Seconds of an image of a method's training, measured."""

        def measured() -> float:
            run = self.usual().run(method)
            with threads(self.threads):
                rows = self.rows(run, self.net.batch)
                return training_seconds(run, self._data, rows, self.request.host.device)

        return self.once((self.resolution, repr(self.net), self.threads, method), measured)

    def rows(self, run: Run, most: int) -> int:
        """Rows of a batch that is measured."""
        return most if self.request.host.gpu else probe_rows(run, most, self._costs)

    @cached_property
    def times(self) -> Times:
        """Of everything: the diffusion model's steps measured, and all else on the first network of the resolution.

        A larger network takes the same multiple of its diffusion model's step for the step of another method, or for
        an evaluation: the same passes make it up.
        """
        device, config = self.request.host.device, self.usual().sections.eval
        first = Candidate(self.request, self.resolution, networks(self.resolution, device)[0], self.asked)
        larger = self.teacher_seconds / first.teacher_seconds

        def evaluation() -> float:
            run = first.usual().run(book().teacher)
            with threads(first.threads):
                return forward_seconds(run, self._data, first.rows(run, config.batch), device)

        def features() -> tuple[float, float]:
            with threads(1):
                return feature_seconds(self._data, config.reference, device)

        forward = self.once((self.resolution, "forward", first.threads), evaluation)
        trained, feature = self.once((self.resolution, "features"), features)
        training = {name: first.training_of(name) * larger for name in self.request.methods}
        return Times(training, dict.fromkeys(training, forward * larger), feature, trained)

    @cached_property
    def _data(self) -> Any:
        return sample_data(self.images, self.request.survey.classes)

    def plans(self, project: Project, limit: float) -> list[RunPlan]:
        """Memory of the runs on a machine that has so many bytes."""
        machine = Machine("gpu" if self.request.host.gpu else "cpu", "", max(limit, 1.0), 1e12)
        return [plan_run(run, self._costs, PlanSetting(machine)) for run in project.runs.values()]

    def fit(self) -> None:
        """Choose the micro-batch, and fewer jobs where even small ones do not fit beside one another.

        Raises:
            UnfitError: nor do they alone.
        """
        host, project = self.request.host, self.usual()
        for jobs in range(self.jobs, 0, -1):
            limit = host.gpu_memory if host.gpu else (USED * host.memory - DRIVER) / jobs - PROCESS
            plans = self.plans(project, limit)
            rows = min(plan.most_rows for plan in plans)
            if rows >= self.net.batch or rows >= SMALLEST:
                self.jobs, self.limit, self.weights = jobs, limit, plans[0].parameters
                self.operations = plans[0].operations
                self.micro = 0 if rows >= self.net.batch else 2 ** int(math.log2(rows))
                generated = self._costs.of(project.run(book().teacher), "forward").per_image
                self.most_generated = max(1, int(limit / max(generated, 1)))
                return
        raise UnfitError(
            f"not even {SMALLEST} images of {self.resolution}x{self.resolution} at a time fit into "
            f"{size(host.gpu_memory if host.gpu else host.memory, 'B', ' ')} of free memory"
        )

    def stage_seconds(self, project: Project) -> dict[str, float]:
        """Seconds of every stage."""
        return stage_seconds(project, self.times, self.count)

    def total(self, project: Project) -> float:
        """Seconds of the whole pipeline."""
        reading = self.request.survey.decoding / self.request.host.cores
        return reading + total_seconds(project, self.stage_seconds(project), self.jobs)

    def samples(self) -> list[int]:
        """Samples of a row that the budget allows, the most first."""
        found: list[int] = []
        for samples in (one for one in SAMPLES if one <= max(1000, 10 * self.count)):
            project = parse_project(self.parameters(self.least, self.least, samples))
            if self.evaluating(project) <= EVALUATED * self.request.budget * self.jobs:
                found.append(samples)
        return found

    def evaluating(self, project: Project) -> float:
        """Seconds of one job for the evaluation of all runs."""
        return sum(cost for stage, cost in self.stage_seconds(project).items() if stage.startswith("evaluate@"))

    def allocation(self, teacher: float) -> tuple[int, int]:
        """Images of the teacher, and of each student, for so many seconds of the teacher's training.

        The students take together as long, on all cores, as the teacher does alone, by TEACHER.
        """
        students = [m for m in self.request.methods if book().init(m) != RANDOM]
        most = EPOCHS * self.count
        images = round_to(min(teacher / self.times.training[book().teacher], most), self.net.batch)
        if not students:
            return images, images
        rounds = -(-len(students) // self.jobs)
        mean = float(np.mean([self.times.training[m] for m in students]))
        later = teacher * (1 - TEACHER) / TEACHER / rounds / mean
        return images, round_to(min(later, images, most), self.net.batch)

    def made(self, teacher_seconds: float, samples: int) -> Project:
        """The project of so many seconds of the teacher's training."""
        return parse_project(self.parameters(*self.allocation(teacher_seconds), samples))

    def needed(self) -> float:
        """Seconds of a budget in which each run sees as much as it has to, with few samples."""
        low, high = 0.0, 4 * self.least * max(self.times.training.values()) * (1 + len(self.request.methods))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.enough(*self.allocation(middle)) else (middle, high)
        project = self.made(high, SAMPLES[-1])
        return 1.02 * max(self.total(project) / PLANNED, self.evaluating(project) / EVALUATED / self.jobs)

    def most(self, room: float, samples: int) -> tuple[int, int]:
        """The images of the teacher and of each student with which the pipeline takes so many seconds."""
        low, high = 0.0, room
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.total(self.made(middle, samples)) <= room else (low, middle)
        return self.allocation(low)

    def enough(self, teacher: int, student: int) -> bool:
        """Whether the runs see so much that their samples show something."""
        return teacher >= self.least and student >= self.least / STUDENT

    def suits(self, teacher: int) -> bool:
        """Whether the teacher sees enough images for so many parameters."""
        return teacher >= IMAGES_PER_PARAMETER * self.weights

    def choose(self) -> Choice | None:
        """The workload of this network that uses the budget; None where too little would be seen."""
        room = PLANNED * self.request.budget
        if self.least * self.teacher_seconds > room:
            return None
        self.fit()
        fitting = ((samples, *self.most(room, samples)) for samples in self.samples())
        found = next((one for one in fitting if self.enough(*one[1:])), None)
        if found is None:
            return None
        samples, teacher, student = found
        parameters = self.parameters(teacher, student, samples)
        project = parse_project(parameters)
        plans = self.plans(project, self.limit)
        if not all(plan.fits for plan in plans):
            return None
        beside = 0.0 if self.request.host.gpu else PROCESS
        return Choice(
            request=self.request,
            parameters=parameters,
            project=project,
            resolution=self.resolution,
            jobs=self.jobs,
            about=self.net.about,
            weights=self.weights,
            count=self.count,
            seconds=self.stage_seconds(project),
            total=self.total(project),
            memory={plan.name: plan.bytes + beside for plan in plans},
            capped=teacher >= EPOCHS * self.count - self.net.batch,
        )


def choose(request: Request) -> Choice:
    """The workload that makes most of the budget: the highest resolution, and there the largest network, that learns.

    Raises:
        ConfigError: the request is about nothing that there is.
        UnfitError: nothing sensible fits; the message says what would, and how much.
    """
    check(request)
    problems: list[str] = []
    for resolution in resolutions(request):
        try:
            found = of_resolution(request, resolution)
        except UnfitError as error:
            problems.append(str(error))
            continue
        if found is not None:
            return found
    if len(problems) == len(resolutions(request)):
        raise UnfitError(f"{problems[-1]}; expected more free memory, or a lower --resolution")
    raise UnfitError(hint(request))


def check(request: Request) -> None:
    """A ConfigError for methods without a recipe, images too few, or a resolution of no network."""
    for method in request.methods:
        if method not in book().methods:
            raise ConfigError("--methods", f"expected some of {', '.join(book().methods)}, got {method!r}")
    if request.methods[:1] != (book().teacher,):
        why = "the others start from it, or are compared with it"
        raise ConfigError("--methods", f"expected {book().teacher} among them: {why}")
    if request.survey.count < FEWEST:
        raise ConfigError("--data", f"expected at least {FEWEST} images, got {request.survey.count}")
    if request.resolution and (request.resolution % 4 or not 8 <= request.resolution <= 256):
        raise ConfigError("--resolution", f"expected a multiple of 4 from 8 to 256, got {request.resolution}")


def resolutions(request: Request) -> list[int]:
    """Those to try, from the highest on: not above most of the images, and their own where that suits."""
    if request.resolution:
        return [request.resolution]
    found, side = RESOLUTIONS[request.host.device], request.survey.sides[1]
    own = [side] if side % 4 == 0 and 8 <= side < found[0] else []
    return sorted({*own, *(r for r in found if r <= side)}, reverse=True) or [found[-1]]


def layout(request: Request) -> int:
    """How many jobs at a time: students side by side on the cores, which do more so than together on one of them."""
    students = sum(book().init(method) != RANDOM for method in request.methods)
    return 1 if request.host.gpu else max(1, min(request.host.cores, students))


def of_resolution(request: Request, resolution: int) -> Choice | None:
    """The largest network that suits the images that its teacher sees; the smallest suits any number."""
    best: tuple[Candidate, Choice] | None = None
    for net in networks(resolution, request.host.device):
        candidate = Candidate(request, resolution, net, layout(request))
        try:
            if best is not None:  # before it is measured: a larger one makes up to twice as many operations a second
                candidate.fit()
                slower = candidate.operations / best[0].operations / 2
                if not candidate.suits(int(TEACHER * request.budget / best[0].teacher_seconds / slower)):
                    break
            found = candidate.choose()
        except UnfitError:
            if best is None:
                raise
            break
        if found is None or (best is not None and not candidate.suits(found.project.run(book().teacher).train.total)):
            break
        best = candidate, found
    return None if best is None else best[1]


def hint(request: Request) -> str:
    """What would fit, and how much it takes."""
    resolution = resolutions(request)[-1]

    def candidate(methods: Sequence[str], side: int) -> Candidate:
        asked = replace(request, methods=tuple(methods))
        made = Candidate(asked, side, networks(side, request.host.device)[0], layout(asked))
        made.fit()
        return made

    def rounded(seconds: float) -> str:
        minutes = math.ceil(seconds / 60)
        return f"{minutes}min" if minutes < 120 else f"{math.ceil(minutes / 60)}h"

    whole = candidate(request.methods, resolution)
    number = f"{len(request.methods)} methods" if len(request.methods) > 1 else book().teacher
    ways = [f"--budget {rounded(whole.needed())}"]
    if len(request.methods) > 2:
        few = request.methods[:2]
        ways.append(f"--methods {','.join(few)} with --budget {rounded(candidate(few, resolution).needed())}")
    if resolution > 8:
        lower = max(8, resolution // 8 * 4)
        smaller = candidate(request.methods, lower)
        ways.append(f"--resolution {lower} with --budget {rounded(smaller.needed())}")
    if not request.host.gpu:
        work = whole.operations * whole.least * (1 + (len(request.methods) - 1) / STUDENT)
        ways.append(f"a GPU, about {rounded(STARTING + work / MODEST_GPU)} of training")
    return (
        f"{number} at {resolution}x{resolution} cannot see enough images in {duration(request.budget)} on "
        f"{request.host.core_count}; expected {'; or '.join(ways)}"
    )


def held_out(count: int) -> float:
    """The share of the images that nothing is trained on: none of few, as each is wanted in training."""
    return 0.1 if count >= ENOUGH else 0.0


def averages(images: int) -> dict[str, Any]:
    """EMA half-lives: the shares of the whole run that the digits have, and shorter at its beginning."""
    return {"short": {"half_life": float(round(images / 100))},
            "long": {"half_life": float(round(images / 25)), "ramp": 0.1}}  # fmt: skip


def two_step(diffusion: Mapping[str, float]) -> float:
    """iCT's second level, 0.821 for sigma_data = 0.5 (arXiv 2310.14189, sec. 3.5), in proportion to the data."""
    return min(round(0.821 * diffusion["sigma_data"] / 0.5, 2), round(diffusion["sigma_max"] / 4, 2))
