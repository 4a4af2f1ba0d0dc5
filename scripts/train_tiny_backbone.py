"""Train the backbone ``tiny`` on phantoms and write the weights that are part of the package.

    python scripts/train_tiny_backbone.py            # writes hagmil/export/backbones/trained/tiny.safetensors
    python scripts/train_tiny_backbone.py --out FILE --seed 7

1. Make two cohorts of phantoms: normal and tumour, and the four classes of the hierarchy.
2. Cut patches of 64 pixels at 2, 1 and 0.5 um/px, half of them at lesions. The target of a patch is its shares of
   glass, of normal tissue, and of each kind of lesion.
3. Train the encoder and a linear head by cross entropy against these shares, with flips, rotations and colour changes.
4. Measure the separation of lesion and tissue on held-out slides, at each spacing.
5. Write the encoder without its head.

The same seed on the same machine gives the same weights. The script takes about five minutes of CPU time on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import hagmil
from hagmil.export.backbones.encoder import PatchEncoder
from hagmil.export.backbones.tiny import MEAN, PATCH_PX, SHIPPED, STD, TinyEncoder, randomise
from hagmil.phantom import MASK_STEP_PX, PHANTOM_CLASSES, PhantomSlide, write_cohort
from hagmil.runtime.slides.open import open_slide

SPACINGS_UM = (2.0, 1.0, 0.5)
GLASS, TISSUE = 0, 1
LESIONS = tuple(dict.fromkeys(name for names in PHANTOM_CLASSES.values() for name in names if name != "normal"))
CLASSES = ("glass", "tissue", *LESIONS)

SLIDES_PER_COHORT = 24
SLIDE_PX = 2048
SLIDE_SPACING_UM = 0.5
HELD_OUT = 4  # every fourth slide
PATCHES_PER_SPACING = 160
MOST_GLASS = 0.9
TISSUE_SATURATION = 20
MASK_LEVEL_PX = int(MASK_STEP_PX)

EPOCHS = 6
BATCH = 128
LEARNING_RATE = 3e-3
THREADS = 2


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches with their content.

    Args:
        pixels: uint8 (patches, 64, 64, 3).
        shares: float32 (patches, classes), rows sum to 1.
        spacing_um: float32 (patches,).
    """

    pixels: NDArray[np.uint8]
    shares: NDArray[np.float32]
    spacing_um: NDArray[np.float32]


def main() -> None:
    """Run the five steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--seed", type=int, default=2301)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        slides = make_phantoms(Path(folder), options.seed)  # step 1
        rng = np.random.default_rng(options.seed)
        kept = [cut(slide, rng) for slide in slides]  # step 2
    training = join([patches for index, patches in enumerate(kept) if index % HELD_OUT])
    held_out = join(kept[::HELD_OUT])
    print(f"{len(training.pixels)} patches to train on, {len(held_out.pixels)} held out")
    encoder = train(training, options.seed)  # step 3
    score = evaluate(encoder, training, held_out)  # step 4
    write(encoder, options.out, options.seed, score)  # step 5
    print(f"wrote {options.out}, {options.out.stat().st_size / 1024:.0f} KiB")


def make_phantoms(folder: Path, seed: int) -> list[PhantomSlide]:
    """Make both cohorts (step 1)."""
    slides: list[PhantomSlide] = []
    for number, classes in enumerate(PHANTOM_CLASSES):
        slides += write_cohort(
            folder / classes, SLIDES_PER_COHORT, SLIDE_PX, 1000 * seed + number, SLIDE_SPACING_UM, classes
        )
        print(f"phantoms: {classes}, {SLIDES_PER_COHORT} slides")
    return slides


def cut(slide: PhantomSlide, rng: np.random.Generator) -> Patches:
    """Cut patches from one slide (step 2): at random positions, half of them at lesions if there are any."""
    pixels: list[NDArray[np.uint8]] = []
    shares: list[NDArray[np.float32]] = []
    with open_slide(slide.mask_path) as opened:
        lesion = opened.read_region(0, 0, 0, opened.size.width, opened.size.height)[..., 0] > 127
    diseased = np.argwhere(lesion)  # (pixels, 2): row, column
    for spacing_um in SPACINGS_UM:
        image = read_level(slide.slide_path, spacing_um)
        factor = round(spacing_um / SLIDE_SPACING_UM)
        found = 0
        while found < PATCHES_PER_SPACING:
            x, y = place(rng, image.shape[0], diseased[: len(diseased) * (found % 2)], factor)
            patch = image[y : y + PATCH_PX, x : x + PATCH_PX]
            share = content_shares(patch, lesion, x, y, factor, slide.label)
            if share[GLASS] > MOST_GLASS and rng.random() > 0.05:
                continue
            pixels.append(patch)
            shares.append(share)
            found += 1
    spacing = np.repeat(np.array(SPACINGS_UM, np.float32), PATCHES_PER_SPACING)
    return Patches(np.stack(pixels), np.stack(shares), spacing)


def read_level(path: Path, spacing_um: float) -> NDArray[np.uint8]:
    """Read the complete level of a phantom at a spacing."""
    with open_slide(path) as slide:
        level = next(level for level in slide.levels if round(level.downsample * SLIDE_SPACING_UM, 3) == spacing_um)
        return slide.read_region(level.index, 0, 0, level.width, level.height)


def place(rng: np.random.Generator, side_px: int, diseased: NDArray[np.intp], factor: int) -> tuple[int, int]:
    """Choose the top-left (x, y) of a patch in pixels of its level: anywhere, or over one of the lesion's pixels."""
    if len(diseased):
        row, column = diseased[rng.integers(len(diseased))] * (MASK_LEVEL_PX / factor)
        corner = np.array([column, row]) - rng.integers(0, PATCH_PX, 2)
        x, y = corner.astype(int).clip(0, side_px - PATCH_PX).tolist()
        return x, y
    x, y = rng.integers(0, side_px - PATCH_PX + 1, 2).tolist()
    return x, y


