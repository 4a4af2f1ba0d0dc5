"""How long from a slide to its verdict, against the way a pipeline without a cascade goes, and where is the difference?

    python -m benchmarks.slide_to_verdict --folder verdict --out benchmarks/results/slide_to_verdict.json

1. The model. A resnet50-trunc at its full cost: random convolutions, batch-norm statistics and a last affine map of
   phantoms (:mod:`benchmarks.probed_backbone`), whose three features are linear probes for lesion, one a spacing,
   supervised by lesion masks. Behind it a HAG-MIL of three stages that the package's own trainer makes from slide
   labels, with full bags as in the published recipe. Probes, transformer and test each have phantoms of their own
   seed. Such a model knows phantoms only: its verdicts are right or wrong of phantoms, and say nothing of real slides.
2. K, the patches kept at each stage: the smallest number from which on the cascade gives every slide of a held-out
   cohort the verdict of keeping everything, and the verdict of the finest stage alone on all of its patches. Beside
   it, how often that verdict is right.
3. One large phantom, both ways, in one process, in turn, with the same sessions (so the same ONNX Runtime, options,
   threads and weights), the same batch size, tissue mask and grid, after a run of every session:

   - ours: ``predict_one`` with ``--keep K``, everything that ``hagmil infer`` does for a slide, its pictures too;
   - published: OpenSlide's ``read_region`` of every tissue patch of the finest stage, batch by batch through the
     backbone, all features through the finest stage's model. A patch of the grid that holds less tissue than the grid
     asks for is left out, though the cascade would read it: that is this way's best case. It writes nothing.
    With ``--sample N`` about N of its patches are encoded, batches spread evenly over all, and the seconds of reading
    and backbone are scaled up; its verdict is then the sample's.

   The slide is many times larger than those that were trained on and that K was found on; its verdicts are told as
   they come.
4. What the factor is made of: patches avoided, and what a patch costs each way.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import openslide
import torch
from numpy.typing import NDArray

from benchmarks.features_cascade import (
    EVERYTHING,
    LabelledSlide,
    Verdicts,
    accuracy,
    agreement,
    auc,
    cascade_verdicts,
    extract_cohort,
    flat_verdicts,
    phantom_cohort,
    share_read,
    smallest_agreeing,
)
from benchmarks.machine import machine
from benchmarks.probed_backbone import (
    Probes,
    cut_patches,
    encode,
    fit,
    probed_features,
    write_backbone,
    write_probed,
)
from hagmil.export.pipeline import export_bundle
from hagmil.features import SlideFeatures, write_features
from hagmil.phantom import PhantomSpec, write_phantom
from hagmil.runtime.extract import ExtractOptions, Extractor, parse_stages
from hagmil.runtime.inference.cascade import run_stage
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inference.verdict import verdict_of
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.plan import lay_out, stage_specs
from hagmil.runtime.patches.quadtree import children
from hagmil.runtime.predict import PredictOptions, predict_one
from hagmil.runtime.slides.open import open_slide
from hagmil.spec import BACKBONE_FEATURES, BAG, PATCHES
from hagmil.trainer.config.training import parse_config
from hagmil.trainer.training.loop import train
from hagmil.workflows.demo import PHANTOMS_ONLY, RECIPE

STAGES = "2,1,0.5"
PATCH_PX = 256
BATCH = 16
PROBE_SEED, TRAIN_SEED, HELD_SEED, SLIDE_SEED = 6100, 6101, 6102, 5
PROBE_SLIDES, PROBE_SIZE_PX, PROBE_PATCHES = 40, 4096, 12
KEEPS = (1, 2, 4, 8, 16, 32, 64, 128)
VALIDATION_SHARE = 0.25
LABELS = ("normal", "tumour")
STEPS = ("open", "tissue", "read", "backbone", "models", "picture", "write", "total")
RECIPE_CHANGES: dict[str, object] = {
    "cascade": {"keep_train": 7000, "keep_validation": 10_000},
    "schedule": {"max_epochs": 60, "patience": 20},
}
"""What differs from the demonstration's recipe: full bags, as published, and longer, for few slides are trained on."""


