"""LPIPS on a trunk with generated weights: a distance, differentiable in the images, refused without its file."""

import pytest
import torch

from cmcore.edge.lpips import load_lpips
from cmcore.edge.torchvision_ops import import_torchvision

try:
    torchvision = import_torchvision()
    import lpips  # noqa: F401 (only whether it is there)
except ImportError as error:
    pytest.skip(f"{error.name} is not installed (the extra 'metrics')", allow_module_level=True)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    path = tmp_path_factory.mktemp("weights") / "squeeze.pth"
    torch.save(state, path)
    return path, state


def images(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.rand((2, channels, 16, 16), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_is_a_distance(trunk):
    distance = load_lpips(trunk[0], "squeeze", resize=64)
    a, b = images(0), images(1)
    assert distance(a, b).shape == (2,)
    assert (distance(a, b) > 0).all()
    assert distance(a, a).tolist() == [0, 0]
    torch.testing.assert_close(distance(a, b), distance(b, a))
    assert (distance(a, a + 0.05 * (b - a)) < distance(a, b)).all()


def test_the_file_decides_the_trunk(trunk):
    path, state = trunk
    distance = load_lpips(path, "squeeze", resize=0)
    first = next(iter(distance.net.net.state_dict().values()))
    assert torch.equal(first, state["features.0.weight"])
    a, b = (image.repeat(1, 1, 4, 4) for image in (images(0), images(1)))
    expected = distance.net(a, b).flatten()
    torch.testing.assert_close(distance(a, b), expected)


def test_gradients_reach_the_images_only(trunk):
    distance = load_lpips(trunk[0], "squeeze", resize=32)
    a = images(0, channels=1).requires_grad_()
    distance(a, images(1, channels=1)).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().max() > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_absent_and_wrong_weights_are_named(tmp_path, trunk):
    with pytest.raises(FileNotFoundError, match=r"expected torchvision's vgg weights, got no file at .*absent\.pth"):
        load_lpips(tmp_path / "absent.pth")
    wrong = tmp_path / "wrong.pth"
    torch.save({key: value for key, value in trunk[1].items() if key != "features.3.squeeze.weight"}, wrong)
    with pytest.raises(ValueError, match=r"wrong\.pth: expected torchvision's squeeze weights"):
        load_lpips(wrong, "squeeze")
    wrong.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"wrong\.pth: expected torchvision's squeeze weights"):
        load_lpips(wrong, "squeeze")


def test_import_is_repeatable_and_keeps_the_missing_operator_missing():
    again = import_torchvision()
    assert again is torchvision
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    if torch.version.cuda is None and "cu" in torchvision.__version__:
        with pytest.raises((RuntimeError, NotImplementedError)):
            torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    else:
        assert torchvision.ops.nms(boxes, torch.ones(1), 0.5).tolist() == [0]
