"""The head and the loss of docs/how-to/own-head.md, in a package of their own, are trained, exported and run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hagmil.bundle import open_backbone
from hagmil.errors import UsageError
from hagmil.export.evaluate_bundle import evaluate_bundle
from hagmil.export.pipeline import export_bundle
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.verify import verify_bundle
from hagmil.trainer.evaluation.evaluate_checkpoint import evaluate_checkpoint
from hagmil.trainer.models.entry_points import load_provided
from hagmil.trainer.models.registry import kind_names, model_kind
from hagmil.trainer.training.loop import train
from tests.conftest import REPOSITORY
from tests.integration.published_files import write_colour_backbone
from tests.trainer.cohorts import FEATURE_DIM, configured, write_cohort, write_slide

PAGE = REPOSITORY / "docs" / "how-to" / "own-head.md"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of the page, installed in a folder of its own; yields the file with its entry points."""
    folder = tmp_path / "site"
    metadata = folder / "my_head-1.0.dist-info"
    metadata.mkdir(parents=True)
    text = PAGE.read_text()
    code, project = (re.findall(rf"```{name}\n(.*?)```", text, re.DOTALL)[0] for name in ("python", "toml"))
    (folder / "my_head.py").write_text(code)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-head\nVersion: 1.0\n")
    points = re.findall(r'\[project\.entry-points\."(.+?)"\]\n(\S+) = "(.+?)"', project)
    lines = [f"[{group}]\n{name} = {value}\n" for group, name, value in points]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    load_provided.cache_clear()
    yield metadata / "entry_points.txt"
    load_provided.cache_clear()
    sys.modules.pop("my_head", None)


@pytest.mark.usefixtures("package")
def test_the_head_of_the_page_is_trained_exported_and_run(tmp_path: Path) -> None:
    assert "prototype" in kind_names()
    backbone = write_colour_backbone(tmp_path / "backbone", FEATURE_DIM)
    tree = write_cohort(tmp_path, stages=(("only", 0.5),))
    for path in (tmp_path / "features").iterdir():
        label = int(path.stem[-1]) % 2
        digest = open_backbone(backbone).sha256
        write_slide(path.parent, path.stem, label, stages=(("only", 0.5),), backbone_sha256=digest)
    wanted = {key: tree[key] for key in ("out", "data", "classes", "threads")}
    config = configured({**wanted, "kind": "prototype", "model": {"width": 8}, "schedule": {"max_epochs": 1}})
    assert config.loss.model_dump() == {"gamma": 2.0, "name": "focal"}
    train(config)
    export_bundle(config.out, backbone, tmp_path / "bundle")
    assert verify_bundle(tmp_path / "bundle", threads=1).passed
    model = load_model(tmp_path / "bundle", threads=1)
    outputs = model.stages[0].run({"features": np.zeros((3, FEATURE_DIM), np.float32)})
    assert (model.bundle.manifest.kind, outputs["attention"].shape) == ("prototype", (3,))
    reports = [
        evaluate_checkpoint(config.out, config, resamples=2),
        evaluate_bundle(tmp_path / "bundle", config, resamples=2),
    ]
    assert [report.model.kind for report in reports] == ["prototype", "prototype"]
    for one, other in zip(*(report.slides for report in reports), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("value", "message"),
    [("my_head:ABSENT", 'of package "my-head" cannot be loaded'), ("my_head:LOSS", "must be a Head, not Loss")],
)
def test_an_entry_point_that_is_no_head_is_named(package: Path, value: str, message: str) -> None:
    package.write_text(f"[hagmil.heads]\nprototype = {value}\n")
    with pytest.raises(UsageError) as raised:
        model_kind("prototype")
    assert message in raised.value.message
