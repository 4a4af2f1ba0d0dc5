"""Checkpoints of the published code are imported under our names, with sizes from the shapes of the weights."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hagmil.errors import BundleError, UsageError
from hagmil.trainer.models.hmil import HierarchicalMil, HmilConfig
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer
from hagmil.trainer.published.defaults import BRACS_HIERARCHY, describe, parse_fine_to_coarse
from hagmil.trainer.published.hmil_names import published_hmil_name
from hagmil.trainer.published.weights import ImportedModel, import_published
from tests.trainer.published_models import PublishedReference, features, load_reference, weights

LEVELS = (2, 1, 0)
HMIL_SALT = "hagmil-hmil"
_Edit = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def official(data_folder: Path) -> PublishedReference:
    return load_reference(data_folder / "conformance")


@pytest.fixture(scope="module")
def hag_mil_state(official: PublishedReference) -> dict[str, Tensor]:
    """Three published stage models in one state dict, as the published training writes them."""
    state: dict[str, Tensor] = {}
    for level in reversed(LEVELS):
        for key, weight in weights(official, "iat_small", f"hagmil-cascade-level{level}").items():
            state[f"model{level}.{key}"] = weight
        state[f"model{level}.instance_loss_fn.labels"] = torch.arange(3)
    return state


@pytest.fixture(scope="module")
def hmil_state(official: PublishedReference) -> dict[str, Tensor]:
    return weights(official, "hmil", HMIL_SALT)


def _lightning_file(path: Path, state: Mapping[str, Tensor]) -> Path:
    """A file as PyTorch Lightning 1.5 writes it; Lightning cannot be imported when the file is read."""
    module = ModuleType("pytorch_lightning_of_old")

    class ModelCheckpoint:
        pass

    class AttributeDict(dict[str, Any]):
        pass

    for member in (ModelCheckpoint, AttributeDict):
        member.__module__, member.__qualname__ = module.__name__, member.__name__
        setattr(module, member.__name__, member)
    sys.modules[module.__name__] = module
    try:
        content = {
            "epoch": 17,
            "pytorch-lightning_version": "1.5.10",
            "state_dict": dict(state),
            "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.3)}},
            "hyper_parameters": AttributeDict(config_dict={"lr": 1e-5}),
            "lr_schedulers": [],
        }
        torch.save(content, path)
    finally:
        del sys.modules[module.__name__]
    return path


def test_three_stages_from_a_lightning_file_reproduce_the_published_outputs(
    official: PublishedReference, hag_mil_state: dict[str, Tensor], tmp_path: Path
) -> None:
    imported = import_published(_lightning_file(tmp_path / "last.ckpt", hag_mil_state), "hag-mil")
    assert imported.config == IatConfig(widths=(64, 96, 32, 64))
    assert (imported.feature_dim, imported.classes, imported.coarse_classes) == (64, 3, None)
    rows = torch.arange(37)
    for level, model in zip(LEVELS, imported.build(), strict=True):
        if level < 2:
            rows = torch.from_numpy(official.outputs[f"cascade_level{level}_index"])
        bag = features(37 * 4 ** (2 - level), 64, f"hagmil-cascade-{level}")[rows]
        with torch.inference_mode():
            output = model(bag)
        for name in ("logits", "attention"):
            expected = official.outputs[f"cascade_level{level}_{name}"]
            np.testing.assert_allclose(getattr(output, name).numpy(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("wrap", ["bare", "model_state_dict", "data parallel"])
def test_one_stage_from_an_hmil_state_dict_reproduces_the_published_outputs(
    official: PublishedReference, hmil_state: dict[str, Tensor], tmp_path: Path, wrap: str
) -> None:
    content: Any = hmil_state
    if wrap == "model_state_dict":
        content = {"epoch": 3, "best_acc": np.float64(0.7), "model_state_dict": hmil_state}
    elif wrap == "data parallel":
        content = {f"module.{name}": weight for name, weight in hmil_state.items()}
    path = tmp_path / "model_best.pth.tar"
    torch.save(content, path)
    imported = import_published(path, "hmil")
    assert imported.config == HmilConfig()
    assert (imported.feature_dim, imported.classes, imported.coarse_classes) == (1024, 7, 3)
    (model,) = imported.build()
    with torch.inference_mode():
        output = model(features(300, 1024, HMIL_SALT))
    np.testing.assert_allclose(
        output.fine_logits.numpy(), official.outputs["hmil_300_fine_logits"][0], rtol=0, atol=2e-4
    )


def test_other_sizes_follow_from_the_shapes(tmp_path: Path) -> None:
    iat = IatConfig(widths=(12, 4), heads=2, hidden_width=6, gate_width=5, value_kernel=7)
    hmil = HmilConfig(bottleneck_width=3, fine_width=4, coarse_gate_width=5, fine_gate_width=6)
    stages = [IntegratedAttentionTransformer(10, 5, iat) for _ in range(2)]
    torch.save(_published_hag_mil(stages), tmp_path / "hag.pt")
    torch.save(_published_hmil(HierarchicalMil(10, 2, 5, hmil)), tmp_path / "hmil.pt")
    cascade = import_published(tmp_path / "hag.pt", "hag-mil")
    assert (cascade.config, cascade.feature_dim, cascade.classes, len(cascade.stages)) == (iat, 10, 5, 2)
    flat = import_published(tmp_path / "hmil.pt", "hmil")
    assert (flat.config, flat.feature_dim, flat.classes, flat.coarse_classes) == (hmil, 10, 5, 2)
    for state, stage in zip(cascade.stages, stages, strict=True):
        assert all(torch.equal(state[name], weight) for name, weight in stage.state_dict().items())


def test_half_precision_weights_are_imported_as_float32(tmp_path: Path) -> None:
    state = _published_hmil(HierarchicalMil(10, 2, 5, HmilConfig(bottleneck_width=3)))
    torch.save({name: weight.half() for name, weight in state.items()}, tmp_path / "half.pt")
    imported = import_published(tmp_path / "half.pt", "hmil")
    assert {weight.dtype for weight in imported.stages[0].values()} == {torch.float32}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("model1.fc5.weight"), r"missing: model1\.fc5\.weight$"),
        (lambda state: [state.pop(f"model{level}.weights.bias") for level in LEVELS], r"model0\.weights\.bias"),
        (
            lambda state: state.pop("model2.layers.1.layer.residual_attn.omega"),
            r"missing: model2\.layers\.1\.layer\.residual_attn\.omega$",
        ),
        (lambda state: state.pop("model0.layers.3.norm.bias"), r"missing: model0\.layers\.3\.norm\.bias$"),
        (lambda state: state.pop("model0.instance_classifiers.2.bias"), r"model0\.instance_classifiers\.2\.bias"),
        (lambda state: state.update({"model1.fc6.bias": torch.zeros(1)}), r"model1\.fc6\.bias"),
        (lambda state: state.update({"backbone.bias": torch.zeros(1)}), r"backbone\.bias"),
        (
            lambda state: state.update({"model1.layers.2.norm.bias": torch.zeros(31)}),
            r"model1\.layers\.2\.norm\.bias is \(31,\) but should be \(32,\)",
        ),
        (
            lambda state: state.update({"model1.instance_classifiers.3.bias": torch.zeros(2)}),
            r"model1\.instance_classifiers\.3\.bias is \(2,\) but should be None",
        ),
        (lambda state: [state.pop(key) for key in list(state) if key.startswith("model1.")], r"under model1\."),
        (lambda state: state.update({"model2.fc5.weight": torch.zeros(3)}), "wrong number of axes"),
        (
            lambda state: state.update({"model2.layers.0.layer.attn.res_conv.weight": torch.zeros(7, 1, 33, 1)}),
            "divide into 7 heads",
        ),
    ],
)
def test_wrong_and_missing_weights_are_listed_by_their_published_names(
    hag_mil_state: dict[str, Tensor], tmp_path: Path, edit: _Edit, message: str
) -> None:
    state = dict(hag_mil_state)
    edit(state)
    torch.save({"state_dict": state}, tmp_path / "edited.ckpt")
    with pytest.raises(BundleError, match=message):
        import_published(tmp_path / "edited.ckpt", "hag-mil")


def test_all_missing_weights_of_hmil_are_listed_at_once(hmil_state: dict[str, Tensor], tmp_path: Path) -> None:
    gone = ("fine_classifier.weight", "coarse_attention.0.attention_a.0.bias")
    torch.save({name: weight for name, weight in hmil_state.items() if name not in gone}, tmp_path / "part.pt")
    with pytest.raises(BundleError, match="missing") as caught:
        import_published(tmp_path / "part.pt", "hmil")
    assert all(name in caught.value.message for name in gone)


def test_all_unknown_weights_of_hmil_are_listed_at_once(hmil_state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**hmil_state, "a": torch.zeros(1), "b.weight": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(BundleError, match=r"a, b\.weight$"):
        import_published(tmp_path / "more.pt", "hmil")


def test_stages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    stages = [IntegratedAttentionTransformer(10, 2, IatConfig(widths=(width,), heads=2)) for width in (8, 4)]
    torch.save(_published_hag_mil(stages), tmp_path / "two.pt")
    with pytest.raises(BundleError, match="different sizes"):
        import_published(tmp_path / "two.pt", "hag-mil")


def test_a_file_of_the_other_method_is_refused(hmil_state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(hmil_state, tmp_path / "hmil.pt")
    with pytest.raises(BundleError, match=r"model0\."):
        import_published(tmp_path / "hmil.pt", "hag-mil")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": torch.zeros(1), "b": 3}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(BundleError, match="state"):
        import_published(tmp_path / "other.pt", "hmil")


def test_a_malicious_checkpoint_is_refused_and_not_executed(hmil_state: dict[str, Tensor], tmp_path: Path) -> None:
    target = tmp_path / "owned"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {target}",))

    torch.save({"model_state_dict": hmil_state, "optimizer_state_dict": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(BundleError, match="system"):
        import_published(tmp_path / "bad.pt", "hmil")
    assert not target.exists()


def test_a_model_with_the_shape_of_camelyon16_gets_its_values(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        described = describe(_imported("hag-mil", stages=3, classes=2))
    assert described.classes == ("normal", "tumor")
    assert described.spacing_um == pytest.approx((0.972, 0.486, 0.243))
    assert (described.patch_px, described.hierarchy) == (256, None)
    assert "spacing" in caplog.text


def test_a_model_with_the_shape_of_bracs_gets_its_hierarchy() -> None:
    described = describe(_imported("hmil", classes=7, coarse=3))
    assert described.hierarchy is not None
    assert described.classes == described.hierarchy.fine == tuple(BRACS_HIERARCHY)
    assert described.hierarchy.coarse == ("benign", "atypical", "malignant")
    assert described.hierarchy.fine_to_coarse == (0, 0, 0, 1, 1, 2, 2)
    assert described.spacing_um == (0.25,)


def test_the_classes_of_other_models_are_numbered() -> None:
    assert describe(_imported("hag-mil", stages=2, classes=3)).classes == ("0", "1", "2")
    described = describe(_imported("hmil", classes=3, coarse=2), fine_to_coarse=(0, 1, 1)).hierarchy
    assert described is not None
    assert (described.coarse, described.fine) == (("0", "1"), ("0", "1", "2"))


def test_given_values_override_the_defaults() -> None:
    described = describe(
        _imported("hmil", classes=3, coarse=2),
        classes=("c", "a", "b"),
        fine_to_coarse={"a": "good", "b": "bad", "c": "bad"},
        spacing_um=(0.5,),
        patch_px=224,
    )
    assert described.hierarchy is not None
    assert described.classes == ("c", "a", "b")
    assert described.hierarchy.coarse == ("bad", "good")
    assert described.hierarchy.fine_to_coarse == (0, 1, 0)
    assert (described.spacing_um, described.patch_px) == ((0.5,), 224)
    cascade = _imported("hag-mil", stages=2, classes=2)
    assert describe(cascade, spacing_um=(0.5,)).spacing_um == (1.0, 0.5)
    assert describe(cascade, spacing_um=(2.0, 0.5)).spacing_um == (2.0, 0.5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("hag-mil", {"classes": ("a", "b")}, "the model has 3"),
        ("hag-mil", {"classes": ("a", "b", "b")}, "named twice"),
        ("hag-mil", {"fine_to_coarse": {"a": "b"}}, "no hierarchy"),
        ("hag-mil", {"spacing_um": (1.0, 0.5, 0.25)}, "2 stages"),
        ("hag-mil", {"spacing_um": (0.5, 1.0)}, "coarse to fine"),
        ("hag-mil", {"spacing_um": (0.0,)}, "above 0"),
        ("hag-mil", {"patch_px": 0}, "patch-px"),
        ("hmil", {}, "pass --fine-to-coarse"),
        ("hmil", {"fine_to_coarse": {"a": "x", "b": "x", "c": "x"}}, "the model has 2"),
        ("hmil", {"fine_to_coarse": (0, 0, 2)}, "every coarse class"),
        ("hmil", {"fine_to_coarse": (0, 1)}, "for each fine class"),
        (
            "hmil",
            {"classes": ("a", "b", "c"), "fine_to_coarse": {"a": "x", "b": "y", "d": "y"}},
            "exactly these classes",
        ),
    ],
)
def test_values_that_do_not_fit_the_model_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    model = _imported("hag-mil", stages=2, classes=3) if kind == "hag-mil" else _imported("hmil", classes=3, coarse=2)
    with pytest.raises(UsageError, match=message):
        describe(model, **options)


def test_a_hierarchy_is_given_by_names_or_indices() -> None:
    assert parse_fine_to_coarse("N:benign, IC : malignant") == {"N": "benign", "IC": "malignant"}
    assert parse_fine_to_coarse("0, 0,1") == (0, 0, 1)
    for wrong in ("", "a", "a:b:c", "a:,b:c", "a:b,a:c"):
        with pytest.raises(UsageError):
            parse_fine_to_coarse(wrong)


def _imported(kind: Any, *, stages: int = 1, classes: int, coarse: int | None = None) -> ImportedModel:
    config = IatConfig() if kind == "hag-mil" else HmilConfig()
    return ImportedModel(kind, ({},) * stages, 16, classes, coarse, config)


def _published_hmil(model: HierarchicalMil) -> dict[str, Tensor]:
    return {published_hmil_name(name): weight for name, weight in model.state_dict().items()}


def _published_hag_mil(stages: list[IntegratedAttentionTransformer]) -> dict[str, Tensor]:
    """The weights of our models, coarse to fine, under their published names, written out here."""
    modules = {
        "project.0": "fc.0",
        "project.1": "fc.1",
        "attention_norm": "layer.norm",
        "attention.to_qkv": "layer.attn.to_qkv",
        "attention.to_out": "layer.attn.to_out.0",
        "attention.value_conv": "layer.attn.res_conv",
        "gates.hidden": "attention_net.0",
        "gates.tanh_gate": "attention_net.3.attention_a.0",
        "gates.sigmoid_gate": "attention_net.3.attention_b.0",
        "gates.score": "attention_net.3.attention_c",
        "embed.0": "layer_map_to_final.0",
        "embed.1": "layer_map_to_final.1",
        "combine": "weights",
        "classifier": "fc5",
        "residual_scale": "layer.residual_attn.omega",
    }
    state: dict[str, Tensor] = {}
    for level, model in enumerate(reversed(stages)):
        for name, weight in model.state_dict().items():
            head, *rest = name.split(".", 2)
            block, inner = (f"layers.{rest[0]}.", rest[1]) if head == "blocks" else ("", name)
            module, _, parameter = inner.rpartition(".")
            tail = modules[inner] if inner in modules else f"{modules.get(module, module)}.{parameter}"
            state[f"model{level}.{block}{tail}"] = weight
    return state
