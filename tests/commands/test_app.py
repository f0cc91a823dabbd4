"""The command line: help, completion, errors of one line, and the project it finds."""

import fcntl
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cmcore.closure import ROOT
from cmcore.commands.app import app, main
from cmcore.commands.place import project_root
from cmcore.edge.ray_family import on_loss
from cmcore.pipeline.signals import received

COMMANDS = (
    "repro",
    "new",
    "use",
    "plan",
    "tune",
    "adopt",
    "report",
    "score",
    "likelihood",
    "ui",
    "sync",
    "import-weights",
    "clean",
    "doctor",
    "sample",
    "levels",
    "edit",
    "gallery",
    "export",
    "toy",
)


def call(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code if isinstance(end.value.code, int) else -1


def heeded() -> None:
    """Signals as on a terminal: what `nohup` or a shell starts in the background ignores some, as do its children."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(*words: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "cmcore.commands", *words], cwd=folder, stdout=pipe, stderr=pipe, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, preexec_fn=heeded,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder, and the working directory two levels below it."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "workloads").mkdir()
    text = (ROOT / "workloads/digits.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "workloads/digits.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "workloads/cifar10.yaml").write_text((ROOT / "workloads/cifar10.yaml").read_text())
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    return tmp_path


def test_help_lists_every_command_but_the_hidden_one(capsys):
    assert call() == call("--help") == 0
    listed = re.findall(r"^  ([a-z][a-z-]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(set(listed)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_anywhere(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(command, "--help") == 0
    said = capsys.readouterr().out
    assert re.search(rf"Examples?:\n +cmlab {command}", said)
    assert "Reads " in said or "Writes" in said or re.search(r"Copies|Removes|Changes|Serves", said)


def test_help_loads_nothing_heavy():
    code = "import sys; from cmcore.commands import app; print([m for m in sys.modules if '.' not in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "ray", "dvc", "mlflow", "rich", "ruamel", "psutil"} & set(eval(done.stdout))


def test_the_version(capsys):
    assert call("--version") == 0
    assert re.fullmatch(r"cmlab (\d+\.\d+\.\d+|from .+, not installed)\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["frobnicate"], 2, "cmlab: No such command 'frobnicate'."),
        (["plam"], 2, "cmlab: No such command 'plam'. Did you mean 'plan'?"),
        (["use"], 2, "cmlab use: Missing argument 'workload'."),
        (["use", "digit"], 2, "cmlab use: WORKLOAD: expected one of cifar10, digits, got 'digit'"),
        (["plan", "--gpus", "many"], 2, "cmlab plan: Invalid value for '--gpus': Input should be a valid integer"),
        (["plan", "--gpu", "h1000"], 2, "cmlab plan: --gpu: expected one of t4,"),
        (["plan", "--guests", "2"], 2, "cmlab plan: No such option: --guests"),
        (["ui", "--port", "0"], 2, "cmlab ui: Invalid value for '--port'"),
        (["adopt", "nothing"], 2, "cmlab adopt: NAME: expected a search that has run (none has), got 'nothing'"),
        (["import-weights", "none.pkl"], 1, "cmlab import-weights: "),
        (["readme"], 1, "cmlab readme: there is no reports/digits/tables/headline.md yet"),
        (["repro"], 1, "cmlab repro: the project is "),
    ],
)
def test_an_error_is_one_line(project, capsys, words, code, message):
    assert call(*words) == code
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_outside_a_project_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("clean") == 1
    assert capsys.readouterr().err.startswith("cmlab clean: expected a project folder, with dvc.yaml and params.yaml")


def test_a_project_is_found_from_below_and_without_params(project, capsys):
    (project / "searches").mkdir()
    (project / "searches/dvc.yaml").touch()  # more stages of the same project
    assert project_root(project / "searches") == project_root() == project
    (project / "params.yaml").unlink()
    assert call("use", "cifar10") == 0
    assert (project / "params.yaml").read_bytes() == (project / "workloads/cifar10.yaml").read_bytes()
    assert "params.yaml is now workloads/cifar10.yaml" in capsys.readouterr().out


def test_a_wrong_parameter_ends_with_2(project, capsys):
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("blocks: 4", "blocks: four"))
    assert call("plan") == 2
    assert capsys.readouterr().err == "cmlab plan: net.blocks: expected a whole number, got 'four'\n"


def test_the_pages_of_a_server_are_its_own(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert call("ui") == 1
    assert capsys.readouterr().err.startswith("cmlab ui: MLflow at http://tracker:5000 does not answer: ")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
def test_the_pages_of_the_projects_own_database_come_up(project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process, deadline = start("ui", "--port", str(port), folder=project), time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                    break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("no answer")
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert f"http://127.0.0.1:{port}" in said
    assert (project / ".tracking/mlflow.db").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_with_128_and_its_number(tmp_path, number, code):
    """`import-weights` waits for the writer of a pipe."""
    pipe = tmp_path / "weights.pkl"
    os.mkfifo(pipe)
    process = start("import-weights", "weights.pkl", folder=tmp_path)
    with pipe.open("wb"):  # opens when the process reads
        time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors == "cmlab import-weights: stopped\n"


def test_a_command_called_by_another_program_leaves_its_process_alone(project, monkeypatch):
    """As a notebook calls it: its kernel outlives the command, an interrupt of it, and later the death of a Ray."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    here = Path.cwd()
    assert call("plan") == 0

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cmcore.commands.plan.lines", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["plan"])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before
    assert (Path.cwd(), on_loss, received) == (here, [], [])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cmlab ad", ["adopt"]),
        ("cmlab use ", ["cifar10", "digits"]),
        ("cmlab plan c", ["cifar10"]),
        ("cmlab tune e", ["ect_schedule", "ema_width"]),
        ("cmlab repro --set runs.sc", ["runs.sct.", "runs.scd."]),
        ("cmlab repro --set runs.ect.options.q", ["runs.ect.options.q="]),
    ],
)
def test_the_shell_completes_names(project, words, expected):
    count = str(len(words.split()) - (not words.endswith(" ")))
    process = start(folder=Path.cwd(), _CMLAB_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    said, errors = process.communicate(timeout=30)
    assert (said.split(), errors) == (expected, "")


def test_completion_of_a_damaged_file_is_silent(project):
    (project / "params.yaml").write_text("tune: [")
    process = start(folder=Path.cwd(), _CMLAB_COMPLETE="complete_bash", COMP_WORDS="cmlab tune ", COMP_CWORD="2")
    assert "".join(process.communicate(timeout=30)).strip() == ""


def test_the_console_script_is_this_command_line():
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"cmlab": f"{main.__module__}:{main.__name__}"}
    assert app.info.name == "cmlab"


@pytest.mark.parametrize(
    "words", [("repro",), ("repro", "--set", "train.seed=3"), ("tune", "x"), ("report",), ("clean",)]
)
def test_a_second_command_says_who_works_before_it_touches_anything(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    before = (tmp_path / "params.yaml").read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cmcore.commands.line.pipeline.require_own_code", lambda _: None)
    (tmp_path / ".work").mkdir()
    with (tmp_path / ".work/running").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert call(*words) == 1
    said = capsys.readouterr().err
    who = f"another process works in {tmp_path}/.work"
    assert said == f"cmlab {words[0]}: {who}; wait for it to end, as `cmlab repro --wait` does\n"
    assert (tmp_path / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".work", "dvc.yaml", "params.yaml"]
