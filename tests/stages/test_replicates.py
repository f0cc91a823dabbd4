"""Runs trained from several seeds: paired with their teachers, extended later, with JOBS and without the same."""

import json
from pathlib import Path

import pytest
import yaml

import stages.prepare
import stages.reference
from cmcore.closure import ROOT
from cmcore.config import ConfigError, load_yaml
from cmcore.evaluate.records import RunMetrics
from cmcore.pipeline.common import Setup, load
from cmcore.pipeline.parallel import compute_stages
from cmcore.train import checkpoint
from stages import evaluate, train
from stages.__main__ import run as run_stage

ALL = ("train@edm", "train@ect", "evaluate@edm", "evaluate@ect")


def project(root: Path, replicates: int, **sections: object) -> Setup:
    """The tiny workload in a folder, with so many training seeds."""
    changes = {
        "replicates": replicates,
        "tracking": {"mlflow": False},
        "compute": {"backend": "inline", "threads": 1},
        **sections,
    }
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(load_yaml(ROOT / "tests/e2e/tiny.yaml") | changes))
    return load(root)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the workload with two training seeds, each stage computed as `dvc repro` does; and its files."""
    root = tmp_path_factory.mktemp("replicates") / "project"
    project(root, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        stages.prepare.main()
        stages.reference.main()
        for stage, run in ((train, "edm"), (train, "ect"), (evaluate, "edm"), (evaluate, "ect")):
            run_stage(stage, stage.__name__.removeprefix("stages."), run)
    return root, files(root)


def files(root: Path) -> dict[str, bytes]:
    """Outputs and records, without how long they took."""
    found = (path for name in ("outputs", "reports") for path in (root / name).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found if "times" not in path.parts}


def metrics(root: Path, run: str) -> RunMetrics:
    return RunMetrics.from_json(json.loads((root / f"reports/tiny/metrics/{run}.json").read_text()))


def test_every_seed_has_its_weights_and_records(two):
    root, made = two
    folders = load(root).folders
    for run in ("edm", "ect"):
        assert json.loads(made[f"outputs/tiny/runs/{run}/seeds/seeds.json"]) == [1, 2]
        found = [json.loads((folders.run(run, index) / "summary.json").read_text()) for index in (0, 1)]
        assert [summary["seed"] for summary in found] == [1, 2]
        assert folders.weights(run).read_bytes() != folders.weights(run, 1).read_bytes()
        result = metrics(root, run)
        assert [one.seed for one in result.replicates] == [2]
        rows = [(r.metric, r.provenance.nfe, r.provenance.seed) for r in result.records]
        assert [(r.metric, r.provenance.nfe, r.provenance.seed) for r in result.replicates[0].records] == rows
        marks = [
            {r.provenance.fingerprint for r in records} for records in (result.records, result.replicates[0].records)
        ]
        assert marks == [{summary["fingerprint"]} for summary in found]
        assert RunMetrics.from_json(result.to_json()) == result


def test_a_student_starts_from_the_same_replicate_of_its_teacher(two, tmp_path, monkeypatch):
    """Its fingerprint is that of a project of which the one seed is the second."""
    made = two[1]
    other = project(tmp_path / "single", 1, train={**load_yaml(ROOT / "tests/e2e/tiny.yaml")["train"], "seed": 2})
    monkeypatch.chdir(other.folders.root)
    stages.prepare.main()
    train.main("edm")
    train.main("ect")
    for run in ("edm", "ect"):
        assert other.folders.weights(run).read_bytes() == made[f"outputs/tiny/runs/{run}/seeds/1/weights.safetensors"]
        assert json.loads((other.folders.seeds(run) / "seeds.json").read_text()) == [2]


def test_one_more_seed_keeps_those_that_are_there(two, monkeypatch):
    root, before = two
    trained, done = list[int](), set[Path]()
    monkeypatch.setattr("stages.train.execute", counted(train.execute, lambda args: trained.append(args[3].train.seed)))
    evaluated = counted(checkpoint.save, lambda args: done.add(Path(args[0]).parents[1]))
    monkeypatch.setattr("cmcore.assemble.passes.checkpoint.save", evaluated)
    setup = project(root, 3)
    recorded = list[str]()
    compute_stages(setup, ALL, 1, recorded.append)
    assert sorted(recorded) == sorted(ALL)
    assert trained == [3, 3]
    after = files(root)
    kept = {name for name in before if "metrics" not in name and not name.endswith("seeds.json")}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    for run in ("edm", "ect"):
        old = json.loads(before[f"reports/tiny/metrics/{run}.json"])
        new = json.loads(after[f"reports/tiny/metrics/{run}.json"])
        assert [one["seed"] for one in new["replicates"]] == [2, 3]
        assert new["replicates"][:1] == old["replicates"]
        over_seeds = dict.fromkeys(("replicates", "scores", "score_spreads"))
        assert new | over_seeds == old | over_seeds
        # Of the first seed, whose samples are shown, and of the third: not of the second.
        assert len({path for path in done if path.parent.name == "shards" and path.name.startswith(f"{run}-")}) == 2
    assert not list((root / ".work/tiny/shards").rglob("*.safetensors"))

    one = project(root, 1)
    monkeypatch.setattr("stages.train.execute", lambda *_, **__: pytest.fail("it is trained again"))
    compute_stages(one, ALL, 1, recorded.append)
    for run in ("edm", "ect"):
        assert metrics(root, run).replicates == ()
        assert "replicates" not in json.loads((root / f"reports/tiny/metrics/{run}.json").read_text())
        assert [path.name for path in one.folders.seeds(run).iterdir()] == ["seeds.json"]


def counted(function, note):
    """The function, after a note of its arguments."""

    def noted(*args, **kwargs):
        note(args)
        return function(*args, **kwargs)

    return noted


@pytest.mark.slow
def test_with_jobs_the_files_are_the_same(two, tmp_path, monkeypatch):
    before, recorded = two[1], list[str]()
    setup = project(tmp_path / "jobs", 2, compute={"threads": 1, "device": "cpu"})
    monkeypatch.chdir(setup.folders.root)
    stages.prepare.main()
    compute_stages(setup, ["reference", *ALL], 2, recorded.append)
    assert recorded.index("train@edm") < recorded.index("train@ect") < recorded.index("evaluate@ect")
    assert len(recorded) == 5
    assert files(tmp_path / "jobs") == before


def test_public_weights_have_one_replicate(tmp_path):
    runs = {
        "public": {"method": "edm", "init": "random", "teacher": "none", "weights": {"file": "edm.pkl"}},
        "ect": {"method": "ect", "init": "public", "teacher": "none"},
    }
    setup = project(tmp_path, 3, runs=runs)
    assert [setup.project.replicates(name) for name in ("public", "ect", "random", "none")] == [1, 3, 1, 1]
    assert setup.weights("public", 2) == setup.folders.weights("public")


@pytest.mark.parametrize("wrong", [0, 1001, 2.5])
def test_other_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="replicates: expected"):
        project(tmp_path, wrong)
