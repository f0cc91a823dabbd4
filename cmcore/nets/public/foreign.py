"""Weights from files of other projects, read without executing anything that is in them.

A pickle is a program, and NVlabs-style files also bring the source code of their network and run it. The reader here
replaces every name that it knows by a stand-in (see cmcore/unpickle.py): tensors, plain containers, and records of the
state of modules, so that the tensors inside can be found. A file with any other name is refused.

Files of torch.save are read here too, in both of their formats: a zip of a pickle and its storages, and the older
sequence of five pickles and the storages' bytes. torch's own reader believes the sizes that a file claims.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import torch
from torch import Tensor

from cmcore import limits
from cmcore.errors import DataError, reason
from cmcore.unpickle import PLAIN, Budget, Call, PickleError, PlainDict, Record, StandIn, Unpickler, values

_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled number, at the head of the older format of torch.save
_MODULE = re.compile(r"torch\.nn\.modules\.\w+")
_STORAGES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORAGES.values()}


class ForeignError(DataError):
    """The file asks for something that is not loaded, or is no file of weights."""


def load_foreign(path: Path) -> Any:
    """The data in a .pkl, .pt, .pth or .ckpt file.

    Returns:
        Numbers, text, containers, numpy arrays, tensors on the CPU, and a `Record` of every module.

    Raises:
        ForeignError: the file is no such file, or it names anything else; nothing of it was executed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ForeignError(f"{path}: cannot be read ({error.strerror})") from error
    reader = _Reader(content)
    try:
        if zipfile.is_zipfile(BytesIO(content)):
            return values(reader.zip(content))
        if content.startswith(_MAGIC):
            return values(reader.sequence(content))
        return values(reader.unpickle(BytesIO(content)))
    except PickleError as error:
        raise ForeignError(f"{path}: refused, it asks for {error}") from error
    except Exception as error:  # a damaged pickle fails in any operation there is
        raise ForeignError(f"{path}: is no readable pickle ({reason(error)})") from error


