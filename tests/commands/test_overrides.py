"""Parameters overridden for one run of the pipeline: checked before anything runs, and gone afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cmcore.closure import ROOT
from cmcore.commands import app
from cmcore.commands.overrides import FOLDER, overriding, parse, recover, running
from cmcore.commands.place import CommandError
from cmcore.config import ConfigError, load_yaml, merge

TEXT = (ROOT / "workloads/digits.yaml").read_text(encoding="utf-8")
CHANGE = {"runs": {"ect": {"options": {"q": 8}}}}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_bytes(TEXT.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params(project: Path) -> str:
    return (project / "params.yaml").read_text(encoding="utf-8")


def test_values_are_yaml_and_keys_are_nested():
    words = ["a.b=8", "a.c=[1, 1e-3]", "d=text=more", "a.e={f: true}", "a.b=9"]
    assert parse(words) == {"a": {"b": 9, "c": [1, 0.001], "e": {"f": True}}, "d": "text=more"}


@pytest.mark.parametrize("text", ["runs.ect.options.q", "=8", "runs..q=8", ""])
def test_an_assignment_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="--set: expected KEY=VALUE"):
        parse([text])


def test_the_file_has_the_values_for_the_time_of_the_block_alone(project):
    with overriding(project, ["runs.ect.options.q=8"]):
        assert load_yaml(project / "params.yaml") == merge(load_yaml(ROOT / "workloads/digits.yaml"), CHANGE)
        assert params(project).count("#") == TEXT.count("#")
        assert running(project)
    assert params(project) == TEXT
    assert not running(project)
    assert recover(project) == []


def test_some_runs_bring_those_that_they_need(project):
    with overriding(project, ["replicates=2"], ["scd", "ict"]):
        found = load_yaml(project / "params.yaml")
        assert list(found["runs"]) == ["edm", "ict", "scd"]
        assert found["replicates"] == 2
        assert {entry["base"] for entry in found["tune"].values()} == {"ict"}
    assert params(project) == TEXT


def test_a_run_that_is_not_there_is_named_with_those_that_are(project):
    said = r"--runs: expected names of runs .*edm, pd.*got 'etc'"
    with pytest.raises(ConfigError, match=said), overriding(project, [], ["etc"]):
        pytest.fail("it ran")
    assert params(project) == TEXT


def test_another_workload_takes_its_place(project):
    other = ROOT / "workloads/digits-ablations.yaml"
    with overriding(project, ["train.seed=2"], ["sct_clipped"], other):
        found = load_yaml(project / "params.yaml")
        assert found["workload"] == "digits-ablations"
        assert found["train"]["seed"] == 2
        assert list(found["runs"]) == ["edm", "sct_clipped"]
    assert params(project) == TEXT


def test_it_is_put_back_after_an_error(project):
    with pytest.raises(KeyError), overriding(project, ["train.seed=2"]):
        raise KeyError
    assert params(project) == TEXT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs.ect.options.qq=8", "runs.ect.options.qq: unknown key; did you mean 'q'?"),
        ("runs.ect.options.q=eight", "runs.ect.options.q: expected a number, got 'eight'"),
        ("runs.ect.options.q=[", "runs.ect.options.q: is not valid YAML"),
        ("tarin.seed=2", "tarin: unknown key; did you mean 'train'?"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_runs(project, text, message):
    with pytest.raises(ConfigError) as error, overriding(project, [text]):
        pytest.fail("it ran")
    assert str(error.value).startswith(message)
    assert params(project) == TEXT


def test_a_second_run_with_overrides_waits_for_the_first(project):
    with overriding(project, ["train.seed=2"]):
        with pytest.raises(CommandError, match="another `cmlab repro"), overriding(project, ["train.seed=3"]):
            pytest.fail("it ran")
        assert recover(project) == []
        assert load_yaml(project / "params.yaml")["train"]["seed"] == 2


def test_edits_made_meanwhile_are_kept(project, capsys):
    with overriding(project, ["train.seed=2"]):
        edited = params(project).replace("seed: 2", "seed: 5")
        (project / "params.yaml").write_text(edited)
    assert params(project) == edited
    assert "was edited meanwhile and stays as it is; before that it was .work/.set/kept.yaml" in capsys.readouterr().out
    assert (project / FOLDER / "kept.yaml").read_text() == TEXT


def killed(project: Path) -> None:
    """A process that is killed while it has overridden parameters."""
    code = (
        "import sys, time; from pathlib import Path; from cmcore.commands.overrides import overriding\n"
        "with overriding(Path.cwd(), ['train.seed=2']): print('now', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=project, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(CommandError, match="belongs to a running"):  # a command that would write the file
        app.app(["use", "digits"], standalone_mode=False)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_the_next_command_puts_the_file_back_after_a_kill(project, capsys):
    killed(project)
    assert "seed: 2" in params(project)
    with pytest.raises(SystemExit) as end:
        app.main(["plan", "--gpu", "h1000"])
    assert end.value.code == 2
    assert params(project) == TEXT
    first, second = capsys.readouterr().err.splitlines()
    assert first == "a `cmlab repro --set` was killed: params.yaml is as it was"
    assert second.startswith("cmlab plan: --gpu: expected one of")


def test_the_command_line_overrides_and_says_what_the_reports_show(project, monkeypatch, capsys):
    seen = []

    def pipeline(jobs: str, *, yes: bool) -> int:
        assert not yes
        seen.append((jobs, load_yaml(Path("params.yaml"))["runs"]["ect"]["options"]["q"]))
        return 0

    monkeypatch.setattr("cmcore.commands.line.pipeline.require_own_code", lambda root: None)
    monkeypatch.setattr("cmcore.commands.repro.main", pipeline)
    with pytest.raises(SystemExit) as end:
        app.main(["repro", "-j", "2", "--set", "runs.ect.options.q=8"])
    assert end.value.code == 0
    assert seen == [("2", 8)]
    assert params(project) == TEXT
    assert capsys.readouterr().out.splitlines() == [
        "params.yaml is as it was",
        "reports/ now show runs.ect.options.q=8; `cmlab repro` restores the results of params.yaml as it is",
    ]
