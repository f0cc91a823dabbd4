"""The choice of a workload: it fits, it is used up, and what would fit is said where nothing does."""

import math
import re

import numpy as np
import photographs
import pytest
import torch

from cmcore import plugins
from cmcore.assemble.models import ModelShape, build_denoiser
from cmcore.assemble.passes import passes
from cmcore.assemble.project import parse_project
from cmcore.assemble.run import NetChoice
from cmcore.budget import choose as module
from cmcore.budget import recipes
from cmcore.budget.choose import (
    Candidate,
    Choice,
    Request,
    UnfitError,
    choose,
    costs_of,
    resolutions,
)
from cmcore.budget.cost import on_meta
from cmcore.budget.host import Host, this_host
from cmcore.budget.machines import Machine
from cmcore.budget.plan import Setting, plan_run
from cmcore.budget.recipes import EPOCHS, FILE, Book, book, level_shift, networks, sigma_data, sigma_max
from cmcore.budget.times import PROBE, STAGE, Times, evaluation_seconds
from cmcore.config import ConfigError, load_yaml, read
from cmcore.data.sources.survey import Survey, survey
from cmcore.diffusion.settings import DiffusionConfig

THREE = ("edm", "ect", "imm")
SPEED = 4e10  # operations a second of the machine that these tests pretend to have


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Survey:
    return survey(photographs.photographs(tmp_path_factory.mktemp("photographs")))


@pytest.fixture(autouse=True)
def _a_machine_of_known_speed(monkeypatch):
    """A step takes as long as its operations; what is measured on real machines is tested elsewhere."""
    known: dict[str, float] = {}

    def training(run, data, rows, device="cpu"):
        key = repr((run.net, run.method, data.shape))
        if key not in known:
            plan = plan_run(run, costs_of(*data.shape[:2]), Setting(Machine("cpu", "", 1e15, 1.0)))
            known[key] = plan.operations / SPEED
        return known[key] / (200 if device == "cuda" else 1)

    monkeypatch.setattr(module, "training_seconds", training)
    monkeypatch.setattr(
        module, "forward_seconds", lambda run, data, rows, device="cpu": training(run, data, rows, device) / 3
    )
    monkeypatch.setattr(module, "feature_seconds", lambda data, config, device="cpu": (1e-3, 1e-4))


def request(seen: Survey, budget: float, methods=("edm", "ect"), **of) -> Request:
    host = of.pop("host", Host(cores=2, memory=16e9))
    return Request("mine", seen, host, budget, methods, **of)


@pytest.mark.parametrize("minutes", [5, 20, 120, 480])
def test_the_choice_uses_the_budget_and_no_more(seen, minutes):
    choice = choose(request(seen, 60 * minutes))
    assert choice.total <= 60 * minutes
    assert choice.total > 0.7 * 60 * minutes or choice.capped
    assert choice.project.run("ect").train.images <= choice.project.run("edm").train.images


def test_more_time_is_more_pixels_then_more_images_then_a_larger_network(seen):
    choices = [choose(request(seen, 60 * minutes)) for minutes in (5, 20, 2000)]
    assert [c.resolution for c in choices] == sorted(c.resolution for c in choices)
    assert choices[0].resolution < choices[-1].resolution
    at_one = [choose(request(seen, 3600 * hours, resolution=32)) for hours in (1, 2, 200)]
    images = [c.project.run("edm").train.total for c in at_one]
    assert images[0] < images[1]
    assert at_one[1].weights < at_one[2].weights


def test_a_resolution_that_is_asked_for_is_taken(seen):
    assert choose(request(seen, 7200, resolution=8)).resolution == 8


@pytest.mark.parametrize(("side", "expected"), [(16, 16), (28, 28), (30, 16), (5, 8), (100, 32)])
def test_no_image_is_enlarged_without_need(tmp_path, side, expected):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (40, side, side), dtype=np.uint8))
    assert resolutions(request(survey(tmp_path / "a.npy"), 36000))[0] == expected


