"""The parameter file as a whole: what is wrong anywhere in it is refused with its dotted path, before any compute."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from every_run import every_run
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import WORKLOADS
from tiny import METHODS
from tiny_runs import PARAMS

from cmcore.assemble.project import Project, load_project, parse_project
from cmcore.assemble.run import resolved
from cmcore.config import ConfigError, flatten, merge

UNET = {"kind": "unet", "model_channels": 8, "channel_mult": [1], "blocks": 1}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"runs": {"edm": {"method": "edmm"}}}, "runs.edm.method", "did you mean 'edm'"),
    ({"runs": {"edm": {"method": 5}}}, "runs.edm.method", "expected text"),
    ({"runs": {"edm": {"options": {"P_men": 1.0}}}}, "runs.edm.options.P_men", "did you mean 'P_mean'"),
    ({"runs": {"edm": {"options": {"P_std": 0}}}}, "runs.edm.options.P_std", "expected a positive number"),
    ({"runs": {"edm": {"train": {"lr": "fast"}}}}, "runs.edm.train.lr", "expected a number"),
    ({"runs": {"edm": {"train": {"imags": 5}}}}, "runs.edm.train.imags", "did you mean 'images'"),
    ({"runs": {"edm": {"net": {"hiddens": 5}}}}, "runs.edm.net.hiddens", "did you mean 'hidden'"),
    ({"runs": {"edm": {"sample": {"two_step": 20.0}}}}, "runs.edm.sample.two_step", "sigma_max = 20.0, got 20.0"),
    ({"runs": {"edm": {"sample": {"two_step": 0.002}}}}, "runs.edm.sample.two_step", "sigma_min = 0.002"),
    ({"runs": {"edm": {"sample": {"two_step": 0}}}}, "runs.edm.sample.two_step", "expected a positive noise level"),
    (
        {"runs": {"pd": {"method": "pd", "init": "edm", "teacher": "edm", "options": {"steps": 4, "long": 0}}}},
        "runs.pd.train.snapshots",
        "expected a number with a snapshot after the share 0.6667 of the run, for the row of 2 evaluations, got 2",
    ),
    ({"runs": {"edm": {"sample": {"solvers": ["euler"]}}}}, "runs.edm.sample.nfe", "a list, beside a list of solvers"),
    ({"runs": {"edm": {"sample": {"solvers": ["euler"], "nfe": [2]}}}}, "runs.edm.sample.nfe[0]", "at least 3"),
    (
        {"runs": {"edm": {"sample": {"solvers": ["euler_linear"], "nfe": [0]}}}},
        "runs.edm.sample.nfe[0]",
        "at least 1, got 0",
    ),
    (
        {"runs": {"ect": {"sample": {"solvers": ["euler"], "nfe": [5]}}}},
        "runs.ect.sample.solvers",
        "expected none, as ect is no diffusion model, got ['euler']",
    ),
    ({"runs": {"edm": {"init": "edmm"}}}, "runs.edm.init", "expected random or one of ect, ict, got 'edmm'"),
    ({"runs": {"edm": {"init": "edm"}}}, "runs.edm.init", "goes round in a circle: edm -> edm"),
    ({"runs": {"edm": {"init": "ect"}}}, "runs.edm.init", "goes round in a circle: edm -> ect -> edm"),
    ({"runs": {"x": {"method": "edm"}}}, "runs.x.init", "is missing"),
    ({"runs": {"x": {"method": "edm", "init": "random"}}}, "runs.x.teacher", "is missing"),
    (
        {"runs": {"scd": {"method": "scd", "init": "edm", "teacher": "none"}}},
        "runs.scd.teacher",
        "expected the name of a diffusion run for scd, got 'none'",
    ),
    ({"runs": {"ect": {"teacher": "edm"}}}, "runs.ect.teacher", "expected none for ect, got 'edm'"),
    ({"runs": {"ect": {"teacher": "edmm"}}}, "runs.ect.teacher", "expected none or one of edm, ict, got 'edmm'"),
    (
        {"runs": {"scd": {"method": "scd", "init": "edm", "teacher": "scd"}}},
        "runs.scd.teacher",
        "goes round in a circle: scd -> scd",
    ),
    (
        {"runs": {"scd": {"method": "scd", "init": "ect", "teacher": "ect"}}},
        "runs.scd.teacher",
        "scd learns from a diffusion model; 'ect' is none",
    ),
    (
        {"runs": {"edm": {"weights": {"file": "x.pkl"}, "init": "ict"}}},
        "runs.edm.init",
        "expected random, as the weights come from a file, got 'ict'",
    ),
    (
        {"runs": {"edm": {"weights": {"file": "x.pkl"}, "teacher": "ict"}}},
        "runs.edm.teacher",
        "expected none, as the weights come from a file, got 'ict'",
    ),
    ({"runs": {"edm": {"weights": {"sha256": ""}}}}, "runs.edm.weights.file", "the name of a file"),
    ({"runs": {"edm": {"weights": {"file": "x", "sha256": "12"}}}}, "runs.edm.weights.sha256", "64 hexadecimal digits"),
    ({"runs": {"edm": {"weights": "x.pkl"}}}, "runs.edm.weights", "expected a mapping or null, got 'x.pkl'"),
    ({"train": {"players": {"critic": {"lr": 1e-4}}}}, "runs.edm.train.players.critic", "edm trains the student alone"),
    ({"train": {"players": {"critic": {"lr": -1.0}}}}, "train.players.critic.lr", "expected a positive number"),
    ({"runs": {"cd": {"method": "cd", "init": "edm", "teacher": "edm"}}}, "runs.cd.options.distance", "lpips needs"),
    ({"runs": {"ect": {"net": {"hidden": 32}}}}, "runs.ect.net", "expected the network of 'edm', got another hidden"),
    ({"runs": {"ect": {"net": UNET}}}, "runs.ect.net", "expected the network of 'edm'"),
    (
        {"runs": {"random": {"method": "edm", "init": "random", "teacher": "none"}}},
        "runs.random",
        "stands for no run at all",
    ),
    ({"runs": {"../x": {"method": "edm", "init": "random", "teacher": "none"}}}, "runs.../x", "expected a name"),
    ({"net": {"kind": "mpl"}}, "net.kind", "did you mean 'mlp'"),
    ({"net": {"kind": None}}, "net.kind", "expected one of"),
    ({"net": {"hidden": 0}}, "net.hidden", "at least 1"),
    ({"train": {"batch": 0}}, "train.batch", "at least 1"),
    ({"train": {"ema": {"ema": {"half_life": 0}}}}, "train.ema.ema.half_life", "above 0"),
    ({"diffusion": {"sigma_max": 0.001}}, "diffusion.sigma_max", "more than sigma_min"),
    ({"data": {"source": "digit"}}, "data.source", "expected one of"),
    ({"eval": {"scan": [1.0, 30.0]}}, "eval.scan[1]", "expected a level between"),
    ({"eval": {"sample": 5}}, "eval.sample", "did you mean"),
    ({"workload": "../up"}, "workload", "expected a name"),
    ({"runs": None}, "runs", "expected a mapping"),
    ({"conditional": "yes"}, "conditional", "expected true or false"),
    ({"trains": {}}, "trains", "did you mean 'train'"),
]


def parse(changes: Mapping[str, Any]) -> Project:
    return parse_project(merge(copy.deepcopy(PARAMS), changes))


@pytest.mark.parametrize(("changes", "path", "words"), WRONG, ids=[f"{row[1]}-{i}" for i, row in enumerate(WRONG)])
def test_what_is_wrong_is_named_by_its_dotted_path(changes: dict[str, Any], path: str, words: str):
    with pytest.raises(ConfigError) as caught:
        parse(changes)
    assert caught.value.path == path
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_set_of_runs_is_refused():
    with pytest.raises(ConfigError, match=r"runs: expected at least one run"):
        parse_project({**PARAMS, "runs": {}})


def test_a_run_lays_its_own_settings_over_the_shared_ones():
    changes = {"train": {"lr": 5e-4}, "net": {"dropout": 0.3}, "options": {"q": 4}, "sample": {"two_step": 1.5}}
    project = parse({"runs": {"ect": changes}})
    ect, edm = project.run("ect"), project.run("edm")
    assert (ect.train.lr, edm.train.lr, ect.train.images) == (5e-4, 1e-3, 4096)
    assert (ect.net.config.dropout, edm.net.config.dropout) == (0.3, 0.0)  # no part of the weights: init still fits
    assert (ect.method_config.q, ect.sample.two_step, edm.sample.two_step) == (4.0, 1.5, 0.821)
    with pytest.raises(ConfigError, match=r"runs.nothing: expected one of edm, ect, ict"):
        project.run("nothing")


def test_a_network_of_another_kind_stands_alone():
    run = parse({"runs": {"ict": {"net": UNET}}}).run("ict")
    assert (run.net.kind, run.net.config.model_channels, run.net.config.channel_mult) == ("unet", 8, (1,))


def test_every_method_fits_into_a_parameter_file():
    project = every_run()
    assert set(project.runs) == set(METHODS)
    assert flatten(resolved(project.run("ict")))["method_config.s1"] == 1280


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_the_shipped_workloads_are_valid(path: Path):
    assert load_project(path).workload == path.stem


def test_a_file_is_read_with_yaml_1_2_numbers(tmp_path: Path):
    text = yaml.safe_dump(PARAMS).replace("lr: 0.001", "lr: 1e-3")
    assert "lr: 1e-3" in text
    (tmp_path / "params.yaml").write_text(text)
    assert load_project(tmp_path / "params.yaml").run("edm").train.lr == 1e-3


LEAVES = sorted(flatten(PARAMS))
values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**9), st.floats(), st.sampled_from(["", "edm", "ect", "random", "raw"]),
    st.lists(st.floats(), max_size=2),
    st.dictionaries(st.sampled_from(["half_life", "x", "edm"]), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from([*LEAVES, "runs.ect", "train", "net", "eval.scan", "tune.x", "runs.ect.options.q"]), values)
def test_any_change_is_valid_or_refused_in_one_line_with_a_path(path: str, value: Any):
    *above, key = path.split(".")
    data: Any = copy.deepcopy(PARAMS)
    place = data
    for name in above:
        place = place.setdefault(name, {})
    place[key] = value
    refused = ""
    try:
        project = parse_project(data)
        assert set(project.runs) == set(data["runs"])
    except ConfigError as error:
        refused = str(error)
    assert "\n" not in refused
    assert not refused or ": " in refused
