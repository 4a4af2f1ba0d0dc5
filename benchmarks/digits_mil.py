"""Accuracy of the published components on MIL bags of handwritten digits, a small real data set.

    nice -n 10 python -m benchmarks.digits_mil

1. For each of five seeds, split the images and make bags (:mod:`benchmarks.digits_bags`).
2. Train each model (:mod:`benchmarks.digits_models`) with each learning rate of a grid, for the same number of epochs
   on the same bags in the same batches. The epoch with the lowest validation cross entropy (fine) is used.
3. Choose one learning rate for each model and all seeds: the one with the highest mean validation accuracy (fine); for
   equal accuracies, the one with the lowest cross entropy.
4. Report the test bags at that learning rate: mean and standard deviation over the seeds.

Training uses one thread; seconds are CPU time of one training. The script writes benchmarks/results/digits_mil.json and
the table in docs/benchmarks-digits.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.digits_bags import FINE_TO_COARSE, Bags, DigitsCohort, make_cohort
from benchmarks.digits_models import DigitsModel, digits_models
from hagmil.trainer.metrics.resampled import measure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "digits_mil.json"
PAGE = ROOT / "docs" / "benchmarks-digits.md"
SEEDS = (0, 1, 2, 3, 4)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
EPOCHS = 40
BATCH = 20
COLUMNS = ("fine_accuracy", "coarse_accuracy", "auc", "consistency", "seconds")
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Settings of one training, its metrics on validation and test bags, and its CPU time in seconds."""

    model: str
    learning_rate: float
    seed: int
    best_epoch: int
    val_accuracy: float
    val_loss: float
    fine_accuracy: float
    coarse_accuracy: float
    auc: float
    consistency: float
    seconds: float
    parameters: int


@dataclass(frozen=True, slots=True)
class _Predictions:
    fine: NDArray[np.float64]
    coarse: NDArray[np.float64]
    labels: NDArray[np.int64]
    loss: float


def train(
    model_type: DigitsModel, cohort: DigitsCohort, *, learning_rate: float, seed: int, epochs: int = EPOCHS
) -> TrainingRun:
    """Train one model (step 2).

    Args:
        model_type: the kind of model.
        cohort: the bags.
        learning_rate: learning rate of Adam.
        seed: seed of weights, dropout and the order of batches.
        epochs: number of passes over all training bags.
    """
    start = time.process_time()
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model = model_type.make()
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    best_loss, best_epoch, best_weights = float("inf"), 0, copy.deepcopy(model.state_dict())
    for epoch in range(epochs):
        model.train()
        for features, labels in _batches(cohort.train, generator):
            loss = model_type.loss(model_type.predict(model, features), labels, epoch, epochs)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        validation = _predict(model_type, model, cohort.val)
        if validation.loss < best_loss:
            best_loss, best_epoch, best_weights = validation.loss, epoch + 1, copy.deepcopy(model.state_dict())
    seconds = time.process_time() - start
    model.load_state_dict(best_weights)
    validation, test = (_predict(model_type, model, part) for part in (cohort.val, cohort.test))
    parents = np.array(FINE_TO_COARSE)
    fine, coarse = test.fine.argmax(axis=1), test.coarse.argmax(axis=1)
    return TrainingRun(
        model=model_type.name,
        learning_rate=learning_rate,
        seed=seed,
        best_epoch=best_epoch,
        val_accuracy=float((validation.fine.argmax(axis=1) == validation.labels).mean()),
        val_loss=validation.loss,
        fine_accuracy=float((fine == test.labels).mean()),
        coarse_accuracy=float((coarse == parents[test.labels]).mean()),
        auc=float(measure(test.fine, test.labels).auc[0]),
        consistency=float((parents[fine] == coarse).mean()),
        seconds=seconds,
        parameters=sum(weights.numel() for weights in model.parameters()),
    )


def choose(runs: Sequence[TrainingRun]) -> list[list[TrainingRun]]:
    """Choose a learning rate for each model and return the runs with it (step 3)."""
    names = list(dict.fromkeys(run.model for run in runs))
    chosen = []
    for name in names:
        by_rate: dict[float, list[TrainingRun]] = {}
        for run in runs:
            if run.model == name:
                by_rate.setdefault(run.learning_rate, []).append(run)
        chosen.append(
            max(
                by_rate.values(),
                key=lambda group: (
                    round(statistics.fmean(run.val_accuracy for run in group), 9),
                    -statistics.fmean(run.val_loss for run in group),
                ),
            )
        )
    return chosen


def table(chosen: Sequence[Sequence[TrainingRun]]) -> str:
    """Return the table of step 4 as Markdown."""
    heads = ("model", "learning rate", "fine accuracy", "coarse accuracy", "AUC, macro", "consistent", "CPU s")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for runs in chosen:
        cells = [runs[0].model, f"{runs[0].learning_rate:g}"]
        for column in COLUMNS:
            values = [getattr(run, column) for run in runs]
            digits = 1 if column == "seconds" else 3
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """TrainingRun everything and write results and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rates", type=float, nargs="+", default=list(LEARNING_RATES))
    parser.add_argument("--bags", type=int, nargs=3, default=[30, 20, 50], help="per class: training, validation, test")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown page whose table is replaced")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = []
    for seed in options.seeds:
        cohort = make_cohort(seed, bags_per_class=tuple(options.bags))
        for model_type in digits_models():
            for rate in options.rates:
                run = train(model_type, cohort, learning_rate=rate, seed=seed, epochs=options.epochs)
                print(
                    f"{run.seconds:6.1f} s  seed {seed}  {run.model}  {rate:g}  val {run.val_accuracy:.3f}", flush=True
                )
                runs.append(run)
    write_results(options.results, options, runs)
    text = table(choose(runs))
    print(text)
    if options.page.is_file():
        options.page.write_text(replace_table(options.page.read_text(encoding="utf-8"), text), encoding="utf-8")


def write_results(path: Path, options: argparse.Namespace, runs: Sequence[TrainingRun]) -> None:
    """Write all runs, settings and versions as JSON."""
    found: dict[str, Any] = {
        "settings": {
            "seeds": options.seeds,
            "epochs": options.epochs,
            "learning_rates": options.rates,
            "bags_per_class": options.bags,
            "batch": BATCH,
            "threads": 1,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "chosen_learning_rates": {group[0].model: group[0].learning_rate for group in choose(runs)},
        "runs": [asdict(run) for run in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def replace_table(page: str, text: str) -> str:
    """Return a page with the table between its two markers replaced."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{text}\n{_END}{after}"


def _batches(parts: Sequence[Bags], generator: np.random.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return all bags once in shuffled batches; each batch has bags of one size."""
    batches = []
    for part in parts:
        order = generator.permutation(len(part.labels))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            batches.append((torch.from_numpy(part.features[places]), torch.from_numpy(part.labels[places])))
    return [batches[place] for place in generator.permutation(len(batches))]


@torch.no_grad()
def _predict(model_type: DigitsModel, model: torch.nn.Module, parts: Sequence[Bags]) -> _Predictions:
    model.eval()
    outputs = [model_type.predict(model, torch.from_numpy(part.features)) for part in parts]
    logits = torch.cat([each.fine_logits for each in outputs])
    labels = torch.cat([torch.from_numpy(part.labels) for part in parts])
    return _Predictions(
        torch.softmax(logits.double(), dim=1).numpy(),
        torch.cat([each.coarse for each in outputs]).double().numpy(),
        labels.numpy(),
        F.cross_entropy(logits, labels).item(),
    )


if __name__ == "__main__":
    main()
