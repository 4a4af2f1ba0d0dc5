"""Speed of reading patches, compared with other readers and with JPEG decoding alone.

    pip install -c constraints.txt -e ".[cpu]" -r benchmarks/requirements.txt
    python -m benchmarks.reading --out benchmarks/results/reading.json

There are six arrangements of patches and tiles. Every reader reads each of them with one thread and with two. All
readers run alternately in one process, so that other load on the machine affects all of them:

- aligned: 256 px patches on 256 px JPEG tiles (quality 80, 4:2:0), level 0;
- offset: the same, shifted by 100 px;
- cascade: the same shift, with 2 x 2 patches in every other square of a chessboard, like the children of kept patches;
- aperio: 256 px patches on 240 px tiles of a file as Aperio writes it;
- aperio-half: 256 px patches at twice the spacing of level 0, in a pyramid whose levels are a factor of 4 apart: each
  pixel of a patch is the mean of 2 x 2 pixels. Peers without such a reduction read 512 px, which Pillow reduces.
- aperio-odd: 256 px patches from 487 px of level 0, as for a scan of 0.263 um/px that is read at 0.5 um/px, with an
  antialiasing linear filter. Peers use Pillow's filter.

"Bare decoder" decodes each tile that the patches touch once and completely, from bytes in memory, and discards the
pixels. This is the limit of every reader that decodes whole tiles. Rates are in patches per second; those of the bare
decoders are in tiles per second. Every reader writes its patches into a reused array of 64 patches.

The speed of a processor may change by a third within a run. The readers to be compared therefore run several times per
repeat, alternately. Ratios are computed within one turn, and their median is reported: hagmil's tiles over those of
each bare decoder, of which the smaller ratio counts, and two threads over one. (The faster decoder of each turn would
be faster than either decoder is, by chance.)
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import machine
from benchmarks.reading_case import ReadingCase
from hagmil.phantom import PhantomSpec, write_phantom
from hagmil.runtime.inference.encode import read_batches
from hagmil.runtime.patches.geometry import StageGeometry, plan_stages
from hagmil.runtime.slides.open import open_slide

SPACING_UM = 0.5
PATCH_PX = 256
BATCH = 64
SIDE_PX = 12_288
CASES = ("aligned", "offset", "cascade", "aperio", "aperio-half", "aperio-odd")
REGION_PX = {"aperio-half": 512, "aperio-odd": 487}
"""Side of a patch in level-0 pixels, if it differs from the side of the patch."""
TURNS = 3
"""Number of runs of hagmil and the bare decoders per repeat; the other readers run once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-peers", action="store_true", help="run only hagmil and the bare decoders")
    parser.add_argument("--folder", type=Path, help="folder that keeps the slides for later runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reading.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            row
            for name in arguments.cases
            for row in measure(
                make_case(name, folder, arguments.patches),
                arguments.threads,
                arguments.repeats,
                peers=not arguments.no_peers,
            )
        ]
    report: dict[str, Any] = {"machine": machine(), "repeats": arguments.repeats, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def measure(case: ReadingCase, threads: list[int], repeats: int, *, peers: bool) -> list[dict[str, Any]]:
    """Run all readers on one case alternately, ``repeats`` times after a warm-up."""
    from benchmarks.reading_peers import DECODERS, PEERS, encoded_tiles

    compared: dict[tuple[str, int], Callable[[], float]] = {}
    tiles = encoded_tiles(case)
    for count in threads:
        for name, decode in DECODERS.items():
            compared[name, count] = bare(tiles, count, decode)
        compared["hagmil", count] = ours(case, count)
    others = {
        (name, count): in_threads(case, count, peer) for count in threads for name, peer in PEERS.items() if peers
    }
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in (*compared, *others)}
    for repeat in range(repeats + 1):
        for key, read in [*(TURNS * [*compared.items()]), *others.items()]:
            rate = read()
            if repeat:
                rates[key].append(rate)
    return [
        {
            "case": case.name,
            "reader": name,
            "threads": count,
            "per_s": round(median(found), 1),
            "lowest": round(min(found), 1),
            "highest": round(max(found), 1),
            "patches": len(case.corners),
            "tiles": len(tiles),
            **ratios(rates, name, count, threads[0], len(tiles) / len(case.corners)),
        }
        for (name, count), found in rates.items()
    ]


def ratios(
    rates: dict[tuple[str, int], list[float]], name: str, threads: int, fewest: int, tiles_per_patch: float
) -> dict[str, float]:
    """Compute ratios within each turn and return their medians.

    Args:
        rates: rates of every reader and number of threads, in order of turns.
        name: name of the reader.
        threads: its number of threads.
        fewest: the number of threads to compare with.
        tiles_per_patch: converts hagmil's patches to tiles.

    Returns:
        ``over_fewest_threads``: the rate over that with the fewest threads; ``share``, for hagmil only: its tiles over
        those of a bare decoder, the smaller of both ratios.
    """
    found = rates[name, threads]
    ratio = {"over_fewest_threads": median(a / b for a, b in zip(found, rates[name, fewest], strict=True))}
    if name == "hagmil":
        bare = [repeats for (reader, count), repeats in rates.items() if reader.startswith("bare") and count == threads]
        ratio["share"] = min(median(a * tiles_per_patch / b for a, b in zip(found, each, strict=True)) for each in bare)
    return {key: round(value, 3) for key, value in ratio.items()}