@dataclass(frozen=True, slots=True)
class Run:
    """One way from the slide to a verdict, once.

    Args:
        patches: read and encoded, by stage, coarse to fine.
        seconds: by step; ``total`` is all of it.
        prediction: the verdict.
        probability: the last class's.
    """

    patches: tuple[int, ...]
    seconds: dict[str, float]
    prediction: str
    probability: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32_768, help="side of the slide in pixels")
    parser.add_argument("--train-slides", type=int, default=24)
    parser.add_argument("--held-slides", type=int, default=20)
    parser.add_argument("--cohort-size", type=int, default=3072, help="side of the cohorts' slides")
    parser.add_argument("--train-seed", type=int, default=5, help="of the training alone: other weights, other order")
    parser.add_argument("--repeats", type=int, default=3, help="of our runs; the published way runs once")
    parser.add_argument("--keep", type=int, help="K, in place of the one that the cohort gives")
    parser.add_argument("--also-keep", type=int, nargs="*", default=[16, 32], help="further runs of ours")
    parser.add_argument("--sample", type=int, help="patches that the published way encodes; all where none is given")
    parser.add_argument("--prepare", action="store_true", help="only make what is measured")
    parser.add_argument("--folder", type=Path, required=True, help="where everything made is kept for another run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/slide_to_verdict.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    bundle, held = prepare(folder, arguments)
    slide = phantom_of(arguments.size, folder)
    if arguments.prepare:
        return
    model = load_model(bundle)
    choice = choose_keep(model, held, KEEPS)
    keep = arguments.keep or choice["keep"]
    if keep is None:
        raise SystemExit(f"no K gives every slide its verdict; choose one with --keep\n{cohort_table(choice)}")
    report = {"machine": machine(), **compare(slide, model, keep, arguments, folder), "cohort": choice}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def phantom_of(size_px: int, folder: Path) -> Path:
    """A phantom of this size, made unless it is there."""
    path = folder / f"phantom_{size_px}.tif"
    if not path.is_file():
        write_phantom(PhantomSpec(seed=SLIDE_SEED, label="tumour", size_px=size_px), path)
    return path


def prepare(folder: Path, arguments: argparse.Namespace) -> tuple[Path, tuple[list[SlideFeatures], NDArray[np.int64]]]:
    """Step 1: the bundle, and the held-out cohort's features and labels."""
    backbone = folder / "verdict_backbone"
    probes = prepare_probes(folder, backbone)
    extractor = Extractor.open(backbone, ExtractOptions(stages=parse_stages(STAGES), patch_px=PATCH_PX))
    parts = {}
    for part, slides, seed in (
        ("train", arguments.train_slides, TRAIN_SEED),
        ("held", arguments.held_slides, HELD_SEED),
    ):
        cohort = phantom_cohort(folder / part, slides, arguments.cohort_size, seed)
        parts[part] = (cohort, extract_cohort(cohort, extractor, folder / f"{part}_features"))
    card = write_probed(backbone, probes, folder / "verdict_probed")
    bundle = folder / f"verdict_bundle_{arguments.train_seed}"
    if not bundle.is_dir():
        for slide in parts["train"][1]:
            path = folder / "train_probed" / f"{slide.header.slide_id}.h5"
            write_features(path, probed_features(slide, probes, card.sha256))
        train_and_export(folder, parts["train"][0], bundle, arguments.train_seed)
    cohort, plain = parts["held"]
    features = [probed_features(slide, probes, card.sha256) for slide in plain]
    return bundle, (features, np.array([LABELS.index(slide.label) for slide in cohort], np.int64))


def prepare_probes(folder: Path, backbone: Path) -> Probes:
    """The backbone as its random weights make it, and its probes, from phantoms of their own."""
    encoded = folder / "probe_features.npz"
    if not encoded.is_file():
        cohort = phantom_cohort(folder / "probe", PROBE_SLIDES, PROBE_SIZE_PX, PROBE_SEED)
        spacings_um = [spacing_um for _name, spacing_um in parse_stages(STAGES)]
        patches = cut_patches(cohort, spacings_um, PATCH_PX, PROBE_PATCHES, PROBE_SEED)
        if not backbone.is_dir():
            write_backbone(patches.pixels, PROBE_SEED, backbone)
        features = encode(patches.pixels, backbone)
        np.savez(encoded, features=features, lesion=patches.lesion, spacing_um=patches.spacing_um)
    with np.load(encoded) as arrays:
        return fit(arrays["features"], arrays["lesion"], arrays["spacing_um"])


def train_and_export(folder: Path, cohort: Sequence[LabelledSlide], bundle: Path, seed: int) -> None:
    """Train on a cohort's features and export the best checkpoint; the run is beside the bundle."""
    run = bundle.with_name(f"{bundle.name}_run")
    write_split(folder / "split.csv", cohort)
    data = {
        "features": str(folder / "train_probed"),
        "labels": str(folder / "train" / "labels.csv"),
        "split": str(folder / "split.csv"),
    }
    tree = {**RECIPE, **RECIPE_CHANGES, "seed": seed, "out": str(run), "data": data}
    train(parse_config(tree, source="this benchmark's recipe"), progress=lambda _state: None)
    best = run / "checkpoints" / "best"
    export_bundle(best, folder / "verdict_probed", bundle, intended_use=PHANTOMS_ONLY, overwrite=True)


def write_split(path: Path, cohort: Sequence[LabelledSlide]) -> None:
    """Whole cases to training and validation, the same share of each class."""
    rows = []
    for label in LABELS:
        cases = list(dict.fromkeys(slide.case_id for slide in cohort if slide.label == label))
        held = set(cases[: max(1, round(VALIDATION_SHARE * len(cases)))])
        rows += [(slide.slide_id, slide.case_id in held) for slide in cohort if slide.label == label]
    trained, validated = ([name for name, is_held in rows if is_held == wanted] for wanted in (False, True))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "train", "val", "test"])
        for index in range(max(len(trained), len(validated))):
            writer.writerow(
                [index, *(names[index] if index < len(names) else "" for names in (trained, validated)), ""]
            )


