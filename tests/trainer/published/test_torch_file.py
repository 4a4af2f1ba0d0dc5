"""Files of torch.save are read in both formats, and nothing in them is executed."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hagmil.errors import BundleError
from hagmil.trainer.published.stand_ins import FunctionStandIn, StandIn
from hagmil.trainer.published.torch_file import check_checksums, copy_tensor, read_torch_file

BASE = torch.arange(24.0).reshape(4, 6)
TENSORS: dict[str, Tensor] = {
    "float32": BASE,
    "float64": BASE.double(),
    "float16": BASE.half(),
    "bfloat16": BASE.bfloat16(),
    "int64": BASE.long(),
    "uint8": BASE.byte(),
    "bool": BASE > 3,
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 7),
    "transposed": BASE.t(),
    "a part": BASE[1:, 2:5],
    "every other": BASE[::2, ::3],
    "parameter": nn.Parameter(BASE.clone()),
}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    def _save(content: Any) -> Path:
        path = tmp_path / "file.pt"
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return _save


@pytest.fixture
def lightning() -> Iterator[ModuleType]:
    """A library that can be imported when a file is written, and not when it is read."""
    module = ModuleType("pytorch_lightning_of_old")

    class AttributeDict(dict[str, Any]):
        pass

    class ModelCheckpoint:
        def __init__(self, monitor: str) -> None:
            self.monitor = monitor

    class Slots:
        __slots__ = ("depth",)

        def __init__(self, depth: int) -> None:
            self.depth = depth

    class Mode(str):
        class Inner:
            pass

    def helper() -> None: ...

    for member in (AttributeDict, ModelCheckpoint, Slots, Mode, helper):
        member.__module__ = module.__name__
        member.__qualname__ = member.__name__
        setattr(module, member.__name__, member)
    Mode.Inner.__module__, Mode.Inner.__qualname__ = module.__name__, "Mode.Inner"
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_keeps_its_type_shape_and_values(save: Callable[[Any], Path], name: str) -> None:
    path = save(TENSORS[name])
    loaded = copy_tensor(read_torch_file(path), path)
    assert loaded.dtype == TENSORS[name].dtype
    assert loaded.is_contiguous()
    assert not loaded.requires_grad
    assert torch.equal(loaded, TENSORS[name])


def test_a_whole_training_state_is_read(save: Callable[[Any], Path]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimiser.step()
    path = save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": 3})
    read = read_torch_file(path)
    assert read["epoch"] == 3
    for name, weight in model.state_dict().items():
        assert torch.equal(copy_tensor(read["model"][name], path), weight)
    assert read["optimiser"]["param_groups"][0]["betas"] == (0.9, 0.999)
    exp_avg = optimiser.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(copy_tensor(read["optimiser"]["state"][0]["exp_avg"], path), exp_avg)


def test_two_tensors_on_one_storage_are_both_read(save: Callable[[Any], Path]) -> None:
    path = save([BASE, BASE[2]])
    read = read_torch_file(path)
    assert torch.equal(copy_tensor(read[0], path), BASE)
    assert torch.equal(copy_tensor(read[1], path), BASE[2])


def test_a_copied_tensor_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(BASE, path)
    copied = copy_tensor(read_torch_file(path), path)
    path.write_bytes(bytes(path.stat().st_size))
    path.unlink()
    assert torch.equal(copied, BASE)


def test_the_numbers_of_an_archive_are_mapped_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(BASE, path)
    mapped = read_torch_file(path)
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(data.index(BASE.numpy().tobytes()))
        file.write(torch.zeros_like(BASE).numpy().tobytes())
    assert torch.equal(mapped, torch.zeros_like(BASE))


def test_plain_values_are_read(save: Callable[[Any], Path]) -> None:
    content = {
        "numbers": [0, -1, 2**70, 1.5, True, None, 1 + 2j],
        "texts": ("", "é", b"\x00\xff", b"", bytearray(b"ab")),
        "sets": [{1, 2}, frozenset({"a"}), set()],
        "collections": [collections.OrderedDict(a=1), collections.Counter("aab"), collections.deque([1, 2])],
        ("a", 1): {"nested": [[], (), {}]},
        "default": collections.defaultdict(list, {"a": [1]}),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
    }
    read = read_torch_file(save(content))
    expected = {**content, "numbers": content["numbers"], "collections": [{"a": 1}, {"a": 2, "b": 1}, [1, 2]]}
    assert {key: value for key, value in read.items() if key != "numbers"} == {
        key: value for key, value in expected.items() if key != "numbers"
    }
    assert read["numbers"][:-1] == [0, -1, 2**70, 1.5, True, None]


def test_classes_of_a_library_that_is_not_installed_become_inert(
    save: Callable[[Any], Path], lightning: ModuleType
) -> None:
    content = {
        "state_dict": {"weight": BASE},
        "callbacks": {lightning.ModelCheckpoint: {"best": torch.tensor(0.5)}},
        "callback": lightning.ModelCheckpoint("v_loss"),
        "slots": lightning.Slots(3),
        "hyper_parameters": lightning.AttributeDict(lr=1e-5),
        "text": lightning.Mode("min"),
        "nested": lightning.Mode.Inner,
        "function": lightning.helper,
        "array": np.arange(3.0),
        "path": Path("here"),
    }
    path = save(content)
    del sys.modules[lightning.__name__]
    read = read_torch_file(path)
    assert torch.equal(copy_tensor(read["state_dict"]["weight"], path), BASE)
    ((callback, state),) = read["callbacks"].items()
    assert issubclass(callback, StandIn)
    assert callback.path == f"{lightning.__name__}.ModelCheckpoint"
    assert state["best"] == 0.5
    for key in ("callback", "slots", "text", "array", "path"):
        assert isinstance(read[key], StandIn)
        assert not vars(read[key])
    assert read["hyper_parameters"] == {"lr": 1e-5}
    assert type(read["callback"]) is callback
    assert read["nested"].path == f"{lightning.__name__}.Mode.Inner"
    assert isinstance(read["function"], FunctionStandIn)
    assert read["function"].path == f"{lightning.__name__}.helper"
    assert lightning.__name__ not in sys.modules


def test_registered_classes_are_forgotten_after_reading(save: Callable[[Any], Path]) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_torch_file(save({"array": np.arange(3.0), "weight": BASE}))
    assert set(torch.serialization.get_safe_globals()) == before


class Payload:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _payloads(target: Path) -> dict[str, Payload]:
    """Name that the file is refused for -> pickle that would create a file if it were executed."""
    made, code = str(target), f"open({str(target)!r}, 'w').close()"
    return {
        f"{os.system.__module__}.system": Payload(os.system, f"touch {made}"),
        f"{os.mkdir.__module__}.mkdir": Payload(os.mkdir, made),
        "subprocess.call": Payload(subprocess.call, ["touch", made]),
        "subprocess.Popen": Payload(subprocess.Popen, ["touch", made]),
        "builtins.eval": Payload(eval, code),
        "builtins.exec": Payload(exec, code),
        "builtins.__import__": Payload(builtins.__import__, "antigravity"),
        "builtins.getattr": Payload(getattr, target, "touch"),
        "io.open": Payload(open, made, "w"),
        "pathlib.Path.touch": Payload(Path.touch, target),
        "torch.serialization.load": Payload(torch.load, made),
        "torch.serialization.save": Payload(torch.save, BASE, made),
        "pickle": Payload(pickle.loads, b"N."),
        "zipfile.ZipFile": Payload(zipfile.ZipFile, made, "w"),
    }


@pytest.mark.parametrize("name", _payloads(Path()))
def test_a_malicious_file_is_refused_by_name_and_not_executed(
    save: Callable[[Any], Path], tmp_path: Path, name: str
) -> None:
    target = tmp_path / "owned"
    path = save({"state_dict": {"weight": BASE}, "extra": _payloads(target)[name]})
    with pytest.raises(BundleError, match=name.rsplit(".", 1)[-1]) as caught:
        read_torch_file(path)
    assert caught.value.code == "unsafe_pickle"
    assert not target.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n.",  # named, not called
        b"c__main__\nos.system\n(S'true'\ntR.",  # an attribute of a module
        b"ctorch\nSize.__init__.__globals__\n.",  # a dunder in the path
        b"(S'true'\nios\nsystem\n.",  # called by INST
        b"(cos\nsystem\nS'true'\no.",  # called by OBJ
        b"cunknown\nhelper\n)R.",  # an unknown function
        b"cunknown\nClass\n)R)R.",  # the object of an inert class, called
        b"})R.",  # something without a name, called
        b"cbuiltins\ngetattr\n}X\x04\x00\x00\x00keys\x86R.",  # an attribute of a value
        b"cbuiltins\ngetattr\nclibrary\nClass\nX\x08\x00\x00\x00__init__\x86R.",
        b"S'os'\nS'system'\n\x93.",  # STACK_GLOBAL
        b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",  # two gigabytes of zeros
    ],
)
def test_a_program_that_does_more_than_make_data_is_refused(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        read_torch_file(_archive_of(tmp_path, program))
    assert caught.value.code in ("unsafe_pickle", "unreadable")


BROKEN_PROGRAMS = [
    b"",
    b"hello",
    b"(lp0\n",  # no end
    b"0.",  # the stack is empty
    b"\x85.",
    b"h\x07.",  # nothing in the memo
    b"I1\nI2\na.",  # an item for a number
    b"}I1\ns.",  # a key without a value
    b"}](I1\ns.",
    b"\x82\x01.",  # an extension code
    b"\x97.",  # a buffer out of band
    b"S'key'\nQ.",  # a persistent id
    b"}]I1\ns.",  # a list as a key
    b"cbuiltins\nlist\nI1\nR.",  # arguments that are not a tuple
    b"]r\xff\xff\xff\xff.",  # the last index of the memo
    b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.",  # a key so deeply nested that hashing it crashes CPython
]


@pytest.mark.parametrize("program", BROKEN_PROGRAMS)
def test_a_broken_pickle_is_refused(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(BundleError, match="is not a valid"):
        read_torch_file(_archive_of(tmp_path, program))


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        (0, (5, 6), (6, 1)),  # longer than the storage
        (1, (4, 6), (6, 1)),  # starts too late
        (0, (1 << 40,), (0,)),  # one number claimed a trillion times
        (0, (4, 6), (3, 1)),  # overlapping rows
        (0, (4, 6), (6,)),  # fewer strides than axes
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_or_with_shared_elements_is_refused(
    tmp_path: Path, arguments: tuple[Any, ...], archive: bool
) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            untyped = BASE.untyped_storage()
            storage = torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
                wrap_storage=untyped, dtype=BASE.dtype, _internal=True
            )
            return (torch._utils._rebuild_tensor_v2, (storage, *arguments, False, {}))

    path = tmp_path / "forged.pt"
    torch.save(Forged(), path, _use_new_zipfile_serialization=archive)
    with pytest.raises(BundleError, match=r"is not a valid|is not plain"):
        copy_tensor(read_torch_file(path), path)


def test_a_damaged_number_is_found_by_the_checksums(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(BASE, path)
    data = path.read_bytes()
    place = data.index(BASE.numpy().tobytes()) + 10
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(BundleError, match="damaged"):
        check_checksums(path)


def test_a_file_with_any_damaged_byte_is_read_or_refused(save: Callable[[Any], Path]) -> None:
    path = save({"weights": [BASE, BASE.half()]})
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(0, len(data), 300):
        damaged = bytearray(data)
        damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            read = read_torch_file(path)
            check_checksums(path)
            if isinstance(read, dict):
                _ = [copy_tensor(weight, path) for weight in read.get("weights", []) if isinstance(weight, Tensor)]
        except BundleError:
            refused += 1
    assert 0 < refused < 300


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(BASE, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match="is not a valid"):
        read_torch_file(path)


def test_a_truncated_legacy_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(BASE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BundleError, match=r"is not a valid.*cut off"):
        read_torch_file(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps([]))
    with pytest.raises(BundleError, match="compressed"):
        read_torch_file(path)


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/data.pkl", pickle.dumps([]))
        archive.writestr("script/constants.pkl", pickle.dumps([]))
    with pytest.raises(BundleError, match="TorchScript"):
        read_torch_file(path)


def test_an_archive_without_a_storage_is_refused(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.pt", tmp_path / "part.pt"
    torch.save(BASE, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(part, "w") as target:
        for name in source.namelist():
            if not name.endswith("/data/0"):
                target.writestr(name, source.read(name))
    with pytest.raises(BundleError, match="data/0"):
        read_torch_file(part)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", pickle.dumps([1, 2]), b"PK\x03\x04 and no more"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is not a valid"):
        read_torch_file(path)


def test_a_malicious_pickle_that_is_no_torch_file_is_refused_by_name(tmp_path: Path) -> None:
    path, target = tmp_path / "file.pt", tmp_path / "owned"
    path.write_bytes(pickle.dumps(Payload(os.mkdir, str(target))))
    with pytest.raises(BundleError, match="mkdir"):
        read_torch_file(path)
    assert not target.exists()


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        read_torch_file(tmp_path / "gone.pt")


def _archive_of(folder: Path, program: bytes) -> Path:
    """An archive as torch.save writes it, with any program as its pickle."""
    path = folder / "program.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("program/data.pkl", program)
        archive.writestr("program/version", "3\n")
    return path
