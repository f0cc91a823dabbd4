"""Weights from files of other projects, read without executing anything that is in them.

A pickle is a program, and NVlabs-style files also bring the source code of their network and run it. The reader here
knows a short list of names and replaces each by a function of its own: tensors, plain containers, and records of the
state of modules, so that the tensors inside can be found. Whatever else a file names, it is refused.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcore.errors import DataError

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file of torch.save began before it was a zip
_MODULE = re.compile(r"torch\.nn\.modules\.\w+")
_NUMBER = re.compile(r"[fiub][1248]")  # numpy's names for numbers of so many bytes
_ELEMENTS = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64", "int64", "uint8")}


class ForeignError(DataError):
    """The file asks for something that is not loaded, or is no file of weights."""


class Record:
    """The state of an object of a class that was not loaded: `kind` is its name, `state` what it held."""

    kind = "object"

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Mapping(dict[Any, Any]):
    """Stands for OrderedDict and EasyDict; attributes, such as the versions of a state dict's modules, are dropped."""

    def __setstate__(self, state: Any) -> None: ...


class _Held:
    """A tensor while the file is read. Its own methods, some of which a pickle could call, are out of reach."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise ForeignError("a tensor with a state of its own")


class _Call:
    """A function that a pickle may call; the pickle cannot set its attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ForeignError("a change of a function")


def load_foreign(path: Path) -> Any:
    """What a .pkl, .pt, .pth or .ckpt file holds: numbers, text, containers, tensors, and `Record`s of modules.

    Raises:
        ForeignError: the file is no such file, or it names anything else; nothing of it was executed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ForeignError(f"{path}: cannot be read ({error.strerror})") from error
    if zipfile.is_zipfile(BytesIO(content)) or content.startswith(_LEGACY_TORCH):
        return _torch_load(content, str(path))
    try:
        return _released(_Unpickler(BytesIO(content)).load())
    except ForeignError as error:
        raise ForeignError(f"{path}: refused, it asks for {error}") from error
    except Exception as error:  # a damaged pickle fails in any operation there is
        raise ForeignError(f"{path}: is no readable pickle ({_line(error)})") from error


def named_tensors(data: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in loaded data by dotted name; a module's names are those of its state dict.

    Args:
        data: from `load_foreign`, or a part of it, such as `data["ema"]`.
        path: what the names start with.

    Yields:
        Name and tensor.
    """
    if isinstance(data, Tensor):
        yield path, data
    elif isinstance(data, Record):
        yield from _module_tensors(data, path)
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from named_tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, (list, tuple)):
        for index, value in enumerate(data):
            yield from named_tensors(value, f"{path}.{index}" if path else str(index))


def _module_tensors(record: Record, path: str) -> Iterator[tuple[str, Tensor]]:
    groups = record.state if isinstance(record.state, Mapping) else {}
    for group in ("_parameters", "_buffers", "_modules"):
        if isinstance(groups.get(group), Mapping):
            yield from named_tensors(groups[group], path)


class _Unpickler(pickle.Unpickler):
    """Looks names up in `_ALLOWED` and nowhere else: nothing is imported, no attribute is followed."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in _ALLOWED:
            return _ALLOWED[module_name, global_name]
        if _MODULE.fullmatch(module_name) and global_name.isidentifier():
            return type("Record", (Record,), {"kind": global_name, "__slots__": ()})
        raise ForeignError(f"{module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise ForeignError("an object outside of the file")


def _storage(content: Any) -> Tensor:
    """The numbers of a storage, as one flat tensor."""
    if not isinstance(content, bytes):
        raise ForeignError("a storage that is not made of bytes")
    storage = _torch_load(content, "a storage")
    if not isinstance(storage, (torch.UntypedStorage, torch.TypedStorage)):
        raise ForeignError(f"a storage, which turned out to be a {type(storage).__name__}")
    return torch.empty(0, dtype=storage.dtype if isinstance(storage, torch.TypedStorage) else torch.uint8).set_(storage)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    """A view of a storage that lies within it: torch itself would enlarge the storage."""
    numbers = (offset, *size, *stride)
    sane = isinstance(storage, Tensor) and all(type(number) is int and number >= 0 for number in numbers)
    if not sane or len(size) != len(stride):
        raise ForeignError(f"a tensor with offset {offset!r}, size {size!r} and stride {stride!r}")
    empty = 0 in size
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if not empty and (last >= storage.numel() or torch.Size(size).numel() > storage.numel()):
        raise ForeignError(f"a tensor of size {tuple(size)} in a storage of {storage.numel()} numbers")
    return _Held(torch.empty(size, dtype=storage.dtype) if empty else storage.as_strided(size, stride, offset).clone())


def _parameter(data: Any, *_: Any) -> _Held:
    if not isinstance(data, _Held):
        raise ForeignError("a parameter that is no tensor")
    return data


def _persistent(meta: Any) -> Record:
    """An object of NVlabs' `persistence`: its class comes as source code, of which only the name is read."""
    if not isinstance(meta, Mapping):
        raise ForeignError("a persistent object without a description")
    record = Record()
    record.kind, record.state = str(meta.get("class_name", "object")), meta.get("state")
    return record


