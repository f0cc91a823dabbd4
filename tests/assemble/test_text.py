"""Captions that a text encoder has encoded: prepared once, seen by networks, dropped, guided by, and prompts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from killed import killed_at
from latent_models import FILES, TINY, write_model
from stored import store
from text_models import WIDTH, write_clip
from tiny_runs import SILENT

from cmcore.assemble.evaluation import Evaluation, _told, captions_drawn, evaluate_run
from cmcore.assemble.imports import import_run, read_public
from cmcore.assemble.models import (
    ModelShape,
    build_denoiser,
    load_model,
    provide_text,
    save_empty,
    some_labels,
    start_from,
)
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.results import open_run
from cmcore.assemble.run import NetChoice
from cmcore.assemble.training import WEIGHTS, Inputs, fingerprint, train_run
from cmcore.budget.machines import MACHINES
from cmcore.budget.plan import Costs, Setting, data_shape, plan_run
from cmcore.commands.app import main
from cmcore.config import ConfigError, plain
from cmcore.data.images import TEST, ImageData, open_data, read_text
from cmcore.data.settings import DataConfig, TextConfig
from cmcore.data.sources.prepare import prepare
from cmcore.diffusion.inputs import NO_LABEL, InputError
from cmcore.diffusion.precond import with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.diffusion.words import Text
from cmcore.edge.text import load_text_encoder
from cmcore.evaluate.reference import reference
from cmcore.evaluate.settings import ClassifierConfig, EvalConfig
from cmcore.layers import text as tables
from cmcore.nets import diffusers, unet

NET = {
    "kind": "unet", "model_channels": 8, "channel_mult": [1], "blocks": 1, "attention_resolutions": [4], "patch": 4,
    "dropout": 0.0,
}  # fmt: skip


class Places:
    """The folders of a prepared data set and of its encoder."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.empty = root, root / "outputs/tiny/data", root / "random.safetensors"
        write_clip(root / "clip", tokens=64)
        self.config = DataConfig(
            source="shapes", count=24, resolution=16, channels=3, test=0.25,
            text=TextConfig(path=str(root / "clip"), tokens=64, width=WIDTH),
        )  # fmt: skip
        prepare(self.config, self.data, text=self.encoder())
        save_empty(self.empty, "random")

    def encoder(self) -> Any:
        assert self.config.text is not None
        return load_text_encoder(self.config.text)

    def project(self, net: dict[str, Any] | None = None, **changes: Any) -> Project:
        edm = {"method": "edm", "init": "random", "teacher": "none", "options": {"label_dropout": 0.3}}
        lcm = {"method": "lcm", "init": "edm", "teacher": "edm", "options": {"N": 20, "k": 4, "guidance": [1, 3]}}
        data = {
            "source": "shapes", "count": 24, "resolution": 16, "channels": 3, "test": 0.25,
            "text": {"path": str(self.root / "clip"), "tokens": 64, "width": WIDTH},
        }  # fmt: skip
        train = {"images": 64, "batch": 16, "log_images": 16, "snapshots": 1, "checkpoint_seconds": 0.0}
        params = {
            "workload": "tiny", "data": data, "diffusion": {"sigma_max": 20.0}, "conditional": "words",
            "net": net or NET, "train": train, "runs": {"edm": edm, "lcm": lcm}, "eval": {"teacher_steps": 3},
        }  # fmt: skip
        return parse_project(params | changes)

    def trained(self, name: str) -> Path:
        """The weights of a run, where a trained run has them; made once."""
        stored = self.root / "outputs/tiny/runs" / name / WEIGHTS
        if not stored.exists():
            run = self.project().run(name)
            starts = [self.empty if one in ("random", "none") else self.trained(one) for one in (run.init, run.teacher)]
            final = train_run(run, Inputs(self.data, *starts), self.root / f"work-{name}", **SILENT)
            shutil.copytree(final, stored.parent)
        return stored


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("text"))


