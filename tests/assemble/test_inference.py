"""Networks for samples: in the run's precision where the device works on its own, in plain float32 on the CPU."""

import pytest
import torch
from devices import CUDA
from tiny import SHAPE, make_denoiser, make_train

from cmcore.assemble import inference
from cmcore.assemble.inference import for_samples
from cmcore.diffusion.precond import Denoiser
from cmcore.rng import NoiseSource
from cmcore.sample.fewstep import Multistep


def trained() -> Denoiser:
    """Whose last layer is not zero any more."""
    denoiser, random = make_denoiser(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return denoiser.eval()


def samples(denoiser: Denoiser, device: str = "cpu") -> torch.Tensor:
    with torch.no_grad():
        return Multistep((20.0, 0.8), 0.002)(denoiser, SHAPE, NoiseSource(1, range(16), device)).cpu()


def test_the_cpu_computes_in_float32_whatever_the_run_did():
    plain = samples(trained())
    config = make_train(precision="bf16", channels_last=True, compile=True)
    assert torch.equal(samples(for_samples(trained(), config, "cpu")), plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_device_computes_as_the_run_did(precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference, "is_synchronous", lambda device: False)
    plain = samples(trained())
    config = make_train(precision=precision, compile=True)
    denoiser = for_samples(trained(), config, "cpu", compiled=False)
    found = samples(denoiser)
    assert found.dtype == torch.float64
    assert torch.equal(found, plain) == (precision == "fp32")
    torch.testing.assert_close(found, plain, rtol=0, atol=0.05 * plain.std().item())
    assert denoiser.net(torch.zeros(2, *SHAPE), torch.zeros(2)).dtype == torch.float32


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("settings", [{}, {"compile": True, "channels_last": True, "cuda_graphs": True}])
def test_samples_of_a_gpu(settings: dict[str, bool], device: str):
    plain = samples(trained())
    denoiser = for_samples(trained().to(device), make_train(precision="bf16", **settings), device)
    torch.testing.assert_close(samples(denoiser, device), plain, rtol=0, atol=0.05 * plain.std().item())
