"""Settings of several workers, checked against the runs before any compute."""

from typing import Any

import pytest
from tiny_runs import PARAMS

from cmcore.assemble.project import Project, parse_project
from cmcore.config import ConfigError
from cmcore.edge.settings import ComputeConfig
from cmcore.pipeline.sizes import check_workers


def project(method: str, options: dict[str, Any], train: dict[str, Any]) -> Project:
    runs = {"edm": PARAMS["runs"]["edm"], "a": {"method": method, "init": "edm", "teacher": "none"}}
    runs["a"] |= {"options": options, "train": train, "teacher": "edm" if method == "ccd" else "none"}
    return parse_project(PARAMS | {"runs": runs})


@pytest.mark.parametrize(
    ("method", "options", "train", "workers", "message"),
    [
        ("ect", {}, {"batch": 60}, 8, r"runs\.a\.train\.batch: expected a multiple of compute\.workers = 8, got 60"),
        (
            "imm",
            {},
            {"batch": 72},
            16,
            r"train\.batch: expected a multiple of compute\.workers = 16 times the method's groups",
        ),
        ("ect", {}, {"compile": True, "cuda_graphs": True}, 2, r"runs\.a\.train\.cuda_graphs: expected false"),
        ("ccd", {"stop_gradient": False}, {}, 2, r"compute\.shard: expected false, as the loss of runs\.a has second"),
        ("flowmap", {}, {}, 2, r"compute\.shard: expected false, as the loss of runs\.a has second"),
    ],
)
def test_what_workers_cannot_share_is_refused(
    method: str, options: dict[str, Any], train: dict[str, Any], workers: int, message: str
):
    with pytest.raises(ConfigError, match=message):
        check_workers(project(method, options, train), ComputeConfig(workers=workers, shard=True))


@pytest.mark.parametrize("method", ["ect", "sct", "ccd"])
def test_what_they_can_share_is_not(method: str):
    check_workers(project(method, {}, {}), ComputeConfig(workers=4, shard=True))
    check_workers(project(method, {}, {"compile": True, "cuda_graphs": True}), ComputeConfig(workers=4))