def choose_keep(
    model: LoadedModel, held: tuple[list[SlideFeatures], NDArray[np.int64]], keeps: Sequence[int]
) -> dict[str, Any]:
    """Step 2: K, and what each number comes to on the held-out cohort."""
    features, labels = held
    tried = [cascade_verdicts(model, features, keep) for keep in keeps]
    everything, flat = cascade_verdicts(model, features, EVERYTHING), flat_verdicts(model, features)
    keep = both_agree(tried, everything, flat)
    named = [*((str(each.keep), each) for each in tried), ("all", everything), ("finest alone", flat)]
    return {
        "keep": keep,
        "slides": len(features),
        "coarse_patches_a_slide": round(float(everything.read[:, 0].mean()), 1),
        "rows": [
            {
                "keep": name,
                "agrees_with_all": agreement(verdicts, everything),
                "agrees_with_finest_alone": agreement(verdicts, flat),
                "auc": auc(verdicts, labels),
                "accuracy": accuracy(verdicts, labels),
                "share_of_finest": round(share_read(verdicts, everything)[0], 4),
            }
            for name, verdicts in named
        ],
    }


def both_agree(tried: Sequence[Verdicts], everything: Verdicts, flat: Verdicts) -> int | None:
    """The smallest number that gives every slide the verdict of both ways of leaving nothing out."""
    found = [smallest_agreeing(tried, everything), smallest_agreeing(tried, flat)]
    return None if None in found else max(keep for keep in found if keep is not None)


