"""The time limit of a slide ends runs of graphs that do not end by themselves."""

from __future__ import annotations

import threading
from pathlib import Path
from time import sleep

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hagmil.errors import SlideFailed
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.sessions import open_session
from hagmil.runtime.sessions.time_limit import check_time, time_limit


def endless_graph(axes: tuple[int | str, ...] = ("batch", "height", "width", 3)) -> onnx.ModelProto:
    """A graph that repeats an addition 2^62 times."""
    body = helper.make_graph(
        [helper.make_node("Add", ["value", "one"], ["next"]), helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["steps", "true", "one"], ["sum"], body=body),
            helper.make_node("Cast", ["patches"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "sides"], ["colours"], keepdims=0),
            helper.make_node("Add", ["colours", "sum"], ["features"]),
        ],
        "endless",
        [helper.make_tensor_value_info("patches", TensorProto.UINT8, axes)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor("steps", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2]),
        ],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_graph_that_loops_without_end_is_terminated(tmp_path: Path, in_main_thread: bool) -> None:
    onnx.save(endless_graph(), tmp_path / "endless.onnx")
    session = open_session(tmp_path / "endless.onnx", threads=1)
    caught: list[str] = []

    def run() -> None:
        with time_limit(0.2), pytest.raises(SlideFailed, match=r"longer than 0\.2 s.*--timeout-s") as error:
            session.run({"patches": np.zeros((1, 8, 8, 3), np.uint8)})
        caught.append(error.value.code)

    if in_main_thread:
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert caught == ["timeout"]


def test_the_limit_is_checked_between_steps() -> None:
    clock = StepClock()

    def work() -> None:
        while True:
            with clock.step("read"):
                sleep(0.01)

    with time_limit(0.05), pytest.raises(SlideFailed):
        work()
    check_time()
    with clock.step("backbone"):
        pass
