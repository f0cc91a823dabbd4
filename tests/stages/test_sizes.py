"""What parameters alone, the data, or the disk forbid is said in one line before anything is computed."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from shipped import WORKLOADS

from cmcore.assemble.project import load_project, parse_project
from cmcore.closure import ROOT
from cmcore.config import ConfigError, load_yaml
from cmcore.edge.ray_session import ComputeError
from cmcore.pipeline.common import load
from cmcore.pipeline.sizes import check_data, check_disk, check_sizes, count_parameters, disk_bytes

BASE: dict[str, Any] = load_yaml(ROOT / "tests/e2e/tiny.yaml")
UNET = {"kind": "unet", "model_channels": 8, "channel_mult": [1, 1, 1], "blocks": 1}
FOLDER = {"source": "folder", "path": "x", "resolution": 10, "channels": 1}


def changed(**values: Any) -> dict[str, Any]:
    """The parameters with other values at dotted paths, whose dots are written as two underscores."""
    data = copy.deepcopy(BASE)
    for path, value in values.items():
        *above, key = path.split("__")
        at = data
        for name in above:
            at = at[name]
        at[key] = value
    return data


def read(tmp_path: Path, data: dict[str, Any]):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return load(tmp_path)


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_the_shipped_workloads_have_sizes_with_sense(path: Path):
    check_sizes(load_project(path))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("net__hidden", 10**10), ("net__blocks", 10**8), ("train__lr", 1e300), ("train__images", 10**30),
        ("train__snapshots", 10**9), ("train__log_images", 10**40), ("train__batch", 10**9), ("eval__samples", 10**15),
        ("eval__scan_samples", 10**14), ("eval__endpoints", 10**12), ("eval__bootstrap", 10**12),
        ("eval__teacher_steps", 10**9), ("eval__reference__width", 10**9), ("compute__threads", 10**9),
        ("compute__workers", 10**9), ("diffusion__sigma_max", 1e300), ("train__checkpoint_seconds", 1e300),
    ],
)  # fmt: skip
def test_sizes_without_sense_are_named(tmp_path: Path, path: str, value: float):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, changed(**{path: value}))
    assert caught.value.path in (path.replace("__", "."), "train.images")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name", ["x" * 101, "x" * 5000, "\u0661\u0662", "\u0434\u0430\u043d\u043d\u044b\u0435", "\u00fc"]
)
@pytest.mark.parametrize("place", ["workload", "run", "search"])
def test_names_that_make_no_file_are_refused(tmp_path: Path, name: str, place: str):
    data = changed()
    if place == "workload":
        data["workload"] = name
    elif place == "run":
        data["runs"][name] = data["runs"].pop("ect")
    else:
        data["tune"] = {name: {}}
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, data)
    assert str(caught.value).isprintable() or place == "search"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("path", ["tracking__uri", "tracking__experiment", "eval__inception__path", "data__path"])
@pytest.mark.parametrize("text", ["a\nb", "a\0b", "\x1b[2J", "a\u2028b"])
def test_text_that_cannot_be_printed_is_refused(tmp_path: Path, path: str, text: str):
    data = changed(eval__inception={}, **({"data": {**FOLDER}} if path == "data__path" else {}))
    *above, key = path.split("__")
    at = data
    for name in above:
        at = at[name]
    at[key] = text
    with pytest.raises(ConfigError, match=path.replace("__", ".")):
        read(tmp_path, data)


def test_a_batch_that_does_not_divide_among_the_workers(tmp_path: Path):
    data = changed(train__batch=127, compute={"workers": 2})
    with pytest.raises(
        ConfigError, match=r"runs\.e..\.train\.batch: expected a multiple of compute.workers = 2, got 127"
    ):
        read(tmp_path, data)
    read(tmp_path, changed(train__batch=128, compute={"workers": 2}))


def test_a_network_that_does_not_suit_the_images():
    project = parse_project(changed(data=FOLDER, net=UNET))
    with pytest.raises(
        ConfigError, match=r"runs\.edm\.net: does not suit the images: .*expected a multiple of 4, got 10"
    ):
        count_parameters(project)
    assert count_parameters(parse_project(changed()))["edm"] > 1000


MANIFEST = {"count": 1797, "classes": 10}


@pytest.mark.parametrize(
    ("manifest", "values", "path"),
    [
        ({"classes": 0}, {"conditional": True}, "conditional"),
        ({"classes": 1}, {"conditional": True}, "conditional"),
        ({"count": 60}, {"eval__kid_size": 64}, "eval.kid_size"),
        ({"count": 2}, {"eval__kid_size": 2, "eval__neighbours": 1}, "data"),
        ({"count": 1}, {"eval__kid_size": 2}, "data"),
        ({"count": 3}, {"eval__kid_size": 2, "eval__neighbours": 3}, "eval.neighbours"),
    ],
)  # fmt: skip
def test_data_that_do_not_suit(manifest: dict[str, int], values: dict[str, Any], path: str):
    project = parse_project(changed(**values))
    with pytest.raises(ConfigError) as caught:
        check_data(project, MANIFEST | manifest)
    assert caught.value.path == path
    check_data(parse_project(changed()), MANIFEST)


def test_a_full_disk_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = parse_project(changed())
    counts = dict.fromkeys(project.runs, 10**9)
    need = disk_bytes(project.runs["edm"], 10**9)
    assert need > 4 * 10**9 * 10
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**50, 0, need))
    with pytest.raises(ComputeError, match=r"expected .* of free disk space for 1 runs to train, got"):
        check_disk(project, tmp_path, ["train@edm", "evaluate@edm"], counts)
    check_disk(project, tmp_path, ["evaluate@edm"], counts)
