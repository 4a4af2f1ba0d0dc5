"""Time from a slide to its prediction, compared with a pipeline without a cascade.

    python -m benchmarks.slide_to_verdict --folder verdict --out benchmarks/results/slide_to_verdict.json

1. The model. The backbone is a resnet50-trunc at full cost with random convolutions, and with batch-norm statistics and
   a final affine map from phantoms (:mod:`benchmarks.probed_backbone`). Its three features are linear probes for
   lesion, one for each spacing, supervised by lesion masks. The package's trainer trains a cascade of three stages on
   them from slide labels, with the demonstration's recipe (additive read-out, random K, teaching), once for each seed.
   Probes, training and test use phantoms with different seeds. The model works on phantoms only; its predictions say
   nothing about real slides.
2. K, the number of patches kept at each stage: the smallest number for which the cascade gives every slide of a
   held-out cohort the prediction of keeping everything and that of the finest stage alone on all of its patches, and
   for which all larger tried numbers do so too. The accuracy of these predictions is reported as well.
3. One large phantom is processed in both ways, alternately in one process, with the same sessions (hence the same ONNX
   Runtime, options, threads and weights), batch size, tissue mask and grid, after a warm-up of every session:

- ours: ``predict_one`` with ``--keep K``, which is all that ``hagmil infer`` does for a slide, including pictures; -
  published: OpenSlide's ``read_region`` for every tissue patch of the finest stage, the backbone batch by batch, and
     the finest stage model on all features. Patches with less tissue than the grid requires are left out, although the
     cascade would read them; this favours the published way. It writes no files. With ``--sample N``, about N of its
     patches are encoded, in batches spread evenly over all, and the seconds of reading and backbone are scaled up; the
     prediction is then that of the sample.

The slide is many times larger than those of the training and of step 2. The times are those of the first seed's model.
The predictions of all seeds with several numbers of kept patches are reported as well.
4. The factor between both ways is split into patches avoided and the cost per patch.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    LabelledPhantom,
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
from hagmil.runtime.inference.cascade import SlideStages, StageOutcome, descend, run_stage
from hagmil.runtime.inference.device import Host
from hagmil.runtime.inference.encode import EncodeOptions
from hagmil.runtime.inference.feature_store import FeatureStore
from hagmil.runtime.inference.loaded_bundle import LoadedModel, load_model
from hagmil.runtime.inference.step_clock import StepClock
from hagmil.runtime.inference.verdict import Outputs, stage_logits, verdict_of
from hagmil.runtime.inputs import slide_requests
from hagmil.runtime.patches.geometry import StageGeometry
from hagmil.runtime.patches.plan import lay_out, stage_specs
from hagmil.runtime.patches.quadtree import children
from hagmil.runtime.predict import PredictOptions, predict_one
from hagmil.runtime.slides.open import open_slide
from hagmil.softmax import softmax
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
RECIPE_CHANGES: dict[str, object] = {"schedule": {"max_epochs": 60, "patience": 20}}
"""Changes to the recipe of the demonstration: more epochs, as there are few slides."""


@dataclass(frozen=True, slots=True)
class SlideRun:
    """One run from the slide to its prediction.

    Args:
        patches: patches read and encoded at each stage, coarse to fine.
        seconds: seconds by step, and ``total``.
        prediction: the predicted class.
        probability: probability of the last class.
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
    parser.add_argument(
        "--train-seeds", type=int, nargs="+", default=[5, 6, 7], help="seeds of the training only (weights, order)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of our runs; the published way runs once")
    parser.add_argument("--keep", type=int, help="K, overriding the one from the cohort")
    parser.add_argument("--also-keep", type=int, nargs="*", default=[16, 32, 64], help="K of further runs of ours")
    parser.add_argument("--sample", type=int, help="patches that the published way encodes; default all")
    parser.add_argument("--prepare", action="store_true", help="make slides and models, and stop")
    parser.add_argument("--folder", type=Path, required=True, help="folder that keeps slides and models for later runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/slide_to_verdict.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    bundles, held = prepare(folder, arguments)
    slide = phantom_of(arguments.size, folder)
    if arguments.prepare:
        return
    models = {seed: load_model(bundle) for seed, bundle in bundles.items()}
    choices = {seed: choose_keep(model, held, KEEPS) for seed, model in models.items()}
    first = arguments.train_seeds[0]
    keep = arguments.keep or choices[first]["keep"]
    if keep is None:
        tables = cohort_table(choices[first])
        raise SystemExit(f"no tried number of kept patches agrees on every slide; pass --keep\n{tables}")
    keeps = sorted({keep, *arguments.also_keep})
    report = {
        "machine": machine(),
        "seeds": seeds_report(choices, large_verdicts(slide, models, keeps)),
        **compare(slide, models[first], keep, arguments, folder),
        "cohort": choices[first],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def phantom_of(size_px: int, folder: Path) -> Path:
    """Return a phantom of this size, made if it does not exist."""
    path = folder / f"phantom_{size_px}.tif"
    if not path.is_file():
        write_phantom(PhantomSpec(seed=SLIDE_SEED, label="tumour", size_px=size_px), path)
    return path


def prepare(
    folder: Path, arguments: argparse.Namespace
) -> tuple[dict[int, Path], tuple[list[SlideFeatures], NDArray[np.int64]]]:
    """Return the bundle of each seed, and features and labels of the held-out cohort (step 1)."""
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
    for slide in parts["train"][1]:
        path = folder / "train_probed" / f"{slide.header.slide_id}.h5"
        write_features(path, probed_features(slide, probes, card.sha256))
    bundles = {seed: folder / f"verdict_bundle_{seed}" for seed in arguments.train_seeds}
    for seed, bundle in bundles.items():
        if not bundle.is_dir():
            train_and_export(folder, parts["train"][0], bundle, seed)
    cohort, plain = parts["held"]
    features = [probed_features(slide, probes, card.sha256) for slide in plain]
    return bundles, (features, np.array([LABELS.index(slide.label) for slide in cohort], np.int64))


def prepare_probes(folder: Path, backbone: Path) -> Probes:
    """Write the backbone without probes, and return the probes, both from separate phantoms."""
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


def train_and_export(folder: Path, cohort: Sequence[LabelledPhantom], bundle: Path, seed: int) -> None:
    """Train on the features of a cohort and export the best checkpoint; the run folder is beside the bundle."""
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


def write_split(path: Path, cohort: Sequence[LabelledPhantom]) -> None:
    """Split cases into training and validation, with the same share of each class."""
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
    """Choose K (step 2); also return the results of each tried number on the held-out cohort."""
    features, labels = held
    tried = [cascade_verdicts(model, features, keep) for keep in keeps]
    everything, flat = cascade_verdicts(model, features, EVERYTHING), flat_verdicts(model, features)
    keep = both_agree(tried, everything, flat)
    named = [*((str(each.keep), each) for each in tried), ("all", everything), ("finest alone", flat)]
    return {
        "keep": keep,
        "slides": len(features),
        "coarse_patches_per_slide": round(float(everything.read[:, 0].mean()), 1),
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
    """Return the smallest number that agrees with keeping everything and with the finest stage alone."""
    found = [smallest_agreeing(tried, everything), smallest_agreeing(tried, flat)]
    return None if None in found else max(keep for keep in found if keep is not None)


def large_verdicts(
    slide: Path, models: dict[int, LoadedModel], keeps: Sequence[int]
) -> dict[int, list[tuple[int, StageOutcome]]]:
    """Run the cascade of each seed with each number of kept patches; every patch is encoded once for all of them.

    Args:
        slide: the slide.
        models: the models by seed, which share their backbone.
        keeps: numbers of kept patches.

    Returns:
        For each seed, the number of kept patches and the outcome of the last stage.
    """
    any_model = next(iter(models.values()))
    manifest = any_model.bundle.manifest
    with open_slide(slide) as opened:
        layout = lay_out(opened, stage_specs(manifest), manifest.patch_px, manifest.tissue)
        options = EncodeOptions(batch_size=BATCH)
        stages = SlideStages(opened, any_model, layout.plan, options, StepClock())
        stores = [FeatureStore(partial(stages.encode, index), Host()) for index in range(len(layout.plan))]
        found: dict[int, list[tuple[int, StageOutcome]]] = {}
        for seed, model in models.items():
            of_seed = replace(stages, model=model)

            def run(index: int, coords: NDArray[np.int64], of_seed: SlideStages = of_seed) -> Outputs:
                return of_seed.outputs(index, stores[index].bag(coords))

            found[seed] = [
                (keep, descend(layout.plan, layout.coords, [keep] * len(layout.plan), run)[-1]) for keep in keeps
            ]
    return found


def seeds_report(
    choices: dict[int, dict[str, Any]], verdicts: dict[int, list[tuple[int, StageOutcome]]]
) -> list[dict[str, Any]]:
    """Return the results of each seed as JSON values: the chosen K, and the predictions for the large slide."""
    return [
        {
            "seed": seed,
            "keep": choice["keep"],
            "rows": choice["rows"],
            "large": [
                {"keep": keep, "probability": round(float(softmax(stage_logits(outcome.outputs))[-1]), 4)}
                for keep, outcome in verdicts[seed]
            ],
        }
        for seed, choice in choices.items()
    ]


def compare(slide: Path, model: LoadedModel, keep: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both ways (step 3): half of our runs before the published way, half after it."""
    warm_up(model)
    runs: list[SlideRun] = []
    before = arguments.repeats - arguments.repeats // 2
    runs += [ours(slide, model, keep, folder / "ours") for _ in range(before)]
    peer, whole_quadtree = published(slide, model, arguments.sample)
    runs += [ours(slide, model, keep, folder / "ours") for _ in range(arguments.repeats - before)]
    others = [(other, ours(slide, model, other, folder / "ours")) for other in arguments.also_keep if other != keep]
    median_run = sorted(runs, key=lambda run: run.seconds["total"])[len(runs) // 2]
    return {
        "size_px": arguments.size,
        "cohort_size_px": arguments.cohort_size,
        "train_seed": arguments.train_seeds[0],
        "batch": BATCH,
        "threads": len(os.sched_getaffinity(0)),
        "keep": keep,
        "published_sample": arguments.sample,
        "finest_patches_of_full_quadtree": whole_quadtree,
        "published": as_json(peer),
        "ours": as_json(median_run),
        "ours_total_s": [round(run.seconds["total"], 2) for run in runs],
        "parts": parts_of(peer, median_run),
        "other_keeps": [{"keep": other, **as_json(run), "factor": factor(peer, run)} for other, run in others],
    }


def warm_up(model: LoadedModel) -> None:
    """SlideRun every session once."""
    patches = np.full((BATCH, PATCH_PX, PATCH_PX, 3), 200, np.uint8)
    features = np.asarray(model.backbone.run({PATCHES.name: patches})[BACKBONE_FEATURES.name])
    for session in model.stages:
        session.run({BAG.name: features})


def ours(slide: Path, model: LoadedModel, keep: int, out: Path) -> SlideRun:
    """Do what ``hagmil infer --keep`` does for one slide, with the model already loaded."""
    (request,) = slide_requests([str(slide)])
    options = PredictOptions(encode=EncodeOptions(batch_size=BATCH), keep=keep)
    started = perf_counter()
    result = predict_one(request, model, out, options)
    total = perf_counter() - started
    if result.status != "ok" or result.probabilities is None or result.prediction is None:
        raise SystemExit(f"{slide}: {result.message}")
    return SlideRun(
        patches=tuple(stage.encoded for stage in result.stages),
        seconds={**result.timing_s, "total": total},
        prediction=result.prediction,
        probability=list(result.probabilities.values())[-1],
    )


def published(slide: Path, model: LoadedModel, sample: int | None = None) -> tuple[SlideRun, int]:
    """Run the published way; also return the number of patches of the full quadtree at the finest stage."""
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
    features = np.resize(encoded, (len(chosen), encoded.shape[1]))  # repeats a sample to a bag of full size
    with clock.step("models"):
        outputs = run_stage(model.stages[-1], features, plan[-1].name)
    if len(encoded) < len(chosen):
        outputs = run_stage(model.stages[-1], encoded, plan[-1].name)
    seconds = scaled(clock.seconds, len(chosen) / len(encoded))
    verdict = verdict_of(manifest, outputs)
    run = SlideRun(
        patches=(*(0 for _ in plan[1:]), len(chosen)),
        seconds={**seconds, "total": sum(seconds.values())},
        prediction=verdict.prediction,
        probability=list(verdict.probabilities.values())[-1],
    )
    return run, len(coords)


def encode_all(
    slide: Path, model: LoadedModel, geometry: StageGeometry, coords: NDArray[np.int64], clock: StepClock
) -> NDArray[np.float32]:
    """Read with OpenSlide and encode batch by batch: float32 (n, dim)."""
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
    """Select about ``wanted`` rows as whole batches, spread evenly."""
    batches = -(-len(coords) // BATCH)
    chosen = np.unique(np.linspace(0, batches - 1, min(batches, -(-wanted // BATCH))).round().astype(np.int64))
    return np.concatenate([coords[batch * BATCH : (batch + 1) * BATCH] for batch in chosen])


def scaled(seconds: dict[str, float], times: float) -> dict[str, float]:
    """Scale up the seconds of reading and encoding."""
    return {step: value * (times if step in ("read", "backbone") else 1.0) for step, value in seconds.items()}


def read_batch(file: openslide.OpenSlide, geometry: StageGeometry, coords: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Read patches with OpenSlide: uint8 (n, patch_px, patch_px, 3)."""
    assert not geometry.resample, "the published way supports only stages at the spacing of a level"
    side = geometry.patch_px
    patches = np.empty((len(coords), side, side, 3), np.uint8)
    for place, (x, y) in zip(patches, coords.tolist(), strict=True):
        place[...] = np.asarray(file.read_region((x, y), geometry.level, (side, side)))[..., :3]
    return patches


def factor(peer: SlideRun, run: SlideRun) -> float:
    """Return the time of the published way over ours."""
    return round(peer.seconds["total"] / run.seconds["total"], 2)


def parts_of(peer: SlideRun, run: SlideRun) -> dict[str, float]:
    """Split the factor into patches avoided and the ratio of seconds per patch (step 4)."""
    patches = sum(peer.patches) / sum(run.patches)
    return {
        "factor": factor(peer, run),
        "patches_avoided": round(patches, 2),
        "seconds_per_patch": round(peer.seconds["total"] / run.seconds["total"] / patches, 3),
        "read": round(peer.seconds["read"] / run.seconds["read"], 2),
        "backbone": round(peer.seconds["backbone"] / run.seconds["backbone"], 2),
    }


def as_json(run: SlideRun) -> dict[str, Any]:
    """Return a run as JSON values for the report."""
    return {
        "patches": list(run.patches),
        "seconds": {step: round(run.seconds[step], 3) for step in STEPS if step in run.seconds},
        "prediction": run.prediction,
        "probability": round(run.probability, 4),
    }


def markdown(report: dict[str, Any]) -> str:
    """Return tables of the comparison, of other numbers of kept patches, of the cohort, and of the seeds."""
    tables = [comparison_table(report), others_table(report), cohort_table(report["cohort"])]
    if "seeds" in report:  # not in reports of earlier versions
        tables.append(seeds_table(report["seeds"]))
    return "\n\n".join(tables)


def comparison_table(report: dict[str, Any]) -> str:
    """Return a table with a row for each step and a column for each way."""
    peer, mine = report["published"], report["ours"]
    sample = report["published_sample"]
    way = f"published way (from a sample of {sample} patches)" if sample else "published way"
    lines = [
        f"| {report['size_px']}² phantom | {way} | hagmil, keep {report['keep']} | ratio |",
        "|---|---:|---:|---:|",
    ]
    for index, name in enumerate(parse_stages(STAGES)):
        cells = [str(each["patches"][index]) for each in (peer, mine)]
        lines.append(f"| patches at {name[1]:g} um/px | {cells[0]} | {cells[1]} | |")
    totals = [sum(each["patches"]) for each in (peer, mine)]
    lines.append(f"| patches, all stages | {totals[0]} | {totals[1]} | {totals[0] / totals[1]:.1f} |")
    for step in STEPS:
        seconds = [each["seconds"].get(step, 0.0) for each in (peer, mine)]
        times = f"{seconds[0] / seconds[1]:.1f}" if min(seconds) > 0 else ""
        lines.append(f"| {step}, s | {seconds[0]:.2f} | {seconds[1]:.2f} | {times} |")
    for step in ("read", "backbone", "total"):
        each_ms = [1000 * each["seconds"][step] / total for each, total in zip((peer, mine), totals, strict=True)]
        lines.append(f"| {step}, ms per patch | {each_ms[0]:.2f} | {each_ms[1]:.2f} | {each_ms[0] / each_ms[1]:.2f} |")
    verdicts = [f"{each['prediction']} {each['probability']:.3f}" for each in (peer, mine)]
    return "\n".join([*lines, f"| prediction | {verdicts[0]} | {verdicts[1]} | |"])


def others_table(report: dict[str, Any]) -> str:
    """Return a table of our time with each number of kept patches."""
    lines = ["| keep | patches | seconds | speed-up | prediction |", "|---:|---:|---:|---:|---|"]
    first = {"keep": report["keep"], **report["ours"], "factor": report["parts"]["factor"]}
    for each in [first, *report["other_keeps"]]:
        cells = [str(each["keep"]), str(sum(each["patches"])), f"{each['seconds']['total']:.1f}"]
        cells += [f"{each['factor']:.1f}", f"{each['prediction']} {each['probability']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds_table(seeds: Sequence[dict[str, Any]]) -> str:
    """Return a table of the probability of tumour for the large slide, by seed and number of kept patches."""
    keeps = [each["keep"] for each in seeds[0]["large"]]
    lines = ["| seed of the training | K from the cohort | " + " | ".join(f"keep {keep}" for keep in keeps) + " |"]
    lines.append("|---:|---:|" + "---:|" * len(keeps))
    for each in seeds:
        cells = [f"{LABELS[one['probability'] > 0.5]} {one['probability']:.3f}" for one in each["large"]]
        lines.append(f"| {each['seed']} | {each['keep']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cohort_table(cohort: dict[str, Any]) -> str:
    """Return a table of the results on the held-out slides with each number of kept patches."""
    heads = ("keep", "agreement with all", "with finest stage alone", "AUC", "accuracy", "finest patches read")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for each in cohort["rows"]:
        area = "" if each["auc"] is None else f"{each['auc']:.3f}"
        shares = [f"{each[key]:.1%}" for key in ("agrees_with_all", "agrees_with_finest_alone")]
        rest = [area, f"{each['accuracy']:.1%}", f"{each['share_of_finest']:.1%}"]
        lines.append("| " + " | ".join([each["keep"], *shares, *rest]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
