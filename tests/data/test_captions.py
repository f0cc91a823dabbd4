"""Captions that travel with images: drawn ones, and those of folders; and the rows of words that they become."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pictures_on_disk import FILES, ORDER, config, png, refused, write_folder, write_tar, write_zip

from cmcore import limits
from cmcore.config import ConfigError, read
from cmcore.data.images import ImageData
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.data.sources.shapes import COLOURS, GROUND
from cmcore.diffusion.inputs import NO_LABEL
from cmcore.diffusion.words import Words, split_words

TEXTS = {name: f"A {word}, seen!" for name, word in zip(ORDER, ("cat", "cat", "dog", "big dog"), strict=True)}


def drawn(**fields: object) -> DataConfig:
    given = {"source": "shapes", "resolution": 32, "channels": 3, "count": 60, **fields}
    return read(DataConfig, given, "data")


def lines(texts: dict[str, object]) -> bytes:
    return "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in texts.items()).encode()


def test_a_caption_is_a_row_of_words_and_back():
    words = Words.of(["a red circle", "A BLUE circle, on a square"])
    assert words.vocabulary == (",", "a", "blue", "circle", "on", "red", "square")
    assert words.length == 7
    assert words.encode("a Red circle") == [1, 5, 3, *[NO_LABEL] * 4]
    assert words.decode(words.encode("A BLUE circle, on a square")) == "a blue circle , on a square"
    assert words.encode("") == [NO_LABEL] * 7
    with pytest.raises(ValueError, match=r"prompt: expected words .* got 'green'"):
        words.encode("a green circle")
    with pytest.raises(ValueError, match="prompt: expected at most 7 words, got 8"):
        words.encode("a " * 8)
    assert words.digest != Words(tuple(sorted(["is", *words.vocabulary])), 7).digest


def test_shapes_are_drawn_from_the_seed_alone(tmp_path: Path):
    made = {
        name: prepare(drawn(**fields), tmp_path / name)
        for name, fields in {"one": {}, "two": {}, "other": {"seed": 1}, "more": {"count": 1100}}.items()
    }
    assert made["one"] == made["two"] != made["other"]
    one, more = (ImageData.open(tmp_path / name) for name in ("one", "more"))
    # A scene depends on its number, not on how many are drawn.
    np.testing.assert_array_equal(one.images, more.images[:60])
    assert len({image.tobytes() for image in more.images}) == 1100
    # The bytes of every machine, so that results of drawn scenes compare.
    assert hashlib.sha256(one.images.tobytes()).hexdigest()[:16] == "f0b0896f9a2ea877"


def test_a_drawn_scene_shows_what_its_caption_says(tmp_path: Path):
    prepare(drawn(count=300), tmp_path / "out")
    data = ImageData.open(tmp_path / "out")
    words, captions = data.words, data.captions
    assert words is not None
    assert captions is not None
    assert words.length == 8
    seen = set()
    for image, row in zip(data.images, captions, strict=True):
        said = words.decode(row).split()
        relation = " ".join(said[3:-3])
        seen.add(relation)
        assert (image[:, 0, 0] == np.array(GROUND)).all()
        if said[1] == said[-2]:  # of one colour, which does not tell the shapes apart
            continue
        places = []
        for colour, form in (said[1:3], said[-2:]):
            mask = (image == np.array(COLOURS[colour], np.uint8)[:, None, None]).all(0)
            places.append(np.argwhere(mask).mean(0))
            widths = mask.sum(1)[mask.any(1)]
            # A square is as wide everywhere, a triangle widens to its base, a circle is widest in the middle.
            found = "square" if min(widths) == max(widths) else "triangle" if widths[-1] == max(widths) else "circle"
            assert found == form, words.decode(row)
        axis = 0 if relation == "above" else 1
        assert places[0][axis] < places[1][axis] - 5, words.decode(row)
    assert seen == {"above", "left of"}


def pairs(data: ImageData) -> set[tuple[bytes, tuple[int, ...]]]:
    assert data.captions is not None
    return {(image.tobytes(), tuple(row)) for image, row in zip(data.images, data.captions, strict=True)}


def test_test_images_have_their_own_captions_in_the_same_words(tmp_path: Path):
    prepare(drawn(), tmp_path / "all")
    prepare(drawn(test=0.25), tmp_path / "out")
    whole, train, test = (ImageData.open(tmp_path / name) for name in ("all", "out", "out/test"))
    assert pairs(train) | pairs(test) == pairs(whole)
    assert (len(train), len(test)) == (45, 15)
    assert train.words == test.words == whole.words


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "dataset.json"])
def test_captions_of_a_folder_come_from_its_files(tmp_path: Path, kind: str):
    content = FILES | {"captions.jsonl": lines({**TEXTS, "not/there.png": "nothing"})}
    if kind == "dataset.json":
        content = FILES | {kind: json.dumps({"labels": None, "captions": list(TEXTS.items())}).encode()}
    write = {"zip": write_zip, "tar": write_tar}.get(kind, write_folder)
    source = config("archive" if write is not write_folder else "folder", write(tmp_path / "in", content))
    manifest = prepare(source, tmp_path / "out")
    data = ImageData.open(tmp_path / "out")
    assert data.words is not None
    assert [data.words.decode(row) for row in data.captions] == [" ".join(split_words(TEXTS[name])) for name in ORDER]
    assert manifest["words"]["sha256"] == data.words.digest
    assert data.classes == (0 if kind == "dataset.json" else 2)


def test_captions_are_part_of_the_digest_and_their_absence_changes_none(tmp_path: Path):
    plain = prepare(config("folder", write_folder(tmp_path / "plain")), tmp_path / "out")
    assert "words" not in plain
    assert not (tmp_path / "out" / "words.npy").exists()
    digests = {plain["sha256"]}
    for number in range(2):
        content = FILES | {"captions.jsonl": lines(TEXTS | {ORDER[0]: f"{number} cats"})}
        digests.add(
            prepare(config("folder", write_folder(tmp_path / f"{number}", content)), tmp_path / "out")["sha256"]
        )
    assert len(digests) == 3


WRONG = {
    "missing": ({k: v for k, v in TEXTS.items() if k != ORDER[1]}, f"a caption of every image, got none of {ORDER[1]}"),
    "a number": (TEXTS | {ORDER[0]: 5}, f"text as the caption of {ORDER[0]}, got 5"),
    "empty": (TEXTS | {ORDER[0]: "  "}, f"1 to {limits.CAPTION_WORDS} words as the caption of {ORDER[0]}, got 0"),
    "too long": (
        TEXTS | {ORDER[0]: "a " * 65},
        f"1 to {limits.CAPTION_WORDS} words as the caption of {ORDER[0]}, got 65",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("file", ["captions.jsonl", "dataset.json"])
def test_wrong_captions_are_refused(tmp_path: Path, kind: str, file: str):
    texts, said = WRONG[kind]
    described = json.dumps({"labels": None, "captions": list(texts.items())}).encode()
    content = FILES | {file: lines(texts) if file == "captions.jsonl" else described}
    refused(
        config("archive", write_zip(tmp_path / "in.zip", content)), tmp_path / "w" / "out", f"{file}: expected {said}"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{",
        b'{"file_name": 5, "text": "a"}',
        b'{"text": "a"}',
        b'{"file_name": "' + b"a" * 5000 + b'"}',
        b'{"file_name": "cat/2.png", "text": "a"}\n{"file_name": "cat/2.png", "text": "b"}',
    ],
)
def test_what_is_no_captions_file_is_refused(tmp_path: Path, content: bytes):
    path = write_zip(tmp_path / "in.zip", {"cat/2.png": png(1), "captions.jsonl": content})
    refused(config("archive", path), tmp_path / "w" / "out", r"captions\.jsonl: line \d: ")


def test_captions_that_are_no_pairs_are_refused(tmp_path: Path):
    content = FILES | {"dataset.json": json.dumps({"labels": None, "captions": [["a"]]}).encode()}
    refused(config("folder", write_folder(tmp_path / "in", content)), tmp_path / "w" / "out", "captions.*name, text")


def test_damaged_words_are_refused(tmp_path: Path):
    prepare(drawn(), tmp_path / "out")
    np.save(tmp_path / "out" / "words.npy", np.zeros((60, 7), np.int64))
    with pytest.raises(ValueError, match=r"words\.npy: expected int64 \(60, 8\), got int64 \(60, 7\)"):
        ImageData.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"count": 0}, "data.count: expected the number of scenes to draw, got 0"),
        ({"channels": 1}, "data.channels: expected 3 for drawn shapes"),
        ({"resolution": 8}, "data.resolution: expected at least 16 for drawn shapes"),
        ({"path": "x"}, "data.path: expected nothing for shapes"),
        ({"source": "digits", "resolution": 8, "channels": 1}, "data.count: expected 0 for source digits"),
        (
            {"source": "digits", "resolution": 8, "channels": 1, "count": 0, "seed": 1},
            "data.seed: expected 0 for source digits",
        ),
    ],
)
def test_settings_that_do_not_suit_are_refused(fields: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        drawn(**fields)
