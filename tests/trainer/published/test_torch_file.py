"""Files of torch.save are read whole, in both formats, and nothing in them is executed."""

from __future__ import annotations

import builtins
import collections
import io
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
from hagmil.trainer.published.pickle_machine import read_pickle
from hagmil.trainer.published.pickle_names import Inert, Name, PickleBroken, PickleRefused
from hagmil.trainer.published.torch_file import StoredTensor, read_torch_file

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


@pytest.fixture(params=[True, False], ids=["zip", "old"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    def _save(content: Any) -> Path:
        path = tmp_path / "file.pt"
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return _save


@pytest.fixture
def lightning() -> Iterator[ModuleType]:
    """A library that is there when a file is written, and gone when it is read."""
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
def test_a_tensor_comes_back_with_its_type_shape_and_values(save: Callable[[Any], Path], name: str) -> None:
    stored = read_torch_file(save(TENSORS[name]))
    assert isinstance(stored, StoredTensor)
    assert stored.shape == tuple(TENSORS[name].shape)
    loaded = stored.load()
    assert loaded.dtype == TENSORS[name].dtype
    assert loaded.is_contiguous()
    assert torch.equal(loaded, TENSORS[name])


def test_a_whole_training_state_comes_back(save: Callable[[Any], Path]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimiser.step()
    read = read_torch_file(save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": 3}))
    assert read["epoch"] == 3
    for name, weight in model.state_dict().items():
        assert torch.equal(read["model"][name].load(), weight)
    assert read["optimiser"]["param_groups"][0]["betas"] == (0.9, 0.999)
    exp_avg = optimiser.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(read["optimiser"]["state"][0]["exp_avg"].load(), exp_avg)


def test_two_tensors_on_one_storage_both_come_back(save: Callable[[Any], Path]) -> None:
    read = read_torch_file(save([BASE, BASE[2]]))
    assert torch.equal(read[0].load(), BASE)
    assert torch.equal(read[1].load(), BASE[2])


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back_from_every_protocol(protocol: int) -> None:
    content = {
        "numbers": [0, -1, 2**70, 1.5, True, None],
        "texts": ("", "é", b"\x00\xff", bytearray(b"ab")),
        "sets": [{1, 2}, frozenset({"a"}), set()],
        "collections": [collections.OrderedDict(a=1), collections.Counter("aab"), collections.deque([1, 2])],
        ("a", 1): {"nested": [[], (), {}]},
        "default": collections.defaultdict(list, {"a": [1]}),
        "size": torch.Size([2, 3]),
    }
    read = read_pickle(io.BytesIO(pickle.dumps(content, protocol)))
    assert read == {**content, "collections": [{"a": 1}, {"a": 2, "b": 1}, [1, 2]]}


def test_classes_of_a_library_that_is_not_there_become_inert(
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
        "device": torch.device("cpu"),
        "path": Path("here"),
    }
    path = save(content)
    del sys.modules[lightning.__name__]
    read = read_torch_file(path)
    assert torch.equal(read["state_dict"]["weight"].load(), BASE)
    ((callback, state),) = read["callbacks"].items()
    assert callback == Name(f"{lightning.__name__}.ModelCheckpoint")
    assert state["best"].load() == 0.5
    for key in ("callback", "slots", "hyper_parameters", "text", "device", "path"):
        assert isinstance(read[key], Inert)
    assert read["callback"].path == f"{lightning.__name__}.ModelCheckpoint"
    assert read["nested"] == Name(f"{lightning.__name__}.Mode.Inner")
    assert read["function"] == Name(f"{lightning.__name__}.helper")
    assert lightning.__name__ not in sys.modules


class Payload:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _payloads(target: Path) -> dict[str, Payload]:
    """Pickles that would make a file if they were executed, and the name that each is refused for."""
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
def test_a_malicious_file_is_refused_by_name_and_its_payload_does_not_run(
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
        b"c__main__\nos.system\n(S'true'\ntR.",  # climbed to
        b"ctorch\nSize.__init__.__globals__\n.",  # a dunder on the way
        b"(S'true'\nios\nsystem\n.",  # called by INST
        b"(cos\nsystem\nS'true'\no.",  # called by OBJ
        b"cunknown\nhelper\n(tR.",  # a function that nobody vouches for
        b"cunknown\nClass\n(tR(tR.",  # what an inert class gave, called
        b"}(tR.",  # something that is no name, called
        b"cbuiltins\ngetattr\n(}S'keys'\ntR.",  # an attribute of a value
        b"cbuiltins\ngetattr\n(clibrary\nClass\nS'__init__'\ntR.",
        b"S'os'\nS'system'\n\x93.",  # STACK_GLOBAL
    ],
)
def test_a_program_that_reaches_for_more_than_data_is_refused(program: bytes) -> None:
    with pytest.raises(PickleRefused):
        read_pickle(io.BytesIO(program))


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"hello",
        b"(lp0\n",  # no end
        b"0.",  # the stack is empty
        b"\x85.",
        b"h\x07.",  # nothing remembered there
        b"I1\nI2\na.",  # an item for a number
        b"}I1\ns.",  # a key without a value
        b"}](I1\ns.",
        b"\x82\x01.",  # an extension code
        b"\x97.",  # a buffer out of band
        b"S'key'\nQ.",  # a persistent id
        b"}]I1\ns.",  # a list as a key
        b"cbuiltins\nlist\nI1\nR.",  # arguments that are no tuple
    ],
)
def test_a_broken_pickle_is_said_to_be_one(program: bytes) -> None:
    with pytest.raises(PickleBroken):
        read_pickle(io.BytesIO(program))


def test_what_follows_a_pickle_is_left_for_the_next_reader() -> None:
    file = io.BytesIO(b"].more")
    assert read_pickle(file) == []
    assert file.read() == b"more"


def test_a_key_nested_without_end_is_refused_before_it_is_hashed() -> None:
    program = b"}" + b")" + b"\x85" * 200_000 + b"I1\ns."
    with pytest.raises(PickleBroken, match="key"):
        read_pickle(io.BytesIO(program))


def test_state_that_a_file_sets_on_an_object_is_dropped(lightning: ModuleType) -> None:
    read = read_pickle(io.BytesIO(pickle.dumps(lightning.ModelCheckpoint("v_loss"))))
    assert read.path.endswith("ModelCheckpoint")
    assert not hasattr(read, "monitor")


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (5, 6), (6, 1)),  # longer than the storage
        (1, (4, 6), (6, 1)),  # begins too late
        (0, (1 << 40,), (0,)),  # one number claimed a trillion times
        (0, (4, 6), (3, 1)),  # rows over one another
        (0, (4, 6), (6,)),  # as many strides as axes
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_or_over_itself_is_refused(tmp_path: Path, arguments: tuple[Any, ...]) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            untyped = BASE.untyped_storage()
            storage = torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
                wrap_storage=untyped, dtype=BASE.dtype, _internal=True
            )
            return (torch._utils._rebuild_tensor_v2, (storage, *arguments, False, {}))

    path = tmp_path / "forged.pt"
    torch.save(Forged(), path)
    with pytest.raises(BundleError, match="is no file of"):
        read_torch_file(path)


