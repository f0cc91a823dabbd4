"""Pickles read as data: a short list of names, every operation counted, and nothing executed.

A pickle is a program. Its names are looked up in a table of stand-ins and nowhere else, so it can call nothing of its
own choice; and its operations, copies and keys are limited, so it cannot take for ever either. The class underneath is
the version of `pickle.Unpickler` that is written in Python, whose operations can be checked one by one.
"""

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from reprlib import repr as brief
from typing import Any, BinaryIO

import numpy as np

from cmcore import limits
from cmcore.errors import DataError

Find = Callable[[str, str], Any]
"""(module, name) -> what stands for it; a PickleError refuses the name."""
_NUMBER = re.compile(r"[fiub][1248]")  # numpy's names for numbers of so many bytes
_PYTHONS: Any = vars(pickle)["_Unpickler"]  # of which type stubs know nothing
_CONTAINERS = (list, tuple, dict, set, frozenset)


class PickleError(DataError):
    """The pickle asks for something that is refused; the message is a noun phrase that says what."""


class Budget:
    """Operations and bytes that the reading of a file may still take, its nested pickles included.

    Args:
        size: bytes of the file.
    """

    def __init__(self, size: int) -> None:
        self._operations, self._bytes = limits.PICKLE_OPERATIONS, 2**20 + limits.PICKLE_COPIES * size

    def spend(self, operations: int = 0, copied: int = 0) -> None:
        """Take from both; a PickleError where one is used up."""
        self._operations -= operations
        self._bytes -= copied
        if self._operations < 0:
            raise PickleError(f"more than {limits.PICKLE_OPERATIONS} operations")
        if self._bytes < 0:
            raise PickleError(f"copies of more than {limits.PICKLE_COPIES} times its bytes")


class Call:
    """A function that a pickle may call; the pickle cannot set its attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise PickleError("a change of a function")


class StandIn:
    """An object that becomes a value once the whole pickle has been read."""

    __slots__ = ()

    def value(self) -> Any:
        """The value."""
        raise NotImplementedError


class PlainDict(dict[Any, Any]):
    """Stands for subclasses of dict; attributes, such as the versions of a state dict's modules, are dropped."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__()
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        check_keys(self, [key for key, _ in pairs])
        self.update(pairs)

    def __setstate__(self, state: Any) -> None: ...


class Element(StandIn):
    """A numpy.dtype of numbers, in this machine's order of bytes."""

    __slots__ = ("name",)

    def __init__(self, name: Any, *_: Any) -> None:
        name = _text(name)
        if not isinstance(name, str) or not _NUMBER.fullmatch(name.lstrip("<|=")):
            raise PickleError(f"a numpy.dtype {brief(name)}")
        self.name = name.lstrip("<|=")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or _text(state[1]) not in ("<", "|", "="):
            raise PickleError(f"a numpy.dtype with the state {brief(state)}")

    def value(self) -> np.dtype:
        return np.dtype(self.name)


class Array(StandIn):
    """An array of numbers, made from its state: version, shape, dtype, order and bytes."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def value(self) -> np.ndarray:
        if not isinstance(self._state, tuple) or len(self._state) != 5:
            raise PickleError("an array without a state")
        _, shape, element, by_columns, content = self._state
        return _array(content, element, shape, "F" if by_columns else "C").value()


class _Buffer(StandIn):
    """An array of numbers that is there."""

    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def value(self) -> np.ndarray:
        return self._array


def _text(value: Any) -> Any:
    """Text that Python 2 wrote as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _array(content: Any, element: Any, shape: Any, order: Any) -> _Buffer:
    if not isinstance(element, Element) or not isinstance(content, bytes):
        raise PickleError("an array that is not made of bytes")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or order not in ("C", "F"):
        raise PickleError(f"an array of shape {brief(shape)}")
    return _Buffer(np.frombuffer(content, element.value()).reshape(shape, order=order))


def _number(element: Any, content: Any) -> float | int | bool:
    """A number that was numpy's, as Python's."""
    if not isinstance(element, Element) or not isinstance(content, bytes):
        raise PickleError("a numpy number that is not made of bytes")
    return np.frombuffer(content, element.value()).item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise PickleError(f"an encoding {brief(encoding)}")
    return text.encode("latin1")


def _set(kind: type[set] | type[frozenset]) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        items = list(items)
        check_keys((), items)
        return kind(items)

    return make


def _bytes(content: Any = b"", *_: Any) -> bytes:
    if not isinstance(content, bytes):
        raise PickleError("bytes that are not made of bytes")
    return content


PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): PlainDict,
    ("_codecs", "encode"): Call(_encode),
    ("numpy", "dtype"): Call(Element),
    ("numpy", "ndarray"): Call(Array),
    **{(f"numpy.{core}.multiarray", "scalar"): Call(_number) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Call(lambda *_: Array()) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Call(_array) for core in ("core", "_core")},
    **{(module, name): Call(make) for module in ("builtins", "__builtin__")
       for name, make in (("set", _set(set)), ("frozenset", _set(frozenset)), ("bytearray", _bytes))},
}  # fmt: skip
"""Containers, and the arrays and numbers of numpy."""


