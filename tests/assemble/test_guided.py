"""Guidance from the parameter file to the records: what is refused, and a teacher and its guided students."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_at
from tiny_runs import PARAMS, tiny_inputs

from cmcore.assemble import training
from cmcore.assemble.evaluation import Evaluation, classes_drawn, endpoint_run, evaluate_run
from cmcore.assemble.models import load_model
from cmcore.assemble.passes import passes, scales
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.training import WEIGHTS, Inputs, train_run
from cmcore.config import ConfigError, merge
from cmcore.data.images import ImageData
from cmcore.diffusion.guidance import at_scale
from cmcore.diffusion.inputs import GUIDANCE, NO_LABEL
from cmcore.evaluate.reference import reference
from cmcore.evaluate.settings import ClassifierConfig, EvalConfig
from cmcore.sample.presets import ode_sampler
from cmcore.sample.stream import generate
from cmcore.tracking.base import Null

CONFIG = EvalConfig(
    samples=40, batch=20, shard=40, teacher_steps=3, bootstrap=0, kid_subsets=2, kid_size=20, score_splits=2,
    endpoints=20, scan=(2.0,), scan_samples=20, snapshot_samples=20,
    reference=ClassifierConfig(width=4, features=8, images=300, batch=50),
)  # fmt: skip
RUNS: dict[str, Any] = {
    "edm": {
        "method": "edm", "init": "random", "teacher": "none", "options": {"label_dropout": 0.3},
        "sample": {"guidance": 1.5},
    },
    "plain": {"method": "edm", "init": "random", "teacher": "none"},
    "ect": {"method": "ect", "init": "edm", "teacher": "none"},
    "scd": {
        "method": "scd", "init": "edm", "teacher": "edm", "options": {"guidance": [1.0, 2.0], "warmup_images": 256},
        "sample": {"guidance": 1.5},
    },
    "cd": {"method": "cd", "init": "edm", "teacher": "edm", "options": {"guidance": [1.0, 2.0], "distance": "l2"}},
    "public": {"method": "edm", "init": "random", "teacher": "none", "weights": {"file": "public.pkl"}},
}  # fmt: skip
TRAIN = {"images": 1024, "lr": 1e-2, "micro_batch": 40, "snapshots": 1, "log_images": 256}


def project(changes: dict[str, Any] | None = None, **sections: Any) -> Project:
    params = PARAMS | {"conditional": True, "runs": RUNS, "train": PARAMS["train"] | TRAIN} | sections
    return parse_project(merge(params, {"runs": changes or {}}))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"plain": {"sample": {"guidance": 1.5}}}, "runs.plain.sample.guidance"),
    ({"plain": {"sample": {"guidance": -1.0}}}, "runs.plain.sample.guidance"),
    ({"ect": {"sample": {"guidance": 1.5}}}, "runs.ect.sample.guidance"),
    ({"scd": {"sample": {"guidance": 2.5}}}, "runs.scd.sample.guidance"),
    ({"scd": {"teacher": "plain"}}, "runs.scd.options.guidance"),
    ({"cd": {"teacher": "plain"}}, "runs.cd.options.guidance"),
    ({"scd": {"options": {"guidance": [2.0, 1.0]}}}, "runs.scd.options.guidance"),
    ({"ect": {"net": {"guidance": True}}}, "runs.ect.net.guidance"),
    ({"ect": {"init": "scd"}}, "runs.ect.init"),  # which has no input for the scales that scd has learned
    ({"public": {"method": "ect", "sample": {"guidance": 1.5}}}, "runs.public.sample.guidance"),
]


@pytest.mark.parametrize(("changes", "path"), WRONG)
def test_what_cannot_be_guided_is_refused(changes: dict[str, Any], path: str):
    with pytest.raises(ConfigError) as error:
        project(changes)
    assert error.value.path == path


@pytest.mark.parametrize(
    ("run", "path"),
    [
        ({"options": {"label_dropout": 0.1}}, "runs.a.options.label_dropout"),
        ({"sample": {"guidance": 1.5}}, "runs.a.sample.guidance"),
    ],
)
def test_networks_without_labels_cannot_be_guided(run: dict[str, Any], path: str):
    with pytest.raises(ConfigError, match="which these networks do not see") as error:
        project(conditional=False, runs={"a": {"method": "edm", "init": "random", "teacher": "none"} | run})
    assert error.value.path == path
    runs = {
        "a": RUNS["plain"],
        "b": {"method": "scd", "init": "a", "teacher": "a", "options": {"guidance": [1.0, 2.0]}},
    }
    with pytest.raises(ConfigError) as error:
        project(conditional=False, runs=runs)
    assert error.value.path == "runs.b.options.guidance"


def test_of_imported_weights_the_user_knows():
    found = project({"public": {"sample": {"guidance": 1.5}}, "scd": {"teacher": "public"}})
    assert found.run("public").sample.guidance == 1.5


def test_only_students_of_guided_teachers_learn_scales():
    inputs = {name: run.net.inputs for name, run in project().runs.items() if run.net.inputs}
    assert inputs == {"scd": (GUIDANCE,), "cd": (GUIDANCE,)}


Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


def train(name: str, inputs: Inputs, folder: Path) -> Path:
    torch.rand(1)  # the global generator is never where it was before
    return train_run(project().run(name), inputs, folder, tracker=Null(), on_progress=lambda *_: None)


@pytest.fixture(scope="module")
def teacher(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("edm", inputs, tmp_path_factory.mktemp("edm") / "work")


@pytest.fixture(scope="module")
def student(inputs: Inputs, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        "scd", Inputs(inputs.data, teacher / WEIGHTS, teacher / WEIGHTS), tmp_path_factory.mktemp("scd") / "work"
    )


@pytest.mark.parametrize("name", ["edm", "scd"])
def test_dropped_labels_and_drawn_scales_survive_a_kill(
    name: str, inputs: Inputs, teacher: Path, student: Path, tmp_path: Path
):
    use = inputs if name == "edm" else Inputs(inputs.data, teacher / WEIGHTS, teacher / WEIGHTS)
    with killed_at(576, row=1):  # in the middle of an accumulated gradient
        train(name, use, tmp_path / "broken")
    whole, again = teacher if name == "edm" else student, train(name, use, tmp_path / "broken")
    assert (again / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_student_starts_as_its_teacher_and_learns_scales(teacher: Path, student: Path, inputs: Inputs):
    ours, theirs = load_model(student / WEIGHTS, "raw"), load_model(teacher / WEIGHTS)
    own = ours.denoiser.net.state_dict().keys() - theirs.denoiser.net.state_dict().keys()
    assert own
    assert all(name.startswith("embedding.inputs.guidance.") for name in own)
    fresh = training._networks(  # pyright: ignore[reportPrivateUsage]
        project().run("scd"), Inputs(inputs.data, teacher / WEIGHTS, teacher / WEIGHTS), theirs.shape, "cpu"
    )[0].eval()
    x, sigma, y = torch.randn(4, 1, 8, 8), torch.full((4,), 3.0), torch.tensor([0, 3, 9, NO_LABEL])
    assert torch.equal(at_scale(fresh, 1.8)(x, sigma, y), theirs.denoiser(x, sigma, y))
    assert not torch.equal(at_scale(ours.denoiser, 1.8)(x, sigma, y), at_scale(ours.denoiser, 1.1)(x, sigma, y))
    assert torch.equal(at_scale(ours.denoiser, 1.0)(x, sigma, y), ours.denoiser(x, sigma, y))


def test_records_say_the_scale_and_count_each_evaluation(
    teacher: Path, student: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ref = reference(ImageData.open(inputs.data), CONFIG, "tiny", tmp_path / "reference")

    def records(name: str, folder: Path, source: Path | None) -> dict[str, list[tuple[str, int, tuple[float, ...]]]]:
        evaluation = Evaluation(project().run(name), "tiny", CONFIG, [ref], folder, source, tmp_path / "shards")
        metrics = evaluate_run(evaluation, fid_absent="no weights", on_progress=lambda *_: None).metrics
        found = {place: getattr(metrics, place) for place in ("records", "scan", "snapshots")}
        return {
            place: sorted({(r.provenance.sampler, r.provenance.nfe, r.provenance.levels) for r in rs})
            for place, rs in found.items()
        }

    heun = [("heun, guidance 1.5", 10, ())]  # 3 steps of Heun's method are 5 evaluations
    assert records("edm", teacher, None) == {"records": heun, "scan": [], "snapshots": heun}
    told, d = "multistep, guidance 1.5", project().sections.diffusion
    one, two = (told, 1, (d.sigma_max,)), (told, 2, (d.sigma_max, 0.821))
    assert records("scd", student, teacher / WEIGHTS) == {
        "records": [one, two],
        "scan": [(told, 2, (d.sigma_max, 2.0))],
        "snapshots": [one],
    }


def test_models_are_sampled_at_the_scales_that_they_know(teacher: Path, student: Path, inputs: Inputs, tmp_path: Path):
    config = replace(CONFIG, guidance=(1.0, 1.5, 1.75, 3.0))
    ref = reference(ImageData.open(inputs.data), config, "tiny", tmp_path / "reference")

    def found(name: str, folder: Path) -> list[tuple[str, int]]:
        evaluation = Evaluation(project().run(name), "tiny", config, [ref], folder, None, tmp_path / "shards")
        metrics = evaluate_run(evaluation, fid_absent="no weights", on_progress=lambda *_: None).metrics
        assert {r.provenance.samples for r in metrics.guidance if r.key == "fd"} == {config.samples}
        return sorted({(r.provenance.sampler, r.provenance.nfe) for r in metrics.guidance})

    # Without 1.5, the run's own, at which its records are.
    assert found("edm", teacher) == [("heun", 5), ("heun, guidance 1.75", 10), ("heun, guidance 3.0", 10)]
    assert found("scd", student) == sorted(
        (name, n) for name in ("multistep", "multistep, guidance 1.75") for n in (1, 2)
    )
    known = {name: scales(project().run(name), config) for name in ("plain", "ect", "public")}
    assert known == {"plain": [1.0], "ect": [1.0], "public": [1.0]}  # which are their records
    for name in known:
        assert not [one for one in passes(project().run(name), config, teacher, None, 1) if one.place == "guidance"]


BUILT_IN: dict[str, dict[str, Any]] = {
    "meanflow": {"omega": 1.0, "kappa": 0.5, "label_dropout": 0.1}, "dmd2": {"guidance": 2.0}, "sid": {"guidance": 2.0},
    "reflow": {"guidance": 2.0, "steps": 1, "nfe": 3}, "shortcut": {"guidance": 2.0, "label_dropout": 0.1, "steps": 4},
    "soflow": {"guidance": 2.0, "mix": 0.25, "equal": 0.75, "label_dropout": 0.1},
}  # fmt: skip
TOLD: dict[str, dict[str, Any]] = {
    "imf": {"guidance": [1.0, 8.0], "label_dropout": 0.1}, "ctm": {"guidance": [1.0, 8.0], "distance": "l2", "most": 2},
    "pd": {"guidance": [1.0, 8.0], "steps": 2, "long": 1},
}  # fmt: skip


def run_of(method: str, options: dict[str, Any], teacher: str = "edm", **more: Any) -> Project:
    """A run of the method, with a teacher where it needs one."""
    taught = method in ("dmd2", "sid", "reflow", "ctm", "pd")
    run = {"method": method, "init": "edm", "teacher": teacher if taught else "none", "options": options}
    return project({method: run | {"train": {"snapshots": 3}} | more})


@pytest.mark.parametrize(("method", "options"), [*BUILT_IN.items(), *TOLD.items(), ("imm", {"label_dropout": 0.1})])
def test_every_guided_method_trains_and_samples_where_its_records_say(
    method: str, options: dict[str, Any], inputs: Inputs, teacher: Path, tmp_path: Path
):
    found = run_of(method, options, train={"snapshots": 3, "images": 384, "batch": 128})
    run, config = found.run(method), replace(CONFIG, guidance=(1.0, 2.0, 4.0), teacher_steps=2)
    use = Inputs(inputs.data, teacher / WEIGHTS, teacher / WEIGHTS)
    folder = train_run(run, use, tmp_path / "work", tracker=Null(), on_progress=lambda *_: None)
    rows = passes(run, config, folder, teacher / WEIGHTS, 1)
    own = {one.sampler.name for one in rows if one.place == "records" and one.teacher is None}
    tried = {one.sampler.name for one in rows if one.place == "guidance"}
    named = {name.rpartition(", guidance ")[2] for name in tried}
    if method in BUILT_IN:
        assert all(name.endswith(", guidance 2.0") for name in own)
        assert not tried
    else:
        assert not any("guidance" in name for name in own)
        assert named == {"2.0", "4.0"}
    model = load_model(folder / WEIGHTS)
    for one in (one for one in rows if one.place in ("records", "guidance")):
        trained = run.objective.model(model.denoiser)
        images = next(generate(one.sampler, trained, (1, 8, 8), range(2), seed=1, batch=2, classes=10))
        assert images.shape == (2, 1, 8, 8)
    assert endpoint_run(found.runs, run) == "edm"


@pytest.mark.parametrize("method", ["meanflow", "soflow", "shortcut"])
def test_end_points_of_a_guided_model_need_a_diffusion_model_that_can_be_guided(method: str):
    found = run_of(method, BUILT_IN[method], init="plain")
    assert endpoint_run(found.runs, found.run(method)) == ""
    found = run_of("imf", TOLD["imf"], init="plain")  # which is not guided by default
    assert endpoint_run(found.runs, found.run("imf")) == "plain"


@pytest.mark.parametrize("method", ["dmd2", "sid", "reflow", "ctm", "pd"])
def test_teachers_that_have_seen_no_dropped_labels_cannot_guide(method: str):
    with pytest.raises(ConfigError) as error:
        run_of(method, (BUILT_IN | TOLD)[method], "plain")
    assert error.value.path == f"runs.{method}.options.guidance"


@pytest.mark.parametrize("method", [*BUILT_IN])
def test_a_scale_that_is_part_of_the_weights_cannot_be_asked_for(method: str):
    with pytest.raises(ConfigError) as error:
        run_of(method, BUILT_IN[method], sample={"guidance": 3.0})
    assert error.value.path == f"runs.{method}.sample.guidance"


def test_classes_are_sampled_as_often_as_they_are_among_the_images_and_the_record_says_so(
    teacher: Path, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ref, run = reference(ImageData.open(inputs.data), CONFIG, "tiny", tmp_path / "reference"), project().run("plain")
    manifest = {"class_counts": [30, 0, 0, 0, 0, 0, 0, 0, 0, 10]}
    drawn: list[torch.Tensor] = []

    def spy(*args: Any, **options: Any) -> Any:
        drawn.append(options["labels"](range(400)))
        return generate(*args, **options)

    monkeypatch.setattr("cmcore.assemble.passes.generate", spy)

    def said(config: EvalConfig) -> str:
        counts = classes_drawn(run, config, manifest)
        evaluation = Evaluation(
            run, "tiny", config, [ref], teacher, None, tmp_path / "shards", final_only=True, class_counts=counts
        )
        return evaluate_run(evaluation, fid_absent="", on_progress=lambda *_: None).metrics.to_json()["labels"]

    assert said(CONFIG) == "reference"
    shares = drawn[-1].bincount(minlength=10) / 400
    assert shares[1:9].sum() == 0
    assert float(shares[0]) == pytest.approx(0.75, abs=0.08)
    assert said(replace(CONFIG, labels="uniform")) == "uniform"
    assert len(drawn[-1].unique()) == 10
    assert classes_drawn(project(conditional=False, runs={"plain": RUNS["plain"]}).run("plain"), CONFIG, {}) == ()


def test_another_scale_is_another_evaluation(teacher: Path, tmp_path: Path):
    def evaluation(s: float) -> Evaluation:
        run = project({"edm": {"sample": {"guidance": s}}}).run("edm")
        return Evaluation(run, "tiny", CONFIG, [], teacher, None, tmp_path)

    assert len({evaluation(s).store for s in (1.0, 1.5, 1.75, 1.5)}) == 3


def test_end_points_of_a_guided_student_are_those_of_the_guided_teacher(student: Path, teacher: Path, tmp_path: Path):
    run = project().run("scd")
    (one,) = (p for p in passes(run, CONFIG, student, teacher / WEIGHTS, 1) if p.teacher)
    evaluation = Evaluation(run, "tiny", CONFIG, [], student, teacher / WEIGHTS, tmp_path)
    shards = evaluation.shards
    for unit in shards.units([one]):
        shards.do(unit, lambda _: None)
    theirs = load_model(teacher / WEIGHTS)
    edm = project().run("edm")
    (guided,) = edm.objective.samplers(edm.sampling(CONFIG.teacher_steps))
    truth, plain = (
        next(generate(sampler, theirs.denoiser, (1, 8, 8), range(20), seed=CONFIG.seed, batch=20, classes=10)).numpy()
        for sampler in (guided, ode_sampler(run.diffusion, CONFIG.teacher_steps))
    )
    assert (shards.shown(one) == truth).all()
    assert (truth != plain).any()


def test_previews_are_guided_too():
    """They are drawn by the quickest sampler."""
    names = {name: run.objective.samplers(run.sampling(10))[0].name for name, run in project().runs.items()}
    assert names == {
        "edm": "heun, guidance 1.5",
        "plain": "heun",
        "ect": "multistep",
        "scd": "multistep, guidance 1.5",
        "cd": "multistep",
        "public": "heun",
    }