def content_shares(
    patch: NDArray[np.uint8], lesion: NDArray[np.bool_], x: int, y: int, factor: int, label: str
) -> NDArray[np.float32]:
    """Return shares of a patch, float32 (classes,): glass by saturation, lesion by the mask, the rest is tissue."""
    saturation = patch.max(axis=-1).astype(int) - patch.min(axis=-1)
    tissue = float((saturation > TISSUE_SATURATION).mean())
    left, top, side = (round(value * factor / MASK_LEVEL_PX) for value in (x, y, PATCH_PX))
    diseased = min(tissue, float(lesion[top : top + side, left : left + side].mean()))
    shares = np.zeros(len(CLASSES), np.float32)
    shares[GLASS], shares[TISSUE] = 1 - tissue, tissue - diseased
    if diseased > 0:
        shares[CLASSES.index(label)] = diseased
    return shares


def join(parts: list[Patches]) -> Patches:
    """Concatenate the patches of several slides."""
    return Patches(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.shares for part in parts]),
        np.concatenate([part.spacing_um for part in parts]),
    )


def train(patches: Patches, seed: int) -> PatchEncoder:
    """Train encoder and head; return the encoder (step 3)."""
    tiny = TinyEncoder()
    randomise(tiny, seed=seed)
    encoder = PatchEncoder(tiny, MEAN, STD)
    head = nn.Linear(TinyEncoder.features, len(CLASSES))
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-2)
    steps = EPOCHS * (len(patches.pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    pixels, shares = torch.from_numpy(patches.pixels), torch.from_numpy(patches.shares)
    for epoch in range(EPOCHS):
        encoder.train()
        losses: list[float] = []
        for rows in torch.split(torch.randperm(len(pixels)), BATCH):
            if len(rows) < BATCH:
                continue
            logits = head(encoder(augmented(pixels[rows])).features)
            loss = nn.functional.cross_entropy(logits, shares[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {np.mean(losses):.4f}")
    return encoder.eval()


def augmented(patches: Tensor) -> Tensor:
    """Rotate, flip and recolour patches, uint8 (batch, 64, 64, 3)."""
    rotated = torch.rot90(patches, int(torch.randint(4, ())), (1, 2))
    flipped = rotated.flip(1) if torch.rand(()) < 0.5 else rotated
    gain = 1 + 0.08 * torch.randn(len(patches), 1, 1, 3)
    shift = 6 * torch.randn(len(patches), 1, 1, 1)
    return (flipped * gain + shift).clamp(0, 255).to(torch.uint8)


def evaluate(encoder: PatchEncoder, training: Patches, held_out: Patches) -> float:
    """Return the AUC of a linear probe for lesion on held-out slides, as a mean over spacings (step 4)."""
    known, unseen = features_of(encoder, training), features_of(encoder, held_out)
    scores: list[float] = []
    for spacing_um in SPACINGS_UM:
        fitted, measured = clear_rows(training, spacing_um), clear_rows(held_out, spacing_um)
        predicted = probe(known[fitted], diseased_share(training)[fitted] > 0, unseen[measured])
        auc = float(roc_auc_score(diseased_share(held_out)[measured] > 0, predicted))
        print(f"held out, {spacing_um:g} um/px: AUC of lesion against the rest {auc:.4f} ({len(measured)} patches)")
        scores.append(auc)
    return float(np.mean(scores))


def features_of(encoder: PatchEncoder, patches: Patches) -> NDArray[np.float64]:
    """Compute features, float64 (patches, dim)."""
    with torch.inference_mode():
        batches = [encoder(part).features for part in torch.split(torch.from_numpy(patches.pixels), 512)]
    return np.asarray(torch.cat(batches).numpy(), np.float64)


def diseased_share(patches: Patches) -> NDArray[np.float32]:
    """Return the share of lesion of any kind in each patch."""
    share: NDArray[np.float32] = patches.shares[:, TISSUE + 1 :].sum(axis=1)
    return share


def clear_rows(patches: Patches, spacing_um: float) -> NDArray[np.intp]:
    """Select patches at a spacing with no lesion or with more than a quarter of lesion."""
    share = diseased_share(patches)
    return np.flatnonzero((patches.spacing_um == spacing_um) & ((share == 0) | (share > 0.25)))


def probe(features: NDArray[np.float64], lesion: NDArray[np.bool_], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit a ridge regression to features and return the scores of other features."""
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled = (features - mean) / deviation
    weights = np.linalg.solve(scaled.T @ scaled + 10 * np.eye(scaled.shape[1]), scaled.T @ (lesion - lesion.mean()))
    scores: NDArray[np.float64] = (others - mean) / deviation @ weights
    return scores


def write(encoder: PatchEncoder, path: Path, seed: int, score: float) -> None:
    """Write the weights of the encoder (step 5)."""
    metadata = {
        "made_by": "scripts/train_tiny_backbone.py",
        "hagmil": hagmil.__version__,
        "torch": torch.__version__,
        "seed": str(seed),
        "held_out_auc": f"{score:.4f}",
        "trained_on": "phantoms only",
    }
    save_file(encoder.encoder.state_dict(), path, metadata=metadata)


if __name__ == "__main__":
    main()
