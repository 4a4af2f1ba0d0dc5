"""Make the graph on which ``hagmil doctor`` tries the providers, and its expected result:

    python scripts/make_probe.py

It writes probe.onnx and probe.npz in hagmil/runtime/doctor. The graph is a backbone of one convolution and one matrix
product, which need cuDNN and cuBLAS. All numbers are small multiples of powers of two, so that providers that round to
fewer bits come close too. A test compares the files with what this script makes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hagmil.runtime.doctor.trial import PROBE, PROBE_CASE, PROBE_PX
from hagmil.selftest import BACKBONE, SelfTestCase, write_selftest
from hagmil.spec import BACKBONE_FEATURES, PATCHES

_CHANNELS, _FEATURES, _BATCH = 8, 4, 2


def graph() -> onnx.ModelProto:
    """Patches uint8 (batch, 16, 16, 3) to features float32 (batch, 4)."""
    random = np.random.default_rng(0)
    kernel = random.integers(-16, 17, (_CHANNELS, 3, 3, 3)) / 64
    weights = random.integers(-16, 17, (_CHANNELS, _FEATURES)) / 16
    constants = {"scale": np.array(1 / 256), "kernel": kernel, "weights": weights}
    body = helper.make_graph(
        [
            helper.make_node("Cast", [PATCHES.name], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["channels_first"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["channels_first", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["maps"], ["positive"]),
            helper.make_node("GlobalAveragePool", ["positive"], ["means"]),
            helper.make_node("Flatten", ["means"], ["rows"]),
            helper.make_node("MatMul", ["rows", "weights"], [BACKBONE_FEATURES.name]),
        ],
        "probe",
        [helper.make_tensor_value_info(PATCHES.name, TensorProto.UINT8, ["batch", PROBE_PX, PROBE_PX, 3])],
        [helper.make_tensor_value_info(BACKBONE_FEATURES.name, TensorProto.FLOAT, ["batch", _FEATURES])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, producer_name="hagmil")
    onnx.checker.check_model(model, full_check=True)
    return model


def case() -> SelfTestCase:
    """Patches, the features that the definition of the operators gives, and a tolerance of one per cent."""
    patches = np.random.default_rng(1).integers(0, 256, (_BATCH, PROBE_PX, PROBE_PX, 3), dtype=np.uint8)
    (features,) = ReferenceEvaluator(graph()).run(None, {PATCHES.name: patches})
    return SelfTestCase(BACKBONE, {PATCHES.name: patches}, {BACKBONE_FEATURES.name: features}, 0.0, 0.01)


def main() -> None:
    onnx.save(graph(), PROBE)
    write_selftest(PROBE_CASE, [case()])
    print(f"wrote {PROBE} and {PROBE_CASE}")


if __name__ == "__main__":
    main()
