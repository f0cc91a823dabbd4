"""LPIPS on a trunk with generated weights: a distance, differentiable in the images, refused without its file."""

import pytest
import torch

from cmcore.edge.lpips import load_lpips
from cmcore.torchvision_ops import import_torchvision

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


def test_pooling_is_chosen_and_the_average_is_that_of_the_windows(trunk):
    """openai/consistency_models has piq's LPIPS with replace_pooling: the mean of a window in place of its maximum."""
    path, _ = trunk
    a, b = (image.repeat(1, 1, 4, 4) for image in (images(0), images(1)))
    distances = {pooling: load_lpips(path, "squeeze", pooling=pooling, resize=0) for pooling in ("max", "average")}
    kinds = {
        pooling: {type(m).__name__ for m in distance.modules() if "Pool" in type(m).__name__}
        for pooling, distance in distances.items()
    }
    assert kinds == {"max": {"MaxPool2d"}, "average": {"AvgPool2d"}}
    pool = next(m for m in distances["average"].modules() if isinstance(m, torch.nn.AvgPool2d))
    window = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert float(pool(window)) == 4  # squeezenet's windows are 3x3; their maximum would be 8
    values = {pooling: distance(a, b) for pooling, distance in distances.items()}
    assert (values["max"] - values["average"]).abs().min() > 1e-4
    assert torch.equal(values["max"], load_lpips(path, "squeeze", resize=0)(a, b))


def test_images_of_256_pixels_are_not_resized(trunk):
    distance = load_lpips(trunk[0], "squeeze", resize=224)
    sizes = []
    distance.net.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-1]))
    for side in (16, 256):
        a = torch.zeros(1, 3, side, side)
        distance(a, a)
    assert sizes == [224, 256]  # cm/karras_diffusion.py