def test_every_image_has_the_vectors_of_its_caption(places: Places):
    data, found = open_data(places.data), read_text(places.data)
    assert found is not None
    assert data.numbers is not None
    assert data.captions is not None
    assert data.words is not None
    captions, vectors = found
    encoder = places.encoder()
    assert data.text == Text(encoder.digest, 64, WIDTH)
    assert vectors.shape == (1 + len(captions), 64, WIDTH)
    np.testing.assert_array_equal(vectors[0], encoder.encode([""])[0])
    for row, (k,) in zip(data.captions, data.numbers, strict=True):
        assert data.words.decode(row) == captions[k]
        np.testing.assert_allclose(vectors[k + 1], encoder.encode([captions[k]])[0], rtol=1e-5, atol=1e-6)
    assert data.spelled is not None
    np.testing.assert_array_equal(data.spelled[data.numbers[:, 0]], data.captions)
    test = open_data(places.data / TEST)
    assert test.numbers is not None
    assert test.captions is not None
    assert [captions[k] for (k,) in test.numbers] == [data.words.decode(row) for row in test.captions]


def test_encoder_and_captions_are_part_of_the_digest(places: Places, tmp_path: Path):
    plain = prepare(replace(places.config, text=None), tmp_path / "plain")
    known = open_data(places.data).manifest
    assert "text" not in plain
    assert plain["sha256"] != known["sha256"]

    class Other:
        digest = "0" * 64

        def encode(self, captions: Any) -> np.ndarray:
            return places.encoder().encode(captions)

    other = prepare(places.config, tmp_path / "other", text=Other())
    assert len({plain["sha256"], known["sha256"], other["sha256"]}) == 3


def test_networks_look_vectors_up_and_no_label_is_the_empty_caption(places: Places):
    data = open_data(places.data)
    provide_text(places.data)
    shape = ModelShape.of(data, "words")
    assert (shape.words, shape.text, shape.labelled) == (None, data.text, True)
    assert ModelShape.from_plain(shape.described) == shape
    config = unet.Config(**{key: tuple(v) if isinstance(v, list) else v for key, v in NET.items() if key != "kind"})
    denoiser = build_denoiser(NetChoice(kind="unet", config=config), shape, DiffusionConfig(), boundary=False).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, sigma = torch.randn(1, 3, 16, 16).expand(3, -1, -1, -1), torch.ones(3, dtype=torch.float64)
    out = denoiser(x, sigma, torch.tensor([[0], [1], [NO_LABEL]]))
    for first in range(3):
        for second in range(first):
            assert (out[first] - out[second]).abs().max() > 1e-6
    captions, vectors = read_text(places.data) or ([], np.zeros(0))
    tables.provide(shape.text.encoder if shape.text else "", ["another", captions[1]], vectors[[1, 0, 2]])
    swapped = denoiser(x, sigma, torch.tensor([[NO_LABEL], [1], [0]]))
    torch.testing.assert_close(swapped, out)
    with pytest.raises(InputError, match=r"labels: expected numbers of encoded captions \(B, 1\)"):
        denoiser(x, sigma, torch.zeros(3, 5, dtype=torch.int64))
    unknown = build_denoiser(
        NetChoice(kind="unet", config=config), replace(shape, text=Text("f" * 64, 64, WIDTH)), DiffusionConfig(),
        boundary=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"expected captions encoded by ffffffffffffffff\.\.\., got none"):
        unknown(x, sigma, torch.tensor([[0], [1], [2]]))
    assert some_labels(shape, 2) is not None


