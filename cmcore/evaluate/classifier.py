"""Training of the offline feature extractor: a few seconds for small images."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from cmcore.data.feed import sent
from cmcore.evaluate.features import NetworkExtractor
from cmcore.evaluate.images import ImageArray
from cmcore.evaluate.settings import ClassifierConfig
from cmcore.layers.classifier import Classifier, Shape, build_classifier
from cmcore.layers.fitting import one_cycle, threads
from cmcore.rng import Draws, generator
from cmcore.tensors import to_float

Accuracy = dict[str, float | int]
CNN, READER = "cnn", "reader"
_JUDGED = 10_000  # most images in a measurement of accuracy


def train_classifier(
    images: ImageArray,
    labels: np.ndarray,
    config: ClassifierConfig,
    *,
    classes: int,
    workload: str,
    device: torch.device | str = "cpu",
) -> tuple[NetworkExtractor, Accuracy]:
    """Train on images (N, C, H, W) uint8 with labels (N,), some of them held out to measure accuracy.

    Labels (N, L), one in each of L places, make a reader of captions (see `as_read`), which is right where it reads all
    places right. The same data and config (which fixes the threads) give the same bits, hence the same name:
    {workload}_cnn_{8 hex digits}, or {workload}_reader_{8 hex digits}.

    Raises:
        ValueError: images and labels do not match, or too few training images remain.
    """
    train, _ = _split(images, labels, classes, config)
    places = labels.shape[1] if labels.ndim == 2 else 1
    shape = Shape(images.shape[1], images.shape[2], places * classes, config.width, config.features)
    net = build_classifier(shape, config.seed).to(device)
    with threads(config.threads):
        _fit(net, images, labels, train, config, torch.device(device))
    extractor = NetworkExtractor(net, f"{workload}_{READER if labels.ndim == 2 else CNN}")
    return extractor, judge(extractor, images, labels, config, classes=classes)


def judge(
    extractor: NetworkExtractor, images: ImageArray, labels: np.ndarray, config: ClassifierConfig, *, classes: int
) -> Accuracy:
    """Accuracy on the images that the config holds out, and on the others."""
    train, held_out = _split(images, labels, classes, config)
    held_out = held_out[:_JUDGED]
    accuracy: Accuracy = {"held_out": _accuracy(extractor, images, labels, held_out), "held_out_images": len(held_out)}
    return accuracy | {"train": _accuracy(extractor, images, labels, train[:_JUDGED]), "train_images": len(train)}


def as_read(captions: np.ndarray) -> np.ndarray:
    """Rows of words (N, L) as labels of a reader: 0 is no word, as the words of all places count from 1."""
    return captions + 1


def right_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Which images are recognised, bool (B,): their class (B,), or in each of L places the label (B, L)."""
    right = _by_place(logits, labels).argmax(1) == labels
    return right if right.ndim == 1 else right.all(1)


def _by_place(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, K) as they are for labels (B,), and (B, K, L) for labels (B, L)."""
    return logits if labels.ndim == 1 else logits.unflatten(1, (labels.shape[1], -1)).mT


def _split(
    images: ImageArray, labels: np.ndarray, classes: int, config: ClassifierConfig
) -> tuple[np.ndarray, np.ndarray]:
    if images.ndim != 4 or images.shape[2] != images.shape[3] or len(images) != len(labels):
        raise ValueError(f"expected images (N, C, R, R) and labels (N,), got {images.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels: expected 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    order = torch.randperm(len(images), generator=generator(config.seed, "hold out")).numpy()
    count = math.ceil(config.holdout * len(images))
    if len(images) - count < 2:
        raise ValueError(f"eval.reference.holdout: expected to leave 2 images to train on, got {len(images) - count}")
    return order[count:], order[:count]


def _fit(
    net: Classifier,
    images: ImageArray,
    labels: np.ndarray,
    train: np.ndarray,
    config: ClassifierConfig,
    device: torch.device,
) -> None:
    """AdamW with a one-cycle schedule; the images and shifts of a step are addressed by images seen.

    A GPU is given its work without waiting for it, in float32.
    """
    batch = min(config.batch, len(train))
    steps = math.ceil(config.images / batch)
    fused = True if device.type == "cuda" else None
    optimiser = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay, fused=fused)
    net.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = config.lr * one_cycle(step / steps)
        draws = Draws(config.seed, step * batch, batch)
        rows = train[_rows(step * batch, batch, len(train), config.seed)]
        x = _shift(torch.from_numpy(images[rows]), round(config.shift * images.shape[-1]), draws)
        y = sent(torch.from_numpy(labels[rows]).long(), device)
        loss = nn.functional.cross_entropy(_by_place(net(to_float(sent(x, device))), y), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _rows(position: int, batch: int, count: int, seed: int) -> np.ndarray:
    """Indices at positions [position, position + batch) of an endless sequence of shuffled epochs."""
    epochs = range(position // count, (position + batch - 1) // count + 1)
    shuffled = torch.cat([_permutation(count, seed, epoch) for epoch in epochs])
    start = position - epochs[0] * count
    return shuffled[start : start + batch].numpy()


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch))


def _shift(images: Tensor, most: int, draws: Draws) -> Tensor:
    """Translate every image by at most `most` pixels in each direction, with the border repeated."""
    if most == 0:
        return images
    R = images.shape[-1]
    offsets = (draws.uniform((2,), stream="shift") * (2 * most + 1)).long() - most
    rows, columns = ((torch.arange(R) + offset.unsqueeze(1)).clip(0, R - 1) for offset in offsets.T)
    shifted = images.gather(2, rows[:, None, :, None].expand_as(images))
    return shifted.gather(3, columns[:, None, None, :].expand_as(images))


def _accuracy(extractor: NetworkExtractor, images: ImageArray, labels: np.ndarray, rows: np.ndarray) -> float:
    right = 0
    for part in np.array_split(rows, max(1, math.ceil(len(rows) / 1000))):
        logits = extractor.logits(extractor(torch.from_numpy(images[part])))
        assert logits is not None
        right += int(right_rows(logits, torch.from_numpy(labels[part])).sum())
    return right / len(rows)
