"""A run that is stopped anywhere and started again ends in the bits of one that was never stopped."""

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from every_run import every_run, make_inputs
from killed import killed_at
from tiny import METHODS

from cmcore.assemble import training
from cmcore.assemble.project import Run
from cmcore.assemble.training import Inputs, train_run
from cmcore.methods.base import Batch
from cmcore.rng import Draws
from cmcore.tracking.base import Null
from cmcore.train import checkpoint
from cmcore.train.checkpoint import CheckpointError
from cmcore.train.gate import NonFiniteError
from cmcore.train.session import CHECKPOINT, HISTORY
from cmcore.train.settings import AdapterConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def train(run: Run, inputs: Inputs, folder: Path) -> Path:
    torch.rand(1)  # the global generator is never where it was before
    return train_run(run, inputs, folder, tracker=Null(), on_progress=lambda *_: None)


def results(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MIDDLE = 1  # a row from which on the parts of an accumulated gradient are not the first
ADAPTED = ["lcm", "pd"]  # with an average of the adapter as the target, and with stages


@pytest.mark.parametrize(
    ("name", "adapter"),
    [*((name, None) for name in METHODS), *((name, AdapterConfig(rank=3, alpha=6.0)) for name in ADAPTED)],
    ids=[*METHODS, *(f"{name}-adapter" for name in ADAPTED)],
)
def test_interrupted_runs_end_in_the_same_bits(
    name: str,
    adapter: AdapterConfig | None,
    inputs: dict[str, Inputs],
    tmp_path: Path,
):
    run = every_run().run(name)
    run = replace(run, train=replace(run.train, adapter=adapter))
    expected = results(train(run, inputs[name], tmp_path / "whole"))
    assert {"weights.safetensors", "history.jsonl", "summary.json"} < expected.keys()
    assert len(expected) == 3 + run.train.snapshots
    chance, folder = random.Random(name), tmp_path / "broken"
    for step in sorted(chance.sample(range(run.train.steps), 3)):
        with killed_at(step * run.train.batch, MIDDLE):
            train(run, inputs[name], folder)
        with (folder / HISTORY).open("a") as file:
            file.write('{"images": 12')  # a line that the kill cut in two
    assert results(train(run, inputs[name], folder)) == expected


def test_a_killed_process_continues(inputs: dict[str, Inputs], tmp_path: Path):
    """A real SIGKILL, in the middle of a run that writes a checkpoint every four steps."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from every_run import every_run\n"
        "from cmcore.assemble.training import Inputs, train_run\n"
        "from cmcore.tracking.base import Null\n"
        "say = lambda images, total: print(images, flush=True)\n"
        "data, init, folder = map(Path, sys.argv[1:])\n"
        "run = every_run(images=4096, log_images=256).run('ict')\n"
        "train_run(run, Inputs(data, init, init), folder, tracker=Null(), on_progress=say)\n"
    )
    run, use, folder = every_run(images=4096, log_images=256).run("ict"), inputs["ict"], tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])}
    command = [sys.executable, "-W", "ignore", "-c", code, str(use.data), str(use.init), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        reached = next(int(line) for line in process.stdout if int(line) >= 1024)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "final").exists()
    _, meta = checkpoint.load(folder / CHECKPOINT, "nothing")
    # At most one checkpoint is on its way when the next is due.
    assert reached - 2 * run.train.log_images <= meta["images"] < run.train.total
    assert results(train(run, use, folder)) == results(train(run, use, tmp_path / "whole"))


def test_a_finished_run_is_not_trained_again(
    inputs: dict[str, Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, said = every_run(images=128).run("edm"), []
    final = train(run, inputs["edm"], tmp_path / "run")
    monkeypatch.setattr(training, "image_batches", None)
    again = train_run(
        run, inputs["edm"], tmp_path / "run", tracker=Null(), on_progress=lambda *now: said.append(now)
    )  # fmt: skip
    assert (again, said) == (final, [(128, 128)])


def test_a_checkpoint_of_another_run_is_refused(inputs: dict[str, Inputs], tmp_path: Path):
    run = every_run().run("edm")
    with killed_at(512, MIDDLE):
        train(run, inputs["edm"], tmp_path)
    other = replace(run, train=replace(run.train, lr=2e-3))
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT}: expected fingerprint \w+, got \w+"):
        train(other, inputs["edm"], tmp_path)
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT}: expected a weight file"):
        train(run, inputs["edm"], tmp_path)


@pytest.mark.parametrize("harm", ["lost line", "another number", "no JSON", "lost file"])
def test_a_damaged_history_is_not_continued(inputs: dict[str, Inputs], tmp_path: Path, harm: str):
    run, path = every_run().run("edm"), tmp_path / HISTORY
    with killed_at(512, MIDDLE):
        train(run, inputs["edm"], tmp_path)
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    changed = {
        "lost line": "".join(lines[:-1]),
        "another number": re.sub(r"\d\}", lambda digit: f"{9 - int(digit[0][0])}}}", text, count=1),
        "no JSON": "x" + text,
        "lost file": "",
    }[harm]
    assert changed != text
    path.write_text(changed)
    if harm == "lost file":
        path.unlink()
    with pytest.raises(CheckpointError, match=rf"{HISTORY}: .*damaged"):
        train(run, inputs["edm"], tmp_path)
    path.write_text(text + '{"images": 99999, "lost": "fut')  # only what follows the checkpoint
    train(run, inputs["edm"], tmp_path)


def test_what_a_killed_writer_left_is_cleared(inputs: dict[str, Inputs], tmp_path: Path):
    (tmp_path / "snapshots").mkdir()
    parts = [tmp_path / f".{CHECKPOINT}.123.part", tmp_path / "snapshots/.000000064.safetensors.9.part"]
    for part in parts:
        part.write_bytes(b"half")
    train(every_run(images=128).run("edm"), inputs["edm"], tmp_path)
    assert not any(part.exists() for part in parts)


def test_a_non_finite_loss_names_step_method_and_the_last_good_checkpoint(
    inputs: dict[str, Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, real = every_run(micro_batch=0).run("ict"), training.image_batches

    def image_batches(*arguments: Any) -> Callable[[Draws], Batch]:
        batches = real(*arguments)
        bad = float("nan")
        return lambda draws: Batch(batches(draws).x * (bad if draws.images == 640 else 1), None)

    monkeypatch.setattr(training, "image_batches", image_batches)
    words = rf"ICT: loss nan .* at step 11 \(640 images seen\).*the last good checkpoint is .*{CHECKPOINT}"
    with pytest.raises(NonFiniteError, match=words):
        train(run, inputs["ict"], tmp_path)
    assert checkpoint.load(tmp_path / CHECKPOINT, "nothing")[1]["images"] == 640
