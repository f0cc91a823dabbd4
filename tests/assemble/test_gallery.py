"""Galleries of edits: tasks that suit the images, matched evaluations, errors against the truth."""

import pytest
import torch
from stored import PARAMS, store

from cmcore.assemble.gallery import COUNT, STEPS, edit_passes, edits, factor_of, hole
from cmcore.assemble.project import parse_project
from cmcore.assemble.results import open_run
from cmcore.tensors import to_float


@pytest.fixture
def runs(tmp_path):
    for name in ("ect", "edm"):
        store(tmp_path, name)
    return [open_run(name, tmp_path) for name in ("ect", "edm")]


TRUTH = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_every_task_by_every_model_at_every_number_of_steps(runs):
    found = edits(runs, TRUTH, steps=(4, 9), factor=2)
    assert [edit.task for edit in found] == ["inpaint", "super-resolution"]  # there is no colour to take away
    for edit in found:
        assert [(one.model, one.nfe) for one in edit.results] == [("ect", 4), ("ect", 9), ("edm", 3), ("edm", 9)]
        assert all(one.known_error < 1e-12 for one in edit.results)


@pytest.mark.parametrize("name", ["edm", "ect"])
def test_passes_are_counted_as_they_are_asked_for(runs, name):
    """Of a consistency function as many as there are levels that it has learned, at most."""
    run = next(run for run in runs if run.name == name)
    images, asked = TRUTH.repeat(6, 1, 1, 1)[:COUNT], 0

    def count(module, inputs):
        nonlocal asked
        asked += len(inputs[0])

    run.model.denoiser.net.register_forward_pre_hook(count)
    edits([run], images, steps=STEPS, factor=factor_of(8))
    known = parse_project(PARAMS).run(name)
    assert 0.9 * edit_passes(known, 1, 8) <= asked <= edit_passes(known, 1, 8) == 2 * 16 * 50
    assert edit_passes(known, 3, 8) == 3 * 16 * 50
    assert edit_passes(known, 1, 4) == 16 * 50


def test_a_run_of_fixed_steps_has_no_passes():
    runs = {**PARAMS["runs"], "dmd2": {"method": "dmd2", "init": "edm", "teacher": "edm"}}
    assert edit_passes(parse_project(PARAMS | {"runs": runs}).run("dmd2"), 3, 8) == 0


def test_the_hole_is_the_middle_and_nothing_else_changes(runs):
    (inpainted, _) = edits(runs[:1], TRUTH, steps=(3,), factor=2)
    missing = hole(8)
    assert int(missing.sum()) == 16
    images = torch.from_numpy(inpainted.results[0].images)
    assert torch.equal(images[~missing.expand_as(images)], TRUTH[~missing.expand_as(TRUTH)])


def test_images_that_fit_no_batch_are_edited_in_parts(runs, monkeypatch):
    """To the rounding of other matrix shapes."""
    whole = edits(runs, TRUTH, steps=(4,), factor=2, seed=3)
    monkeypatch.setattr("cmcore.assemble.results.MOST_AT_ONCE", 2)
    assert runs[0].batch == 2
    for a, b in zip(whole, edits(runs, TRUTH, steps=(4,), factor=2, seed=3), strict=True):
        assert [one.error for one in a.results] == pytest.approx([one.error for one in b.results], rel=1e-5)


def test_a_conditional_model_restores_images_of_their_class(tmp_path):
    store(tmp_path, "ect", classes=10, conditional=True)
    run = open_run("ect", tmp_path)
    first, second = (
        edits([run], TRUTH, steps=(2,), factor=0, labels=torch.tensor([label] * 3))[0].results[0].images
        for label in (0, 1)
    )
    assert not (first == second).all()


def test_enlarging_starts_from_at_least_four_pixels():
    assert {side: factor_of(side) for side in (4, 7, 8, 12, 16, 28, 32)} == {
        4: 0, 7: 0, 8: 2, 12: 2, 16: 4, 28: 4, 32: 4
    }  # fmt: skip


def test_the_error_is_that_of_the_images(runs):
    """Up to the rounding of pixels."""
    for edit in edits(runs, TRUTH, steps=(3,), factor=2):
        for one in edit.results:
            off = to_float(torch.from_numpy(one.images)) - to_float(TRUTH)
            each = off.square().flatten(1).mean(1).sqrt()
            assert one.error == pytest.approx(each.mean().item(), abs=0.01)
            assert one.standard_error == pytest.approx(each.std().item() / 3**0.5, abs=0.01)