def named_tensors(data: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in loaded data by dotted name; a module's names are those of its state dict.

    Args:
        data: from `load_foreign`, or a part of it, such as `data["ema"]`.
        path: the first part of the names.

    Yields:
        Name and tensor.

    Raises:
        ForeignError: there are too many, or a container contains itself.
    """
    visits, pending = 0, [(path, data)]
    while pending:
        name, item = pending.pop()
        visits += 1
        if visits > 4 * limits.TENSORS or len(name) > limits.NAME_CHARACTERS:
            raise ForeignError(f"expected at most {limits.TENSORS} tensors, in containers that do not hold themselves")
        if isinstance(item, Tensor):
            yield name, item
        else:
            pending.extend((f"{name}.{key}" if name else str(key), part) for key, part in reversed(_parts(item)))


def _parts(item: Any) -> list[tuple[Any, Any]]:
    """The members of a container or a module with the keys that their names end in; "" for the module's own groups."""
    if isinstance(item, Record):
        groups = item.state if isinstance(item.state, Mapping) else {}
        return [
            part
            for group in ("_parameters", "_buffers", "_modules")
            if isinstance(groups.get(group), Mapping)
            for part in groups[group].items()
        ]
    if isinstance(item, Mapping):
        return list(item.items())
    return list(enumerate(item)) if isinstance(item, (list, tuple)) else []


class _Storage:
    """The bytes of a storage, once they have been read, and the type of its numbers."""

    __slots__ = ("_flat", "content", "count", "dtype")

    def __init__(self, dtype: torch.dtype, count: int, content: memoryview | None = None) -> None:
        self.dtype, self.count, self.content = dtype, count, content
        self._flat: Tensor | None = None

    def flat(self, budget: Budget) -> Tensor:
        """All of it as one tensor."""
        if self.content is None:
            raise PickleError("a storage without bytes")
        if self._flat is None:
            budget.spend(copied=len(self.content))
            self._flat = torch.frombuffer(bytearray(self.content), dtype=self.dtype)
        return self._flat

    def __setstate__(self, state: Any) -> None:
        raise PickleError("a storage with a state of its own")


class _View(StandIn):
    """A tensor: a view of a storage that lies within it. torch itself would enlarge the storage."""

    __slots__ = ("_budget", "_layout", "_storage")

    def __init__(self, budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        numbers = (offset, *size, *stride)
        sane = isinstance(storage, _Storage) and all(type(number) is int and number >= 0 for number in numbers)
        if not sane or len(size) != len(stride):
            raise PickleError(f"a tensor with offset {brief(offset)}, size {brief(size)} and stride {brief(stride)}")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and (last >= storage.count or torch.Size(size).numel() > storage.count):
            raise PickleError(f"a tensor of size {brief(tuple(size))} in a storage of {storage.count} numbers")
        self._budget, self._storage, self._layout = budget, storage, (tuple(size), tuple(stride), offset)

    def __setstate__(self, state: Any) -> None:
        """Parameters of the first versions of torch have one: whether they need gradients, and hooks."""

    def value(self) -> Tensor:
        storage, (size, stride, offset) = self._storage, self._layout
        if 0 in size:
            return torch.empty(size, dtype=storage.dtype)
        self._budget.spend(copied=torch.Size(size).numel() * storage.dtype.itemsize)
        return storage.flat(self._budget).as_strided(size, stride, offset).clone()


class _Reader:
    """The reading of one file, whose nested pickles share one budget."""

    def __init__(self, content: bytes) -> None:
        self._budget = Budget(len(content))
        self._records: dict[str, type[Record]] = {}
        self._table: dict[tuple[str, str], Any] = {
            **PLAIN,
            ("torch._utils", "_rebuild_tensor_v2"): Call(partial(_View, self._budget)),
            ("torch._utils", "_rebuild_tensor"): Call(partial(_View, self._budget)),
            ("torch._utils", "_rebuild_parameter"): Call(_parameter),
            ("torch.nn.parameter", "Parameter"): Call(_parameter),
            ("torch.storage", "_load_from_bytes"): Call(self._nested),
            ("torch", "Size"): Call(tuple),
            ("torch", "device"): Call(_device),
            ("dnnlib.util", "EasyDict"): PlainDict,
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): Call(_persistent),
            **{("torch", name): dtype for name, dtype in _DTYPES.items()},
            **{(module, name): dtype for module in ("torch", "torch.cuda") for name, dtype in _STORAGES.items()},
        }

    def unpickle(self, file: BytesIO, persistent: Any = None) -> Any:
        """The next pickle of a stream, stand-ins included."""
        return Unpickler(file, self._find, self._budget, persistent=persistent).load()

    def zip(self, content: bytes) -> Any:
        """The newer format of torch.save: data.pkl beside a file for every storage, none of them compressed."""
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = archive.infolist()
            if any(member.compress_type or member.flag_bits & 1 for member in members):
                raise PickleError("storages that are compressed or encrypted")
            if sum(member.file_size for member in members) > len(content):
                raise PickleError("storages larger than the file")
            held = {member.filename: member for member in members}
            name = next((name for name in held if name.endswith("data.pkl") and name.count("/") <= 1), None)
            if name is None:
                raise PickleError("a data.pkl that is not in the file")
            folder, storages = name.removesuffix("data.pkl"), dict[str, _Storage]()
            if f"{folder}byteorder" in held and archive.read(f"{folder}byteorder") != b"little":
                raise PickleError("numbers whose bytes are in another order")

            def storage(pid: Any) -> _Storage:
                key, dtype, count = _identified(pid, 5)
                if key not in storages:
                    storages[key] = _Storage(dtype, count, memoryview(archive.read(f"{folder}data/{key}")))
                return _checked(storages[key], dtype, count)

            return self.unpickle(BytesIO(archive.read(name)), storage)

    def sequence(self, content: bytes) -> Any:
        """The older format: a magic number, a version, the writer's machine, the data, the storages' keys and bytes."""
        file, storages = BytesIO(content), dict[str, _Storage]()

        def storage(pid: Any) -> _Storage:
            key, dtype, count = _identified(pid, 6)
            return storages.setdefault(key, _Storage(dtype, count))

        for _ in range(3):
            self.unpickle(file)
        data = self.unpickle(file, storage)
        for key in self.unpickle(file):
            count = int.from_bytes(file.read(8), "little")
            start, size = file.tell(), count * storages[key].dtype.itemsize
            storages[key].content = memoryview(content)[start : start + size]
            _checked(storages[key], storages[key].dtype, count)
            file.seek(start + size)
        return data

    def _nested(self, content: Any) -> _Storage:
        """A storage in a pickle that is not torch.save's: a file of the older format as bytes."""
        if not isinstance(content, bytes) or not content.startswith(_MAGIC):
            raise PickleError("a storage that is not made of bytes")
        storage = self.sequence(content)
        if not isinstance(storage, _Storage):
            raise PickleError(f"a storage, which turned out to be a {type(storage).__name__}")
        return storage

    def _find(self, module: str, name: str) -> Any:
        if (module, name) in self._table:
            return self._table[module, name]
        if _MODULE.fullmatch(module) and name.isidentifier():
            if len(self._records) >= limits.MODULE_KINDS:
                raise PickleError(f"more than {limits.MODULE_KINDS} kinds of modules")
            if name not in self._records:
                self._records[name] = type("Record", (Record,), {"kind": name, "__slots__": ()})
            return self._records[name]
        raise PickleError(f"{module}.{name}")


def _identified(pid: Any, length: int) -> tuple[str, torch.dtype, int]:
    """Key, type and count of a storage from its persistent id: "storage", type, key, device, count, and a view."""
    if not (isinstance(pid, tuple) and len(pid) == length and pid[0] == "storage" and pid[5:] in ((), (None,))):
        raise PickleError(f"an object outside of the file, {brief(pid)}")
    _, dtype, key, _, count = pid[:5]
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(count) is not int or count < 0:
        raise PickleError(f"a storage {brief(pid)}")
    return key, dtype, count


def _checked(storage: _Storage, dtype: torch.dtype, count: int) -> _Storage:
    """The storage, if its bytes are as many as its numbers need."""
    size = None if storage.content is None else len(storage.content)
    if (storage.dtype, storage.count) != (dtype, count) or size != count * dtype.itemsize:
        raise PickleError(f"a storage of {count} numbers in {size} bytes")
    return storage


def _parameter(data: Any = None, *_: Any) -> _View:
    if not isinstance(data, _View):
        raise PickleError("a parameter that is no tensor")
    return data


def _persistent(meta: Any) -> Record:
    """An object of NVlabs' `persistence`: its class comes as source code, of which only the name is read."""
    if not isinstance(meta, Mapping) or not isinstance(meta.get("class_name", ""), str):
        raise PickleError("a persistent object without a description")
    record = Record()
    record.kind, record.state = meta.get("class_name", "object"), meta.get("state")
    return record


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise PickleError("a device")
    return kind if index is None else f"{kind}:{index}"
