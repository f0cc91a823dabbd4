"""The parameter files of the papers' workloads, against numbers written down here a second time."""

import math

import pytest
import torch
import yaml
from shipped import WORKLOADS

from cmcore.assemble.models import ModelShape, build_denoiser
from cmcore.assemble.project import Project, load_project
from cmcore.budget.machines import MACHINES
from cmcore.budget.plan import Costs, Setting, plan_run
from cmcore.consistency.curriculum import ct_points, ict_points
from cmcore.consistency.distances import huber_constant
from cmcore.consistency.trigflow import TrigConfig
from cmcore.diffusion.grids import karras_grid
from cmcore.report.published import DATASETS, counterpart, published
from cmcore.rng import Draws

FILES = {file.stem: file for file in WORKLOADS}
NUMBERS = published()
PAPERS = ("cifar10", "imagenet64", "lsun_bedroom256", "lsun_cat256", "imagenet256", "imagenet512")


@pytest.fixture(scope="module")
def projects() -> dict[str, Project]:
    return {name: load_project(file) for name, file in FILES.items()}


def test_all_are_there():
    assert set(FILES) >= {*PAPERS, "cifar10-jpeg", "digits", "fashion-mnist"}
    assert set(PAPERS) == set(DATASETS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_reads_and_names_its_own_folder(name, projects):
    assert projects[name].workload == name
    text = FILES[name].read_text(encoding="utf-8")
    assert "../" not in text
    assert not any(word.startswith(("/work", "/home", "/tmp", "/data")) for word in text.split())


@pytest.mark.parametrize("name", FILES)
def test_what_a_run_says_is_what_it_gets(name, projects):
    """Every value written for a run, and for all of them, is in the resolved run."""
    data = yaml.safe_load(FILES[name].read_text(encoding="utf-8"))
    for key, entry in data["runs"].items():
        run = projects[name].run(key)
        for section, config in (
            ("options", run.method_config),
            ("train", run.train),
            ("net", run.net.config),
            ("sample", run.sample),
        ):
            for field, value in entry.get(section, {}).items():
                if field == "ema":
                    assert {k: v for k, v in value.items() if not hasattr(run.train.ema[k], "half_life")} == {}
                elif field == "players":
                    players = {name: vars(player) for name, player in run.train.players.items()}
                    own = {name: {k: float(v) for k, v in settings.items()} for name, settings in value.items()}
                    assert {n: {k: players[n][k] for k in known} for n, known in own.items()} == own, (key, field)
                elif field != "kind":
                    got = getattr(config, field)
                    if isinstance(value, dict):
                        got = {name: getattr(got, name) for name in value}
                    wanted = tuple(value) if isinstance(value, list) else value
                    assert got == (float(wanted) if isinstance(got, float) else wanted), (key, section, field)


@pytest.mark.parametrize("name", FILES)
def test_no_network_in_channels_last_runs_uncompiled(name, projects):
    """Where PyTorch's group norms copy it, at 150 ms a step in place of 114 (reports/speed/h100.md)."""
    runs = projects[name].runs.values()
    assert [run.name for run in runs if run.train.channels_last and not run.train.compile] == []


# workload, run: iterations, batch, learning rate, optimiser, dropout.
SCHEDULES = {
    ("cifar10", "edm"): (390_625, 512, 1e-3, "adam", 0.13),
    ("cifar10", "edm_ncsnpp"): (400_000, 512, 1e-3, "adam", 0.13),
    ("cifar10", "pd"): (750_000, 512, 5e-5, "adam", 0),
    ("cifar10", "cd"): (800_000, 512, 4e-4, "radam", 0),
    ("cifar10", "ct"): (800_000, 512, 4e-4, "radam", 0),
    ("cifar10", "ccd"): (800_000, 512, 5e-6, "radam", 0),
    ("cifar10", "ccd_norm"): (800_000, 512, 1e-3, "radam", 0.3),
    ("cifar10", "cct"): (800_000, 512, 5e-6, "radam", 0),
    ("cifar10", "ict"): (400_000, 1024, 1e-4, "radam", 0.3),
    ("cifar10", "ict_deep"): (400_000, 1024, 1e-4, "radam", 0.3),
    ("cifar10", "ect_1h"): (8_000, 128, 1e-4, "radam", 0.2),
    ("cifar10", "ect_100k"): (100_000, 128, 1e-4, "radam", 0.2),
    ("cifar10", "ect_200k"): (200_000, 128, 1e-4, "radam", 0.2),
    ("cifar10", "ect"): (400_000, 128, 1e-4, "radam", 0.2),
    ("cifar10", "tcm_first"): (350_000, 512, 1e-4, "radam", 0.2),
    ("cifar10", "meanflow"): (768_000, 1024, 6e-4, "adam", 0.2),
    ("cifar10", "soflow"): (800_000, 1024, 1e-4, "radam", 0.3),
    ("cifar10", "rf"): (1_300_000, 128, 2e-4, "adam", 0.15),
    ("cifar10", "tcm"): (300_000, 1024, 5e-5, "radam", 0.2),
    ("cifar10", "ctm"): (50_000, 256, 4e-4, "radam", 0),
    ("cifar10", "imm"): (400_000, 4096, 1e-4, "radam", 0.2),
    ("cifar10", "edm_trig"): (400_000, 512, 1e-3, "adam", 0.13),
    ("cifar10", "sct"): (400_000, 512, 1e-4, "radam", 0.2),
    ("cifar10", "scd"): (400_000, 512, 1e-4, "radam", 0),
    ("cifar10", "sct_b128_400k"): (400_000, 128, 1e-4, "radam", 0.2),
    ("imagenet64", "edm"): (-(-2_500_000_000 // 4096), 4096, 1e-4, "adam", 0.1),
    ("imagenet64", "cd"): (600_000, 2048, 8e-6, "radam", 0),
    ("imagenet64", "ct"): (800_000, 2048, 1e-4, "radam", 0),
    ("imagenet64", "ict"): (800_000, 4096, 1e-4, "radam", 0.2),
    ("imagenet64", "edm2_s"): (2**30 // 2048, 2048, 0.01, "adam", 0),
    ("imagenet64", "edm2_m"): (2**31 // 2048, 2048, 0.009, "adam", 0.1),
    ("imagenet64", "edm2_l"): (2**30 // 2048, 2048, 0.008, "adam", 0.1),
    ("imagenet64", "edm2_xl"): (640 * 2**20 // 2048, 2048, 0.007, "adam", 0.1),
    ("imagenet64", "ect_s"): (100_000, 128, 0.001, "adam", 0.4),
    ("imagenet64", "ect_xl"): (100_000, 128, 0.0007, "adam", 0.5),
    ("imagenet64", "ect_xl_b1024"): (100_000, 1024, 0.0007, "adam", 0.5),
    ("imagenet64", "sct_s"): (400_000, 2048, 1e-4, "adam", 0.45),
    ("imagenet64", "scd_xl"): (400_000, 2048, 7e-5, "adam", 0),
    ("imagenet512", "edm2_xxl"): (896 * 2**20 // 2048, 2048, 0.0065, "adam", 0.1),
    ("imagenet512", "sct_s"): (100_000, 2048, 1e-4, "adam", 0.25),
    ("imagenet512", "sct_xxl"): (100_000, 2048, 6.5e-5, "adam", 0.35),
    ("imagenet512", "scd_xxl"): (200_000, 2048, 6.5e-5, "adam", 0.1),
    ("imagenet256", "meanflow_b4"): (-(-240 * 1_281_167 // 256), 256, 1e-4, "adam", 0),
    ("imagenet256", "meanflow_xl2"): (-(-240 * 1_281_167 // 256), 256, 1e-4, "adam", 0),
    ("imagenet256", "imf_b2"): (-(-640 * 1_281_167 // 1024), 1024, 1e-4, "adam", 0),
    ("imagenet256", "imf_xl2"): (-(-640 * 1_281_167 // 1024), 1024, 1e-4, "adam", 0),
    ("imagenet256", "soflow_b4"): (400_000, 256, 1e-4, "adam", 0),
    ("imagenet256", "soflow_xl2"): (-(-240 * 1_281_167 // 256), 256, 1e-4, "adam", 0),
    ("imagenet256", "shortcut_xl2"): (810_000, 256, 1e-4, "adam", 0),
    ("imagenet256", "imm_xl2"): (1_200_000, 4096, 1e-4, "adam", 0),
    ("lsun_bedroom256", "edm"): (600_000, 2048, 1e-4, "radam", 0.1),
    ("lsun_cat256", "edm"): (300_000, 2048, 1e-4, "radam", 0.1),
    ("lsun_bedroom256", "cd"): (600_000, 2048, 1e-5, "radam", 0),
    ("lsun_cat256", "ct"): (1_000_000, 2048, 5e-5, "radam", 0),
}


@pytest.mark.parametrize(("workload", "name"), SCHEDULES)
def test_schedules(workload, name, projects):
    run = projects[workload].run(name)
    got = (run.train.steps, run.train.batch, run.train.lr, run.train.optimiser, run.net.config.dropout)
    assert got == SCHEDULES[workload, name]


# workload, run, profile: the rate a step.
RATES = {
    ("cifar10", "edm", "ema"): 0.99929,
    ("cifar10", "cd", "ema"): 0.9999,
    ("cifar10", "ct", "ema"): 0.9999,
    ("cifar10", "ccd_norm", "ema"): 0.9999,
    ("cifar10", "ict", "ema"): 0.99993,
    ("cifar10", "ict_deep", "ema"): 0.99993,
    ("cifar10", "ect_1h", "ema"): 0.9993,
    ("cifar10", "ect_200k", "ema"): 0.9999,
    ("cifar10", "ect", "ema"): 0.9999,
    ("cifar10", "tcm_first", "ema"): 0.9999,
    ("cifar10", "tcm", "ema"): 0.9999,
    ("cifar10", "rf", "ema"): 0.999999,
    ("cifar10", "imm", "ema"): 0.9999,
    ("cifar10", "ctm", "ema"): 0.999,
    ("cifar10", "meanflow", "ema"): 0.9999,
    ("cifar10", "soflow", "ema"): 0.9999,
    ("imagenet64", "cd", "short"): 0.999,
    ("imagenet64", "cd", "middle"): 0.9999,
    ("imagenet64", "cd", "ema"): 0.9999432,
    ("imagenet64", "ct", "ema"): 0.9999432,
    ("imagenet64", "ict", "ema"): 0.99997,
    ("imagenet64", "ict_deep", "ema"): 0.99997,
    ("imagenet256", "meanflow_b4", "ema"): 0.9999,
    ("imagenet256", "imf_b2", "ema"): 0.9999,
    ("imagenet256", "soflow_xl2", "ema"): 0.9999,
    ("imagenet256", "shortcut_b2", "ema"): 0.999,
    ("imagenet256", "imm_xl2", "ema"): 0.9999,
    ("lsun_bedroom256", "edm", "ema"): 0.9999432,
    ("lsun_bedroom256", "cd", "short"): 0.9999,
    ("lsun_cat256", "cd", "middle"): 0.99994,
    ("lsun_cat256", "ct", "ema"): 0.9999432,
}


@pytest.mark.parametrize(("workload", "name", "profile"), RATES)
def test_half_lives_are_the_rates(workload, name, profile, projects):
    train = projects[workload].run(name).train
    rate = 0.5 ** (train.batch / train.ema[profile].half_life)
    assert 1 - rate == pytest.approx(1 - RATES[workload, name, profile], rel=2e-3)
    assert train.ema[profile].ramp == (0.05 if (workload, name) == ("cifar10", "edm") else 0)


def test_power_profiles(projects):
    for workload in ("imagenet64", "imagenet512"):
        runs = projects[workload].runs
        assert {runs[f"{m}_s"].train.ema["ema"].power_std for m in ("sct", "scd")} == {0.05}
        assert {p.power_std for p in runs["edm2_xl"].train.ema.values()} > {0.05, 0.1}
        assert runs["sct_s"].train.eps == 1e-11


def test_what_papers_and_code_see_differently_is_as_in_the_code(projects):
    """D1 to D8 of the comparison with public code: the teachers of CM, its target's decay, its LPIPS, EDM's ls."""
    cifar, imagenet, lsun = (projects[name] for name in ("cifar10", "imagenet64", "lsun_bedroom256"))
    assert {cifar.run(n).method_config.reduction for n in ("edm", "edm_ncsnpp", "edm_trig")} == {"sum"}
    assert (imagenet.run("edm").method_config.reduction, imagenet.run("edm").train.eps) == ("sum", 1e-10)
    teacher = cifar.run("edm_ncsnpp").train
    assert (teacher.lr, teacher.lr_ramp_images, teacher.ema["ema"].half_life) == (1e-3, 10_000_000, 500_000)
    for name in ("lsun_bedroom256", "lsun_cat256"):
        teacher = projects[name].run("edm")
        assert (teacher.method_config.reduction, teacher.train.optimiser, teacher.train.flip) == ("mean", "radam", True)
    assert {p.run("ct").method_config.mu_counts for p in (cifar, imagenet, lsun)} == {"gaps"}
    pooling = [p.run("cd").train.lpips_pooling for p in (cifar, imagenet, lsun)]
    assert pooling == ["max", "average", "average"]
    assert imagenet.run("edm2_s").train.ema[imagenet.run("edm2_s").train.eval_ema].power_std == 0.075  # ECT's start
    kept = imagenet.run("ect_s").train
    assert {p.power_std for p in kept.ema.values() if p.power_std} == {0.01, 0.05, 0.1}
    assert 0.5 ** (128 / kept.ema["constant"].half_life) == pytest.approx(0.9999, rel=1e-7)


def test_decay_starts_at_tref(projects):
    images = {("imagenet64", "edm2_s"): 35_000 * 2048, ("imagenet64", "ect_s"): 2_000 * 128}
    images |= {("imagenet64", "ect_xl_b1024"): 2_000 * 1024, ("imagenet64", "sct_m"): 35_000 * 2048}
    images |= {("imagenet512", "edm2_m"): 70_000 * 2048, ("imagenet512", "scd_l"): 70_000 * 2048}
    for (workload, name), count in images.items():
        train = projects[workload].run(name).train
        assert (train.lr_decay, train.lr_ref_images) == ("inverse_sqrt", count)


def test_grids(projects):
    ct = {name: projects[name].run("ct").method_config for name in PAPERS if "ct" in projects[name].runs}
    assert {name: ct_points(1.0, c.s0, c.s1) for name, c in ct.items()} == {
        "cifar10": 151,
        "imagenet64": 201,
        "lsun_bedroom256": 151,
        "lsun_cat256": 151,
    }
    ict = projects["cifar10"].run("ict")
    K, c = ict.train.steps, ict.method_config
    assert [ict_points(k * 50_000, K, c.s0, c.s1) - 1 for k in range(8)] == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert c.huber_c or huber_constant(3 * 32 * 32) == pytest.approx(0.02993, rel=1e-3)
    assert huber_constant(3 * 64 * 64) == pytest.approx(0.05986, rel=1e-3)
    for name, N in {"cifar10": 18, "imagenet64": 40, "lsun_bedroom256": 40, "lsun_cat256": 40}.items():
        assert projects[name].run("cd").method_config.N == N


# workload, run: points of the grid and the index counted from sigma_max, as the scripts give two-step levels.
LEVELS = {
    ("cifar10", "cd"): (18, 11),
    ("imagenet64", "cd"): (40, 22),
    ("imagenet64", "ct"): (201, 106),
    ("lsun_bedroom256", "cd"): (40, 17),
    ("lsun_bedroom256", "ct"): (151, 67),
    ("lsun_cat256", "ct"): (151, 62),
}


@pytest.mark.parametrize(("workload", "name"), LEVELS)
def test_two_step_levels_are_grid_points(workload, name, projects):
    points, index = LEVELS[workload, name]
    run = projects[workload].run(name)
    assert run.sample.two_step == pytest.approx(float(karras_grid(points, 0.002, 80.0, 7.0)[index]), rel=1e-3)


def test_trigflow_constants(projects):
    found = {
        (w, n): run for w in PAPERS for n, run in projects[w].runs.items() if isinstance(run.method_config, TrigConfig)
    }
    assert len(found) == 5 + 8 + 10
    for run in found.values():
        assert run.sample.two_step == pytest.approx(0.5 * math.tan(1.1), rel=1e-4)
        assert run.method_config.warmup_images == 10_000 * run.train.batch
        assert run.method_config.c == 0.1
        assert run.net.config.c_noise == "trig"
        assert (run.method_config.P_mean, run.method_config.P_std) in {
            (-1.0, 1.4),
            (-1.0, 1.8),
            (-1.0, 1.6),
            (-0.8, 1.6),
        }
    assert projects["cifar10"].run("sct").method_config.P_std == 1.4
    assert projects["cifar10"].run("sct_b128_100k").method_config.P_std == 1.8
    assert projects["imagenet512"].run("sct_s").method_config.P_mean == -0.8


def test_ect_constants(projects):
    runs = projects["cifar10"].runs | {f"64/{n}": run for n, run in projects["imagenet64"].runs.items()}
    stages = {
        name: (run.method_config.q, run.method_config.stages) for name, run in runs.items() if run.method == "ect"
    }
    assert stages["ect_200k"] == (2, 8)
    assert runs["ect_200k"].train.images / 8 == 250 * 12_800  # 250 ticks of 12.8 kimg
    assert stages["ect_1h"] == (256, 1)
    assert {stages[f"64/ect_{size}"] for size in ("s", "m", "l", "xl")} == {(4, 4)}
    assert runs["64/ect_s"].method_config.weighting == "edm"
    assert runs["64/ect_s"].method_config.huber_c == 0.06
    assert runs["64/ect_s"].net.config.dropout_resolution == 16


PARAMETERS = {
    ("cifar10", "edm"): 55.7e6,
    ("cifar10", "cd"): 56.4e6,
    ("imagenet64", "edm"): 296e6,
    ("imagenet64", "edm2_s"): 280e6,
    ("imagenet64", "ect_xl"): 1.12e9,
    ("imagenet256", "meanflow_b4"): 131e6,
    ("imagenet256", "soflow_b2"): 131e6,
    ("imagenet256", "meanflow_xl2"): 676e6,
    ("imagenet256", "imm_xl2"): 676e6,
    ("imagenet512", "sct_xxl"): 1.52e9,
}


@pytest.mark.parametrize(("workload", "name"), PARAMETERS)
def test_networks_have_the_published_size(workload, name, projects):
    project = projects[workload]
    data = project.sections.data
    shape = ModelShape(data.channels, data.resolution, data.classes if project.sections.conditional else 0)
    run = project.run(name)
    with torch.device("meta"):
        denoiser = build_denoiser(run.net, shape, run.diffusion, boundary=False)
    assert sum(p.numel() for p in denoiser.parameters()) == pytest.approx(PARAMETERS[workload, name], rel=5e-3)


def test_the_small_workload_takes_little_more_than_an_hour(projects):
    """All of its runs, on one core at 40 GFLOP/s, which a modest one has."""
    costs = Costs(ModelShape(3, 32, 0))
    plans = [plan_run(run, costs, Setting(MACHINES["t4"])) for run in projects["cifar10-jpeg"].runs.values()]
    assert sum(plan.operations * plan.images for plan in plans) / 40e9 < 75 * 60


# Runs whose like was published without a number that we know of.
UNPUBLISHED = {
    "edm2_s",
    "edm2_m",
    "edm2_l",
    "edm2_xl",
    "edm2_xxl",
    "tcm_first",
    "ccd",
    "ccd_norm",
    "cct",
    "shortcut_b2",
    "shortcut_xl2",
}


@pytest.mark.parametrize("name", PAPERS)
def test_every_run_stands_beside_a_published_row(name, projects):
    rows = {n.row.run for n in NUMBERS if n.row.dataset == name and n.row.run}
    assert rows <= set(projects[name].runs)
    for run in projects[name].runs.values():
        steps = [n.nfe for n in NUMBERS if n.row.dataset == name and n.row.method == run.method]
        found = [
            counterpart(NUMBERS, name, workload=name, run=run.name, method=run.method, nfe=nfe) for nfe in set(steps)
        ]
        assert any(found) or run.name in UNPUBLISHED, run.name


def test_published_rows_go_to_the_run_with_their_settings():
    def beside(dataset: str, workload: str, run: str, method: str, nfe: int) -> str:
        number = counterpart(NUMBERS, dataset, workload=workload, run=run, method=method, nfe=nfe)
        return number.text if number else ""

    assert beside("cifar10", "cifar10", "ect", "ect", 1) == "3.60"
    assert beside("cifar10", "cifar10", "ect_100k", "ect", 1) == "4.54"
    assert beside("cifar10", "cifar10", "ect_1h", "ect", 1) == ""  # only two steps were published
    assert beside("cifar10", "cifar10", "ict_deep", "ict", 2) == "2.24"
    assert beside("cifar10", "cifar10", "edm_trig", "edm", 35) == "2.15"  # its number of evaluations is not stated
    assert beside("cifar10", "cifar10", "mine", "ect", 1) == ""
    assert beside("cifar10", "digits", "mine", "ect", 1) == "3.60"  # elsewhere the method's own row
    assert beside("imagenet64", "imagenet64", "scd_m", "scd", 2) == "1.89"
    assert beside("imagenet512", "imagenet512", "sct_xxl", "sct", 1) == "4.29"
    assert beside("lsun_cat256", "lsun_cat256", "cd", "cd", 2) == "8.84"


@pytest.mark.parametrize("size", ["s", "m", "l", "xl", "xxl"])
def test_imagenet512_is_guided_as_published(size: str, projects: dict[str, Project]):
    """sCM's teachers drop labels, and sCD learns s ~ U[1, 2]; sCT has no teacher that could be guided."""
    runs = projects["imagenet512"].runs
    assert runs[f"edm_trig_{size}"].method_config.label_dropout == 0.1
    assert runs[f"scd_{size}"].method_config.guidance == (1.0, 2.0)
    teacher, student = runs[f"edm_trig_{size}"].sample.guidance, runs[f"scd_{size}"].sample.guidance
    assert teacher == student == (1.4 if size == "s" else 1.2)
    assert (runs[f"sct_{size}"].sample.guidance, runs[f"edm2_{size}"].sample.guidance) == (1.0, 1.0)


def test_imagenet256_is_guided_and_learns_pairs_of_times_as_published(projects: dict[str, Project]):
    """Scales that become part of the weights, iMF's and IMM's at sampling, and 25 % of MeanFlow's rows with r < t."""
    runs = projects["imagenet256"].runs
    scales = {name: (run.objective.traits.guidance, run.sample.guidance) for name, run in runs.items()}
    assert {scales[name] for name in ("meanflow_b4", "meanflow_xl2")} == {((2.0, 2.0), 1.0)}
    assert {scales[name] for name in ("imf_b2", "imf_l2", "imf_xl2")} == {((1.0, 8.0), 8.0)}
    assert {scales[f"soflow_{size}"] for size in ("b4", "b2", "l2", "xl2")} == {((3.0, 3.0), 1.0)}
    assert {scales[name] for name in ("shortcut_b2", "shortcut_xl2")} == {((1.5, 1.5), 1.0)}
    assert scales["imm_xl2"][1] == 1.5
    assert {run.method_config.label_dropout for run in runs.values()} == {0.1}
    method = runs["meanflow_b4"].objective
    t, r = method.levels(Draws(0, 0, 20_000))  # pyright: ignore[reportAttributeAccessIssue]
    assert float((r < t).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(t.log().median()) == pytest.approx(-0.4, abs=0.03)


def test_edm2_xxl_fits_gpus_that_share_it(projects):
    """Its weights, gradients, moments and averages are six times 6 GB."""
    run, costs = projects["imagenet512"].run("edm2_xxl"), Costs(ModelShape(4, 64, 1000))
    for gpu in ("a100-40", "l40s"):
        whole, shard = (plan_run(run, costs, Setting(MACHINES[gpu], 8, shard=shard)) for shard in (False, True))
        assert whole.bytes > whole.memory["weights"] * 6 > 36e9
        assert shard.fits
        assert shard.bytes < 0.75 * whole.bytes
    assert not plan_run(run, costs, Setting(MACHINES["a100-40"], 8)).fits
    assert plan_run(run, costs, Setting(MACHINES["h100"], 8, shard=True)).exposed == 0