@pytest.mark.parametrize("side", [12, 16, 20, 24, 28, 32, 36, 48, 64, 128, 256])
def test_networks_take_every_resolution(side):
    for net in networks(side, "cpu"):
        section = net.section(side)
        kind = section.pop("kind")
        choice = NetChoice(kind=kind, config=read(plugins.load("cmcore.nets", kind).Config, section, "net"))
        denoiser = on_meta(
            lambda choice=choice: build_denoiser(choice, ModelShape(3, side, 0), DiffusionConfig(), boundary=False)
        )
        assert 6 <= side >> (len(section["channel_mult"]) - 1) <= 13
        assert denoiser.net.resolution == side


def test_few_images_are_distorted_and_seen_a_bounded_number_of_times(seen):
    choice = choose(request(seen, 86400, resolution=8))
    run = choice.project.run("edm")
    assert choice.capped
    assert run.train.augment > 0
    assert run.net.config.augment_dim == 9
    assert run.net.config.dropout > 0
    assert run.train.total <= EPOCHS * seen.count


@pytest.mark.parametrize("method", book().methods)
def test_every_recipe_makes_a_run(seen, method):
    methods = tuple(dict.fromkeys(["edm", method]))
    run = choose(request(seen, 1200, methods, resolution=8)).project.run(method)
    assert run.method == method
    assert run.train.total >= 256


@pytest.mark.parametrize(
    ("budget", "of"),
    [(60, {}), (300, {"resolution": 64}), (61, {"methods": ("edm",)}), (150, {"methods": ("edm", "ect", "cd")})],
)
def test_what_would_fit_does_fit(seen, budget, of):
    """Each budget of the message is tried."""
    with pytest.raises(UnfitError, match="cannot see enough images") as refused:
        choose(request(seen, budget, **of))
    said = str(refused.value)
    ways = re.findall(r"(?:--(methods|resolution) (\S+) with )?--budget (\d+)(min|h)", said)
    assert ways
    for key, value, number, unit in ways:
        changed = of | ({"methods": tuple(value.split(","))} if key == "methods" else {})
        changed |= {"resolution": int(value)} if key == "resolution" else {}
        wanted = int(number) * (60 if unit == "min" else 3600)
        assert wanted > budget or key
        assert choose(request(seen, wanted, **changed)).total <= wanted


def test_little_memory_takes_small_micro_batches_then_fewer_jobs(seen):
    def made(memory: float) -> Choice:
        return choose(request(seen, 1e6, THREE, resolution=64, host=Host(cores=2, memory=memory)))

    plenty, less, little = made(64e9), made(7.5e9), made(4.4e9)
    assert (plenty.jobs, plenty.project.run("ect").train.micro_batch) == (2, 0)
    assert 8 <= less.project.run("ect").train.micro_batch < 64
    assert little.jobs == 1
    for choice, memory in ((less, 7.5e9), (little, 4.4e9)):
        assert sum(sorted(choice.memory.values())[-choice.jobs :]) + 1.5e9 <= memory
    with pytest.raises(UnfitError, match="of free memory; expected more free memory"):
        made(2e9)


def test_a_gpu_takes_half_precision_and_one_job(seen):
    gpu = Host(cores=8, memory=32e9, gpu="a GPU", gpu_memory=12e9, bf16=True)
    choice = choose(request(seen, 7200, host=gpu, resolution=32))
    train = choice.project.run("ect").train
    assert (choice.jobs, train.precision, train.jvp_precision, choice.parameters["compute"]["threads"]) == (
        1, "bf16", "bf16", 8,
    )  # fmt: skip
    assert max(choice.memory.values()) <= 12e9
    older = choose(request(seen, 7200, host=Host(cores=8, memory=32e9, gpu="a GPU", gpu_memory=12e9), resolution=32))
    assert older.project.run("ect").train.precision == "fp16"


def test_many_cores_are_shared_among_the_jobs(seen):
    choice = choose(request(seen, 1200, THREE, host=Host(cores=16, memory=64e9)))
    assert (choice.jobs, choice.parameters["compute"]["threads"]) == (2, 8)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"methods": ("edm", "stable")}, r"--methods: expected some of edm, ect, .*, got 'stable'"),
        ({"methods": ("ect",)}, "--methods: expected edm among them"),
        ({"resolution": 18}, "--resolution: expected a multiple of 4 from 8 to 256, got 18"),
        ({"resolution": 512}, "--resolution: expected a multiple of 4"),
    ],
)
def test_requests_of_nothing_that_there_is(seen, of, message):
    with pytest.raises(ConfigError, match=message):
        choose(request(seen, 7200, **of))