class _NumberType:
    """A numpy.dtype of numbers, in this machine's order of bytes."""

    __slots__ = ("name",)

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not _NUMBER.fullmatch(name):
            raise ForeignError(f"a numpy.dtype {name!r}")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
            raise ForeignError(f"a numpy.dtype with the state {state!r}")


def _number(kind: Any, content: Any) -> float | int | bool:
    """A number that was numpy's, as Python's."""
    if not isinstance(kind, _NumberType) or not isinstance(content, bytes):
        raise ForeignError("a numpy number that is not made of bytes")
    return np.frombuffer(content, np.dtype(kind.name)).item()


class _Array(Record):
    """An array of numpy, without its numbers: no weights come as such, only constants of encoders."""

    kind = "ndarray"

    def __setstate__(self, state: Any) -> None: ...


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise ForeignError(f"an encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("torch.storage", "_load_from_bytes"): _Call(_storage),
    ("torch", "Size"): _Call(tuple),
    ("torch", "device"): _Call(lambda *parts: ":".join(map(str, parts))),
    ("collections", "OrderedDict"): _Mapping,
    ("dnnlib.util", "EasyDict"): _Mapping,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Call(_persistent),
    ("_codecs", "encode"): _Call(_encode),
    ("numpy", "dtype"): _Call(_NumberType),
    **{(module, "scalar"): _Call(_number) for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{(module, "_reconstruct"): _Call(lambda *_: _Array())
       for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    ("numpy", "ndarray"): _Call(_Array),
    **{(module, name): _Call(kind) for module in ("builtins", "__builtin__")
       for name, kind in (("set", set), ("frozenset", frozenset), ("bytearray", bytes))},
    **{("torch", name): element for name, element in _ELEMENTS.items()},
}  # fmt: skip


def _released(data: Any, done: dict[int, Any] | None = None) -> Any:
    """The data with tensors in place of what held them, and plain dicts; what stands twice does so again."""
    done = {} if done is None else done
    if id(data) in done:
        return done[id(data)]
    if isinstance(data, _Held):
        return data.tensor
    if isinstance(data, (_Call, _NumberType)) or (isinstance(data, type) and issubclass(data, (Record, _Mapping))):
        raise ForeignError("a function or a class where data was expected")
    if isinstance(data, dict):
        plain: dict[Any, Any] = {}
        done[id(data)] = plain
        plain.update((_released(key, done), _released(value, done)) for key, value in data.items())
        return plain
    if isinstance(data, list):
        items: list[Any] = []
        done[id(data)] = items
        items.extend(_released(item, done) for item in data)
        return items
    if isinstance(data, (tuple, set, frozenset)):
        done[id(data)] = type(data)(_released(item, done) for item in data)
        return done[id(data)]
    if isinstance(data, Record):
        done[id(data)] = data
        data.state = _released(data.state, done)
    return data


def _torch_load(content: bytes, what: str) -> Any:
    """torch's own restricted unpickler."""
    try:
        return torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error class of its own for files that are not weights
        raise ForeignError(f"{what}: is not loaded by torch as weights only ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
