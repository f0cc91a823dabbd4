"""Galleries of edits: tasks that suit the images, matched evaluations, errors against the truth."""

import pytest
import torch
from stored import store

from cmcore.assemble.gallery import edits, hole
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


def test_the_hole_is_the_middle_and_nothing_else_changes(runs):
    (inpainted, _) = edits(runs[:1], TRUTH, steps=(3,), factor=2)
    missing = hole(8)
    assert int(missing.sum()) == 16
    images = torch.from_numpy(inpainted.results[0].images)
    assert torch.equal(images[~missing.expand_as(images)], TRUTH[~missing.expand_as(TRUTH)])


def test_the_error_is_that_of_the_images(runs):
    """Up to the rounding of pixels."""
    for edit in edits(runs, TRUTH, steps=(3,), factor=2):
        for one in edit.results:
            off = to_float(torch.from_numpy(one.images)) - to_float(TRUTH)
            each = off.square().flatten(1).mean(1).sqrt()
            assert one.error == pytest.approx(each.mean().item(), abs=0.01)
            assert one.standard_error == pytest.approx(each.std().item() / 3**0.5, abs=0.01)
