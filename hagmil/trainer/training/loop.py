"""The training loop (:func:`_fit`), with its start and its end.

1. Check the run folder, open the cohort, create the models.
2. Continue from the last checkpoint, if there is one.
3. In each epoch, train on every slide, validate, and write the checkpoints. After a signal, write the state between two
   steps and end the run as interrupted.
4. Evaluate the best weights, with several numbers of kept patches too if the training chose them so, and write
   metrics.json.

Several processes can train together (:mod:`hagmil.trainer.compute.distributed`): all run this loop with the same state
and share the slides; only the first process writes files and reports progress.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NoReturn

import torch

from hagmil._files import OutputFolder, write_text
from hagmil._models import first_problem, read_json
from hagmil.errors import BundleError, DataError, EnvironmentLacks, Interrupted, UsageError
from hagmil.trainer.checkpoints.checkpoint import (
    BEST,
    LAST,
    WEIGHTS_NAME,
    load_checkpoint,
    read_training_state,
    restore,
    weights_sha256,
    write_checkpoint,
)
from hagmil.trainer.compute.distributed import ProcessGroup, join_process_group
from hagmil.trainer.compute.mixed_precision import check_precision
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.cohort import Cohort, open_training_cohort
from hagmil.trainer.data.prefetch import read_ahead
from hagmil.trainer.methods.base import Method, set_learning_rate
from hagmil.trainer.methods.registry import new_method
from hagmil.trainer.training.checkpoint_card import checkpoint_card
from hagmil.trainer.training.kept_patches import is_planned, measure_kept_patches
from hagmil.trainer.training.progress import Phase, ProgressCallback, TrainingProgress
from hagmil.trainer.training.run_folder import (
    LOG_NAME,
    METRICS_NAME,
    TENSORBOARD_NAME,
    RunMetrics,
    check_folder,
    logging_to,
    write_config,
)
from hagmil.trainer.training.sampling import epoch_order, step_seed, steps_of_rank, weights_seed
from hagmil.trainer.training.state import TrainingState
from hagmil.trainer.training.stop_signal import StopRequest
from hagmil.trainer.training.tensorboard_log import TensorboardLog, open_tensorboard_log
from hagmil.trainer.training.validation import Evaluation, evaluate

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Run:
    """The objects that the functions of the loop share; ``output`` is that of the first process."""

    config: TrainingConfig
    cohort: Cohort
    method: Method
    group: ProcessGroup
    output: OutputFolder | None
    stop: StopRequest
    progress: ProgressCallback


def train(config: TrainingConfig, *, resume: bool = False, progress: ProgressCallback | None = None) -> RunMetrics:
    """Train HAG-MIL or HMIL and write a run folder.

    On the CPU, with the same number of threads, an interrupted and resumed run ends with exactly the same weights as
    an uninterrupted one. Processes started by ``torchrun`` train together.

    Args:
        config: configuration of the training; ``config.out`` is the run folder.
        resume: continue the run in that folder; start a new one if there is none.
        progress: called after every training step and every evaluated slide, in the first process only.

    Returns:
        Metrics of the best weights, as in ``metrics.json`` of the run folder.

    Raises:
        UsageError: the folder contains a run and ``resume`` is not set, the run was started with a different recipe or
            number of processes, the method does not support the stages of the features, or the training has diverged.
        DataError: features, labels and split do not match.
        EnvironmentLacks: the device is missing or does not support the precision, or the run folder cannot be written.
        Interrupted: SIGINT or SIGTERM was received and the state was written, or another process was lost. The run can
            be resumed.
    """
    _check_device(config.device)
    check_folder(config, resume=resume)  # step 1
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with join_process_group(config.device) as group:
        output = OutputFolder.open(config.out, "*", "*/*") if group.is_first else None
        with (
            logging_to(config.out / LOG_NAME) if group.is_first else nullcontext(),
            torch.random.fork_rng(devices=[group.device] if group.device.type == "cuda" else []),  # keep the caller's
            StopRequest() as stop,
        ):
            check_precision(config.precision, group.device)
            cohort = open_training_cohort(config)
            torch.manual_seed(weights_seed(seed=config.seed))
            method = new_method(config.model_copy(update={"device": str(group.device)}), cohort, group)
            run = _Run(config, cohort, method, group, output, stop, progress or (lambda _: None))
            state = _first_state(run)
            if group.is_first:
                write_config(config)
            return _finish(run, _fit(run, state))


def _fit(run: _Run, state: TrainingState) -> TrainingState:
    """Step 3: train until the schedule ends the training."""
    config, slides, schedule = run.config, run.cohort.train, run.config.schedule
    labels = [slide.label for slide in slides]
    rank, world_size = run.group.rank, run.group.world_size
    with _tensorboard(run, state) as tensorboard:
        while not state.is_finished(schedule):
            learning_rate = state.learning_rate(config.optimiser.learning_rate, schedule)
            set_learning_rate(run.method.optimisers, learning_rate)
            order = epoch_order(labels, seed=config.seed, epoch=state.epoch, weighted=schedule.weighted_sampling)
            batch_size = run.method.batch_size
            batches, total = steps_of_rank(
                order, start=state.position, batch_size=batch_size, rank=rank, world_size=world_size
            )
            wanted = (slides[place] for places in batches for place in places)
            with read_ahead(wanted, ahead=config.data.prefetch) as bags:
                for places in batches:
                    torch.manual_seed(step_seed(seed=config.seed, epoch=state.epoch, position=state.position + rank))
                    losses = run.method.train_bags(list(islice(bags, len(places))), epoch=state.epoch)
                    state = state.after_step(run.group.mean(losses), slides=len(places) * world_size)
                    _report(run, state, "train", state.position, total)
                    if run.group.any(run.stop.received is not None):
                        _stop(run, state)

            validation = _evaluate(run, state, "validation")
            train_losses, state = state.mean_losses(), state.after_epoch(validation.metrics, schedule)
            _record(run, state, tensorboard, train_losses, validation, learning_rate)
            if state.improved():
                _save(run, state, BEST)
            _save(run, state, LAST)
    run.group.any(False)  # barrier: the best weights are written before any process reads them
    return state


def _first_state(run: _Run) -> TrainingState:
    """Step 2: restore the last checkpoint and return its state, or return the initial state."""
    digests = run.cohort.digests
    fresh = TrainingState(
        labels_sha256=digests.labels_sha256,
        split_sha256=digests.split_sha256,
        features_sha256=digests.features_sha256,
        processes=run.group.world_size,
    )
    state = _resumed_state(run, fresh)
    starts = run.group.all_gather((state, weights_sha256(run.method.models))) if run.group.world_size > 1 else []
    if any(start != starts[0] for start in starts):
        raise EnvironmentLacks(
            f'the processes start with different weights or states; "{run.config.out}" and the features must be the '
            "same folders in all of them, and torch the same version"
        )
    return state


def _resumed_state(run: _Run, fresh: TrainingState) -> TrainingState:
    folder = run.config.out / LAST
    if not (folder / WEIGHTS_NAME).exists():
        _log.info("starting a new training on %d slides", len(run.cohort.train))
        return fresh
    try:
        state = read_json(TrainingState, read_training_state(folder))
    except ValueError as error:
        raise BundleError(f'cannot resume from checkpoint "{folder}": {first_problem(error)}') from error
    for what in ("labels", "split", "features"):
        if getattr(state, f"{what}_sha256") != getattr(fresh, f"{what}_sha256"):
            raise DataError(
                f'the run in "{run.config.out}" was started with different {what}; resume it with the original data, '
                "or choose another out"
            )
    if state.processes != fresh.processes:
        raise UsageError(
            f'the run in "{run.config.out}" was started with {state.processes} processes; resume it with the same '
            f"number (torchrun --nproc-per-node {state.processes}), or choose another out"
        )
    restore(folder, run.method.models, run.method.optimisers)
    _log.info("resuming after %d epochs and %d slides", state.epoch, state.position)
    return state


def _finish(run: _Run, state: TrainingState) -> RunMetrics:
    """Step 4: evaluate the best weights and write metrics.json."""
    config, cohort = run.config, run.cohort
    if state.best_epoch is None:
        raise BundleError(f'the run in "{config.out}" has no best checkpoint; start a new run in another out')
    restore(config.out / BEST, run.method.models)
    metrics = RunMetrics(
        classes=cohort.classes,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        stopped_early=state.stopped_early(config.schedule),
        train_slides=len(cohort.train),
        empty_slides=dict(cohort.empty),
        validation=_evaluate(run, state, "validation").metrics,
        test=_evaluate(run, state, "test").metrics,
    )
    if is_planned(config, cohort):
        _test_kept_patches(run, state)
    if run.group.is_first:
        write_text(config.out / METRICS_NAME, metrics.model_dump_json(indent=2) + "\n")
    _log.info("best epoch %d: validation %s; test %s", metrics.best_epoch, metrics.validation, metrics.test)
    return metrics


def _test_kept_patches(run: _Run, state: TrainingState) -> None:
    """Classify the validation slides with several numbers of kept patches; the best checkpoint gets the result."""
    folder = run.config.out / BEST
    card = load_checkpoint(folder).card

    def after_slide(done: int) -> None:
        _report(run, state, "kept patches", done, len(run.cohort.val))
        if run.stop.received is not None:
            _stop(run, state)

    keep = card.stages[0].keep
    assert keep is not None  # there are several stages
    found = measure_kept_patches(run.method, run.cohort, keep=keep, group=run.group, after_slide=after_slide)
    if run.group.is_first:
        update = {"tested": found.tested, "certainty": found.certainty}
        write_checkpoint(folder, card.model_copy(update=update), run.method.models)
    _log.info("kept patches: every verdict is that of all patches from %s on", found.tested.held_from)


def _evaluate(run: _Run, state: TrainingState, phase: Literal["validation", "test"]) -> Evaluation:
    slides = run.cohort.val if phase == "validation" else run.cohort.test
    empty = run.cohort.empty["val" if phase == "validation" else "test"]

    def after_slide(done: int) -> None:
        _report(run, state, phase, done, len(slides))
        if run.stop.received is not None:  # no process waits for this one here, so it can stop alone
            _stop(run, state)

    return evaluate(
        run.method,
        slides,
        len(run.cohort.classes),
        hierarchy=run.cohort.hierarchy,
        empty_slides=len(empty),
        after_slide=after_slide,
        group=run.group,
        prefetch=run.config.data.prefetch,
    )


def _report(run: _Run, state: TrainingState, phase: Phase, done: int, total: int) -> None:
    if not run.group.is_first:
        return
    schedule = run.config.schedule
    at_the_end = state.is_finished(schedule)
    run.progress(
        TrainingProgress(
            phase=phase,
            epoch=(state.best_epoch or state.epoch) if at_the_end else state.epoch + 1,
            max_epochs=schedule.max_epochs,
            done=done,
            total=total,
            loss=state.mean_losses()[-1] if phase == "train" else None,
            last_validation=state.validation,
            best_epoch=state.best_epoch,
        )
    )


def _stop(run: _Run, state: TrainingState) -> NoReturn:
    """Write the state, unless the last checkpoint has it already, and raise Interrupted."""
    if not state.is_finished(run.config.schedule):
        _save(run, state, LAST)
    by = run.stop.received.name if run.stop.received else "a signal to another process"
    raise Interrupted(f'stopped by {by}; continue the run in "{run.config.out}" with --resume')


def _save(run: _Run, state: TrainingState, folder: Path) -> None:
    if run.output is None:
        return
    run.output.require_present()
    is_last = folder == LAST
    write_checkpoint(
        run.config.out / folder,
        checkpoint_card(run.config, run.cohort, run.method, state),
        run.method.models,
        optimisers=run.method.optimisers if is_last else (),
        training_state=state.model_dump_json() if is_last else None,
    )


def _tensorboard(run: _Run, state: TrainingState) -> AbstractContextManager[TensorboardLog | None]:
    if not run.group.is_first:
        return nullcontext()
    return open_tensorboard_log(run.config.out / TENSORBOARD_NAME, epochs_done=state.epoch)


def _record(
    run: _Run,
    state: TrainingState,
    tensorboard: TensorboardLog | None,
    train_losses: tuple[float, ...],
    validation: Evaluation,
    learning_rate: float,
) -> None:
    metrics, layers = validation.metrics, validation.metrics.hierarchy
    values = {
        "train/learning_rate": learning_rate,
        "validation/auc": metrics.auc,
        "validation/accuracy": metrics.accuracy,
        "validation/macro_f1": metrics.macro_f1,
    }
    if layers is not None:
        values |= {"validation/coarse_accuracy": layers.coarse_accuracy, "validation/agreement": layers.agreement}
    for name, train_loss in zip(run.method.loss_names, train_losses, strict=True):
        values[f"train/loss/{name}"] = train_loss
    for name, loss in zip(run.method.validation_loss_names, validation.losses, strict=True):
        values[f"validation/loss/{name}"] = loss
    if tensorboard is not None:
        tensorboard.add(state.epoch, values)
    _log.info("epoch %d: training loss %.4f; validation %s", state.epoch, train_losses[-1], metrics)


def _check_device(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentLacks(f'device is "{device}", but torch finds no CUDA device; use device: cpu')
