"""The offline extractor: accurate, deterministic, named by its weights, for any resolution and number of channels."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from devices import CUDA
from safetensors.torch import save_file

from cmcore.errors import DataError
from cmcore.evaluate.classifier import _rows, _shift, train_classifier
from cmcore.evaluate.features import NetworkExtractor, random_extractor
from cmcore.evaluate.settings import ClassifierConfig
from cmcore.rng import Draws

TINY = ClassifierConfig(width=8, features=12, images=800, batch=16)


def stripes(count: int, channels: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy horizontal (class 0) and vertical (class 1) stripes."""
    rng = np.random.default_rng(resolution)
    labels = rng.integers(0, 2, count)
    wave = 60 * np.cos(np.pi * np.arange(resolution) / 2)
    pattern = np.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :])
    images = 128 + pattern[:, None] + rng.normal(0, 20, (count, channels, resolution, resolution))
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def test_digits_are_learned_in_seconds():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[:, None]
    start = time.process_time()
    extractor, accuracy = train_classifier(
        images, digits.target.astype(np.int64), ClassifierConfig(), classes=10, workload="digits"
    )
    assert time.process_time() - start < 30  # processor time: two cores halve it
    assert accuracy["held_out"] >= 0.97
    assert accuracy["held_out_images"] == 360
    assert extractor.name == f"digits_cnn_{extractor.digest[:8]}"
    assert extractor(torch.from_numpy(images[:7])).shape == (7, 64)


@pytest.mark.parametrize(("channels", "resolution"), [(1, 4), (3, 9), (3, 32)])
def test_any_resolution_and_channels(channels, resolution):
    images, labels = stripes(200, channels, resolution)
    extractor, accuracy = train_classifier(images, labels, TINY, classes=2, workload="stripes")
    assert accuracy["held_out"] > 0.9
    features = extractor(torch.from_numpy(images))
    assert (features.shape, features.dtype) == ((200, 12), torch.float32)
    logits = extractor.logits(features)
    assert logits is not None
    assert (logits.argmax(1).numpy() == labels).mean() > 0.9


@pytest.mark.parametrize("device", [CUDA])
def test_a_gpu_learns_as_the_cpu_does(device: str):
    images, labels = stripes(300, 3, 16)
    here, accuracy = train_classifier(images, labels, TINY, classes=2, workload="stripes", device=device)
    _, expected = train_classifier(images, labels, TINY, classes=2, workload="stripes")
    assert {parameter.device.type for parameter in here.net.parameters()} == {device}
    assert accuracy["held_out"] == pytest.approx(expected["held_out"], abs=0.05)


def test_same_data_and_seed_give_the_same_name_and_another_seed_another():
    images, labels = stripes(60, 1, 8)
    torch.manual_seed(0)
    first, _ = train_classifier(images, labels, TINY, classes=2, workload="stripes")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again, _ = train_classifier(images, labels, TINY, classes=2, workload="stripes")
    assert torch.equal(state, torch.get_rng_state())
    other, _ = train_classifier(images, labels, replace(TINY, seed=1), classes=2, workload="stripes")
    assert again.name == first.name
    assert other.name != first.name


def test_name_does_not_depend_on_the_threads_of_the_process():
    images, labels = stripes(60, 3, 16)
    names = set()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            names.add(train_classifier(images, labels, TINY, classes=2, workload="stripes")[0].name)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(names) == 1


def test_round_trip_keeps_name_and_bits(tmp_path):
    images, labels = stripes(60, 1, 8)
    extractor, _ = train_classifier(images, labels, TINY, classes=2, workload="stripes")
    extractor.save(tmp_path / "a.safetensors")
    extractor.save(tmp_path / "b.safetensors")
    loaded = NetworkExtractor.load(tmp_path / "a.safetensors")
    x = torch.from_numpy(images)
    assert loaded.name == extractor.name
    assert torch.equal(loaded(x), extractor(x))
    assert torch.equal(loaded.logits(loaded(x)), extractor.logits(extractor(x)))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 10)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, message in (("junk", "a safetensors header of 1 to 32 bytes"), ("other", "a feature extractor")):
        with pytest.raises(DataError, match=rf"{name}\.safetensors: expected {message}"):
            NetworkExtractor.load(tmp_path / f"{name}.safetensors")


def test_random_extractor_is_fixed_and_informative():
    extractor = random_extractor(1, 8, width=8, features=12)
    assert extractor.name == random_extractor(1, 8, width=8, features=12).name
    assert extractor.name.startswith("random_conv_")
    images, labels = (torch.from_numpy(a) for a in stripes(100, 1, 8))
    features = extractor(images)
    assert extractor.logits(features) is None
    gap = (features[labels == 0].mean(0) - features[labels == 1].mean(0)).norm()
    assert gap > features[labels == 0].std(0).norm() / 2


def test_wrong_images_are_refused():
    extractor = random_extractor(1, 8, width=8, features=12)
    with pytest.raises(ValueError, match="expected uint8"):
        extractor(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"got torch\.uint8 \(2, 3, 8, 8\)"):
        extractor(torch.zeros((2, 3, 8, 8), dtype=torch.uint8))


def test_wrong_labels_are_refused():
    images, labels = stripes(20, 1, 8)
    with pytest.raises(ValueError, match="labels: expected 0 to 0, got 0 to 1"):
        train_classifier(images, labels, TINY, classes=1, workload="stripes")
    with pytest.raises(ValueError, match=r"images .* and labels"):
        train_classifier(images[:10], labels, TINY, classes=2, workload="stripes")


def test_every_epoch_visits_every_image_once_whatever_the_batch():
    sequence = np.concatenate([_rows(position, 3, 10, 0) for position in range(0, 30, 3)])
    assert [sorted(sequence[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    assert (sequence == np.concatenate([_rows(0, 15, 10, 0), _rows(15, 15, 10, 0)])).all()


def test_shift_moves_each_image_and_repeats_the_border():
    ramp = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(200, 1, 8, 8)
    shifted = _shift(ramp, 1, Draws(0, 0, 200)).float()
    grid = torch.arange(8)
    offsets = set()
    for image in shifted[:, 0]:
        row, column = int(image[4, 4]) // 8 - 4, int(image[4, 4]) % 8 - 4
        offsets.add((row, column))
        rows, columns = (grid + row).clip(0, 7), (grid + column).clip(0, 7)
        assert torch.equal(image, (8 * rows[:, None] + columns[None]).float())
    assert offsets == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
