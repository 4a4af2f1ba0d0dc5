"""The commands of docs/how-to/choose-k.md, on a tiny cohort."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from hagmil.bundle import open_backbone, open_bundle
from hagmil.trainer.checkpoints.checkpoint import load_checkpoint
from hagmil.trainer.evaluation.report import EvaluationReport
from tests.cli.terminal import hagmil
from tests.conftest import REPOSITORY
from tests.integration.published_files import write_colour_backbone
from tests.runtime.slide_files import save_pyramid, tissue_picture
from tests.trainer.cohorts import FEATURE_DIM, write_cohort, write_slide

PAGE = (REPOSITORY / "docs" / "how-to" / "choose-k.md").read_text()
PARTS = {"train": 4, "val": 6, "test": 6}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with features, labels, the configuration with the keys of the page, a backbone and a slide."""
    tree: dict[str, Any] = write_cohort(tmp_path, parts=PARTS)
    backbone = write_colour_backbone(tmp_path / "backbone", FEATURE_DIM)
    digest = open_backbone(backbone).sha256
    for part, count in PARTS.items():
        for index in range(count):
            write_slide(
                tmp_path / "features", f"{part}-{index}", index % 2, patches=4 + 4 * index, backbone_sha256=digest
            )
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    for section, keys in yaml.safe_load(block).items():
        tree[section] = {**tree[section], **keys}
    tree |= {"out": str(tmp_path / "runs" / "mine"), "schedule": {"max_epochs": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "slides").mkdir()
    save_pyramid(tmp_path / "slides" / "tissue.tif", tissue_picture(), tile_px=256)
    return tmp_path


def test_the_commands_of_the_page_lead_from_a_configuration_to_adaptive_verdicts(study: Path) -> None:
    commands = re.findall(r"^\$ hagmil (.+)$", PAGE, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "eval", "export", "eval", "infer", "eval"]
    printed = []
    for command in commands:
        done = hagmil(*shlex.split(command), cwd=study)
        assert done.returncode == 0, (command, done.stderr)
        printed.append(done.stdout)
    card = load_checkpoint(study / "runs" / "mine").card
    assert card.tested is not None
    shown = EvaluationReport.model_validate_json((study / "keeps" / "evaluation.json").read_bytes()).tested
    assert shown is not None
    rows = {row.keep: row for row in shown.keeps}
    assert all(
        rows[row.keep] == row for row in card.tested.keeps if row.keep != 5
    )  # keep_validation of the tiny cohort
    assert "agreement" in printed[1]
    manifest = open_bundle(study / "bundle").manifest
    assert manifest.stages[0].keep == (card.tested.held_from or 5)
    assert "validation slides" in printed[2]
    assert manifest.tested is not None
    assert (manifest.tested.part, manifest.tested.slides) == ("test", 6)
    assert manifest.certainty is not None
    assert manifest.certainty.threshold == pytest.approx(card.certainty.threshold, abs=1e-4)  # type: ignore[union-attr]
    assert "sure" in printed[4]
    assert (study / "results" / "tissue" / "result.json").is_file()
