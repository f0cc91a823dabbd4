"""`cmlab likelihood`: the value of a run beside all that it was made from."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from cmcore.assemble.models import ModelShape, build_denoiser, save_model
from cmcore.commands.likelihood import line
from cmcore.config import ConfigError
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError
from cmcore.pipeline.common import Setup, load

RUNS = {name: {"method": name, "init": "random", "teacher": "none"} for name in ("edm", "ect")}


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A project with data and two runs that nobody trained."""
    params = {
        "workload": "tiny",
        "data": {"source": "digits"},
        "diffusion": {"sigma_max": 20.0},
        "net": {"kind": "mlp", "hidden": 16, "blocks": 1},
        "train": {"images": 64, "batch": 64},
        "runs": RUNS,
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    setup = load(tmp_path)
    prepare(DataConfig(source="digits"), setup.folders.data)
    for name in RUNS:
        run, shape = setup.project.run(name), ModelShape(1, 8, 0)
        denoiser = build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary)
        path = setup.folders.weights(name)
        path.parent.mkdir(parents=True)
        save_model(path, {"ema": denoiser.net.state_dict()}, run, shape, {"fingerprint": "abc"})
    return setup


def test_an_untrained_network_has_the_likelihood_of_a_gaussian(setup: Setup):
    """F = 0 is the exact denoiser of N(0, 0.5^2), whose bits are a mean over the pixels in closed form."""
    said = line(setup, "edm", images=300, steps=15, seed=1)
    found = re.fullmatch(
        r"edm: (\d\.\d{3}) ± (\d\.\d{3}) bits per dimension \(300 images, 15 Runge-Kutta steps, seed 1, "
        r"weights abc\); .+",
        said,
    )
    assert found, said
    value, spread = map(float, found.groups())
    # -log2 N(x; 0, 0.25) + log2 127.5, with the mean square of all pixels.
    x = np.load(setup.folders.data / "images.npy") / 127.5 - 1
    expected = 0.5 * np.log2(2 * np.pi * 0.25) + (x**2).mean() / (2 * 0.25 * np.log(2)) + np.log2(127.5)
    assert value == pytest.approx(expected, abs=4 * spread + 0.01)
    assert spread < 0.05
    assert line(setup, "edm", images=300, steps=15, seed=1) == said


def test_what_has_none_is_refused(setup: Setup):
    with pytest.raises(ConfigError, match=r"runs.ect.method: expected a method with a denoiser in it, .* got ect"):
        line(setup, "ect", images=10, steps=2, seed=1)
    with pytest.raises(ConfigError, match="--images: expected at least 2, got 1"):
        line(setup, "edm", images=1, steps=2, seed=1)
    with pytest.raises(ConfigError, match="--steps: expected at least 1, got 0"):
        line(setup, "edm", images=2, steps=0, seed=1)
    setup.folders.weights("edm").unlink()
    with pytest.raises(DataError, match="first run `dvc repro train@edm`"):
        line(setup, "edm", images=2, steps=1, seed=1)
