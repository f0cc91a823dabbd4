"""Text encoders by path, through transformers: CLIP's text model and T5's encoder, of which captions are told."""

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmcore.bounded import check_safetensors, parse_json
from cmcore.config import ConfigError
from cmcore.data.settings import DataConfig, TextConfig
from cmcore.errors import DataError, reason
from cmcore.torchvision_ops import import_torchvision

KINDS = {"clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}  # by `model_type` of config.json
PARTS = ("text_encoder", "tokenizer")  # folders of a pipeline of diffusers; else all is in one folder
_BATCH = 32  # captions at once


class TextEncoder:
    """Captions -> the last hidden states of their tokens, padded to one length.

    CLIP's states are those of all places, as Stable Diffusion sees them; T5's are zero beyond the last token.

    Args:
        net: the encoder.
        tokenizer: of its tokens.
        config: the length.
        digest: of the weights and of the tokenizer.
        device: of the computation.
    """

    def __init__(
        self, net: Any, tokenizer: Any, config: TextConfig, digest: str, device: torch.device | str = "cpu"
    ) -> None:
        self._net, self._tokenizer = net.eval().requires_grad_(False).to(device).float(), tokenizer
        self._config, self.digest, self._device = config, digest, device

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> float32 (N, T, D).

        Raises:
            ValueError: one has more tokens than there are places.
        """
        found = []
        for start in range(0, len(captions), _BATCH):
            some = list(captions[start : start + _BATCH])
            tokens = self._tokenizer(some, padding="max_length", max_length=self._config.tokens)
            longest = max(range(len(some)), key=lambda row: len(tokens["input_ids"][row]))
            if (got := len(tokens["input_ids"][longest])) > self._config.tokens:
                wanted = f"at most {self._config.tokens} tokens (data.text.tokens)"
                raise ValueError(f"prompt: expected {wanted}, got {got} of {some[longest]!r}")
            ids, mask = (torch.tensor(tokens[key], device=self._device) for key in ("input_ids", "attention_mask"))
            if self._net.config.model_type == "t5":
                states = self._net(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
            else:
                states = self._net(input_ids=ids).last_hidden_state
            found.append(states.float().cpu().numpy())
        return np.concatenate(found)


def check_text(data: DataConfig) -> None:
    """A ConfigError where the text encoder that parameters name, or transformers, is not there."""
    if data.text is None:
        return
    net, _ = folders(data.text)
    if not (net / "config.json").is_file() or not _weights(net):
        raise ConfigError(
            "data.text.path",
            "expected a folder with config.json and .safetensors of a CLIP text model or of T5, or one with such a "
            f"folder text_encoder beside tokenizer, got {data.text.path!r}",
        )
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("data.text", "needs transformers, which is not installed: pip install -e '.[text]'")


def folders(config: TextConfig) -> tuple[Path, Path]:
    """Those of the encoder and of its tokenizer."""
    whole = Path(config.path)
    return (whole / PARTS[0], whole / PARTS[1]) if (whole / PARTS[0]).is_dir() else (whole, whole)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def load_text_encoder(config: TextConfig, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder in a local folder; nothing is downloaded, and nothing in the files is executed.

    Raises:
        ConfigError: a file is missing, or transformers.
        DataError: the files are not such an encoder, or its vectors are not as wide as `config` says.
    """
    check_text(DataConfig(source="folder", path="-", text=config))
    with contextlib.suppress(ImportError):  # transformers imports it where it is installed
        import_torchvision()
    import transformers  # pyright: ignore[reportMissingImports]

    net, tokens = folders(config)
    described = parse_json((net / "config.json").read_bytes(), str(net / "config.json"))
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in KINDS:
        raise DataError(f"{net / 'config.json'}: model_type: expected one of {', '.join(KINDS)}, got {kind!r}")
    for file in _weights(net):
        check_safetensors(file)
    transformers.utils.logging.disable_progress_bar()
    local: dict[str, Any] = {"local_files_only": True}
    try:
        loaded, found = getattr(transformers, KINDS[kind]).from_pretrained(
            str(net), use_safetensors=True, output_loading_info=True, **local
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(tokens), trust_remote_code=False, **local)
    except Exception as error:  # transformers raises many kinds for files that do not fit
        raise DataError(f"{config.path}: cannot be read as a text encoder ({reason(error, 300)})") from error
    if found["missing_keys"]:
        raise DataError(
            f"{net}: expected all weights of a text encoder, got none of {sorted(found['missing_keys'])[0]}"
        )
    width = loaded.config.d_model if kind == "t5" else loaded.config.hidden_size
    if width != config.width:
        raise DataError(f"{net}: expected vectors of data.text.width = {config.width} numbers, got {width}")
    if tokenizer.pad_token is None:
        raise DataError(f"{tokens}: expected a tokenizer with a sign for padding, got one without")
    return TextEncoder(loaded, tokenizer, config, _digest(net, tokens), device)


def _digest(net: Path, tokens: Path) -> str:
    """Of the weights, and of what the tokenizer makes of all captions: its files."""
    total = hashlib.sha256()
    names = [*_weights(net), *sorted(tokens.glob("*.json")), *sorted(tokens.glob("*.txt")), *tokens.glob("*.model")]
    for file in names:
        with file.open("rb") as opened:
            total.update(json.dumps([file.name, hashlib.file_digest(opened, "sha256").hexdigest()]).encode())
    return total.hexdigest()
