"""The stage of edits: what it writes, and what the report makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from stored import PARAMS, store

from cmcore.assemble.models import save_empty
from cmcore.assemble.project import parse_project
from cmcore.config import read
from cmcore.data.images import ImageData
from cmcore.data.sources.prepare import prepare
from cmcore.report.editing import Editing, editing_section, editing_table, read_editing
from cmcore.report.readers import ReportError
from stages import edit

RUNS = {**PARAMS["runs"], "dmd2": {"method": "dmd2", "init": "edm", "teacher": "edm"}}
CHANGES = {
    "runs": RUNS,
    "compute": {"backend": "inline", "device": "cpu"},
    "tracking": {"mlflow": False},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A project folder after the stage."""
    root = tmp_path_factory.mktemp("edit") / "project"
    for seed, name in enumerate(RUNS):
        store(root, name, seed=seed, **CHANGES)
    project = parse_project(yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")))
    prepare(project.sections.data, root / "outputs/tiny/data")
    save_empty(root / "outputs/tiny/runs/random/weights.safetensors", "random")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(edit, "COUNT", 9)
        edit.main()
    return root / "outputs/tiny/edits"


def test_errors_have_their_provenance(made):
    facts = read(Editing, json.loads((made / "edits.json").read_text(encoding="utf-8")))
    data = ImageData.open(made.parent / "data")
    assert (facts.data, facts.held_out, facts.factor) == (data.digest, False, 2)
    assert (facts.diffusion, facts.fixed) == (("edm",), ("dmd2",))
    assert set(facts.fingerprints) == {"edm", "ect"}
    assert set(facts.errors) == {"inpaint", "super-resolution"}
    for found in facts.errors.values():
        assert [(one.model, one.nfe) for one in found] == [("edm", 9), ("edm", 39), ("ect", 10), ("ect", 40)]
        assert all(one.known_error < 1e-12 < one.error for one in found)
    found = read_editing(made)
    assert found is not None
    assert np.array_equal(found[1], data.images[list(facts.images)][: edit.SHOWN])


def test_marks_are_of_equally_many_evaluations(made):
    found = read_editing(made)
    assert found is not None
    table = editing_table(found[0], {})
    assert [row[0].text for row in table.rows] == ["edm", "ect", "edm", "ect"]
    place = [column.key for column in table.columns].index("inpaint")
    for rows in (table.rows[:2], table.rows[2:]):
        least = min(row[place].value for row in rows)
        assert [row[place].best_of_group for row in rows] == [row[place].value == least for row in rows]
    assert "Steps too fixed to edit with: dmd2." in table.caption


def test_old_figures_go_with_the_edits(made, tmp_path):
    (section,) = editing_section(made, (), tmp_path)
    assert [picture.path.stem for picture in section.figures] == ["editing_inpaint", "editing_super_resolution"]
    assert editing_section(None, (), tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_missing_are_named(made, tmp_path):
    (tmp_path / "edits.json").write_bytes((made / "edits.json").read_bytes())
    with pytest.raises(ReportError, match=r"edits.npz: expected the images of edits.json, got: "):
        read_editing(tmp_path)
