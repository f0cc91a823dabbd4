"""Runs whose process ends in the middle."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cmcore.assemble import training
from cmcore.methods.base import Batch
from cmcore.rng import Draws


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(images: int, row: int = 0) -> Iterator[None]:
    """Let the process end in the step at `images`, before a part of its batch that starts at `row` or later."""
    real = training.image_batches

    def image_batches(*arguments: Any) -> Callable[[Draws], Batch]:
        batches = real(*arguments)

        def until(draws: Draws) -> Batch:
            if draws.images == images and (draws.rows.start or 0) >= row:
                raise Killed
            return batches(draws)

        return until

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "image_batches", image_batches)
        with pytest.raises(Killed):
            yield
