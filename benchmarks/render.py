"""Render docs/benchmarks.md from the results of the benchmarks.

    python -m benchmarks.render

Each benchmark makes the table of its own JSON. The section of a missing result is left out, and the script says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

`python -m benchmarks.render` makes this page from `benchmarks/results/`; to update a number, run its script. Each
script answers one question, measures hagmil and other software in the same run, and describes its use in its first
lines. `benchmarks/requirements.txt` lists the other software. `hagmil bench` measures your own slides
([the bench report](bench.md)). Speed and accuracy of int8 are described in [numerics](numerics.md).

Rates depend on the machine and its load; compare ratios within one run. CPU seconds are given in addition to wall-clock
seconds where the machine was not idle.
"""


@dataclass(frozen=True)
class ReportSection:
    """A section of the page.

    Args:
        title: title of the section.
        module: module in ``benchmarks`` whose ``markdown`` makes the table.
        comment: Markdown about the results.
    """

    title: str
    module: str
    comment: str


SECTIONS = (
    ReportSection(
        "Reading patches",
        "reading",
        "Ratios are medians over 15 turns of the ratio of wall-clock times within a turn; of the two bare decoders, "
        "the one with the smaller ratio counts. The processor has AVX2 but not AVX-512. With one thread, the compiled "
        "kernel ([0012](decisions/0012-tile-engine.md)) reaches 1.07 of the bare decoder for aligned patches and "
        "0.97 across tiles (each tile counted once; three earlier runs gave 0.96, 0.96 and 0.99, the first two "
        "without skipping the unneeded parts of tiles at the edge). On a processor with AVX-512, where decoding "
        "takes 0.7 of the time, the ratio across tiles was 0.91 before these parts were skipped; it has not been "
        "measured there since. hagmil is faster than every other reader, and 11 times as fast as OpenSlide in both "
        "cases.\n\n"
        "The ratio of two threads to one is 1.92 and 1.75; that of the bare decoders is 1.63 to 1.87. Three earlier "
        "runs gave 1.99, 1.89 and 1.80, and 1.86, 1.85 and 1.88, so the ratio varies by this much between runs.\n\n"
        "In the cascade case the ratio to the bare decoder exceeds 1, because only a part of most tiles is needed. On "
        "Aperio's tiles of 240 px it does so because the bare decoders are slower there than on 256 px; the reason "
        "was not investigated. A patch of aperio-half is reduced from 512 px and one of aperio-odd resampled from "
        "487 px. They need 4.7 and 4.2 tiles, and their ratios (0.99 and 0.55) include the reduction and the "
        "filter.",
    ),
    ReportSection(
        "Tissue masks",
        "masks",
        "OpenCV is faster with Otsu's threshold up to 2000 x 2000 pixels; with the default, a fixed "
        "threshold, NumPy is ([0011](decisions/0011-masks.md)). Compare CPU milliseconds: the machine was "
        "busy.",
    ),
    ReportSection(
        "Slide to verdict",
        "slide_to_verdict",
        "The model is a resnet50-trunc at full cost with random convolutions, batch-norm statistics of phantoms, and "
        "three linear probes for lesion as its last step, supervised by lesion masks; a small HAG-MIL is trained on "
        "its features with slide labels. Probes, transformer and test use different phantoms. The model works on "
        "phantoms only.\n\n"
        "**These figures are of the published transformer and full bags in training.** The script now trains with "
        "the demonstration's recipe (additive read-out, random K, teaching), which makes the verdict less dependent on "
        "K ([stability](benchmarks-stability.md)); it has not been run with it yet.\n\n"
        "The speed-up is 13.8 for the median of our three runs, 13.8 for the slowest (33 s) and 15.0 for the fastest "
        "(31 s), all in one session. It results from 13.9 times fewer patches. The cost per patch is the same: "
        "reading overlaps with the backbone, which also takes 94 % of the time of the published way. The published "
        "way was timed on 2,000 of its 9,111 patches.\n\n"
        "On 20 held-out slides, keep 8 is the smallest number from which on every prediction equals that of keeping "
        "everything and that of the finest stage alone, and all are correct (last table). **This holds for slides of "
        "that size.** They have 6 to 9 coarse patches, so keep 8 leaves out almost nothing at 2 um/px and selects at "
        "1 um/px. On the 24 slides of the training, where keep 8 disagrees on one, the same rule gives 16. On the "
        "large slide, both ways predict tumour, which is correct; with keep 16 and 32, the cascade predicts normal, "
        "which is wrong. The selection is good there: of the 128 finest patches with keep 32, 115 contain lesion. "
        "Probably the finest stage fails on a bag that is nearly all lesion, which did not occur in training.\n\n"
        "With cohorts of 8,192 px (`--cohort-size 8192 --held-slides 16`; 39 coarse patches per slide, so that keep 8 "
        "reads 5 % of the finest patches), K depends on the seed of the training (`--train-seed`). Keeping everything "
        "is correct for 93.8 % of the slides with each seed. All predictions equal those of keeping everything and of "
        "the finest stage alone from keep 8 on with seed 6, from keep 128 on with seed 7, and for no number up to 128 "
        "with seed 5, that of the tables here (44 to 75 % agree). The training has only 18 slides, and 6 for "
        "validation. With seed 6 ([JSON](../benchmarks/results/slide_to_verdict_8192.json)), the large slide took "
        "461 s the published way and 32.4 s with keep 8: 14.2 times less for 13.9 times fewer patches. There, the "
        "published way predicts tumour, which is correct, and the cascade with keep 8, 16 or 32 predicts normal. "
        "Agreement on slides many times larger than those of the cohort is therefore not shown: choose K on slides of "
        "the size that the model is used for.",
    ),
    ReportSection(
        "Growth with the size of the slide",
        "growth",
        "The backbone takes a share of 0.952 to 0.966 of the time of a slide. Memory above the loaded models varies by "
        "2.2 % and peak resident memory by 0.8 % over all sizes; the peak occurs in the backbone. The coarsest stage "
        "model, whose bag has 2,341 patches on the largest slide, stays below it, because its large tensors are "
        "returned to the system at once ([0009](decisions/0009-pseudo-inverse.md)).",
    ),
    ReportSection(
        "Stage models",
        "stage_models",
        "The speed-up is at least 2 up to 1,000 patches, and much larger for the small bags of a cascade's finer "
        "stages. For larger bags, the number of multiplications is only 1.3 times smaller "
        "([0013](decisions/0013-equal-landmarks.md)); the rest of the gain is probably due to less memory traffic. At "
        "200 and 1,000 patches, most of the memory is that of the model and of loading it.",
    ),
    ReportSection("A training step", "training_memory", "See [training at scale](training.md)."),
    ReportSection(
        "Fixed cost of a slide",
        "fixed_cost",
        "CPU milliseconds beside reading patches and running models, before and after overview and picture were read "
        "in one pass from encoded tiles, heatmaps drawn by tables, and PNG files written by libvips. `ratio` is after "
        "over before. All files of both versions have the same pixels and numbers. Other work ran on the machine; the "
        "processes had a higher priority.",
    ),
    ReportSection(
        "A device in a run over many slides",
        "busy_device",
        "The device is simulated: batches queue on it and take the time of 10,000 patches per second without using the "
        "processor. Before, one slide was prepared in advance and nothing was written in the background. What remains "
        "above the time of the device is: preparing the first slide and writing the last one (about 0.4 s together), "
        "and waiting for the first batch of each stage, which can be read only when the previous stage is complete "
        "(about 0.04 s per slide). The goal was 1.15, which this does not reach. Other work ran on the machine; the "
        "processes had a higher priority.",
    ),
    ReportSection("Start-up", "start_up", "Time from the start of `hagmil infer` to the first patch in the backbone."),
)


def main() -> None:
    parts = [HEAD]
    for section in SECTIONS:
        result = RESULTS / f"{section.module}.json"
        if not result.exists():
            print(f"{result.name} is missing; run python -m benchmarks.{section.module}")
            continue
        parts.append(render(section, json.loads(result.read_text())))
    PAGE.write_text("\n".join(parts))


def render(section: ReportSection, report: dict[str, object]) -> str:
    """Return the Markdown of a section."""
    table = import_module(f"benchmarks.{section.module}").markdown(report)
    comment = f"{section.comment}\n\n" if section.comment else ""
    return f"## {section.title}\n\n`python -m benchmarks.{section.module}`\n\n{comment}{table.strip()}\n"


if __name__ == "__main__":
    main()
