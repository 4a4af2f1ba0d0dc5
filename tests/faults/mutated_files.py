"""The files of hagmil whose mutants are read, and the readers.

``python -m tests.faults.mutated_files 2000`` runs the long form and prints the table of docs/reliability.md.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors.torch import load_file, save_file

from hagmil.bundle import open_backbone
from hagmil.features import read_features
from hagmil.runtime.inference.loaded_bundle import load_model
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.results.result import read_result
from hagmil.selftest import read_selftest
from hagmil.trainer.checkpoints.checkpoint import build_models, load_checkpoint, restore
from hagmil.trainer.config.training import load_config, parse_config
from hagmil.trainer.data.labels import read_labels, read_split
from tests.conftest import REPOSITORY
from tests.faults.mutations import FAULTS, counts, endings
from tests.runtime.small_bundle import write_small_backbone, write_small_bundle

COMPATIBILITY = REPOSITORY / "tests" / "data" / "compatibility"


@dataclass(frozen=True)
class MutatedFile:
    """A file and its reader.

    Args:
        path: the file.
        read: reads it.
        text: whether it is text.
    """

    path: Path
    read: Callable[[], object]
    text: bool = False


def _bundle(folder: Path) -> MutatedFile:
    bundle = write_small_bundle(folder / "bundle")
    return MutatedFile(bundle / "bundle.json", lambda: load_model(bundle, threads=1).bundle.path, text=True)


def _backbone(folder: Path) -> MutatedFile:
    write_small_backbone(folder / "backbone")
    return MutatedFile(
        folder / "backbone" / "backbone.json", lambda: open_backbone(folder / "backbone").name, text=True
    )


def _graph(folder: Path) -> MutatedFile:
    bundle = write_small_bundle(folder / "bundle")
    return MutatedFile(bundle / "1um.onnx", lambda: load_model(bundle, threads=1).bundle.path)


def _selftest(folder: Path) -> MutatedFile:
    path = Path(shutil.copy(COMPATIBILITY / "bundle" / "selftest.npz", folder))
    return MutatedFile(path, lambda: len(read_selftest(path)))


def _features(folder: Path) -> MutatedFile:
    path = Path(shutil.copy(COMPATIBILITY / "features" / "phantom_002.h5", folder))
    return MutatedFile(path, lambda: [stage.features.shape for stage in read_features(path).stages])


def _checkpoint(folder: Path) -> MutatedFile:
    path = Path(shutil.copytree(COMPATIBILITY / "checkpoint", folder / "checkpoint")) / "model.safetensors"
    models = build_models(load_checkpoint(path))

    def read() -> int:
        build_models(load_checkpoint(path))
        restore(path.parent, models)
        return len(models)

    return MutatedFile(path, read)


def _checkpoint_card(folder: Path) -> MutatedFile:
    """The card of a checkpoint, which is in the header of the weights file."""
    source = COMPATIBILITY / "checkpoint"
    tensors, weights = load_file(source / "model.safetensors"), folder / "model.safetensors"
    card = Path(shutil.copy(source / "checkpoint.json", folder / "card.json"))

    def read() -> int:
        save_file(tensors, weights, metadata={"checkpoint": card.read_text(errors="replace")})
        return len(build_models(load_checkpoint(weights)))

    return MutatedFile(card, read, text=True)


def _result(folder: Path) -> MutatedFile:
    path = Path(shutil.copy(COMPATIBILITY / "result" / "result.json", folder))
    return MutatedFile(path, lambda: read_result(folder).status, text=True)


def _labels(folder: Path) -> MutatedFile:
    path = folder / "labels.csv"
    path.write_text("slide_id,case_id,label\n" + "".join(f"s{i},c{i // 2},{'ab'[i % 2]}\n" for i in range(40)))
    return MutatedFile(path, lambda: len(read_labels(path)), text=True)


def _split(folder: Path) -> MutatedFile:
    path = folder / "split.csv"
    path.write_text(",train,val,test\n" + "".join(f"{i},s{i},s{i + 20},s{i + 40}\n" for i in range(20)))
    return MutatedFile(path, lambda: len(read_split(path).train), text=True)


def _slides(folder: Path) -> MutatedFile:
    path = folder / "slides.csv"
    path.write_text("slide_id,path,spacing_um\n" + "".join(f"s{i},slides/{i}.tif,0.2{i}\n" for i in range(20)))
    return MutatedFile(path, lambda: len(slide_requests((), table=path)), text=True)


def _configuration(folder: Path) -> MutatedFile:
    path = folder / "config.yaml"
    data = {"features": "features", "labels": "labels.csv", "split": "split.csv"}
    path.write_text(yaml.safe_dump(parse_config({"data": data}, source="defaults").model_dump(mode="json")))
    return MutatedFile(path, lambda: load_config(path).kind, text=True)


FILES: dict[str, Callable[[Path], MutatedFile]] = {
    "bundle manifest": _bundle,
    "graph of a bundle": _graph,
    "backbone card": _backbone,
    "self-test": _selftest,
    "features": _features,
    "checkpoint": _checkpoint,
    "card of a checkpoint": _checkpoint_card,
    "result.json": _result,
    "labels": _labels,
    "split": _split,
    "table of slides": _slides,
    "training configuration": _configuration,
}
"""Makes a file in an empty folder, by the name of its kind."""


def main(count: int) -> None:
    """Print the table of all kinds, and each fault to standard error."""
    logging.disable()
    print("| file | mutants | read | refused | " + " | ".join(FAULTS) + " |")  # noqa: T201
    print("|---" * (4 + len(FAULTS)) + "|")  # noqa: T201
    for name, make in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            file = make(Path(folder))
            found = endings(file.path, file.read, text=file.text, count=count)
        print(f"| {name} | {len(found):,} | " + " | ".join(f"{n:,}" for n in counts(found).values()) + " |", flush=True)  # noqa: T201
        for ending in found:
            if ending.kind in FAULTS:
                print(json.dumps([name, ending.seed, ending.kind, ending.detail]), file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(int(sys.argv[1]))
