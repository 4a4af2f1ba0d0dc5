"""Existing ONNX encoders are wrapped, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from hagmil.bundle import BACKBONE_ONNX_NAME
from hagmil.errors import BundleError, ParityError, UsageError
from hagmil.export.backbones.export_backbone import export_backbone
from hagmil.export.backbones.onnx_encoder import load_onnx_encoder
from hagmil.export.parity.synthetic_inputs import synthetic_patches
from hagmil.runtime.sessions import open_session
from tests.export.onnx_encoders import DIM, write_encoder

MEAN = (0.7, 0.6, 0.5)
STD = (0.25, 0.2, 0.3)


@pytest.mark.parametrize("pooled", [True, False], ids=["(batch, dim)", "(batch, dim, 1, 1)"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3)])
def test_an_encoder_with_float_input_is_wrapped_to_take_pixels(
    tmp_path: Path, dtype: str, tolerance: float, pooled: bool
) -> None:
    source = write_encoder(tmp_path / "encoder.onnx", dtype=dtype, pooled=pooled)

    card = export_backbone(str(source), None, tmp_path / "out", mean=MEAN, std=STD)

    assert card.name == "onnx:encoder"
    assert (card.features, card.patch_px, card.mean, card.opset) == (DIM, None, MEAN, 18)
    for shape in ((1, 64, 64), (2, 40, 72), (7, 96, 80)):
        patches = synthetic_patches("tissue", *shape, seed=2)
        images = ((patches / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(dtype)
        embedding = open_session(source).run({"image": images})["embedding"]
        expected = embedding.reshape(shape[0], DIM).astype(np.float32)
        features = open_session(tmp_path / "out" / BACKBONE_ONNX_NAME).run({"patches": patches})["features"]
        assert features.dtype == np.float32
        np.testing.assert_allclose(features.astype(np.float32), expected, atol=tolerance)


def test_the_wrapper_casts_before_it_transposes(tmp_path: Path) -> None:
    encoder = load_onnx_encoder(write_encoder(tmp_path / "encoder.onnx"), mean=MEAN, std=STD)

    assert [node.op_type for node in encoder.model.graph.node[:2]] == ["Cast", "Transpose"]


def test_an_encoder_with_pixel_input_is_used_unchanged(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder.onnx", dtype="uint8", axes=("N", "H", "W", 3))

    card = export_backbone(str(source), None, tmp_path / "out")

    patches = synthetic_patches("noise", 3, 48, 48)
    features = open_session(tmp_path / "out" / BACKBONE_ONNX_NAME).run({"patches": patches})["features"]
    assert card.mean is None
    np.testing.assert_array_equal(features, open_session(source).run({"image": patches})["embedding"])


def test_an_encoder_with_the_names_of_the_contract_keeps_them(tmp_path: Path) -> None:
    source = write_encoder(
        tmp_path / "encoder.onnx",
        dtype="uint8",
        axes=("batch", 32, 32, 3),
        input_name="patches",
        output_name="vectors",
    )

    card = export_backbone(str(source), None, tmp_path / "out")

    model = onnx.load(tmp_path / "out" / BACKBONE_ONNX_NAME)
    assert card.patch_px == 32
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["patches", "features"]


def test_normalisation_must_be_given_for_float_input(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder.onnx")

    with pytest.raises(UsageError, match="pass --mean and --std"):
        load_onnx_encoder(source)
    with pytest.raises(UsageError, match="pass --mean and --std"):
        load_onnx_encoder(source, mean=MEAN)


def test_normalisation_for_pixel_input_is_refused(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder.onnx", dtype="uint8", axes=("N", "H", "W", 3))

    with pytest.raises(UsageError, match="and normalises them; remove --mean and --std"):
        load_onnx_encoder(source, mean=MEAN, std=STD)


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder.onnx", axes=(1, 3, 64, 64))

    with pytest.raises(BundleError, match="the batch size is fixed at 1") as caught:
        load_onnx_encoder(source, mean=MEAN, std=STD)
    assert caught.value.code == "batch_fixed"


def test_an_encoder_that_mixes_the_patches_of_a_batch_is_refused(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder.onnx", mixes_batch=True)

    with pytest.raises(ParityError, match="features is off by"):
        export_backbone(str(source), None, tmp_path / "out", mean=MEAN, std=STD)
    assert not (tmp_path / "out").exists()


def test_one_of_several_outputs_must_be_chosen(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder.onnx", extra_output=True)

    with pytest.raises(UsageError, match="choose one with --output: embedding, map"):
        load_onnx_encoder(source, mean=MEAN, std=STD)
    with pytest.raises(UsageError, match='no output "pooled"'):
        load_onnx_encoder(source, mean=MEAN, std=STD, output="pooled")
    assert load_onnx_encoder(source, mean=MEAN, std=STD, output="embedding").features == DIM


def test_an_output_that_is_not_a_vector_is_refused(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder.onnx", extra_output=True)

    with pytest.raises(BundleError, match="a backbone returns a vector per patch"):
        load_onnx_encoder(source, mean=MEAN, std=STD, output="map")


@pytest.mark.parametrize(
    "axes",
    [("N", "H", "W", 3), ("N", 4, "H", "W"), ("N", 3, 64), ("N", 3, 64, 32)],
    ids=["floats last", "four channels", "three axes", "not square"],
)
def test_an_input_that_is_not_a_patch_is_refused(tmp_path: Path, axes: tuple[str | int, ...]) -> None:
    source = write_encoder(tmp_path / "encoder.onnx")
    model = onnx.load(source)
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, axes))
    onnx.save(model, source)

    with pytest.raises(BundleError) as caught:
        load_onnx_encoder(source, mean=MEAN, std=STD)
    assert caught.value.code == "not_a_backbone"


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"\xff\xfe nothing of the kind")

    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        load_onnx_encoder(tmp_path / "encoder.onnx")
    with pytest.raises(UsageError, match=r"ONNX file .* does not exist"):
        load_onnx_encoder(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        (
            "mean",
            (123.675, 116.28, 103.53),
            r"--mean is 123\.675,116\.28,103\.53, .* within 0 to 1: pixels are in 0\.\.1",
        ),
        ("std", (0.2, 0.2, 0.0), r"--std is 0\.2,0\.2,0, .* within 0\.001 to 1"),
        ("std", (float("nan"), 0.2, 0.2), "--std is nan"),
        ("mean", (-0.1, 0.2, 0.2), "--mean is -0.1"),
    ],
)
def test_normalisation_out_of_bounds_is_refused_with_the_range(
    tmp_path: Path, option: str, values: tuple[float, float, float], message: str
) -> None:
    given = {"mean": MEAN, "std": STD, option: values}
    with pytest.raises(UsageError, match=message):
        export_backbone(str(write_encoder(tmp_path / "encoder.onnx")), None, tmp_path / "out", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
