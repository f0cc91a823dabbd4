"""Foreign pickles: honest ones give their tensors, malicious ones nothing, and nothing in either is executed."""

import builtins
import collections
import io
import os
import pickle
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmcore import unpickle
from cmcore.nets.public.foreign import ForeignError, Record, load_foreign, named_tensors


@pytest.fixture
def witness(tmp_path, monkeypatch) -> Path:
    """A file that every attack here tries to make."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "witness"


def write(path: Path, content: bytes | object, protocol: int = 4) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args, state=None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call

    def __call__(self) -> None:
        """Pickle wants what it will call to be callable, also where that is the result of a call."""


TOUCH = "open('witness', 'w').close()"
ATTACKS = {
    "os.system": lambda: Calls(os.system, "touch witness"),
    "subprocess": lambda: Calls(subprocess.call, ["touch", "witness"]),
    "eval": lambda: Calls(eval, TOUCH),
    "exec": lambda: Calls(exec, TOUCH),
    "open": lambda: Calls(open, "witness", "w"),
    "__import__": lambda: Calls(builtins.__import__, "antigravity"),
    "getattr": lambda: Calls(Calls(getattr, Calls(builtins.__import__, "os"), "system"), "touch witness"),
    "partial": lambda: Calls(partial, print, "x"),
    "pickle.loads": lambda: Calls(pickle.loads, pickle.dumps(Calls(os.system, "touch witness"))),
    "torch.load": lambda: Calls(torch.load, "witness"),
    "a state": lambda: Calls(collections.OrderedDict, state={"x": Calls(os.system, "touch witness")}),
    "deep inside": lambda: {"ema": [({"w": torch.ones(2), "x": (Calls(os.system, "touch witness"),)},)]},
    "a key": lambda: {Calls(eval, "1"): 1},
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("attack", ATTACKS)
def test_calls_are_refused_before_they_happen(attack, protocol, witness):
    if protocol < 2 and attack == "deep inside":
        pytest.skip("tensors have no protocol 0")
    path = write(witness.with_name("evil.pkl"), ATTACKS[attack](), protocol)
    with pytest.raises(ForeignError, match=r"evil\.pkl: refused, it asks for \w+"):
        load_foreign(path)
    assert not witness.exists()


def test_the_attacks_are_real(witness):
    """Python's own reader runs them, so that their refusal above means something."""
    pickle.loads(pickle.dumps(ATTACKS["os.system"]()))
    assert witness.exists()


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


RAW = {
    "a dotted name below an allowed module": name("torch._utils", "_rebuild_tensor_v2.__globals__"),
    "a dotted name by the stack": b"\x80\x04\x8c\x0ctorch._utils\x8c\x12torch.serialization\x93",
    "a module function": name("torch.nn.modules.module", "torch.load"),
    "a relative module": name("torch.nn.modules.x.y", "os"),
    "another object of torch.nn": name("torch.nn.modules", "os"),
    "an object elsewhere": b"P1\n",
    "an extension": b"\x80\x02\x82\x01",
    "an instance of os.system": b"(S'touch witness'\nios\nsystem\n",
}


@pytest.mark.parametrize("kind", RAW)
def test_names_beside_the_list_are_refused(kind, witness):
    with pytest.raises(ForeignError):
        load_foreign(write(witness.with_name("evil.pkl"), RAW[kind] + b"."))
    assert not witness.exists()


def test_functions_and_classes_cannot_be_changed(tmp_path):
    """BUILD with a pair as the state sets attributes of whatever lies on the stack."""
    before = dict(vars(Record)), unpickle._array.__defaults__
    state = b"(N(dS'__call__'\nI1\nst"  # (None, {'__call__': 1})
    for target in (
        name("torch._utils", "_rebuild_tensor_v2"),
        name("numpy.core.numeric", "_frombuffer"),
        name("collections", "OrderedDict"),
        name("torch", "float32"),
    ):
        with pytest.raises(ForeignError):
            load_foreign(write(tmp_path / "evil.pkl", target + state + b"b."))
    assert (dict(vars(Record)), unpickle._array.__defaults__) == before
    with pytest.raises(ForeignError, match="a function or a class where data was expected"):
        load_foreign(write(tmp_path / "evil.pkl", name("collections", "OrderedDict") + b"."))


