"""The model that another EMA would have given: reconstructed from a run's snapshots, without training it again."""

from dataclasses import replace
from pathlib import Path

from cmcore.assemble.models import LoadedModel, load_model
from cmcore.assemble.training import SNAPSHOTS
from cmcore.train import checkpoint
from cmcore.train.checkpoint import CheckpointError
from cmcore.train.posthoc import HalfLifeProfile, PowerProfile, combination, combine, misfit

POSTHOC = "posthoc"


def reconstruct(
    folder: Path, std: float = 0.0, *, half_life: float = 0.0, ramp: float = 0.05, images: int = 0, device: str = "cpu"
) -> LoadedModel:
    """The model with the EMA profile that has the relative width `std`, or the half-life `half_life`.

    Args:
        folder: the results of a run (of `train_run`) whose `train.ema` has power profiles; two are enough.
        std: sigma_rel of the wanted power-function profile (arXiv 2312.02696).
        half_life: instead of `std`, the half-life in images, ...
        ramp: ... and the share of the images seen that it may not exceed.
        images: the moment, in images seen; by default the end of the run.
        device: where the model goes.

    Returns:
        A model like that of `load_model`; `meta["posthoc"]` names the target, the snapshots used and the relative
        misfit of the reconstructed profile.

    Raises:
        CheckpointError: there are no snapshots with power profiles.
        ValueError: not exactly one of `std` and `half_life` is set, or the run has no snapshot as late as `images`.
    """
    if (std > 0) == (half_life > 0):
        raise ValueError(f"expected a positive std or a positive half_life, got {std} and {half_life}")
    paths = sorted((folder / SNAPSHOTS).glob("*.safetensors"))
    stored = [(path, name, profile) for path in paths for name, profile in _profiles(path).items()]
    if not stored:
        raise CheckpointError(
            f"{folder / SNAPSHOTS}: expected snapshots with power profiles, got none; "
            "set train.snapshots, and power_std in at least one entry of train.ema"
        )
    profiles = [profile for _, _, profile in stored]
    moment = images or int(max(profile.images for profile in profiles))
    target = PowerProfile.of(std, moment) if std else HalfLifeProfile(half_life, ramp, moment)
    weights = combination(profiles, target)
    model = load_model(paths[-1], stored[-1][1], device=device)
    trained = {name for name, _ in model.denoiser.net.named_parameters()}
    parts = (
        {key: tensor for key, tensor in checkpoint.load(path, f"{name}/")[0].items() if key in trained}
        for path, name, _ in stored
    )
    # Buffers are no averages: they stay those of the last snapshot.
    model.denoiser.net.load_state_dict(combine(weights, parts), strict=False)
    wanted = {"std": std} if std else {"half_life": half_life, "ramp": ramp}
    described = {**wanted, "snapshots": len(paths), "misfit": round(misfit(profiles, weights, target), 6)}
    name = f"{POSTHOC}_{std or half_life:g}"
    return replace(model, profile=name, meta={**model.meta, "images": moment, POSTHOC: described})


def _profiles(path: Path) -> dict[str, PowerProfile]:
    """The power profiles in a snapshot, by name."""
    meta = checkpoint.header(path)
    return {name: PowerProfile.of(std, meta["images"]) for name, std in meta.get("power_stds", {}).items()}
