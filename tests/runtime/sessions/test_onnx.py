"""Sessions run the graph on the requested provider, or raise an error with the reason."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hagmil.errors import BundleError, EnvironmentLacks, UsageError
from hagmil.runtime.bench.machine import rss_mb
from hagmil.runtime.memory.heap import trim_heap
from hagmil.runtime.sessions import open_session
from hagmil.runtime.sessions.onnx import available_providers
from tests.runtime.small_bundle import backbone_graph, stage_graph


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    onnx.save(backbone_graph(), tmp_path / "backbone.onnx")
    return tmp_path / "backbone.onnx"


def test_a_session_gives_outputs_by_name(backbone: Path) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    session = open_session(backbone)
    (features,) = session.run({"patches": patches}).values()
    np.testing.assert_allclose(features, patches.mean(axis=(1, 2)) / 255, rtol=1e-6)
    assert session.provider == "CPUExecutionProvider"
    assert session.input_shapes == {"patches": ("batch", "side", "side", 3)}


def test_several_outputs_keep_their_names(tmp_path: Path) -> None:
    onnx.save(stage_graph(), tmp_path / "stage.onnx")
    features = np.array([[0, 0.25, 0], [0, 0.75, 0]], np.float32)
    outputs = open_session(tmp_path / "stage.onnx", threads=1).run({"features": features})
    np.testing.assert_allclose(outputs["attention"], [-0.25, -0.75])
    np.testing.assert_allclose(outputs["logits"], [0.5, 0.5])


def test_a_missing_provider_is_an_error_without_a_fallback(backbone: Path) -> None:
    if "cuda" in available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    with pytest.raises(EnvironmentLacks, match=r'"cuda" is missing.*hagmil\[gpu\]') as caught:
        open_session(backbone, provider="cuda")
    assert caught.value.exit_code == 5


def test_an_unknown_provider_is_a_usage_error(backbone: Path) -> None:
    with pytest.raises(UsageError, match='no provider "rocm"; choose one of cpu, cuda, tensorrt'):
        open_session(backbone, provider="rocm")


def test_the_error_of_an_invalid_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"broken\.onnx"):
        open_session(tmp_path / "broken.onnx")


def test_inputs_of_a_wrong_type_raise_a_bundle_error(backbone: Path) -> None:
    with pytest.raises(BundleError, match=r"backbone\.onnx cannot run on these inputs"):
        open_session(backbone).run({"patches": np.zeros((1, 8, 8, 3), np.float32)})


def endless_graph() -> onnx.ModelProto:
    """A loop that takes years."""
    body = helper.make_graph(
        [helper.make_node("Sin", ["state"], ["next"]), helper.make_node("Identity", ["going"], ["go_on"])],
        "round",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "", "start"], ["end"], body=body)],
        "endless",
        [helper.make_tensor_value_info("start", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("end", TensorProto.FLOAT, [1])],
        [helper.make_tensor("rounds", TensorProto.INT64, [], [1 << 60])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """The default SIGINT handler; a process that a shell started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("many_runs", [False, True])
def test_an_interrupt_terminates_a_run_and_its_thread(tmp_path: Path, many_runs: bool) -> None:
    onnx.save(endless_graph(), tmp_path / "endless.onnx")
    session = open_session(tmp_path / "endless.onnx", threads=1, many_runs=many_runs)
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        session.run({"start": np.zeros(1, np.float32)})
    interrupt.join()
    assert [thread.name for thread in threading.enumerate() if thread.name == "hagmil-run"] == []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that were started."""
    names: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    return names


def test_runs_that_are_known_to_be_short_use_no_thread(backbone: Path, started: list[str]) -> None:
    patches = np.zeros((1, 8, 8, 3), np.uint8)
    often, once = open_session(backbone, threads=1, many_runs=True), open_session(backbone, threads=1)
    for session, names in ((often, ["hagmil-run"]), (once, ["hagmil-run"] * 3)):
        started.clear()
        for _ in range(3):
            session.run({"patches": patches})
        assert started == names


def test_a_run_on_many_rows_uses_a_thread_after_short_runs_on_few_rows(
    backbone: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small last batch of a stage precedes the full first batch of the next stage."""
    times = iter([0.0, 0.01, 1.0, 1.01, 2.0, 2.5])  # two runs on one row, and one on fifty
    monkeypatch.setattr("hagmil.runtime.sessions.onnx.perf_counter", lambda: next(times))
    session = open_session(backbone, threads=1, many_runs=True)
    counts = []
    for rows in (1, 1, 50):
        session.run({"patches": np.zeros((rows, 8, 8, 3), np.uint8)})
        counts.append(len(started))
    assert counts == [1, 1, 2]


def test_a_run_in_another_thread_gives_the_same_numbers(backbone: Path) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    session = open_session(backbone)
    found = []
    thread = threading.Thread(target=lambda: found.append(session.run({"patches": patches})["features"]))
    thread.start()
    thread.join()
    assert (found[0] == session.run({"patches": patches})["features"]).all()


def resident_mb() -> float:
    """Resident memory of this process without free memory of its heap."""
    trim_heap()
    return rss_mb()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_kept_between_many_runs_and_released_after_the_last(backbone: Path) -> None:
    patches = np.full((8, 1024, 1024, 3), 51, np.uint8)  # 96 MB as floats
    once, often = open_session(backbone), open_session(backbone, many_runs=True)
    often.run({"patches": patches[:, :64, :64]})  # an arena never releases its first allocation
    before = resident_mb()
    once.run({"patches": patches})
    after_once = resident_mb()
    often.run({"patches": patches})
    kept = resident_mb()
    (features,) = often.run({"patches": patches}, last=True).values()
    released = resident_mb()
    once.run({"patches": patches}, last=True)  # no error, although no memory was kept
    np.testing.assert_allclose(features, 0.2, rtol=1e-2)  # a sum of a million floats
    assert after_once - before < 30
    assert kept - after_once > 84
    assert released - after_once < 30