def test_too_few_images(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((19, 8, 8), np.uint8))
    with pytest.raises(ConfigError, match="at least 20 images, got 19"):
        choose(request(survey(tmp_path / "a.npy"), 7200))


@pytest.mark.parametrize("method", book().methods)
def test_evaluation_is_what_the_evaluation_lists(seen, method, tmp_path):
    """Against the passes that are sampled: a forward pass of the network takes a second, all else none."""
    methods = tuple(dict.fromkeys(["edm", method]))
    candidate = Candidate(request(seen, 1e5, methods), 8, networks(8, "cpu")[0], 2)
    project = parse_project(candidate.parameters(25600, 25600, 500))
    run, config = project.run(method), project.sections.eval
    (tmp_path / "snapshots").mkdir()
    for index in range(run.train.snapshots):
        (tmp_path / "snapshots" / f"{index:09d}.safetensors").touch()
    teacher = None if run.init == "random" else tmp_path
    expected = 0
    for one in passes(run, config, tmp_path, teacher, 1):
        expected += one.samples * (one.sampler.nfe + (2 * config.teacher_steps - 1 if one.teacher else 0))
    assert evaluation_seconds(run, project, Times({}, {method: 1.0}, 0.0, 0.0)) == pytest.approx(expected, abs=60)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (
            ("methods", "ect", "options"),
            {"q": {"level": "high"}},
            r"methods\.ect\.options\.q: expected a value, or one of ",
        ),
        (("methods", "ect", "options"), {"q": {"levels": 1}}, r"methods\.ect\.options\.q: .* got \{'levels': 1\}"),
        (("methods", "ect", "train"), {"lr": {}}, r"methods\.ect\.train\.lr: expected a value"),
        (("methods", "ect", "aboot"), "", r"methods\.ect\.aboot: unknown key; did you mean 'about'\?"),
        (("methods", "ect", "two_step"), 1, r"methods\.ect\.two_step: expected true or false, got 1"),
        (("networks", 0, "widths"), [1], r"networks\[0\]\.widths: expected two factors, or none"),
        (("networks", 0, "devices"), ["tpu"], r"networks\[0\]\.devices\[0\]: expected one of cpu, cuda"),
        (("teacher",), "none", r"teacher: expected one of edm, ect"),
    ],
)
def test_recipes_are_read_strictly(where, value, message):
    data = load_yaml(FILE)
    at = data
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    with pytest.raises(ConfigError, match=message):
        read(Book, data)


def test_a_recipe_of_ones_own_is_a_line_of_the_file(seen, monkeypatch):
    data = load_yaml(FILE)
    data["methods"]["rf"] = {"about": "straight lines", "init": "random", "train": {"lr": {"teacher_lr": 0.5}}}
    data["methods"]["ect"]["train"] = {"lr": {"tuned": 0.25}}
    own = read(Book, data)
    for user in (module, recipes):
        monkeypatch.setattr(user, "book", lambda: own)
    choice = choose(request(seen, 1200, ("edm", "rf", "ect"), resolution=8))
    run = choice.project.run("rf")
    assert (run.method, run.init, run.train.lr) == ("rf", "random", 0.5e-3)
    assert choice.project.run("ect").train.lr == 0.25 * choice.parameters["train"]["lr"]


