"""The one place where tests know a method by its name: its paper's constants and the settings that suit small tests.

A new method needs an entry here; its tests fail without one, and say so.
"""

from dataclasses import dataclass, field
from typing import Any

Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Facts about a method."""

    paper: Options  # the fields of its Config in the paper's setting for CIFAR-10
    other: tuple[str, ...] = ()  # fields without a part in that setting
    boundary: bool = False  # f(x, sigma_min) = x exactly
    teacher: bool = False  # which is the run it starts from
    start: str = "random"  # the run whose weights a small run starts from
    labels: bool = True  # trains conditional networks, too
    variants: tuple[Options, ...] = ()  # further options under which other networks take part
    wrong: tuple[tuple[Options, str], ...]  # impossible options, and the field that is named
    close: Options | None = None  # options under which both of its points almost coincide; None for one point
    coarse: Options = field(default_factory=dict)  # options for a few steps: float32 does not decide the gradient
    train: Options = field(default_factory=dict)  # settings that the run of a test needs
    short: Options = field(default_factory=dict)  # options for a run of a few hundred steps
    steps: int = 150  # of that run, at the learning rate `lr`
    lr: float
    distance: float  # the energy distance that the run beats; see test_training.py
    passes: dict[tuple[str, str], int]  # evaluations in a step, by network and kind


WITH_GRADIENT = {("student", "forward+backward"): 1}
TWO_POINTS = WITH_GRADIENT | {("student", "forward"): 1}

ENTRIES: dict[str, Entry] = {
    # arXiv 2206.00364, Table 1
    "edm": Entry(
        paper={"P_mean": -1.2, "P_std": 1.2, "uncertainty": False, "label_dropout": 0.0, "reduction": "sum"},
        variants=({"uncertainty": True},),
        wrong=(({"P_std": 0.0}, "P_std"), ({"label_dropout": 1.1}, "label_dropout"), ({"reduction": "x"}, "reduction")),
        steps=300, lr=3e-3, distance=0.03,
        passes=WITH_GRADIENT,
    ),
    # arXiv 2209.03003, Eq. 1; logit-normal times of arXiv 2403.03206
    "rf": Entry(
        paper={"times": "uniform", "label_dropout": 0.0},
        other=("P_mean", "P_std"),
        wrong=(({"P_std": 0.0}, "P_std"), ({"times": "x"}, "times"), ({"label_dropout": -0.1}, "label_dropout")),
        steps=300, lr=3e-3, distance=0.03,
        passes=WITH_GRADIENT,
    ),
    # arXiv 2209.03003 and its repository, where an adaptive solver makes the pairs
    "reflow": Entry(
        paper={"solver": "heun", "nfe": 127, "steps": 0, "distance": "l2", "guidance": 1.0},
        other=("huber_c",),
        teacher=True, start="rf",
        variants=({"steps": 1},),
        wrong=(
            ({"solver": "dpmpp_2m"}, "solver"), ({"nfe": 2}, "nfe"), ({"steps": -1}, "steps"),
            ({"distance": "lpips"}, "distance"), ({"steps": 2, "distance": "lpips"}, "distance"),
            ({"huber_c": 0.0}, "huber_c"), ({"guidance": -1.0}, "guidance"),
        ),
        coarse={"nfe": 5},
        short={"nfe": 9, "steps": 1}, lr=3e-3, distance=0.3,
        passes=WITH_GRADIENT | {("teacher", "forward"): 5},
    ),
    # arXiv 2303.01469, Table 3
    "cd": Entry(
        paper={"N": 18, "solver": "heun", "distance": "lpips", "mu": 0.0, "guidance": None},
        other=("huber_c",),
        boundary=True, teacher=True, start="edm",
        variants=({"mu": 0.5},),
        wrong=(
            ({"N": 1}, "N"), ({"mu": 1.0}, "mu"), ({"huber_c": 0.0}, "huber_c"), ({"solver": "rk4"}, "solver"),
            ({"guidance": [2.0, 1.0]}, "guidance"),
        ),
        close={"N": 50_000, "distance": "l2"},
        short={"N": 8, "huber_c": 0.1}, steps=200, lr=5e-3, distance=0.2,
        passes=TWO_POINTS | {("teacher", "forward"): 2},
    ),
    # arXiv 2310.04378; what it does not state from diffusers' train_lcm_distill_sd_wds.py
    "lcm": Entry(
        paper={
            "N": 1000, "k": 20, "solver": "euler", "distance": "huber", "huber_c": 1e-3, "mu": 0.95, "scalings": "lcm",
            "timestep_scaling": 10.0, "guidance": None,
        },
        teacher=True, start="edm",
        variants=({"mu": 0.0},),
        wrong=(
            ({"N": 1}, "N"), ({"N": 10}, "k"), ({"k": 0}, "k"), ({"mu": 1.0}, "mu"), ({"huber_c": 0.0}, "huber_c"),
            ({"solver": "rk4"}, "solver"), ({"scalings": "edm"}, "scalings"),
            ({"timestep_scaling": 0.0}, "timestep_scaling"), ({"guidance": [2.0, 1.0]}, "guidance"),
        ),
        close={"N": 50_000, "k": 1, "distance": "l2", "mu": 0.0},
        short={"N": 8, "k": 1, "huber_c": 0.1, "mu": 0.5}, steps=200, lr=5e-3, distance=0.2,
        passes=WITH_GRADIENT | {("teacher", "forward"): 1, ("target", "forward"): 1},
    ),
    # arXiv 2402.19159; what it does not state as in LCM
    "tcd": Entry(
        paper={
            "N": 1000, "k": 20, "solver": "euler", "distance": "huber", "huber_c": 1e-3, "mu": 0.95, "sees_end": True,
            "gamma": 0.3, "guidance": None,
        },
        teacher=True, start="edm",
        variants=({"mu": 0.0}, {"sees_end": False}),
        wrong=(
            ({"N": 1}, "N"), ({"k": 1000}, "k"), ({"k": 0}, "k"), ({"mu": 1.0}, "mu"), ({"huber_c": 0.0}, "huber_c"),
            ({"solver": "rk4"}, "solver"), ({"gamma": 1.1}, "gamma"), ({"guidance": [2.0, 1.0]}, "guidance"),
        ),
        close={"N": 50_000, "k": 1, "distance": "l2", "mu": 0.0},
        short={"N": 8, "k": 1, "huber_c": 0.1, "mu": 0.5}, steps=200, lr=5e-3, distance=0.2,
        passes=WITH_GRADIENT | {("teacher", "forward"): 1, ("target", "forward"): 1},
    ),
    # arXiv 2303.01469, Table 3
    "ct": Entry(
        paper={"s0": 2, "s1": 150, "mu0": 0.9, "distance": "lpips"},
        other=("huber_c", "mu_counts"),
        boundary=True,
        wrong=(
            ({"s0": 1}, "s0"), ({"s0": 9, "s1": 8}, "s1"), ({"mu0": 1.0}, "mu0"), ({"huber_c": 0.0}, "huber_c"),
            ({"mu_counts": "x"}, "mu_counts"),
        ),
        close={"s0": 50_000, "s1": 50_000, "distance": "l2"},
        short={"s1": 10, "mu0": 0.5, "huber_c": 0.3}, steps=200, lr=1e-2, distance=0.3,
        passes=WITH_GRADIENT | {("target", "forward"): 1},
    ),
    # arXiv 2310.14189, Table 2 and sec. 3.3 to 3.5
    "ict": Entry(
        paper={
            "s0": 10, "s1": 1280, "P_mean": -1.1, "P_std": 2.0, "huber_c": 0.0,
            "levels": "lognormal", "weighting": "gap", "mu": 0.0,
        },
        boundary=True,
        variants=({"mu": 0.5, "levels": "uniform"},),
        wrong=(({"s0": 0}, "s0"), ({"s1": 9}, "s1"), ({"huber_c": -1.0}, "huber_c"), ({"mu": 1.0}, "mu")),
        close={"s0": 50_000, "s1": 50_000},
        short={"s0": 10, "s1": 40}, lr=3e-3, distance=0.15,
        passes=TWO_POINTS,
    ),
    # arXiv 2406.14548 and its repository's run_ecm.sh, where c = 0
    "ect": Entry(
        paper={
            "P_mean": -1.1, "P_std": 2.0, "q": 2.0, "k": 8.0, "b": 1.0, "stages": 8, "huber_c": 1e-8,
            "weighting": "gap", "ratio_limit": 1.0,
        },
        start="edm",
        wrong=(
            ({"q": 1.0}, "q"), ({"stages": 0}, "stages"), ({"q": 256.0}, "stages"), ({"q": 1e300}, "stages"),
            ({"ratio_limit": 1.1}, "ratio_limit"), ({"huber_c": 0.0}, "huber_c"), ({"weighting": "x"}, "weighting"),
        ),
        close={"q": 4096.0, "stages": 2},
        short={"q": 4.0, "stages": 3}, lr=2e-3, distance=0.15,
        passes=TWO_POINTS,
    ),
    # arXiv 2410.11081, Alg. 1 and App. D; H = 10k iterations of 512 images
    "sct": Entry(
        paper={
            "P_mean": -1.0, "P_std": 1.4, "c": 0.1, "warmup_images": 5_120_000,
            "tangent": "normalised", "weighting": "adaptive",
        },
        start="edm",
        variants=({"tangent": "clipped", "weighting": "none"},),
        wrong=(({"c": -1.0}, "c"), ({"warmup_images": -1}, "warmup_images")),
        short={"warmup_images": 5000}, steps=120, lr=2e-3, distance=0.15,
        passes={("student", "jvp+backward"): 1},
    ),
    "scd": Entry(
        paper={
            "P_mean": -1.0, "P_std": 1.4, "c": 0.1, "warmup_images": 5_120_000,
            "tangent": "normalised", "weighting": "adaptive", "guidance": None,
        },
        teacher=True, start="edm",
        wrong=(({"P_std": -1.0}, "P_std"), ({"guidance": [-1.0, 1.0]}, "guidance"), ({"guidance": [1.0]}, "guidance")),
        short={"warmup_images": 5000}, steps=120, lr=2e-3, distance=0.15,
        passes={("student", "jvp+backward"): 1, ("teacher", "forward"): 1},
    ),
    # arXiv 2303.01469, App. B, and the authors' repository for CIFAR-10, jcm/losses.py
    "ccd": Entry(
        paper={"stop_gradient": True, "weighting": "none"},
        boundary=True, teacher=True, start="edm",
        variants=({"stop_gradient": False},),
        wrong=(({"weighting": "gap"}, "weighting"), ({"stop_gradient": "x"}, "stop_gradient")),
        short={"weighting": "grid"}, lr=5e-3, distance=0.2,
        passes={("student", "jvp+backward"): 1, ("teacher", "forward"): 1},
    ),
    "cct": Entry(
        paper={"weighting": "none"},
        boundary=True, start="edm",
        wrong=(({"weighting": "gap"}, "weighting"),),
        short={"weighting": "grid"}, lr=5e-3, distance=0.35,
        passes={("student", "jvp+backward"): 1},
    ),
    # arXiv 2303.01469's comparison: openai/consistency_models_cifar10, cifar10_ve_progressive_distillation.py
    "pd": Entry(
        paper={"steps": 4096, "long": 2, "guidance": None},
        teacher=True, start="edm",
        wrong=(({"steps": 0}, "steps"), ({"steps": 6}, "steps"), ({"steps": 2, "long": 3}, "long"),
               ({"guidance": [2.0, 1.0]}, "guidance")),
        coarse={"steps": 4, "long": 0}, train={"snapshots": 3},
        short={"steps": 4, "long": 0}, steps=240, lr=2e-3, distance=0.15,
        passes=WITH_GRADIENT | {("teacher", "forward"): 2},
    ),
    # arXiv 2410.14895 and its repository's README
    "tcm": Entry(
        paper={
            "transition": 1.0, "df": 0.01, "scale": 0.2, "ratio": 0.999, "boundary_share": 0.25, "boundary_weight": 0.1,
            "huber_c": 1e-8, "weighting": "gap",
        },
        teacher=True, start="ect",
        wrong=(
            ({"transition": 0.0}, "transition"), ({"df": 0.0}, "df"), ({"scale": 0.0}, "scale"),
            ({"ratio": 1.0}, "ratio"),
            ({"boundary_share": 1.0}, "boundary_share"), ({"boundary_weight": 0.0}, "boundary_weight"),
            ({"huber_c": 0.0}, "huber_c"), ({"weighting": "x"}, "weighting"),
        ),
        close={"ratio": 1 - 1e-7, "boundary_share": 1e-6},
        coarse={"ratio": 0.8, "huber_c": 0.1},
        short={"ratio": 0.9}, lr=2e-3, distance=0.15,
        passes=TWO_POINTS | {("teacher", "forward"): 1},
    ),
    # arXiv 2503.07565; the training code is unreleased
    "imm": Entry(
        paper={"M": 4, "g": 15.0, "a": 1, "b": 5.0, "label_dropout": 0.0},
        wrong=(({"M": 0}, "M"), ({"g": 0.0}, "g"), ({"a": -1}, "a"), ({"label_dropout": 2.0}, "label_dropout")),
        coarse={"g": 4.0},
        short={"g": 8.0}, lr=3e-3, distance=0.15,
        passes=TWO_POINTS,
    ),
    # arXiv 2405.14867 and its repository's main/edm, for ImageNet 64: the first stage, without the GAN
    "dmd2": Entry(
        paper={"N": 1000, "low": 0.02, "high": 0.98, "turns": 5, "gan": 0.0, "guidance": 1.0},
        teacher=True, start="edm",
        variants=({"gan": 3e-3},),
        wrong=(
            ({"N": 1}, "N"), ({"low": -0.1}, "low"), ({"high": 0.01}, "high"), ({"turns": 0}, "turns"),
            ({"gan": -1.0}, "gan"), ({"guidance": -1.0}, "guidance"),
        ),
        short={"turns": 2}, lr=2e-3, distance=0.15,
        passes=WITH_GRADIENT | {
            ("student", "forward"): 5, ("teacher", "forward"): 1,
            ("fake", "forward"): 1, ("fake", "forward+backward"): 5,
        },
    ),
    # arXiv 2404.04057 and its repository's run_sid.sh, for CIFAR-10
    "sid": Entry(
        paper={
            "alpha": 1.2, "sigma_init": 2.5, "highest": 0.8, "P_mean": -1.2, "P_std": 1.2, "turns": 1, "guidance": 1.0,
        },
        teacher=True, start="edm",
        wrong=(
            ({"alpha": -0.1}, "alpha"), ({"sigma_init": 0.0}, "sigma_init"), ({"highest": 1.1}, "highest"),
            ({"P_std": 0.0}, "P_std"), ({"turns": 0}, "turns"), ({"guidance": -1.0}, "guidance"),
        ),
        short={"turns": 2}, lr=2e-3, distance=0.15,
        passes=WITH_GRADIENT | {
            ("student", "forward"): 1, ("teacher", "forward+backward"): 1, ("fake", "forward+backward"): 2,
        },
    ),
    # arXiv 2311.17042, recalled
    "add": Entry(
        paper={"steps": 4, "distillation": 2.5, "r1": 1e-5},
        other=("extractor", "features", "m", "s"),
        teacher=True, start="edm",
        variants=({"features": "teacher", "distillation": 0.0},),
        wrong=(
            ({"steps": 0}, "steps"), ({"distillation": -1.0}, "distillation"), ({"r1": -1.0}, "r1"),
            ({"extractor": "mine"}, "extractor"), ({"features": "pixels"}, "features"), ({"s": 0.0}, "s"),
        ),
        short={"r1": 1e-3}, steps=250, lr=5e-4, distance=0.15,
        passes=WITH_GRADIENT | {("student", "forward"): 1, ("teacher", "forward"): 1},
    ),
    # arXiv 2604.28190, abstract: 50k images behind the moments, 1024 behind the gradient
    "fd_loss": Entry(
        paper={"batches": 49},
        other=("extractor",),
        start="edm", labels=False,
        wrong=(({"batches": 0}, "batches"), ({"extractor": "mine"}, "extractor")),
        coarse={"batches": 8},  # more images than the 64 features, or the covariance is singular and its root magnifies
        # Towards the moments of digits, whatever the images of a test; its own tests have pixels for features.
        short={"batches": 2}, steps=5, lr=1e-4, distance=2.0,
        passes=WITH_GRADIENT | {("student", "forward"): 8},
    ),
    # arXiv 2310.02279 and its repository, without the GAN; the authors balance the denoising loss by gradients
    "ctm": Entry(
        paper={
            "N": 18, "most": 17, "distance": "lpips", "mu": 0.999, "P_mean": -1.2, "P_std": 1.2, "noisiest": 0.7,
            "gamma": 0.0, "guidance": None,
        },
        other=("huber_c", "denoising", "gan", "gan_after", "extractor"),
        teacher=True, start="edm",
        variants=({"most": 1}, {"gan": 0.1}),
        wrong=(
            ({"N": 1}, "N"), ({"most": 18}, "most"), ({"huber_c": 0.0}, "huber_c"), ({"mu": 1.0}, "mu"),
            ({"denoising": -1.0}, "denoising"), ({"P_std": 0.0}, "P_std"), ({"noisiest": 0.0}, "noisiest"),
            ({"gamma": 1.1}, "gamma"), ({"gan": -1.0}, "gan"), ({"gan_after": 1.0}, "gan_after"),
            ({"gan": 0.1, "extractor": "mine"}, "extractor"), ({"guidance": [-1.0, 1.0]}, "guidance"),
        ),
        short={"N": 8, "most": 7, "mu": 0.5, "huber_c": 0.1, "denoising": 0.1}, lr=5e-3, distance=0.15,
        passes={
            ("student", "forward+backward"): 2, ("student", "forward"): 1, ("teacher", "forward"): 18,
            ("target", "forward"): 1, ("target", "forward+backward"): 1,
        },
    ),
    # arXiv 2505.13447 and the authors' py-meanflow, scripts/cifar10_v1.sh
    "meanflow": Entry(
        paper={
            "P_mean": -0.6, "P_std": 1.6, "end_mean": -4.0, "end_std": 1.6, "equal": 0.25, "power": 0.75, "eps": 1e-3,
            "omega": 1.0, "kappa": 0.0, "label_dropout": 0.0,
        },
        wrong=(
            ({"omega": 0.0}, "omega"), ({"kappa": 1.0}, "kappa"), ({"kappa": 0.5}, "label_dropout"),
            ({"omega": 2.0, "label_dropout": 0.1, "equal": 0.0}, "equal"), ({"label_dropout": 1.1}, "label_dropout"),
            ({"P_std": 0.0}, "P_std"), ({"end_std": -1.0}, "end_std"), ({"equal": 1.1}, "equal"),
            ({"power": -0.1}, "power"), ({"eps": 0.0}, "eps"),
        ),
        steps=300, lr=3e-3, distance=0.3,
        passes={("student", "jvp+backward"): 1},
    ),
    # arXiv 2512.02012 and the authors' imeanflow, configs/default.py; ImageNet 256 alone is published
    "imf": Entry(
        paper={
            "P_mean": -0.4, "P_std": 1.0, "equal": 0.5, "power": 1.0, "eps": 0.01, "guidance": None,
            "label_dropout": 0.0,
        },
        wrong=(
            ({"guidance": [0.0, 2.0]}, "guidance"), ({"guidance": [1.0, 8.0]}, "label_dropout"),
            ({"P_std": 0.0}, "P_std"), ({"equal": 0.0}, "equal"), ({"equal": 1.1}, "equal"),
            ({"power": -0.1}, "power"), ({"eps": 0.0}, "eps"),
        ),
        steps=300, lr=3e-3, distance=0.3,
        passes={("student", "jvp+backward"): 1, ("student", "forward"): 1},
    ),
    # arXiv 2505.18825 and its project page; the share of rows and the weight from memory
    "flowmap": Entry(
        paper={"objective": "lagrangian", "middle": "half", "every": 4, "weighting": "learned"},
        variants=({"objective": "eulerian"}, {"objective": "progressive"}, {"weighting": "none"}),
        wrong=(
            ({"objective": "x"}, "objective"), ({"middle": "x"}, "middle"), ({"every": 1}, "every"),
            ({"weighting": "x"}, "weighting"),
        ),
        coarse={"weighting": "none"},
        start="edm",  # from random weights 300 steps end at 0.2 to 0.7, by the seed
        steps=300, lr=3e-3, distance=0.2,
        passes=WITH_GRADIENT,  # the equation's own are for one row in `every`, of which a plan tries none
    ),
    # arXiv 2512.15657 and its repository's cifar.yaml
    "soflow": Entry(
        paper={
            "P_mean": -0.9, "P_std": 1.6, "end_mean": -4.0, "end_std": 1.6, "equal": 0.0, "first_gap": 1.0,
            "last_gap": 3.125e-4, "power": 0.75, "eps": 1e-3, "guidance": 1.0, "label_dropout": 0.0,
        },
        other=("mix", "fade"),
        wrong=(
            ({"guidance": 0.5}, "guidance"), ({"mix": 0.0}, "mix"), ({"fade": 0.0}, "fade"),
            ({"guidance": 2.0}, "label_dropout"), ({"guidance": 2.0, "label_dropout": 0.1}, "equal"),
            ({"P_std": 0.0}, "P_std"), ({"end_std": -1.0}, "end_std"), ({"equal": 1.1}, "equal"),
            ({"first_gap": 1.1}, "first_gap"), ({"last_gap": 0.0}, "last_gap"),
            ({"first_gap": 0.1, "last_gap": 0.2}, "last_gap"), ({"power": -0.1}, "power"), ({"eps": 0.0}, "eps"),
        ),
        coarse={"last_gap": 0.5},
        short={"last_gap": 0.05}, steps=300, lr=3e-3, distance=0.3,
        passes=TWO_POINTS,
    ),
    # arXiv 2410.12557 and the authors' train.py
    "shortcut": Entry(
        paper={"steps": 128, "every": 8, "mu": 0.999, "guidance": 1.0, "label_dropout": 0.0},
        wrong=(({"guidance": -1.0}, "guidance"), ({"guidance": 2.0}, "label_dropout"),
               ({"steps": 12}, "steps"), ({"steps": 1}, "steps"), ({"every": 1}, "every"), ({"mu": 1.0}, "mu")),
        short={"steps": 4, "every": 2, "mu": 0.9}, steps=300, lr=3e-3, distance=0.15,
        passes=WITH_GRADIENT,  # the target's two are for one row in `every`, and for none of the few that a plan tries
    ),
}  # fmt: skip


def entry(name: str) -> Entry:
    """The entry of a method; a KeyError where it has none."""
    if name not in ENTRIES:
        raise KeyError(f"{name}: expected an entry in ENTRIES of tests/support/registry.py, got {', '.join(ENTRIES)}")
    return ENTRIES[name]
