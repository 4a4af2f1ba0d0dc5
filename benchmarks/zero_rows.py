"""Effect of the zero rows of Nystrom attention on verdicts.

    nice -n 10 python -m benchmarks.zero_rows --out benchmarks/results/zero_rows.json

The published transformer pads a bag with zero rows to a multiple of its landmarks (up to 768), and its softmax counts
them. With few patches, most rows are padding.

1. A bag has n digits of 8 x 8 pixels (scikit-learn); a positive bag has 5 to 40 % of the digit 1, a negative bag has
   none. Train blocks of published widths on bags with n from 8 to 128, log-uniform, with zero rows counted, as
   published.
2. Classify test bags of several n with the same weights, once as trained and once with a multiplicity of 0 for zero
   rows and landmarks, which removes them from every softmax.
3. With ``--retrain``, train and classify a second model without zero rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam

from benchmarks.digit_pyramid import KEY, Pool, image_pools
from benchmarks.machine import machine
from hagmil.trainer.losses.instance import bag_loss
from hagmil.trainer.models import nystrom
from hagmil.trainer.models.iat import IatConfig, IntegratedAttentionTransformer

SIZES = (8, 32, 256, 257)
KEY_SHARE = (0.05, 0.40)
TRAINING_SIZES = (8, 128)
STEPS, TEST_BAGS = 160, 20
LEARNING_RATE = 3e-4


def make_bag(pool: Pool, patches: int, positive: bool, generator: np.random.Generator) -> Tensor:
    """Step 1: float32 (patches, 64), grey values from 0 to 1."""
    keys = max(1, round(patches * generator.uniform(*KEY_SHARE))) if positive else 0
    digits = generator.choice([digit for digit in pool if digit != KEY], size=patches)
    digits[:keys] = KEY
    images = [pool[digit][generator.integers(len(pool[digit]))].ravel() for digit in digits.tolist()]
    return torch.from_numpy(generator.permutation(np.stack(images)))


@contextmanager
def without_zero_rows() -> Iterator[None]:
    """Give zero rows and landmarks a multiplicity of 0."""
    original = nystrom._multiplicities

    def of_rows_only(like: Tensor, of_zero: int, others: int) -> Tensor:
        return original(like, 0 * of_zero, others)

    with mock.patch.object(nystrom, "_multiplicities", of_rows_only):
        yield


def train(pool: Pool, config: IatConfig, steps: int, seed: int) -> IntegratedAttentionTransformer:
    """Step 1: one bag for each step."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model = IntegratedAttentionTransformer(64, 2, config).train()
    optimiser = Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-5)
    for step in range(steps):
        patches = round(float(np.exp(generator.uniform(*np.log(TRAINING_SIZES)))))
        label = step % 2
        loss = bag_loss(model.forward_training(make_bag(pool, patches, bool(label), generator)).logits, label)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return model.eval()


def classify(model: IntegratedAttentionTransformer, bags: Sequence[Tensor]) -> Tensor:
    """Return the margin of the positive class for each bag."""
    with torch.inference_mode():
        logits = torch.stack([model(bag).logits for bag in bags])
    return logits[:, 1] - logits[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=list(IatConfig().widths), help="widths of the blocks")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--bags", type=int, default=TEST_BAGS, help="test bags of each size")
    parser.add_argument("--retrain", action="store_true", help="also train a model without zero rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/zero_rows.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = IatConfig(widths=tuple(arguments.widths))
    report = measure(config, arguments.steps, arguments.bags, arguments.seed, retrain=arguments.retrain)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))


def measure(config: IatConfig, steps: int, bags: int, seed: int, *, retrain: bool) -> dict[str, Any]:
    """Steps 1 to 3."""
    train_pool, _, test_pool = image_pools(np.random.default_rng(seed))
    start = time.process_time()
    counted = train(train_pool, config, steps, seed)
    uncounted = None
    if retrain:
        with without_zero_rows():
            uncounted = train(train_pool, config, steps, seed)
    seconds = time.process_time() - start
    generator = np.random.default_rng(seed + 1)
    rows = []
    for patches in SIZES:
        test = [make_bag(test_pool, patches, bool(place % 2), generator) for place in range(bags)]
        labels = torch.arange(bags) % 2
        as_trained = classify(counted, test)
        with without_zero_rows():
            removed = classify(counted, test)
            own = classify(uncounted, test) if uncounted else None
        rows.append(
            {
                "patches": patches,
                "changed_verdicts": float(((as_trained > 0) != (removed > 0)).float().mean()),
                "mean_change_of_margin": float((as_trained - removed).abs().mean()),
                "mean_margin": float(as_trained.abs().mean()),
                "right_counted": _right(as_trained, labels),
                "right_removed": _right(removed, labels),
                "right_trained_without": None if own is None else _right(own, labels),
            }
        )
    return {
        "machine": machine(),
        "widths": config.widths,
        "steps": steps,
        "bags": bags,
        "seed": seed,
        "cpu_seconds": round(seconds),
        "rows": rows,
    }


def _right(margins: Tensor, labels: Tensor) -> float:
    return float(((margins > 0) == labels).float().mean())


def markdown(report: dict[str, Any]) -> str:
    """Return the rows as a table."""
    lines = [
        "| patches | right, as published | zero rows removed in the test | verdicts changed | change of the margin | "
        "trained and tested without |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        own = row["right_trained_without"]
        lines.append(
            f"| {row['patches']} | {row['right_counted']:.1%} | {row['right_removed']:.1%} | "
            f"{row['changed_verdicts']:.1%} | {row['mean_change_of_margin']:.2f} of {row['mean_margin']:.2f} | "
            f"{'' if own is None else f'{own:.1%}'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