def find_plain(module: str, name: str) -> Any:
    """The stand-ins of `PLAIN`; every other name is refused."""
    if (module, name) not in PLAIN:
        raise PickleError(f"{module}.{name}")
    return PLAIN[module, name]


def load(content: bytes, find: Find = find_plain, *, encoding: str = "utf-8") -> Any:
    """The data in a pickle.

    Args:
        content: the pickle.
        find: the table of stand-ins.
        encoding: of text that Python 2 wrote; "bytes" leaves it as bytes.

    Returns:
        Numbers, text, plain containers, numpy arrays and what the values of other stand-ins are.

    Raises:
        PickleError: something is refused.
        Exception: of any other kind, for a damaged pickle.
    """
    return values(Unpickler(BytesIO(content), find, Budget(len(content)), encoding=encoding).load())


def check_keys(there: Sequence[Any] | Mapping[Any, Any], keys: Sequence[Any]) -> None:
    """Refuse keys of a dict or elements of a set whose hashes would take long."""
    numbers = sum(not isinstance(key, (str, bytes)) for key in keys)
    if numbers and len(there) + numbers > limits.PICKLE_NUMBER_KEYS:
        raise PickleError(f"more than {limits.PICKLE_NUMBER_KEYS} keys that are not text")
    if any(isinstance(part, (tuple, frozenset)) for key in keys if isinstance(key, tuple) for part in key):
        raise PickleError("a key of nested tuples")


def values(data: Any) -> Any:
    """Loaded data with values in place of stand-ins; an object that occurs twice does so again."""
    return _values(data, {}, limits.PICKLE_DEPTH)


def _values(data: Any, done: dict[int, Any], depth: int) -> Any:
    if id(data) in done:
        return done[id(data)]
    if depth == 0:
        raise PickleError(f"containers more than {limits.PICKLE_DEPTH} deep")
    if isinstance(data, StandIn):
        done[id(data)] = data.value()
        return done[id(data)]
    if isinstance(data, (Call, type)):
        raise PickleError("a function or a class where data was expected")
    if isinstance(data, dict):
        plain: dict[Any, Any] = {}
        done[id(data)] = plain
        plain.update((_values(key, done, depth - 1), _values(value, done, depth - 1)) for key, value in data.items())
        return plain
    if isinstance(data, list):
        items: list[Any] = []
        done[id(data)] = items
        items.extend(_values(item, done, depth - 1) for item in data)
        return items
    if isinstance(data, (tuple, set, frozenset)):
        done[id(data)] = type(data)(_values(item, done, depth - 1) for item in data)
        return done[id(data)]
    if isinstance(data, Record):
        done[id(data)] = data
        data.state = _values(data.state, done, depth - 1)
    return data


class Record:
    """The state of an object of a class that was not loaded: `kind` is its name, `state` what it held."""

    kind = "object"
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Unpickler(_PYTHONS):
    """The unpickler of a stream, which is left at the end of the pickle.

    Args:
        file: the stream.
        find: the table of stand-ins.
        budget: of the whole file.
        encoding: of text that Python 2 wrote.
        persistent: id -> object, for a pickle whose bytes are beside it; without it such ids are refused.
    """

    def __init__(
        self,
        file: BinaryIO,
        find: Find,
        budget: Budget,
        *,
        encoding: str = "utf-8",
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._find, self.budget, self._persistent = find, budget, persistent

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return self._find(module_name, global_name)

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise PickleError("an object outside of the file")
        return self._persistent(pid)

    def get_extension(self, code: int) -> None:
        raise PickleError("an extension")

    def load_setitem(self) -> None:
        check_keys(self.stack[-3], [self.stack[-2]])
        super().load_setitem()

    def load_setitems(self) -> None:
        check_keys(self.metastack[-1][-1], self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        check_keys((), self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        check_keys(self.metastack[-1][-1], self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        check_keys((), self.stack)
        super().load_frozenset()

    def load_empty_set(self) -> None:
        self.budget.spend(operations=3)  # it takes that much more memory than others
        super().load_empty_set()

    def load_bytearray8(self) -> None:
        # Python's own allocates all that is claimed before it reads what is there.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_reduce(self) -> None:
        self._spend_on(self.stack[-1])
        super().load_reduce()

    def load_newobj(self) -> None:
        self._spend_on(self.stack[-1])
        super().load_newobj()

    def load_newobj_ex(self) -> None:
        raise PickleError("an object with named arguments")

    def _instantiate(self, klass: Any, args: Any) -> None:
        self._spend_on(args)
        super()._instantiate(klass, args)

    def _spend_on(self, args: Any) -> None:
        """A call may copy its arguments, which may be large and cost two bytes to repeat."""
        items = sum(len(part) for part in args if isinstance(part, _CONTAINERS))
        text = sum(len(part) for part in args if isinstance(part, str))
        self.budget.spend(len(args) + items, text)


def _counted(operation: Callable[[Unpickler], None]) -> Callable[[Unpickler], None]:
    def count(unpickler: Unpickler) -> None:
        unpickler.budget.spend(1)
        operation(unpickler)

    return count


Unpickler.dispatch = {code: _counted(getattr(Unpickler, f.__name__)) for code, f in Unpickler.dispatch.items()}
