"""Render docs/benchmarks.md from the results that the benchmarks left.

    python -m benchmarks.render

Each benchmark makes its own table of its own JSON; this puts them on one page. A result that is not there leaves its
section out, and is named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Rendered by `python -m benchmarks.render` from `benchmarks/results/`; to change a number, run its script. Each script
asks one question, has the peers beside hagmil in the same run, and says in its first lines how to run it. Peers come
from `benchmarks/requirements.txt`. What a figure means for a slide of your own, `hagmil bench` tells
([reading its report](bench.md)); what int8 gains and costs stands in [numerics](numerics.md).

A rate depends on the machine, and on what else it was doing; ratios within one run are what to look at. Where a
script took CPU seconds besides wall seconds, that is because the machine was not idle.
"""


@dataclass(frozen=True)
class Section:
    """One question.

    Args:
        title: of the section.
        module: in ``benchmarks``; its ``markdown`` makes the table.
        comment: what to see in it, written by whoever ran it.
    """

    title: str
    module: str
    comment: str


SECTIONS = (
    Section(
        "Reading patches",
        "reading",
        "Shares and threads over one are medians over 15 turns of the ratio within a turn, of wall-clock time; of "
        "the two bare decoders the one counts that gives the smaller share. This is a processor with AVX2 and no "
        "AVX-512. With one thread the compiled kernel ([0012](decisions/0012-tile-engine.md)) comes to 1.07 of it "
        "where patches lie on the tiles, and to 0.97 across tiles (each tile counted once; three runs before: 0.96, "
        "0.96 and 0.99, the first two without leaving out what is not needed of tiles at the rim). On a processor "
        "with AVX-512, where decoding takes 0.7 of the time, it was 0.91 across tiles before that was left "
        "out; it has not been measured there since. hagmil is faster than every peer, and 11 times OpenSlide in "
        "both.\n\n"
        "Two threads over one: 1.92 and 1.75, where the bare decoders themselves come to 1.63 to 1.87; in the "
        "three runs before 1.99, 1.89 and 1.80, and 1.86, 1.85 and 1.88. The ratio moves by as much as that from "
        "run to run.\n\n"
        "In the cascade's case the share is above 1, because only a part of most tiles is needed. On Aperio's tiles "
        "of 240 px it is, since the bare decoders are slower there than on 256 px, for a reason not looked for. A "
        "patch of aperio-half is the mean of 512 px, and one of aperio-odd is resampled from 487: they need 4.7 and "
        "4.2 tiles, and their shares pay for the reduction (0.99) and the filter (0.55) too.",
    ),
    Section(
        "Tissue masks",
        "masks",
        "OpenCV is faster with Otsu's threshold up to 2000 x 2000 pixels; with the default, a fixed "
        "threshold, NumPy is ([0011](decisions/0011-masks.md)). Compare CPU milliseconds: the machine was "
        "busy.",
    ),
    Section(
        "Slide to verdict",
        "slide_to_verdict",
        "The model: resnet50-trunc at its full cost, random convolutions with batch-norm statistics of phantoms, "
        "and as its last step three linear probes for lesion, supervised by lesion masks; behind it a small HAG- "
        "MIL trained on slide labels. Probes, transformer and test have phantoms of their own. It knows phantoms "
        "only.\n\n"
        "The factor is 13.8 by the middle one of our three runs, 13.8 by the slowest (33 s) and 15.0 by the "
        "fastest (31 s), all made in one go. It comes from 13.9 times fewer patches. A patch costs the same: "
        "reading hides behind the backbone, which is 94 % of the published way's time too. The published way was "
        "timed on 2,000 of its 9,111 patches.\n\n"
        "On 20 held-out slides keep 8 is the smallest number from which on every verdict is that of keeping "
        "everything and that of the finest stage alone, and all are right (last table). **This holds for slides of "
        "that size.** They have 6 to 9 coarse patches, so that 8 leaves out next to nothing at 2 um/px and chooses "
        "at 1 um/px; and on the 24 slides of the training, where 8 misses one, the same rule gives 16. On the large"
        " slide both ways say tumour, which is right; but with 16 and 32 kept the cascade says normal, which is "
        "wrong. Its choice is good there (of the 128 finest patches of keep 32, 115 hold lesion); probably the "
        "finest stage fails on a bag that is nearly all lesion, which it was never trained on.\n\n"
        "With cohorts of 8,192 px (`--cohort-size 8192 --held-slides 16`; 39 coarse patches a slide, so that keep 8 "
        "reads 5 % of the finest patches) K depends on the training's seed (`--train-seed`); keeping everything is "
        "right for 93.8 % with each. From these numbers on all verdicts are those of keeping everything and of the "
        "finest stage alone: with seed 6 from keep 8, with 7 from 128, and with 5, that of the tables here, from "
        "none up to 128 (44 to 75 % agree). 18 slides to train on and 6 to validate are few. With seed 6 "
        "([JSON](../benchmarks/results/slide_to_verdict_8192.json)) the large slide took 461 s "
        "the published way and 32.4 s with keep 8, 14.2 times less for 13.9 times fewer patches; but there the "
        "published way says tumour, which is right, and the cascade with keep 8, 16 or 32 says normal. That verdicts "
        "agree on slides many times larger than the cohort's is not shown: choose K on slides of the size that it "
        "will see.",
    ),
    Section(
        "How the cost grows",
        "growth",
        "The backbone's share of a slide's time is 0.952 to 0.966. What is above the loaded models is the same within "
        "2.2 %, as is peak resident memory within 0.8 %: it is the backbone's, on every size. The coarsest stage's "
        "model, whose bag has 2,341 patches on the largest slide, stays below it, since its large tensors go back to "
        "the system at once ([0009](decisions/0009-pseudo-inverse.md)).",
    ),
    Section(
        "What --keep buys",
        "keep",
        "The demonstration model keeps 8 and was trained so. Keeping everything, it is right less often than "
        "with 4 or more: agreement with keeping everything is therefore no measure of quality here.",
    ),
    Section(
        "Stage models",
        "stage_models",
        "Twice as fast is reached up to 1,000 patches, and by far for the small bags of a cascade's finer stages; "
        "beyond, 1.3 times fewer multiplications are all that is left to save "
        "([0013](decisions/0013-equal-landmarks.md)); what is gained above that is probably less memory that moves. "
        "At 200 and 1,000 patches most of the memory is the model's own and what loading it takes.",
    ),
    Section("A training step", "training_memory", "See [training at scale](training.md)."),
    Section("Start-up", "start_up", "`hagmil infer` from process start to the first patch in the backbone."),
)


def main() -> None:
    parts = [HEAD]
    for section in SECTIONS:
        result = RESULTS / f"{section.module}.json"
        if not result.exists():
            print(f"no {result.name}: run python -m benchmarks.{section.module}")
            continue
        parts.append(render(section, json.loads(result.read_text())))
    PAGE.write_text("\n".join(parts))


def render(section: Section, report: dict[str, object]) -> str:
    """A section of the page."""
    table = import_module(f"benchmarks.{section.module}").markdown(report)
    comment = f"{section.comment}\n\n" if section.comment else ""
    return f"## {section.title}\n\n`python -m benchmarks.{section.module}`\n\n{comment}{table.strip()}\n"


if __name__ == "__main__":
    main()
