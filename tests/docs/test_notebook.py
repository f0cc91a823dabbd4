"""The notebook: its cells run from the first to the last, and it holds no outputs."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from cmcore.closure import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run(path: Path) -> dict[str, object]:
    """The names that the cells leave, executed in turn as plain Python."""
    names: dict[str, object] = {}
    for index, cell in enumerate(cells(path)):
        exec(compile("".join(cell["source"]), f"{path.name}[{index}]", "exec"), names)
    return names


@pytest.mark.timeout(600)  # seconds of a free core, minutes of a shared one
def test_the_digits_are_trained_and_sampled(monkeypatch):
    """From the notebook's own folder, as Jupyter starts it."""
    monkeypatch.chdir(ROOT / "notebooks")
    names = run(ROOT / "notebooks/digits.ipynb")
    images, history, table = names["images"], names["history"], names["table"]
    assert isinstance(images, torch.Tensor)
    assert (images.dtype, images.shape) == (torch.uint8, (64, 1, 8, 8))
    assert isinstance(history, pd.DataFrame)
    assert history["loss"].notna().all()
    assert isinstance(table, pd.DataFrame)
    assert {1, 2} <= set(table.columns)
    assert "ect" in table.index
    assert (Path(str(names["work"])) / "grid.png").stat().st_size > 1000
    x = images.double() - images.double().mean(0)
    alike = (x[..., 1:] * x[..., :-1]).mean() / (x**2).mean()
    assert alike > 0.2, "neighbouring pixels of digits are alike, those of noise are not"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path))
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
