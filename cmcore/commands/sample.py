"""`cmlab sample`: images of a trained run or of a weight file."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from cmcore.assemble.results import TrainedRun, open_run
from cmcore.commands.place import CommandError
from cmcore.config import PARAMS, ConfigError, load_yaml, read
from cmcore.data.files import check_target, save_images
from cmcore.data.settings import DataConfig
from cmcore.edge.autoencoder import image_converter
from cmcore.edge.text import load_text_encoder
from cmcore.evaluate.settings import EvalConfig
from cmcore.layers.text import add, provide
from cmcore.pipeline.progress import Done, listener
from cmcore.sample.base import Sampler

OPTIONS = (
    "count", "steps", "levels", "solver", "guidance", "labels", "prompt", "negative", "sigma", "factor", "mask",
    "image",
)  # fmt: skip


def opened(what: str, root: Path, start: Path, *, ema: str, device: str, method: str = "") -> TrainedRun:
    """The model; a path is one from the folder that the user stands in."""
    if device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device: expected cpu or auto, as this machine has no CUDA, got cuda")
    near = start / what
    if method and not near.is_file():
        raise CommandError(f"--method: expected none, as {what} is no weight file, got {method}")
    return open_run(near if near.exists() else what, root, profile=ema, device=device, method=method)


def decoded(run: TrainedRun, root: Path, out: Path) -> TrainedRun:
    """The run with a decoder for its latents, where images are wanted; an archive takes latents as they are."""
    if run.to_images is not torch.clone or out.suffix == ".npz":
        return run
    params = load_yaml(root / "params.yaml")
    config = read(EvalConfig, params.get("eval", {}), "eval").decoder
    converter = image_converter(root / "outputs" / params["workload"] / "data", config, run.device)
    if converter is None:
        raise ConfigError("eval.decoder.path", "expected a decoder for the latents, got ''; or name --out NAME.npz")
    return replace(run, to_images=converter)


def is_sound(root: Path) -> bool:
    """Whether the images of the active workload are sounds."""
    params = root / "params.yaml"
    return params.is_file() and load_yaml(params).get("data", {}).get("source") == "speech"


def away_from(negative: str, run: TrainedRun, root: Path, sampler: Sampler | None, prompts: Sequence[str]) -> Sampler:
    """The sampler that leads away from a negative prompt, or from the class of a number; all prompts are encoded."""
    run.check_negative(sampler)  # before the encoder is read
    encode_prompts(run, root, prompts, negative)
    return run.away_from(sampler, int(negative) if run.model.shape.classes and negative.isdecimal() else negative)


def encode_prompts(run: TrainedRun, root: Path, prompts: Sequence[str], *negative: str) -> None:
    """Encode prompts for a network that is told encoded captions, by the encoder that the parameter file names.

    Without prompts samples have captions of the data, which stay known beside a negative one.
    """
    text = run.model.shape.text
    if text is None or not (prompts or negative):
        return
    params = root / PARAMS
    config = read(DataConfig, load_yaml(params).get("data", {}), "data").text if params.is_file() else None
    if config is None:
        raise ConfigError(
            "data.text", f"expected the text encoder of {run.name}, as prompts are encoded by it, got null"
        )
    encoder = load_text_encoder(config, run.device)
    if encoder.digest != text.encoder:
        raise ConfigError("data.text.path", f"expected the encoder of {run.name}, {text.encoder}, got {encoder.digest}")
    captions = list(dict.fromkeys([*prompts, *negative]))
    (provide if prompts else add)(text.encoder, captions, encoder.encode(["", *captions]))


@contextmanager
def option_errors() -> Iterator[None]:
    """A block whose plain ValueErrors are errors of the command: an argument that one names is an option here."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:  # those of parameters and of damaged files say where
            raise
        said = str(error)
        raise CommandError(f"--{said}" if said.partition(":")[0] in OPTIONS else said) from error


def numbers(text: str, kind: Callable[[str], float], option: str) -> list:
    """Numbers between commas."""
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise CommandError(f"{option}: expected numbers with commas between, got {text!r}") from error


def sample(
    what: str,
    root: Path,
    start: Path,
    *,
    out: Path,
    count: int,
    steps: int,
    levels: str,
    solver: str,
    guidance: float | None,
    labels: str,
    prompts: Sequence[str],
    negative: str | None,
    seed: int,
    ema: str,
    device: str,
    batch: int,
    columns: int,
    method: str,
) -> str:
    """Draw, write, and say in a line what was drawn and how fast."""
    target = start / out
    classes: Sequence[int] | Sequence[str] = prompts or numbers(labels, int, "--labels")
    if prompts and labels:
        raise CommandError(f"--prompt: expected classes or captions, got both, --labels {labels} too")
    sound = is_sound(root)
    with option_errors():
        check_target(target, sound=sound)
        run = decoded(opened(what, root, start, ema=ema, device=device, method=method), root, target)
        sampler = run.sampler(
            steps, levels=numbers(levels, float, "--levels"), solver=solver, guidance=guidance
        )  # fmt: skip
        if negative is None:
            encode_prompts(run, root, prompts)
        else:
            sampler = away_from(negative, run, root, sampler, prompts)
        chosen = [classes[index % len(classes)] for index in range(count)] if classes else None
        told = run.labels(count, seed=seed, chosen=chosen)
        begun, done = time.monotonic(), 0
        with listener(f"sample {run.name}", "image") as listen:

            def on_images(size: int) -> None:
                nonlocal done
                done += size
                listen(Done(done, count))

            images = run.sample(count, sampler=sampler, seed=seed, labels=chosen, batch=batch, on_images=on_images)
        rate = count / (time.monotonic() - begun)
        words = None if told is None else told.numpy()
        save_images(images.numpy(), target, columns=columns, labels=words, sound=sound)
    away = "" if negative is None else f" away from {negative!r}"
    how = f"EMA {run.model.profile}, {sampler.name}{away}, NFE {sampler.nfe}"
    if sampler.noise_levels:
        how += f", levels {', '.join(f'{level:.4g}' for level in sampler.noise_levels)}"
    return f"{count} images of {run.name} ({how}, seed {seed}) in {out}; {rate:.3g} images/s on {run.device}"