def rebuilt(content: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of torch._utils._rebuild_tensor_v2 with any arguments."""
    storage = Calls(torch.storage._load_from_bytes, content)
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {}), protocol=4)


def stored(x: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(x._typed_storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


OUTSIDE = [
    (0, (7,), (1,)),
    (5, (2,), (1,)),
    (-1, (2,), (1,)),
    (0, (2,), (-1,)),
    (0, (10**9, 10**9), (0, 0)),
    (0, (2, 2), (1,)),
    (0, ("a",), (1,)),
]


@pytest.mark.parametrize(("offset", "size", "stride"), OUTSIDE)
def test_a_tensor_outside_of_its_storage_is_refused(offset, size, stride, tmp_path):
    six = stored(torch.arange(6, dtype=torch.uint8))
    good = load_foreign(write(tmp_path / "good.pkl", rebuilt(six, 2, (2, 2), (1, 2))))
    assert good.tolist() == [[2, 4], [3, 5]]
    with pytest.raises(ForeignError, match="a tensor"):
        load_foreign(write(tmp_path / "bad.pkl", rebuilt(six, offset, size, stride)))


def test_a_malicious_storage_is_refused(witness):
    evil = io.BytesIO()
    torch.save(Calls(os.system, "touch witness"), evil, _use_new_zipfile_serialization=False)
    for content in (evil.getvalue(), pickle.dumps(Calls(os.system, "touch witness")), b"", b"nonsense"):
        with pytest.raises(ForeignError, match=r"evil\.pkl: refused, it asks for (posix\.system|a storage)"):
            load_foreign(write(witness.with_name("evil.pkl"), rebuilt(content, 0, (1,), (1,))))
    assert not witness.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_torch_file_is_refused(witness, legacy):
    path = witness.with_name("evil.pt")
    torch.save({"x": Calls(os.system, "touch witness")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ForeignError, match=r"evil\.pt: refused, it asks for posix\.system"):
        load_foreign(path)
    assert not witness.exists()


def test_damage_is_named(tmp_path):
    good = pickle.dumps({"w": torch.ones(100)})
    for content in (b"", b"\x00", good[: len(good) // 2], b"hello, world"):
        with pytest.raises(ForeignError, match=r"bad\.pkl") as caught:
            load_foreign(write(tmp_path / "bad.pkl", content))
        assert "\n" not in str(caught.value)
    with pytest.raises(ForeignError, match="cannot be read"):
        load_foreign(tmp_path / "absent.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_and_plain_containers_come_back(protocol, tmp_path):
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(4, 6, generator=generator)
    shared = [1, 2]
    data = {
        "tensors": [big, big[1:3, ::2], big.t(), big.half(), big.bfloat16(), torch.arange(3), big.sum(), big[:0]],
        "parameter": nn.Parameter(big),
        "ordered": collections.OrderedDict(a=1, b=(2.0, "three", None, True)),
        "plain": {"set": {1, 2}, "frozen": frozenset({3}), "bytes": b"\x00\xff", "nested": [[[-1]]]},
        "shared": [shared, shared],
        "size": big.shape,
        "dtype": torch.float16,
    }  # fmt: skip
    loaded = load_foreign(write(tmp_path / "good.pkl", data, protocol))
    for got, expected in zip(loaded["tensors"], data["tensors"], strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    assert torch.equal(loaded["parameter"], big)
    assert loaded["shared"][0] is loaded["shared"][1]
    assert type(loaded["ordered"]) is dict
    for key in ("ordered", "plain", "shared", "size", "dtype"):
        assert loaded[key] == data[key], key


def test_a_container_that_contains_itself_is_loaded(tmp_path):
    data: list = [1]
    data.append(data)
    loaded = load_foreign(write(tmp_path / "good.pkl", data))
    assert loaded[1] is loaded


def test_a_persistent_network_gives_its_state_dict_and_its_source_is_not_run(witness, monkeypatch):
    """The layout of NVlabs' snapshots: a dict whose networks are descriptions of a class with its source code."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.BatchNorm1d(4)), "head": nn.Linear(4, 1)})

    persistence = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise AssertionError('run')", vars(persistence))
    persistence._reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)
    state = {"label_dim": 10, "_parameters": {}, "_buffers": {"f": torch.ones(2)}, "_modules": {"net": net}}
    meta = {"type": "class", "version": 6, "module_src": TOUCH, "class_name": "Precond", "state": state}
    data = {"ema": Calls(persistence._reconstruct_persistent_obj, meta), "dataset_kwargs": {"resolution": 8}}
    path = write(witness.with_name("snapshot.pkl"), data)
    monkeypatch.undo()
    monkeypatch.chdir(witness.parent)

    loaded = load_foreign(path)
    assert loaded["dataset_kwargs"] == {"resolution": 8}
    assert isinstance(loaded["ema"], Record)
    assert loaded["ema"].kind == "Precond"
    assert loaded["ema"].state["label_dim"] == 10
    tensors = dict(named_tensors(loaded["ema"]))
    expected = {"f": torch.ones(2)} | {f"net.{key}": value for key, value in net.state_dict().items()}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert not witness.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_numpy_are_arrays_and_no_weights(protocol, tmp_path):
    """EDM2's snapshots for latents hold some, in the encoder beside the network."""
    mean = np.arange(4, dtype=np.float32)
    data = {"encoder": {"mean": mean, "view": mean[::2], "scale": 0.5}, "ema": {"w": torch.ones(2)}}
    loaded = load_foreign(write(tmp_path / "good.pkl", data, protocol))
    assert {name for name, _ in named_tensors(loaded)} == {"ema.w"}
    np.testing.assert_array_equal(loaded["encoder"]["mean"], mean)
    np.testing.assert_array_equal(loaded["encoder"]["view"], mean[::2])
    assert loaded["encoder"]["scale"] == 0.5
    objects = {"mean": np.array([Calls(os.system, "touch witness")], dtype=object)}
    with pytest.raises(ForeignError, match=r"numpy\.dtype 'O8'"):
        load_foreign(write(tmp_path / "evil.pkl", objects, protocol))


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_give_what_torch_gives(tmp_path, legacy):
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(4, 6, generator=generator)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    dtypes = (torch.half, torch.bfloat16, torch.double, torch.long, torch.int, torch.short, torch.int8, torch.uint8)
    tensors = [
        big,
        big[1:3, ::2],
        big.t(),
        big.sum(),
        big[:0],
        nn.Parameter(big),
        big > 0,
        *(big.to(d) for d in dtypes),
    ]
    data = {"tensors": tensors, "net": net.state_dict(), "step": 3, "mu": np.arange(3.0), "size": big.shape}
    torch.save(data, tmp_path / "good.pt", _use_new_zipfile_serialization=not legacy)
    loaded, expected = load_foreign(tmp_path / "good.pt"), torch.load(tmp_path / "good.pt", weights_only=False)
    assert (loaded["step"], loaded["size"]) == (3, (4, 6))
    np.testing.assert_array_equal(loaded["mu"], np.arange(3.0))
    assert list(loaded["net"]) == list(expected["net"])
    theirs = [*expected["tensors"], *expected["net"].values()]
    for got, wanted in zip([*loaded["tensors"], *loaded["net"].values()], theirs, strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


def test_no_random_change_of_an_honest_file_raises_anything_else(tmp_path):
    good = bytearray(pickle.dumps({"w": torch.ones(3), "x": [1, (2.0, "y")], "z": collections.OrderedDict(k=1)}))
    generator = torch.Generator().manual_seed(1)
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        for position in torch.randint(len(bad), (3,), generator=generator).tolist():
            bad[position] = int(torch.randint(256, (), generator=generator))
        try:
            load_foreign(write(tmp_path / "bad.pkl", bytes(bad)))
        except ForeignError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("protocol", [2, 4])
def test_numbers_of_numpy_become_plain_ones(protocol, tmp_path):
    """EDM's blocks keep the scale of their skips as one."""
    data = {"scale": np.sqrt(0.5), "half": np.float32(0.25), "count": np.int64(-3), "flag": np.bool_(True)}
    loaded = load_foreign(write(tmp_path / "good.pkl", data, protocol))
    assert loaded == {"scale": 0.5**0.5, "half": 0.25, "count": -3, "flag": True}
    assert {type(value) for value in loaded.values()} == {float, int, bool}
    for number in (np.array(1.0, dtype=">f8")[()], np.datetime64(1, "s"), np.str_("x")):
        other = pickle.dumps({"x": number, "y": np.dtype(">f8")}, protocol)
        with pytest.raises(ForeignError, match=r"numpy\.dtype"):
            load_foreign(write(tmp_path / "other.pkl", other))