def test_little_is_measured(seen, monkeypatch):
    """The diffusion model's step of each network, and all else once for a resolution, also where nothing fits."""
    asked: list[tuple[int, int, int, str]] = []
    quick = module.training_seconds

    def training(run, data, rows, device="cpu"):
        channels = getattr(run.net.config, "model_channels", 0)
        asked.append((torch.get_num_threads(), data.shape[1], channels, run.method))
        return quick(run, data, rows, device)

    others = []
    monkeypatch.setattr(module, "training_seconds", training)
    monkeypatch.setattr(module, "forward_seconds", lambda *of: others.append("forward") or 1e-4)
    monkeypatch.setattr(module, "feature_seconds", lambda *of: others.append("features") or (1e-3, 1e-4))
    choose(request(seen, 3600 * 8, THREE, resolution=16))
    assert len(set(asked)) == len(asked)
    assert {channels for *_, channels, method in asked if method != "edm"} == {16}
    assert len({channels for *_, channels, method in asked if method == "edm"}) > 1
    assert sorted(others) == ["features", "forward"]
    asked.clear()
    with pytest.raises(UnfitError):
        choose(request(seen, 61, THREE))
    assert len(set(asked)) == len(asked)


def test_steps_that_are_measured_are_small(seen):
    """Half a second of a core or less, but for networks so large that four images take longer."""
    for net in networks(32, "cpu"):
        candidate = Candidate(request(seen, 1e5, THREE), 32, net, 1)
        run = candidate.usual().run("edm")
        rows = candidate.rows(run, net.batch)
        each = plan_run(run, costs_of(3, 32), Setting(Machine("cpu", "", 1e15, 1.0))).operations
        assert rows * each <= PROBE or rows == 4
        assert candidate.rows(candidate.usual().run("imm"), net.batch) % 4 == 0  # its groups
    assert Candidate(request(seen, 1e5, host=Host(8, 1e9, gpu="a GPU")), 32, net, 1).rows(run, 256) == 256


def test_larger_networks_take_the_same_multiple(seen):
    small, large = (Candidate(request(seen, 1e5, THREE), 32, net, 1) for net in networks(32, "cpu")[:2])
    ratio = large.teacher_seconds / small.teacher_seconds
    assert ratio > 2
    for name in THREE:
        assert large.times.training[name] == pytest.approx(ratio * small.times.training[name])
    assert large.times.forward["edm"] == pytest.approx(ratio * small.times.forward["edm"])
    assert large.times.feature == small.times.feature


def test_editing_is_in_the_plan(seen):
    choice = choose(request(seen, 1200))
    alone = Candidate(request(seen, 1200), choice.resolution, networks(choice.resolution, "cpu")[0], 1)
    passes = 2 * 3 * 16 * 50  # runs, tasks, images, evaluations
    assert choice.seconds["edit"] == pytest.approx(STAGE + passes * alone.times.forward["edm"])


def test_sigma_max_is_the_largest_distance():
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    x = torch.from_numpy(images).double().flatten(1) / 127.5
    assert sigma_max(images) == pytest.approx(float(torch.cdist(x, x).max()), rel=0.05)
    assert sigma_max(np.repeat(images[:1], 5, axis=0)) == 1.0
    extremes = np.zeros((2, 3, 64, 64), np.uint8)
    extremes[1] = 255
    assert sigma_max(extremes) == 80.0


def test_sigma_max_of_the_digits_is_near_that_of_their_workload():
    from sklearn.datasets import load_digits

    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]
    assert 8 <= sigma_max(images) <= 20


def test_sigma_data_leaves_the_mean_image_out():
    images = np.random.default_rng(0).normal(0, 51, (4000, 1, 2, 2)) + np.array([[60, 90], [120, 150]])
    assert sigma_data(images.clip(0, 255).astype(np.uint8)) == pytest.approx(51 / 127.5, abs=0.05)
    assert sigma_data(np.zeros((3, 1, 2, 2), np.uint8)) == 0.05


def test_levels_are_the_papers_for_their_data():
    assert level_shift(0.5, 32) == level_shift(0.5, 64) == 0
    assert level_shift(0.25, 32) == round(-math.log(2), 2)
    assert level_shift(0.5, 128) == round(math.log(2), 2)


@pytest.mark.parametrize("method", book().methods)
def test_levels_of_every_method_move_with_the_data(method):
    config = plugins.load("cmcore.methods", method).Config()
    for name in ("P_mean", "end_mean"):
        if hasattr(config, name):
            assert book().methods[method].options[name] == {"level": getattr(config, name)}


def test_this_machine_has_something():
    host = this_host()
    assert host.cores >= 1
    assert 1e8 < host.memory < 1e15
    assert bool(host.gpu) == torch.cuda.is_available()
