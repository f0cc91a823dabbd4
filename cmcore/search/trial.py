"""One trial of a search: trained rung by rung, stopped or continued at any moment, its scores kept in its folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmcore.assemble.posthoc import reconstruct
from cmcore.assemble.training import averaged, fingerprint, train_run
from cmcore.atomic import write_atomic
from cmcore.config import ConfigError
from cmcore.search.search import WORST, Job, posthoc_run, score, train_once, trial_run
from cmcore.search.space import POSTHOC_STD
from cmcore.tracking.base import Null
from cmcore.train import checkpoint
from cmcore.train.gate import NonFiniteError
from cmcore.train.session import CHECKPOINT
from cmcore.train.state import State, state_tensors

TRIAL = "trial.json"
FINISHED, RUNNING = "finished", "running"
BAD = ("impossible", "diverged", "error")  # how the outcome of a trial that gave nothing begins
Report = Callable[[int, int, float], None]  # (part, images seen, score)


@dataclass
class Trial:
    """The record of a trial, kept in its folder so that it outlives the trial's process."""

    key: str
    values: dict[str, Any]
    scores: dict[int, float]  # images seen -> Frechet distance
    outcome: str = RUNNING  # then finished, or the reason of its end

    @property
    def images(self) -> int:
        """How far it came."""
        return max(self.scores, default=0)

    @property
    def final(self) -> float:
        """Its latest score; the worst there is, where it came to a bad end."""
        bad = self.outcome.startswith(BAD)
        return WORST if bad else self.scores.get(self.images, WORST)

    def save(self, folder: Path) -> None:
        """Write it to its folder."""
        write_atomic(folder / TRIAL, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "Trial | None":
        """Read it back, if it is there."""
        path = folder / TRIAL
        if not path.exists():
            return None
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(data["key"], data["values"], {int(k): v for k, v in data["scores"].items()}, data["outcome"])


def trial_folder(job: Job, key: str) -> Path:
    """Where a trial keeps its files."""
    return job.folder / "trials" / key


def run_trial(
    job: Job, key: str, tried: Mapping[str, Any], report: Report, *, reported: int = 0, start: Path | None = None,
    device: str = "cpu",
) -> None:  # fmt: skip
    """Train a trial, or continue it, and report its score at every rung.

    Args:
        job: the search.
        key: names the trial.
        tried: values by dotted path, as a searcher gives them.
        report: receives every score once. It never returns where the trial is stopped.
        reported: images seen at the last report that arrived.
        start: a training state to go on from, where that of the trial's folder is of other values (PBT).
        device: torch device.
    """
    folder = trial_folder(job, key)
    values = {dimension.path: dimension.clean(tried[dimension.path]) for dimension in job.config.dimensions}
    trial = Trial.load(folder) or Trial(key, values, {})
    if trial.values != values:
        trial = Trial(key, values, {images: old for images, old in trial.scores.items() if images <= reported})
    if job.config.kind == "posthoc":
        return _try_profile(job, trial, report, device)
    try:
        run = trial_run(job, values)
        mark = fingerprint(run, job.inputs)
        if start is not None:
            _take_over(start, folder / CHECKPOINT, mark)

        def watch(state: State) -> None:
            part = state.images * job.config.parts // run.train.total
            if part not in job.config.marks:
                return
            if state.images not in trial.scores:
                trial.scores[state.images] = score(
                    job, run, averaged(state, run.train.eval_ema), job.config.seed, device
                )
            trial.outcome = FINISHED if state.images == run.train.total else RUNNING
            trial.save(folder)
            # The state of this very moment: a trial that is paused or copied goes on from here.
            meta = {"fingerprint": mark, "images": state.images}
            checkpoint.save(folder / CHECKPOINT, state_tensors(state), meta)
            if state.images > reported:
                report(part, state.images, trial.scores[state.images])

        for images, old in sorted(trial.scores.items()):
            if images > reported:
                report(images * job.config.parts // run.train.total, images, old)
                reported = images
        train_run(
            run, job.inputs, folder, tracker=Null(), on_progress=lambda done, total: None, watch=watch, device=device
        )
    except (ConfigError, NonFiniteError) as error:
        trial.outcome = f"{'impossible' if isinstance(error, ConfigError) else 'diverged'}: {error}"
        part = next(mark for mark in job.config.marks if mark * job.budget > trial.images * job.config.parts)
        trial.save(folder)
        report(part, trial.images, WORST)


def _take_over(source: Path, target: Path, mark: str) -> None:
    """Continue another trial's training under other values, unless the own training is there already."""
    if target.exists() and checkpoint.header(target)["fingerprint"] == mark:
        return
    tensors, meta = checkpoint.load(source)
    checkpoint.save(target, tensors, {**meta, "fingerprint": mark})


def _try_profile(job: Job, trial: Trial, report: Report, device: str) -> None:
    run = posthoc_run(job, job.config.seed)
    if run.train.total not in trial.scores:
        model = reconstruct(train_once(job, run, "posthoc", device), trial.values[POSTHOC_STD], device=device)
        trial.scores[run.train.total] = score(job, run, model.denoiser, job.config.seed, device)
        trial.outcome = FINISHED
        trial.save(trial_folder(job, trial.key))
    report(job.config.parts, run.train.total, trial.scores[run.train.total])


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The best first: trials that came further stand before those that were stopped earlier, whatever their scores."""
    return sorted(trials, key=lambda trial: (trial.final >= WORST, -trial.images, trial.final, trial.key))
