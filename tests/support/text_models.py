"""Tiny random text encoders with their tokenizers, in folders as transformers and diffusers write them."""

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cmcore.torchvision_ops import import_torchvision

WIDTH, TOKENS = 12, 16


def transformers_library() -> Any:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed (the extra 'text')")
    with contextlib.suppress(ImportError):
        import_torchvision()
    return importlib.import_module("transformers")


def write_clip(folder: Path, *, seed: int = 0, tokens: int = TOKENS) -> Any:
    """Folders text_encoder and tokenizer, as in a pipeline of diffusers: letters are the tokens; returns the model."""
    library = transformers_library()
    letters = [chr(k) for k in range(ord("a"), ord("z") + 1)]
    signs = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir(parents=True)
    vocabulary = {sign: number for number, sign in enumerate(signs)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    known = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokens, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(known))
    torch.manual_seed(seed)
    config = library.CLIPTextConfig(
        vocab_size=len(signs), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokens, eos_token_id=len(signs) - 1, bos_token_id=len(signs) - 2,
    )  # fmt: skip
    model = library.CLIPTextModel(config).eval()
    model.save_pretrained(folder / "text_encoder", safe_serialization=True)
    return model


def write_t5(folder: Path) -> Any:
    """Encoder and tokenizer in one folder: words are the tokens; returns the model."""
    library = transformers_library()
    tokenizers = importlib.import_module("tokenizers")
    signs = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "above", "below"]
    words = tokenizers.models.WordLevel({sign: k for k, sign in enumerate(signs)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = library.T5Config(
        vocab_size=len(signs), d_model=WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = library.T5EncoderModel(config).eval()
    model.save_pretrained(folder, safe_serialization=True)
    return model
