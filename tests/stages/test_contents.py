"""What is behind the paths of the parameters decides what DVC restores and what it runs again."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cmcore.assemble.project import Sections
from cmcore.closure import ROOT, import_closure
from cmcore.config import load_yaml, merge, read
from cmcore.errors import DataError
from cmcore.pipeline.code import require_unchanged
from cmcore.pipeline.common import Folders, load
from cmcore.pipeline.contents import Contents, named_files
from cmcore.pipeline.files import write_seeds
from cmcore.pipeline.repository import Repository
from stages import code

TINY = ROOT / "tests/e2e/tiny.yaml"


@pytest.fixture
def files(tmp_path) -> Path:
    place = tmp_path / "in"
    for name in ("cat/1.png", "dog/2.png"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(f"content of {name}".encode())
    return place


def later(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def same_size_and_time(path: Path) -> None:
    about = path.stat()
    path.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


CHANGES = {
    "another size": lambda place: (place / "cat/1.png").write_bytes(b"more content"),
    "the same size and time": lambda place: same_size_and_time(place / "cat/1.png"),
    "another name": lambda place: (place / "cat/1.png").rename(place / "cat/3.png"),
    "one more": lambda place: (place / "dog/3.png").write_bytes(b""),
    "one less": lambda place: (place / "dog/2.png").unlink(),
    "another folder": lambda place: (place / "dog").rename(place / "bird"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_below_a_folder_is_another_digest_and_back_again_the_first(tmp_path, files, kind):
    shutil.copytree(files, tmp_path / "kept")
    memory = tmp_path / "work" / "contents.json"
    first = Contents(memory).digest(files)
    assert Contents(memory).digest(files) == first
    CHANGES[kind](files)
    assert Contents(memory).digest(files) != first
    shutil.rmtree(files)
    shutil.copytree(tmp_path / "kept", files)
    assert Contents(memory).digest(files) == first


def test_the_digest_is_of_contents_and_not_of_times_or_places(tmp_path, files):
    first = Contents(tmp_path / "contents.json").digest(files)
    later(files / "cat/1.png")
    assert Contents(tmp_path / "contents.json").digest(files) == first
    files.rename(tmp_path / "away")
    assert Contents(tmp_path / "other.json").digest(tmp_path / "away") == first
    assert Contents(tmp_path / "other.json").digest(files) == ""


def test_unchanged_files_are_not_read_again(tmp_path, files, monkeypatch):
    memory = tmp_path / "contents.json"
    first = Contents(memory).digest(files)
    monkeypatch.setattr("cmcore.pipeline.contents._read", lambda place: pytest.fail(f"{place} was read"))
    assert Contents(memory).digest(files) == first
    memory.write_text("{")  # damaged: it is read again
    with pytest.raises(pytest.fail.Exception):
        Contents(memory).digest(files)


def test_a_file_and_links(tmp_path, files):
    memory = tmp_path / "contents.json"
    (tmp_path / "link.zip").symlink_to(files / "cat/1.png")
    first = Contents(memory).digest(tmp_path / "link.zip")
    assert first == Contents(memory).digest(files / "cat/1.png")
    (files / "cat/1.png").write_bytes(b"other")
    assert Contents(memory).digest(tmp_path / "link.zip") != first, "what it points to counts"
    (files / "loop").symlink_to("loop")
    (files / "nowhere").symlink_to("absent")
    assert Contents(memory).digest(files) == Contents(tmp_path / "again.json").digest(files)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, files):
    (files / "cat/1.png").chmod(0)
    with pytest.raises(DataError, match=r"cat/1\.png: cannot be read \(Permission denied\)"):
        Contents(tmp_path / "contents.json").digest(files)


def sections(**changes: Any) -> Sections:
    return read(Sections, merge(load_yaml(TINY), changes))


def test_every_stage_names_the_files_that_it_reads():
    plain = named_files(sections())
    assert {stage: files for stage, files in plain.items() if files} == {}
    changed = sections(
        data={"source": "folder", "path": "in"},
        train={"lpips_weights": "vgg.pth"},
        eval={"reference_npz": "ref.npz", "inception": {"path": "inception.pth"}, "dinov2": {"path": "dino.pth"}},
        runs={
            "public": {"method": "edm", "init": "random", "teacher": "none", "weights": {"file": "a.pkl"}},
            "pinned": {
                "method": "edm", "init": "random", "teacher": "none", "options": {"distance": "l2"},
                "weights": {"file": "a.pkl", "sha256": "0" * 64},
            },
        },
    )  # fmt: skip
    found = named_files(changed)
    inception = {"eval.inception.path": Path("inception.pth"), "eval.dinov2.path": Path("dino.pth")}
    assert found["prepare"] == {"data.path": Path("in")}
    assert found["reference"] == {"eval.reference_npz": Path("ref.npz"), **inception}
    assert found["train@public"] == {
        "train.lpips_weights": Path("vgg.pth"), "runs.public.weights.file": Path("a.pkl"),
    }  # fmt: skip
    assert found["evaluate@public"] == inception
    assert found["tune@public"] == {**found["train@public"], **inception}
    assert found["train@pinned"] == {}, "its checksum is a parameter"
    latents = sections(data={"source": "latents", "path": "in", "channels": 4}, eval={"decoder": {"path": "vae"}})
    for stage in ("reference", "evaluate@edm"):
        assert named_files(latents)[stage] == {"eval.decoder.path": Path("vae")}
    archive = sections(data={"source": "archive", "path": "in.zip", "sha256": "0" * 64})
    assert named_files(archive)["prepare"] == {}


def use(folder: Path, name: str, data: Path | None) -> None:
    """The tiny parameters as those of the workload `name`, of the images in a folder."""
    text = TINY.read_text().replace("workload: tiny", f"workload: {name}", 1)
    if data is not None:
        text = text.replace("source: digits", f"source: folder, path: {data}", 1)
        text = text.replace("source: folder, path", "source: folder\n  path", 1)
    (folder / "params.yaml").write_text(text)


def repro(made: list[str]) -> Folders:
    """What `cmlab repro` does of `prepare`: run `code`, restore from the cache, else run; `made` gets what has run."""
    setup = load()
    folders = setup.folders
    code.main()
    repository = Repository(setup)
    repository.record("code")
    todo, restored = repository.plan("prepare")
    if "prepare" in todo and "prepare" not in restored:
        folders.data.mkdir(parents=True, exist_ok=True)
        place = setup.project.sections.data.path
        count = sum(path.is_file() for path in Path(place).rglob("*")) if place else 0
        folders.manifest.write_text(f'{{"count": {count}}}')
        for name in ("random", "none"):
            folders.weights(name).parent.mkdir(parents=True, exist_ok=True)
            folders.weights(name).write_text("weights")
            write_seeds(folders.seeds(name), [])
        repository.record("prepare")
        made.append(folders.manifest.read_text())
    return folders


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from packages that DVC uses
def test_an_earlier_state_of_the_files_gives_its_results_also_after_another_workload(tmp_path, files, monkeypatch):
    dvc = pytest.importorskip("dvc.repo")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setattr("cmcore.pipeline.code.source_digest", lambda roots: "the code is no matter here")
    root = tmp_path / "project"
    for name in ("cmcore", "stages"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text("stands for sources")
    shutil.copy(ROOT / "dvc.yaml", root)
    monkeypatch.chdir(root)
    use(root, "mine", files)
    dvc.Repo.init(str(root), no_scm=True).close()
    made: list[str] = []
    folders = repro(made)
    (files / "cat/9.png").write_bytes(b"one more")
    repro(made)
    assert made == ['{"count": 2}', '{"count": 3}']
    (files / "cat/9.png").unlink()
    repro(made)
    assert (len(made), folders.manifest.read_text()) == (2, '{"count": 2}'), "restored"
    use(root, "other", None)
    repro(made)
    use(root, "mine", files)
    repro(made)
    assert (len(made), folders.manifest.read_text()) == (3, '{"count": 2}'), "not those of the middle state"
    files.rename(tmp_path / "away")  # results outlive their sources
    repro(made)
    assert (len(made), folders.manifest.read_text()) == (3, '{"count": 2}')
    (tmp_path / "away").rename(files)
    require_unchanged(load().project.sections, "prepare", folders.code)
    (files / "cat/1.png").write_bytes(b"changed meanwhile")
    with pytest.raises(DataError, match=r"^data\.path: .*in changed while it was read; run `cmlab repro` again$"):
        require_unchanged(load().project.sections, "prepare", folders.code)
    repro(made)
    assert len(made) == 4, "content counts, also where the number of files is the same"


def test_a_public_codec_is_a_file_of_prepare_and_a_trained_one_is_none():
    data = {"source": "folder", "path": "in", "resolution": 16, "channels": 3}
    public = sections(data={**data, "codec": {"kind": "diffusers", "path": "vae"}})
    assert named_files(public)["prepare"] == {"data.path": Path("in"), "data.codec.path": Path("vae")}
    assert named_files(sections(data={**data, "codec": {}}))["prepare"] == {"data.path": Path("in")}


def test_a_text_encoder_is_a_file_of_prepare():
    data = {"source": "folder", "path": "in", "resolution": 16, "channels": 3, "text": {"path": "clip"}}
    told = sections(data=data)
    assert named_files(told)["prepare"] == {"data.path": Path("in"), "data.text.path": Path("clip")}


def test_how_a_codec_is_trained_is_code_of_prepare_alone():
    training = Path("cmcore/data/sources/codec.py")
    assert training in import_closure(["stages.prepare"])
    for stage in ("train", "evaluate", "reference", "edit", "tabulate"):
        assert training not in import_closure([f"stages.{stage}"]), stage