def test_runs_train_resume_and_answer_prompts(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A teacher, and a student of it that is told the guidance scale; prompts have words that no caption has."""
    project, edm, lcm = places.project(), places.trained("edm"), places.trained("lcm")
    run, inputs = project.run("lcm"), Inputs(places.data, edm, edm)
    with killed_at(32):
        train_run(run, inputs, tmp_path / "broken", **SILENT)
    again = train_run(run, inputs, tmp_path / "broken", **SILENT)
    assert (again / WEIGHTS).read_bytes() == lcm.read_bytes()
    assert len(fingerprint(run, inputs)) == len(fingerprint(project.run("edm"), inputs))
    (places.root / "params.yaml").write_text(yaml.safe_dump(_params(places)))
    (places.root / "dvc.yaml").touch()
    opened = open_run("lcm", places.root)
    drawn = opened.labels(5)
    assert drawn is not None
    assert drawn.shape == (5, 1)
    monkeypatch.chdir(places.root)
    words = ("sample", "lcm", "-n", "2", "--steps", "1", "--guidance", "2", "--out", "a.npz")
    with pytest.raises(SystemExit) as end:
        main((*words, "--prompt", "a violet zebra", "--prompt", "a red circle"))
    assert end.value.code in (0, None)
    with np.load(places.root / "a.npz") as found:
        assert found["images"].shape == (2, 3, 16, 16)
        assert found["labels"].tolist() == [[0], [1]]


def test_the_evaluation_reads_what_samples_were_told(places: Places, tmp_path: Path):
    """The words and the text that are named for a sample are those of the caption whose vectors the network saw."""
    config = EvalConfig(
        samples=20, batch=10, shard=20, teacher_steps=3, bootstrap=0, kid_subsets=2, kid_size=8, neighbours=2,
        score_splits=2, nearest=0, endpoints=20, scan=(), snapshot_samples=20,
        reference=ClassifierConfig(width=4, features=8, images=100, batch=10),
    )  # fmt: skip
    data = ImageData.open(places.data)
    made = reference(data, config, "tiny", tmp_path / "reference")
    results = places.trained("edm").parent
    captions = captions_drawn(places.project().run("edm"), provide_text(places.data))
    assert captions is not None
    evaluation = Evaluation(
        places.project().run("edm"), "tiny", config, [made], results, None, tmp_path / "work", final_only=True,
        captions=captions, spelled=data.spelled,
    )  # fmt: skip
    found = evaluate_run(evaluation, fid_absent="no weights", on_progress=lambda *_: None)
    assert "captions" in {record.metric for record in found.metrics.records}
    one = evaluation.passes[0]
    told, numbers = _told(evaluation, one), evaluation.shards.captions_of(one)(range(8))
    assert told is not None
    assert data.words is not None
    texts = evaluation.shards.told(one, 8).tolist()
    assert len({*texts}) > 1
    assert [data.words.decode(row) for row in told(range(8)).tolist()] == texts
    known, _ = read_text(places.data) or ([], np.zeros(0))
    assert [known[number] for (number,) in numbers.tolist()] == texts


def _params(places: Places) -> dict[str, Any]:
    sections = plain(places.project().sections)
    return json.loads(json.dumps(sections))


def test_prompts_want_the_encoder_of_the_run(places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_clip(tmp_path / "clip")  # of 16 places, another one
    params = _params(places)
    params["data"]["text"]["path"], params["data"]["text"]["tokens"] = str(tmp_path / "clip"), 16
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "dvc.yaml").touch()
    stored = tmp_path / "outputs/tiny/runs/edm" / WEIGHTS
    stored.parent.mkdir(parents=True)
    stored.write_bytes(places.trained("edm").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(SystemExit) as end:
            main(("sample", "edm", "-n", "1", "--out", "a.npz", "--prompt", "a cat"))
    assert end.value.code == 2
    assert "data.text.path: expected the encoder of edm, " in capsys.readouterr().err


def test_a_negative_prompt_is_encoded_beside_the_captions_of_the_data(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Samples without prompts keep their captions, and are what the vectors of the encoder make of them."""
    shutil.copytree(places.data, tmp_path / "outputs/tiny/data")
    params = _params(places)
    sections = {key: params[key] for key in ("data", "net", "conditional", "runs")}
    for name in ("edm", "lcm"):
        store(tmp_path, name, shape=ModelShape.of(open_data(places.data), "words"), **sections)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def images(run: str, *words: str) -> np.ndarray:
        with pytest.raises(SystemExit) as end:
            main(("sample", run, "-n", "2", "--guidance", "2", "--out", "a.npz", *words))
        assert end.value.code in (0, None)
        with np.load("a.npz") as found:
            assert np.array_equal(found["labels"], told) or "--prompt" in words
            return found["images"]

    run, negative = open_run("edm", tmp_path), "a violet zebra"
    drawn, (captions, vectors) = run.labels(2), read_text(places.data) or ([], np.zeros(0))
    assert drawn is not None
    told = drawn.numpy()
    made = images("edm", "--negative", negative)
    assert np.array_equal(images("edm", "--negative", ""), images("edm"))
    prompts = [word for (k,) in told.tolist() for word in ("--prompt", captions[k])]
    assert np.abs(made.astype(int) - images("edm", *prompts, "--negative", negative)).max() <= 1
    text = run.model.shape.text
    assert text is not None
    number = len(captions)  # the first after those of the data
    tables.provide(text.encoder, [*captions, negative], np.concatenate([vectors, places.encoder().encode([negative])]))
    assert (tables.number(text.encoder, negative), tables.number(text.encoder, "")) == (number, NO_LABEL)
    expected = run.sample(2, sampler=run.away_from(run.sampler(guidance=2.0), negative))
    assert np.abs(made.astype(int) - expected.numpy()).max() <= 1
    assert np.abs(made.astype(int) - images("edm")).max() > 9
    assert np.abs(made.astype(int) - images("edm", "--prompt", "a", "--negative", negative)).max() > 9
    monkeypatch.setattr("cmcore.commands.sample.load_text_encoder", None)  # it is not read for what is refused
    with pytest.raises(SystemExit) as end:
        main(("sample", "lcm", "-n", "1", "--out", "b.npz", "--negative", negative))
    assert end.value.code == 1
    assert "--negative: expected none, as the network is told the guidance scale" in capsys.readouterr().err


def test_a_negative_prompt_wants_the_encoder_of_the_parameters(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A weight file alone does not say where its encoder is."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(("sample", str(places.trained("edm")), "-n", "1", "--guidance", "2", "--out", "a.npz", "--negative", "a"))
    assert end.value.code == 2
    assert "data.text: expected the text encoder of edm, as prompts are encoded by it" in capsys.readouterr().err


@pytest.mark.parametrize("model", list(TINY))
def test_networks_of_diffusers_are_told_the_vectors_of_their_encoder(model: str, places: Places, tmp_path: Path):
    """The network of a folder, imported, computes what the library's does with these vectors as hidden states.

    A student that is told the guidance scale starts as this network, and learns to heed it.
    """
    theirs, file = write_model(tmp_path / "sd", model, channels=3, resolution=16), tmp_path / "sd" / FILES[model]
    public = read_public(file)
    net = {"kind": "diffusers", "model": model, "arguments": public.options["arguments"]}
    lcm = {"method": "lcm", "init": "sd", "teacher": "sd", "options": {"N": 20, "k": 4, "guidance": [1, 3]}}
    sd = {"method": "edm", "init": "random", "teacher": "none", "weights": {"file": str(file)}}
    project = places.project(net, runs={"sd": sd, "lcm": lcm}, diffusion={"sigma_data": 0.5, **public.noise})
    inputs = Inputs(places.data, places.empty, places.empty)
    final = import_run(project.run("sd"), inputs, tmp_path / "work", **SILENT)
    provide_text(places.data)
    denoiser = load_model(final / WEIGHTS).denoiser
    _, vectors = read_text(places.data) or ([], np.zeros(0))
    x, c_noise = torch.randn(2, 3, 16, 16), torch.tensor([-0.3, 0.1])
    with torch.no_grad():
        found = denoiser.net(x, c_noise, torch.tensor([[3], [NO_LABEL]]))
        sigma = (4 * c_noise).exp() / 0.5
        n = denoiser.net._timestep(sigma)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        eps = theirs(x, timestep=n, encoder_hidden_states=torch.from_numpy(vectors[[4, 0]])).sample[:, :3]
        expected = sigma[:, None, None, None] * x - (1 + sigma**2).sqrt()[:, None, None, None] * eps
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    run, weights, shape = project.run("lcm"), final / WEIGHTS, ModelShape.of(open_data(places.data), "words")
    student = build_denoiser(run.net, shape, run.diffusion, boundary=True).eval()
    start_from(student.net, dict(denoiser.net.state_dict()))
    told = with_inputs(torch.tensor([[3], [NO_LABEL]]), guidance=torch.tensor([1.5, 3.0]))
    with torch.no_grad():
        assert torch.equal(student.net(x, c_noise, told), found)
    trained = train_run(run, Inputs(places.data, weights, weights), tmp_path / "lcm", **SILENT)
    learned = load_model(trained / WEIGHTS).denoiser.net.state_dict()
    assert learned["embedding.inputs.guidance.layer.weight"].abs().max() > 0
    config = diffusers.Config(**{"model": model, "arguments": TINY[model]})
    with pytest.raises(
        ValueError, match=r"(cross_attention_dim|caption_channels): expected data\.text\.width = 7, got 12"
    ):
        diffusers.build(config, channels=3, resolution=16, classes=0, words=Text("e", 48, 7))


def test_a_plan_needs_no_encoder(places: Places):
    project = places.project()
    shape = data_shape(project, Path("absent"))
    assert shape.text == Text("", 64, WIDTH)
    found = plan_run(project.run("edm"), Costs(shape), Setting(MACHINES["t4"]))
    assert found.operations > 0
    with pytest.raises(ConfigError, match=r"data\.text: expected null for source digits"):
        places.project(data={"source": "digits", "text": {"path": "x"}})
