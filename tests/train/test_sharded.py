"""Networks that are spread over workers, in processes connected by gloo.

They train as one worker does, and any number of workers goes on from a checkpoint.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_runs import CASES, Numbers, edm2_state, session, train, train_all
from tiny import make_method, make_train
from together import together
from torch.distributed.fsdp import FSDPModule

from cmcore.train import checkpoint
from cmcore.train.session import CHECKPOINT, PARTS
from cmcore.train.workers import ALONE

needs_new_torch = pytest.mark.skipif(
    not hasattr(FSDPModule, "reset_iter_state"), reason="compute.shard is refused under this PyTorch"
)
# A target that moves, two players, stages; the other methods are slow.
FEW = ["ct", "dmd2", "tcm", "edm2", "edm2 with Duals", "channels last", "fp16"]
OTHERS = [name for name in CASES if name not in (*FEW, "compiled")]


@pytest.fixture(scope="module")
def few() -> list[Any]:
    return together(2, train_all, 2, FEW)


@pytest.fixture(scope="module")
def others() -> list[Any]:
    return together(2, train_all, 2, OTHERS)


def check(name: str, results: list[Any]) -> None:
    alone = train(name, ALONE, 8)  # the same rows at once, or fp16 would round differently
    for found, _ in results:
        assert found[name].keys() == alone.keys()
        for key, tensor in alone.items():
            torch.testing.assert_close(found[name][key], tensor, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
    assert all(torch.equal(results[0][0][name][key], results[1][0][name][key]) for key in alone)


@needs_new_torch
@pytest.mark.parametrize("name", FEW)
def test_a_sharded_run_is_the_run_of_one_worker(name: str, few: list[Any]):
    check(name, few)


@needs_new_torch
@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_so_is_that_of_every_method(name: str, others: list[Any]):
    check(name, others)


@needs_new_torch
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_so_is_one_of_compiled_blocks():
    check("compiled", together(2, train_all, 2, ["compiled"]))


@needs_new_torch
def test_every_worker_holds_a_part(few: list[Any]):
    net = edm2_state(make_method("edm"), make_train(), ALONE).nets.student
    sizes = [parameter.numel() for parameter in net.parameters()]
    single = [parameter.ndim == 0 for parameter in net.parameters()]
    for size, one, *shares in zip(sizes, single, *(held for _, held in few), strict=True):
        assert shares == [size, size] if one else sum(shares) == size
    assert sum(few[1][1]) < 0.55 * sum(sizes)


# Checkpoints


def by(world: int, *args: Any) -> None:
    """A session by so many workers."""
    if world == 1:
        session(0, 1, *args)
    else:
        together(world, session, world, *args)


def content(folder: Path) -> tuple[Numbers, list[str]]:
    """The whole tensors of a checkpoint, whoever has written it, and the other files that it is in."""
    tensors, meta = checkpoint.load_rows(folder / CHECKPOINT, lambda *_: None)
    files = meta.get("files", [])
    assert sorted(path.name for path in folder.glob(PARTS)) == sorted(files), "files of older checkpoints are removed"
    return tensors, files


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints after 72 images, by the number of workers."""
    folders = {world: tmp_path_factory.mktemp(f"by{world}") for world in (1, 2)}
    for world, folder in folders.items():
        by(world, folder, 72)
    return folders


@needs_new_torch
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_any_number_of_workers_goes_on_from_a_checkpoint(
    before: int, after: int, begun: dict[int, Path], tmp_path: Path
):
    folder, again, alone = tmp_path / "run", tmp_path / "again", tmp_path / "alone"
    shutil.copytree(begun[before], folder)
    saved, files = content(folder)
    assert len(files) == before - 1
    by(after, folder, 144, again)
    read, files = content(again)
    assert len(files) == after - 1
    assert read.keys() == saved.keys()
    assert any("optimiser" in name for name in saved)
    assert all(torch.equal(read[name], saved[name]) for name in saved), "reading and writing changes no bit"

    shutil.copytree(begun[1], alone)
    by(1, alone, 144)
    for name, tensor in content(alone)[0].items():
        torch.testing.assert_close(content(folder)[0][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def parts_in(folder: Path, *, images: int = 8, files: Sequence[str] = ("checkpoint.8-1.safetensors",)) -> Path:
    """A checkpoint of rows 0 and 1 of a tensor, whose row 2 is in another file."""
    rows = torch.arange(6.0).reshape(3, 2)
    meta = {"fingerprint": "mark", "images": 8, "rows": {"a": (0, (3, 2))}}
    checkpoint.save(folder / CHECKPOINT, {"a": rows[:2], "b": torch.ones(())}, meta | {"files": files})
    rest = {**meta, "images": images, "rows": {"a": (2, (3, 2))}}
    checkpoint.save(folder / "checkpoint.8-1.safetensors", {"a": rows[2:]}, rest)
    return folder / CHECKPOINT


def test_rows_come_from_several_files(tmp_path: Path):
    path = parts_in(tmp_path)
    for wanted, expected in ((None, [0, 1, 2]), (slice(1, 3), [1, 2]), (slice(3, 3), []), (slice(0, 1), [0])):
        tensors, meta = checkpoint.load_rows(path, lambda name, shape, wanted=wanted: wanted if name == "a" else None)
        assert tensors["a"].tolist() == [[2.0 * row, 2.0 * row + 1] for row in expected]
        assert float(tensors["b"]) == 1
        assert meta["images"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ()}, "all 3 rows of a once"),
        ({"files": ("checkpoint.8-1.safetensors",) * 2}, "all 3 rows of a once"),
        ({"files": ("checkpoint.8-2.safetensors",)}, "checkpoint.8-2.safetensors"),
        ({"files": ("../checkpoint.8-1.safetensors",)}, "names of files beside it"),
        ({"files": (1,)}, "expected a weight file"),
        ({"images": 4}, "expected a part of checkpoint.safetensors, got one of another moment"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load_rows(parts_in(tmp_path, **change), lambda *_: None)