def compare(slide: Path, model: LoadedModel, keep: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Step 3: half of our runs before the published way's, half after."""
    warm_up(model)
    runs: list[Run] = []
    before = arguments.repeats - arguments.repeats // 2
    runs += [ours(slide, model, keep, folder / "ours") for _ in range(before)]
    peer, whole_quadtree = published(slide, model, arguments.sample)
    runs += [ours(slide, model, keep, folder / "ours") for _ in range(arguments.repeats - before)]
    others = [(other, ours(slide, model, other, folder / "ours")) for other in arguments.also_keep if other != keep]
    middle = sorted(runs, key=lambda run: run.seconds["total"])[len(runs) // 2]
    return {
        "size_px": arguments.size,
        "cohort_size_px": arguments.cohort_size,
        "train_seed": arguments.train_seed,
        "batch": BATCH,
        "threads": len(os.sched_getaffinity(0)),
        "keep": keep,
        "published_sample": arguments.sample,
        "finest_patches_of_the_whole_quadtree": whole_quadtree,
        "published": as_json(peer),
        "ours": as_json(middle),
        "ours_total_s": [round(run.seconds["total"], 2) for run in runs],
        "parts": parts_of(peer, middle),
        "other_keeps": [{"keep": other, **as_json(run), "factor": factor(peer, run)} for other, run in others],
    }


def warm_up(model: LoadedModel) -> None:
    """Run every session once."""
    patches = np.full((BATCH, PATCH_PX, PATCH_PX, 3), 200, np.uint8)
    features = np.asarray(model.backbone.run({PATCHES.name: patches})[BACKBONE_FEATURES.name])
    for session in model.stages:
        session.run({BAG.name: features})


def ours(slide: Path, model: LoadedModel, keep: int, out: Path) -> Run:
    """What ``hagmil infer --keep`` does for one slide, its model loaded."""
    (request,) = slide_requests([str(slide)])
    options = PredictOptions(encode=EncodeOptions(batch_size=BATCH), keep=keep)
    started = perf_counter()
    result = predict_one(request, model, out, options)
    total = perf_counter() - started
    if result.status != "ok" or result.probabilities is None or result.prediction is None:
        raise SystemExit(f"{slide}: {result.message}")
    return Run(
        patches=tuple(stage.encoded for stage in result.stages),
        seconds={**result.timing_s, "total": total},
        prediction=result.prediction,
        probability=list(result.probabilities.values())[-1],
    )


def published(slide: Path, model: LoadedModel, sample: int | None = None) -> tuple[Run, int]:
    """Every tissue patch of the finest stage; gives also how many patches the whole quadtree has there."""
    manifest, clock = model.bundle.manifest, StepClock()
    with clock.step("open"):
        opened = open_slide(slide)
    with opened, clock.step("tissue"):
        layout = lay_out(opened, stage_specs(manifest), manifest.patch_px, manifest.tissue)
        plan, mask, coords = layout.plan, layout.mask, layout.coords
        for coarse, fine in pairwise(plan):
            coords = children(coords, coarse.patch_level0, coarse.patch_level0 // fine.patch_level0)
        chosen = coords[mask.shares(coords, plan[-1].patch_level0) >= manifest.tissue.min_share]
    encoded = encode_all(slide, model, plan[-1], spread_batches(chosen, sample or len(chosen)), clock)
    features = np.resize(encoded, (len(chosen), encoded.shape[1]))  # a sample's again and again: a bag of full size
    with clock.step("models"):
        outputs = run_stage(model.stages[-1], features, plan[-1].name)
    if len(encoded) < len(chosen):
        outputs = run_stage(model.stages[-1], encoded, plan[-1].name)
    seconds = scaled(clock.seconds, len(chosen) / len(encoded))
    verdict = verdict_of(manifest, outputs)
    run = Run(
        patches=(*(0 for _ in plan[1:]), len(chosen)),
        seconds={**seconds, "total": sum(seconds.values())},
        prediction=verdict.prediction,
        probability=list(verdict.probabilities.values())[-1],
    )
    return run, len(coords)


def encode_all(
    slide: Path, model: LoadedModel, geometry: StageGeometry, coords: NDArray[np.int64], clock: StepClock
) -> NDArray[np.float32]:
    """Read with OpenSlide and encode, one batch after the other: float32 (n, dim)."""
    features = np.empty((len(coords), model.bundle.manifest.backbone.features), np.float32)
    with openslide.OpenSlide(slide) as file:
        for start in range(0, len(coords), BATCH):
            with clock.step("read"):
                patches = read_batch(file, geometry, coords[start : start + BATCH])
            with clock.step("backbone"):
                outputs = model.backbone.run({PATCHES.name: patches})
                features[start : start + BATCH] = outputs[BACKBONE_FEATURES.name]
    return features


def spread_batches(coords: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Whole batches of rows, spread evenly, with about as many rows as wanted."""
    batches = -(-len(coords) // BATCH)
    chosen = np.unique(np.linspace(0, batches - 1, min(batches, -(-wanted // BATCH))).round().astype(np.int64))
    return np.concatenate([coords[batch * BATCH : (batch + 1) * BATCH] for batch in chosen])


def scaled(seconds: dict[str, float], times: float) -> dict[str, float]:
    """Seconds with those of reading and encoding scaled up."""
    return {step: value * (times if step in ("read", "backbone") else 1.0) for step, value in seconds.items()}


def read_batch(file: openslide.OpenSlide, geometry: StageGeometry, coords: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Patches by OpenSlide: uint8 (n, patch_px, patch_px, 3)."""
    assert not geometry.resample, "the published way is written for patches that are stored pixels"
    side = geometry.patch_px
    patches = np.empty((len(coords), side, side, 3), np.uint8)
    for place, (x, y) in zip(patches, coords.tolist(), strict=True):
        place[...] = np.asarray(file.read_region((x, y), geometry.level, (side, side)))[..., :3]
    return patches


def factor(peer: Run, run: Run) -> float:
    """How many times less time."""
    return round(peer.seconds["total"] / run.seconds["total"], 2)


def parts_of(peer: Run, run: Run) -> dict[str, float]:
    """Step 4: the factor is patches avoided times what the published way's patch costs over what ours does."""
    patches = sum(peer.patches) / sum(run.patches)
    return {
        "factor": factor(peer, run),
        "patches_avoided": round(patches, 2),
        "seconds_a_patch": round(peer.seconds["total"] / run.seconds["total"] / patches, 3),
        "read": round(peer.seconds["read"] / run.seconds["read"], 2),
        "backbone": round(peer.seconds["backbone"] / run.seconds["backbone"], 2),
    }


def as_json(run: Run) -> dict[str, Any]:
    """A run for the report."""
    return {
        "patches": list(run.patches),
        "seconds": {step: round(run.seconds[step], 3) for step in STEPS if step in run.seconds},
        "prediction": run.prediction,
        "probability": round(run.probability, 4),
    }


def markdown(report: dict[str, Any]) -> str:
    """The comparison, what other numbers of kept patches take, and the cohort that K was chosen on."""
    return "\n\n".join([comparison_table(report), others_table(report), cohort_table(report["cohort"])])


def comparison_table(report: dict[str, Any]) -> str:
    """A line a step, for both ways."""
    peer, mine = report["published"], report["ours"]
    sample = report["published_sample"]
    way = f"published way (from a sample of {sample} patches)" if sample else "published way"
    lines = [
        f"| {report['size_px']}² phantom | {way} | hagmil, keep {report['keep']} | times |",
        "|---|---:|---:|---:|",
    ]
    for index, name in enumerate(parse_stages(STAGES)):
        cells = [str(each["patches"][index]) for each in (peer, mine)]
        lines.append(f"| patches at {name[1]:g} um/px | {cells[0]} | {cells[1]} | |")
    totals = [sum(each["patches"]) for each in (peer, mine)]
    lines.append(f"| patches in all | {totals[0]} | {totals[1]} | {totals[0] / totals[1]:.1f} |")
    for step in STEPS:
        seconds = [each["seconds"].get(step, 0.0) for each in (peer, mine)]
        times = f"{seconds[0] / seconds[1]:.1f}" if min(seconds) > 0 else ""
        lines.append(f"| {step}, s | {seconds[0]:.2f} | {seconds[1]:.2f} | {times} |")
    for step in ("read", "backbone", "total"):
        each_ms = [1000 * each["seconds"][step] / total for each, total in zip((peer, mine), totals, strict=True)]
        lines.append(f"| {step}, ms a patch | {each_ms[0]:.2f} | {each_ms[1]:.2f} | {each_ms[0] / each_ms[1]:.2f} |")
    verdicts = [f"{each['prediction']} {each['probability']:.3f}" for each in (peer, mine)]
    return "\n".join([*lines, f"| verdict | {verdicts[0]} | {verdicts[1]} | |"])


def others_table(report: dict[str, Any]) -> str:
    """Our time with each number of kept patches."""
    lines = ["| keep | patches | seconds | times less | verdict |", "|---:|---:|---:|---:|---|"]
    first = {"keep": report["keep"], **report["ours"], "factor": report["parts"]["factor"]}
    for each in [first, *report["other_keeps"]]:
        cells = [str(each["keep"]), str(sum(each["patches"])), f"{each['seconds']['total']:.1f}"]
        cells += [f"{each['factor']:.1f}", f"{each['prediction']} {each['probability']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cohort_table(cohort: dict[str, Any]) -> str:
    """What each number of kept patches comes to on the held-out slides."""
    heads = ("keep", "verdicts as with all", "as the finest stage alone", "AUC", "right", "finest patches read")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for each in cohort["rows"]:
        area = "" if each["auc"] is None else f"{each['auc']:.3f}"
        shares = [f"{each[key]:.1%}" for key in ("agrees_with_all", "agrees_with_finest_alone")]
        rest = [area, f"{each['accuracy']:.1%}", f"{each['share_of_finest']:.1%}"]
        lines.append("| " + " | ".join([each["keep"], *shares, *rest]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
