"""Two processes that train together, started by torchrun on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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

ODD = {"train": 5, "val": 3, "test": 3}
LIMIT_S = 120
ROOT = Path(__file__).resolve().parents[3]
TRAIN = """
import json, os, signal, sys
from pathlib import Path
import yaml
from hagmil.trainer.config.training import parse_config
from hagmil.trainer.training.loop import train

if __name__ == "__main__":
    rank, folder = int(os.environ["RANK"]), Path(sys.argv[2])
    victim, resume = json.loads(sys.argv[3]), sys.argv[4] == "resume"
    (folder / f"pid-{rank}").write_text(str(os.getpid()))

    def watch(state):
        assert rank == 0
        if victim is not None and [state.phase, state.epoch, state.done] == victim["at"]:
            os.kill(int((folder / f"pid-{victim['rank']}").read_text()), signal.Signals[victim["signal"]])

    metrics = train(parse_config(yaml.safe_load(sys.argv[1]), source="test"), resume=resume, progress=watch)
    (folder / f"metrics-{rank}.json").write_text(metrics.model_dump_json())
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_cohort(tmp_path_factory.mktemp("group"), parts=ODD)


@pytest.fixture(scope="module")
def whole(tree: dict[str, Any]) -> TrainingConfig:
    """A run of two processes that nobody disturbed."""
    config = configured(tree, out=str(Path(tree["out"]) / "whole"))
    done = _torchrun(config)
    assert done.returncode == 0, done.stderr
    return config


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_whose_process_was_killed_and_that_was_started_again_ends_with_the_same_weights(
    tree: dict[str, Any], whole: TrainingConfig, rank: int
) -> None:
    broken = configured(tree, out=str(Path(tree["out"]) / f"broken-{rank}"))
    killed = _torchrun(broken, victim={"rank": rank, "at": ["train", 2, 4], "signal": "SIGKILL"})
    assert killed.returncode != 0
    assert load_checkpoint(broken.out / LAST).card.training.epoch == 1
    assert not (broken.out / "metrics.json").exists()
    again = _torchrun(broken, resume=True)
    assert again.returncode == 0, again.stderr
    _assert_same(broken, whole)


def test_a_signal_to_one_process_stops_all_and_the_run_can_be_gone_on_with_between_two_steps(
    tree: dict[str, Any], whole: TrainingConfig
) -> None:
    broken = configured(tree, out=str(Path(tree["out"]) / "stopped"))
    stopped = _torchrun(broken, victim={"rank": 1, "at": ["train", 2, 4], "signal": "SIGTERM"})
    assert stopped.returncode != 0
    assert "go on with --resume" in stopped.stderr
    assert load_checkpoint(broken.out / LAST).card.training.epoch == 1
    with pytest.raises(UsageError, match="started with 2 processes; resume it with as many"):
        train(broken, resume=True)
    assert _torchrun(broken, resume=True).returncode == 0
    _assert_same(broken, whole)


def test_both_processes_find_the_same_and_an_evaluation_counts_each_of_an_odd_number_of_slides_once(
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
def test_slides_of_an_evaluation_are_shared_out_and_none_is_counted_twice(
    tmp_path: Path, slides: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(write_cohort(tmp_path, parts={"train": 2, "val": 5, "test": 0}))
    cohort = open_training_cohort(config)
    method = new_method(config, cohort)
    parts: list[Any] = []
    done: list[int] = []
    results: list[Evaluation] = []
    # Each process in turn, first to collect what it gathers, then to be given what all have gathered.
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
            except KeyError:  # the first round: a share is no whole
                continue
    assert [len(part) for part in parts] == [(slides + 1) // 2, slides // 2]
    monkeypatch.undo()
    alone = evaluate(method, cohort.val[:slides], 2, empty_slides=0, after_slide=lambda _: None)
    assert results == [alone, alone]
    assert alone.metrics.slides == slides
    assert max(done, default=0) == slides


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_take_as_many_steps_and_every_slide_is_trained_on(world_size: int, batch_size: int) -> None:
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


def test_one_process_takes_the_order_as_it_is_from_where_it_stands() -> None:
    assert steps_of_rank([3, 0, 4, 1, 2], start=2, batch_size=2, rank=0, world_size=1) == ([[4, 1], [2]], 5)


def test_a_parameter_that_some_process_used_has_the_mean_gradient_and_one_that_none_used_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False) for _ in range(3)])
    model[0].weight.grad = torch.tensor([[2.0, 4.0]])
    other = torch.tensor([1.0, 1.0, 0.0, 6.0, 0.0, 8.0, 10.0, 0.0, 0.0])  # used: the first and the second
    monkeypatch.setattr(ProcessGroup, "_sum", lambda _self, values: values + other)
    ProcessGroup(0, 2).average_gradients(model)
    assert model[0].weight.grad.tolist() == [[4.0, 2.0]]
    assert model[1].weight.grad.tolist() == [[4.0, 5.0]]
    assert model[2].weight.grad is None


def test_world_size_without_the_rest_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(EnvironmentLacks, match=r"WORLD_SIZE is 2.*MASTER_ADDR.*torchrun"), join_process_group("cpu"):
        pass


def test_one_certain_gpu_for_several_processes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(UsageError, match='device "cuda:1" for several processes'), join_process_group("cuda:1"):
        pass


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentLacks, match="has 1 GPUs"), join_process_group("cuda"):
        pass


def test_a_process_that_is_lost_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_values: torch.Tensor) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", lost)
    with pytest.raises(Interrupted, match=r"is lost .*Connection closed by peer.*--resume") as caught:
        ProcessGroup(0, 2).any(False)
    assert caught.value.code == "process_lost"


def _torchrun(
    config: TrainingConfig, *, victim: dict[str, Any] | None = None, resume: bool = False
) -> subprocess.CompletedProcess[str]:
    config.out.mkdir(parents=True, exist_ok=True)
    script = config.out / "train.py"
    script.write_text(TRAIN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    own = [script, config.to_yaml(), config.out, json.dumps(victim), "resume" if resume else "new"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launch, *map(str, own)],
        env=environment,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def _alone(config: TrainingConfig, part: str) -> Evaluation:
    """The run's best weights, evaluated in this one process."""
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
