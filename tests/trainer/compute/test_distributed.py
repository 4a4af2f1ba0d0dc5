"""Distributed training with two processes on this machine, started by torchrun."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from hagmil.errors import EnvironmentLacks, Interrupted, UsageError
from hagmil.trainer.checkpoints.checkpoint import BEST, LAST, WEIGHTS_NAME, build_models, load_checkpoint
from hagmil.trainer.compute.distributed import ProcessGroup, join_process_group
from hagmil.trainer.config.training import TrainingConfig
from hagmil.trainer.data.cohort import open_training_cohort
from hagmil.trainer.methods.registry import new_method
from hagmil.trainer.training.loop import train
from hagmil.trainer.training.sampling import steps_of_rank
from hagmil.trainer.training.validation import Evaluation, evaluate
from tests.trainer.cohorts import configured, write_cohort
from tests.trainer.compute.forked_torchrun import OPTIONS

ODD = {"train": 5, "val": 3, "test": 3}
LIMIT_S = 240
ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SCRIPT = """
import json, sys
from pathlib import Path
from tests.trainer.compute.forked_torchrun import train_as_rank
train_as_rank(sys.argv[1], Path(sys.argv[2]), None, False)
"""


@dataclass(frozen=True)
class Forked:
    """Starts trainings of two processes through :mod:`tests.trainer.compute.forked_torchrun`."""

    process: subprocess.Popen[str]

    def run(self, config: TrainingConfig, *, victim: dict[str, Any] | None = None, resume: bool = False) -> Ended:
        config.out.mkdir(parents=True, exist_ok=True)
        job = {"config": config.to_yaml(), "folder": str(config.out), "victim": victim, "resume": resume}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], LIMIT_S)[0], "the training did not end in time"
        return Ended(int(self.process.stdout.readline()), (config.out / "stderr.txt").read_text())


class Ended(NamedTuple):
    """Exit status and standard error of ``torchrun``."""

    status: int
    stderr: str


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    command = [sys.executable, "-m", "tests.trainer.compute.forked_torchrun"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, env=ENVIRONMENT, cwd=ROOT, text=True, start_new_session=True
    ) as process:
        yield Forked(process)
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tree = write_cohort(tmp_path_factory.mktemp("cohort"), parts=ODD)
    added = {"keep_random": True, "validation_keeps": [2, "all"], "teach": 0.3, "teach_from": 2}
    return {**tree, "cascade": {**tree["cascade"], **added}}


@pytest.fixture(scope="module")
def whole(tree: dict[str, Any]) -> TrainingConfig:
    """An uninterrupted run of two processes, started by the command line of torchrun."""
    config = configured(tree, out=str(Path(tree["out"]) / "whole"))
    config.out.mkdir(parents=True)
    script = config.out / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", *OPTIONS, script, config.to_yaml(), config.out]
    done = subprocess.run(
        list(map(str, command)),
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return config


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_resumed_after_a_killed_process_ends_with_the_same_weights(
    tree: dict[str, Any], whole: TrainingConfig, forked: Forked, rank: int
) -> None:
    broken = configured(tree, out=str(Path(tree["out"]) / f"broken-{rank}"))
    killed = forked.run(broken, victim={"rank": rank, "at": ["train", 2, 4], "signal": "SIGKILL"})
    assert killed.status != 0
    assert load_checkpoint(broken.out / LAST).card.training.epoch == 1
    assert not (broken.out / "metrics.json").exists()
    again = forked.run(broken, resume=True)
    assert again.status == 0, again.stderr
    _assert_same(broken, whole)


def test_a_signal_to_one_process_stops_all_and_the_run_resumes_between_two_steps(
    tree: dict[str, Any], whole: TrainingConfig, forked: Forked
) -> None:
    broken = configured(tree, out=str(Path(tree["out"]) / "stopped"))
    stopped = forked.run(broken, victim={"rank": 1, "at": ["train", 2, 4], "signal": "SIGTERM"})
    assert stopped.status != 0
    assert f'continue the run in "{broken.out}" with --resume' in stopped.stderr
    assert load_checkpoint(broken.out / LAST).card.training.epoch == 1
    with pytest.raises(UsageError, match="started with 2 processes; resume it with the same number"):
        train(broken, resume=True)
    assert forked.run(broken, resume=True).status == 0
    _assert_same(broken, whole)


def test_both_processes_return_the_same_metrics_over_an_odd_number_of_slides(
    whole: TrainingConfig,
) -> None:
    found, first, second = (
        json.loads(path.read_text())
        for path in (whole.out / "metrics.json", whole.out / "metrics-0.json", whole.out / "metrics-1.json")
    )
    assert found == first == second
    assert (found["validation"]["slides"], found["test"]["slides"]) == (3, 3)
    for part in ("validation", "test"):
        assert found[part] == _alone(whole, part).metrics.model_dump(mode="json")


@pytest.mark.parametrize("slides", [0, 1, 2, 3, 5])
def test_an_evaluation_assigns_each_slide_to_one_process(
    tmp_path: Path, slides: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(write_cohort(tmp_path, parts={"train": 2, "val": 5, "test": 0}))
    cohort = open_training_cohort(config)
    method = new_method(config, cohort)
    parts: list[Any] = []
    done: list[int] = []
    results: list[Evaluation] = []
    # Run both processes in turn twice: first record the objects that they gather, then return those of both.
    for gathers in (lambda _self, own: parts.append(own) or [own], lambda _self, _own: list(parts)):
        results.clear()
        monkeypatch.setattr(ProcessGroup, "all_gather", gathers)
        for rank in range(2):
            try:
                results.append(
                    evaluate(
                        method,
                        cohort.val[:slides],
                        2,
                        empty_slides=0,
                        after_slide=done.append,
                        group=ProcessGroup(rank, 2),
                    )
                )
            except KeyError:  # in the first round the results of the other process are missing
                continue
    assert [len(part) for part in parts] == [(slides + 1) // 2, slides // 2]
    monkeypatch.undo()
    alone = evaluate(method, cohort.val[:slides], 2, empty_slides=0, after_slide=lambda _: None)
    assert results == [alone, alone]
    assert alone.metrics.slides == slides
    assert max(done, default=0) == slides


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_all_processes_take_the_same_number_of_steps_and_every_slide_is_used(world_size: int, batch_size: int) -> None:
    order = [3, 0, 4, 1, 2]
    found = [
        steps_of_rank(order, start=0, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    lengths = {total for _, total in found}
    (total,) = lengths
    assert total == -(-5 // world_size) * world_size
    assert len({tuple(len(places) for places in batches) for batches, _ in found}) == 1
    taken = [place for batches, _ in found for places in batches for place in places]
    assert sorted(set(taken)) == sorted(order)
    assert len(taken) == total


def test_a_single_process_continues_the_order_from_its_start() -> None:
    assert steps_of_rank([3, 0, 4, 1, 2], start=2, batch_size=2, rank=0, world_size=1) == ([[4, 1], [2]], 5)


def test_gradients_are_averaged_and_a_parameter_unused_in_all_processes_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False) for _ in range(3)])
    model[0].weight.grad = torch.tensor([[2.0, 4.0]])
    other = torch.tensor(
        [1.0, 1.0, 0.0, 6.0, 0.0, 8.0, 10.0, 0.0, 0.0]
    )  # used in the other process: the first and the second
    monkeypatch.setattr(ProcessGroup, "_sum", lambda _self, values: values + other)
    ProcessGroup(0, 2).average_gradients(model)
    assert model[0].weight.grad.tolist() == [[4.0, 2.0]]
    assert model[1].weight.grad.tolist() == [[4.0, 5.0]]
    assert model[2].weight.grad is None


def test_world_size_without_the_other_variables_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(EnvironmentLacks, match=r"WORLD_SIZE is 2.*MASTER_ADDR.*torchrun"), join_process_group("cpu"):
        pass


def test_one_particular_gpu_for_several_processes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with (
        pytest.raises(UsageError, match='device "cuda:1" cannot serve several processes'),
        join_process_group("cuda:1"),
    ):
        pass


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentLacks, match=r"fewer GPUs \(1\) than processes"), join_process_group("cuda"):
        pass


def test_a_lost_process_raises_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_values: torch.Tensor) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", lost)
    with pytest.raises(Interrupted, match=r"is lost .*Connection closed by peer.*--resume") as caught:
        ProcessGroup(0, 2).any(False)
    assert caught.value.code == "process_lost"


def _alone(config: TrainingConfig, part: str) -> Evaluation:
    """Evaluate the best weights of a run in this process only."""
    cohort = open_training_cohort(config)
    method = new_method(config, cohort)
    for model, trained in zip(method.models, build_models(load_checkpoint(config.out / BEST)), strict=True):
        model.load_state_dict(trained.state_dict())
    slides = cohort.val if part == "validation" else cohort.test
    return evaluate(method, slides, len(cohort.classes), empty_slides=0, after_slide=lambda _: None)


def _assert_same(one: TrainingConfig, other: TrainingConfig) -> None:
    assert (one.out / "metrics.json").read_text() == (other.out / "metrics.json").read_text()
    for folder in (BEST, LAST):
        a, b = (load_file(config.out / folder / WEIGHTS_NAME) for config in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