def test_a_damaged_number_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(BASE, path)
    data = path.read_bytes()
    place = data.index(BASE.numpy().tobytes()) + 10
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(BundleError, match="damaged"):
        read_torch_file(path).load()


def test_whatever_byte_is_damaged_the_file_is_read_or_refused(save: Callable[[Any], Path]) -> None:
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
            if isinstance(read, dict):
                _ = [stored.load() for stored in read.get("weights", []) if isinstance(stored, StoredTensor)]
        except BundleError:
            refused += 1
    assert 0 < refused < 300


def test_an_archive_cut_short_is_no_file_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(BASE, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match="is no file of"):
        read_torch_file(path)


def test_an_old_file_cut_short_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(BASE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BundleError, match="ends too soon"):
        read_torch_file(path).load()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps([]))
    with pytest.raises(BundleError, match="compressed"):
        read_torch_file(path)


def test_a_program_of_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/data.pkl", pickle.dumps([]))
        archive.writestr("script/constants.pkl", pickle.dumps([]))
    with pytest.raises(BundleError, match="TorchScript"):
        read_torch_file(path)


def test_a_storage_that_the_archive_lacks_is_missed(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.pt", tmp_path / "part.pt"
    torch.save(BASE, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(part, "w") as target:
        for name in source.namelist():
            if not name.endswith("/data/0"):
                target.writestr(name, source.read(name))
    with pytest.raises(BundleError, match="storage 0 is missing"):
        read_torch_file(part)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", pickle.dumps([1, 2]), b"PK\x03\x04 and no more"])
def test_another_kind_of_file_is_no_file_of_torch(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is no file of"):
        read_torch_file(path)


def test_a_bare_malicious_pickle_is_refused_too(tmp_path: Path) -> None:
    path, target = tmp_path / "file.pt", tmp_path / "owned"
    path.write_bytes(pickle.dumps(Payload(os.mkdir, str(target))))
    with pytest.raises(BundleError, match="mkdir"):
        read_torch_file(path)
    assert not target.exists()


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        read_torch_file(tmp_path / "gone.pt")
