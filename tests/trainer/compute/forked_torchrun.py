"""Runs trainings of two processes as ``torchrun`` does, from one process that has imported torch already.

1. Each line on standard input is a job, as JSON: ``config`` (YAML), ``folder``, ``victim`` and ``resume``.
2. A child is forked for each job. It starts the elastic agent of ``torchrun`` with the options of its command line; the
   agent forks the two processes of the training. Standard error goes to ``stderr.txt`` in the folder.
3. The exit status of the agent is written to standard output, one line for each job.

Importing torch and the trainer takes seconds of CPU time in each process, forking takes none.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import uuid
from pathlib import Path
from typing import Any

OPTIONS = ("--standalone", "--nproc-per-node", "2")


def train_as_rank(config: str, folder: Path, victim: dict[str, Any] | None, resume: bool) -> None:
    """Train in one of the processes of a ``torchrun``, and write its metrics to ``metrics-<rank>.json``.

    Args:
        config: the configuration as YAML.
        folder: folder for the metrics, and for the process ids by rank.
        victim: a process to send a signal to: ``rank``, ``signal``, and ``at`` (phase, epoch and number of slides).
        resume: resume the run.
    """
    import yaml

    from hagmil.trainer.config.training import parse_config
    from hagmil.trainer.training.loop import train
    from hagmil.trainer.training.progress import TrainingProgress

    rank = int(os.environ["RANK"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()))

    def watch(state: TrainingProgress) -> None:
        assert rank == 0
        if victim is not None and [state.phase, state.epoch, state.done] == victim["at"]:
            os.kill(int((folder / f"pid-{victim['rank']}").read_text()), signal.Signals[victim["signal"]])

    metrics = train(parse_config(yaml.safe_load(config), source="test"), resume=resume, progress=watch)
    (folder / f"metrics-{rank}.json").write_text(metrics.model_dump_json())


def main() -> None:
    """Serve jobs from standard input until it is closed (steps 1 to 3)."""
    # Imported once, before forking: everything that a training imports, also what torch.optim.Adam does.

    import hagmil.trainer.training.loop  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_launch(**job))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


def _launch(config: str, folder: str, victim: dict[str, Any] | None, resume: bool) -> int:
    """Step 2: the exit status of ``torchrun`` for one job."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    os.dup2(os.open(Path(folder, "stderr.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    try:
        arguments = parse_args([*OPTIONS, "unused"])
        arguments.rdzv_backend, arguments.rdzv_endpoint, arguments.rdzv_id = "c10d", "localhost:0", str(uuid.uuid4())
        options = config_from_args(arguments)[0]
        options.start_method = "fork"
        elastic_launch(options, _worker)(config, Path(folder), victim, resume)
    except BaseException:  # noqa: BLE001 - the exit status of the job
        traceback.print_exc()
        return 1
    return 0


def _worker(*arguments: Any) -> None:
    try:
        train_as_rank(*arguments)
    except BaseException:
        traceback.print_exc()
        raise


if __name__ == "__main__":
    main()