def in_threads(case: ReadingCase, threads: int, peer: Callable[[ReadingCase], Any]) -> Callable[[], float]:
    """Return a run of a peer with one handle per thread, each reading a range of neighbouring patches."""

    def _work(corners: NDArray[np.int64]) -> None:
        batch = np.empty((BATCH, PATCH_PX, PATCH_PX, 3), np.uint8)
        with peer(case) as read:
            for index, (x, y) in enumerate(corners.tolist()):
                pixels = read(x, y)[..., :3]
                if case.region_px != PATCH_PX:
                    pixels = reduced(pixels)
                batch[index % BATCH] = pixels

    return lambda: timed([lambda part=part: _work(part) for part in np.array_split(case.corners, threads)], case)


def ours(case: ReadingCase, threads: int) -> Callable[[], float]:
    """Return a run that reads the batches that ``hagmil infer`` passes to its backbone."""
    geometry = geometry_of(case)

    def _run() -> float:
        start = perf_counter()
        with (
            open_slide(case.path, spacing_um=SPACING_UM) as slide,
            closing(read_batches(slide, geometry, case.corners, batch_size=BATCH, threads=threads)) as batches,
        ):
            read = sum(len(rows) for rows, _ in batches)
        assert read == len(case.corners)
        return read / (perf_counter() - start)

    return _run


def reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce a region to the size of a patch, for peers that read only at the spacing of a level."""
    region = Image.fromarray(np.ascontiguousarray(pixels))
    factor, rest = divmod(region.width, PATCH_PX)
    if rest:
        return np.asarray(region.resize((PATCH_PX, PATCH_PX), Image.Resampling.BILINEAR))
    return np.asarray(region.reduce(factor))


def bare(tiles: list[bytes], threads: int, decode: Callable[[bytes], object]) -> Callable[[], float]:
    """Return a run that measures the tiles per second of a decoder alone."""

    def _work(part: list[bytes]) -> None:
        for data in part:
            decode(data)

    def _run() -> float:
        parts = [tiles[index::threads] for index in range(threads)]
        return len(tiles) / seconds([lambda part=part: _work(part) for part in parts])

    return _run


def timed(jobs: list[Callable[[], None]], case: ReadingCase) -> float:
    return len(case.corners) / seconds(jobs)


def seconds(jobs: list[Callable[[], None]]) -> float:
    """Run each job in its own thread; return the seconds until all are done."""
    workers = [threading.Thread(target=job) for job in jobs]
    start = perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return perf_counter() - start


def geometry_of(case: ReadingCase) -> StageGeometry:
    with open_slide(case.path, spacing_um=SPACING_UM) as slide:
        ratio = case.region_px / PATCH_PX
        return plan_stages(slide.levels, SPACING_UM, [("only", SPACING_UM * ratio)], PATCH_PX)[0]


def make_case(name: str, folder: Path, patches: int) -> ReadingCase:
    """Return a case; its slide is made if it does not exist."""
    phantom = folder / f"phantom-{SIDE_PX}.tif"
    if not phantom.exists():
        write_phantom(PhantomSpec(seed=3, size_px=SIDE_PX, spacing_um=SPACING_UM, label="tumour"), phantom)
    path, offset, region_px = phantom, 100 if name in ("offset", "cascade") else 0, REGION_PX.get(name, PATCH_PX)
    if name.startswith("aperio"):
        path = folder / "aperio.svs"
        if not path.exists():
            from benchmarks.reading_peers import write_aperio

            write_aperio(path, phantom, SPACING_UM)
    across = (SIDE_PX - offset) // region_px
    grid = np.stack(np.meshgrid(np.arange(across), np.arange(across), indexing="xy"), -1).reshape(-1, 2)  # row by row
    if name == "cascade":
        grid = grid[(grid // 2).sum(axis=1) % 2 == 0]
    return ReadingCase(name, path, grid[:patches].astype(np.int64) * region_px + offset, region_px)


def markdown(report: dict[str, Any]) -> str:
    """Return a table with a row for each reader and a column for each case and number of threads."""
    rows = report["rows"]
    columns = list(dict.fromkeys((row["case"], row["threads"]) for row in rows))
    found = {(row["reader"], row["case"], row["threads"]): row for row in rows}
    head = ["", *(f"{case}, {threads} thread{'s' if threads > 1 else ''}" for case, threads in columns)]
    lines = [head, ["---", *("---:" for _ in columns)]]
    for reader in dict.fromkeys(row["reader"] for row in rows):
        lines.append([reader, *(f"{found[reader, *column]['per_s']:.0f}" for column in columns)])
    share = [f"{found['hagmil', *column]['share']:.2f}" for column in columns]
    lines.append(["hagmil's tiles over those of the faster bare decoder", *share])
    fewest = columns[0][1]
    for reader in dict.fromkeys(row["reader"] for row in rows):
        if reader == "hagmil" or reader.startswith("bare"):
            more = [
                "" if column[1] == fewest else f"{found[reader, *column]['over_fewest_threads']:.2f}"
                for column in columns
            ]
            lines.append([f"{reader}, ratio to {fewest} thread{'s' if fewest > 1 else ''}", *more])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
