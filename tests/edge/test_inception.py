"""The Inception path, with generated weights of the right layout: same features as torch-fidelity's own network."""

import io
import pickle

import pytest
import torch

from cmcore.edge import inception
from cmcore.edge.inception import load_inception
from cmcore.evaluate.records import INCEPTION_DIGEST
from cmcore.evaluate.settings import InceptionConfig
from cmcore.torchvision_ops import import_torchvision

try:
    import_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
except ImportError as error:
    pytest.skip(f"{error.name} is not installed (the extra 'metrics')", allow_module_level=True)


class _Unfilled(FeatureExtractorInceptionV3):
    """Keeps its initialisation instead of loading weights."""

    def load_state_dict(self, *_args, **_kwargs):
        pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    net = _Unfilled("theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=empty)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("weights") / "generated.pth"
    torch.save(net.state_dict(), path)
    yield net, path
    path.unlink()


def test_features_and_logits_are_torch_fidelitys(weights):
    theirs, path = weights
    found = load_inception(InceptionConfig(path=str(path)))
    assert found.extractor is not None
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = found.extractor(images)
    expected, logits = theirs(images)
    assert features.shape == (2, found.extractor.dim)
    assert features.std() > 1e-3
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(found.extractor.logits(features), logits)
    grey = found.extractor(images[:1, :1])
    torch.testing.assert_close(grey, theirs(images[:1, :1].repeat(1, 3, 1, 1))[0])
    assert (
        found.extractor.name == f"inception_{found.extractor.digest[:8]}"
    )  # generated weights are not *the* Inception
    with pytest.raises(ValueError, match="expected uint8"):
        found.extractor(images.float())


def test_only_the_published_digest_is_called_inception():
    assert inception.InceptionExtractor(torch.nn.Identity(), INCEPTION_DIGEST + "0" * 56).name == "inception"


def test_absent_weights_give_the_reason(tmp_path):
    assert load_inception(InceptionConfig()).extractor is None
    assert "set eval.inception.path" in load_inception(InceptionConfig()).reason
    absent = load_inception(InceptionConfig(path=str(tmp_path / "absent.pth")))
    assert absent.extractor is None
    assert "absent.pth" in absent.reason


def test_failed_download_gives_the_reason_and_a_cached_file_is_used(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def unreachable(url, target, hash_prefix, progress):
        asked.append((url, hash_prefix))
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    assert "download failed" in load_inception(InceptionConfig(download=True)).reason
    assert asked[0][0].endswith(f"{INCEPTION_DIGEST}.pth")
    assert asked[0][1] == INCEPTION_DIGEST
    cached = tmp_path / "checkpoints" / asked[0][0].rpartition("/")[2]
    cached.hardlink_to(weights[1])
    assert load_inception(InceptionConfig(download=True)).extractor is not None
    assert len(asked) == 1


class _Payload:
    def __reduce__(self):
        return (pytest.fail, ("the file's code was run",))


def test_wrong_files_are_named_and_their_code_never_runs(tmp_path):
    path = tmp_path / "wrong.pth"
    for content in ({"fc.weight": torch.zeros(2)}, [1, 2], _Payload()):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"wrong\.pth: expected torch-fidelity's Inception weights"):
            load_inception(InceptionConfig(path=str(path)))
    for junk in (b"", b"junk", pickle.dumps(_Payload())):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match=r"wrong\.pth: expected torch-fidelity's Inception weights"):
            load_inception(InceptionConfig(path=str(path)))
