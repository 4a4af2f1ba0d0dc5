"""Mutated slides are read or refused; they never crash, hang, or take gigabytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.conftest import REPOSITORY
from tests.faults.mutated_slides import SLIDES
from tests.faults.mutations import COUNT, FAULTS


def test_mutated_slides_are_read_or_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.mutated_slides", str(COUNT)],
        cwd=REPOSITORY,
        env={**os.environ, "VIPS_CONCURRENCY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == list(SLIDES)
    for counted in found.values():
        assert sum(counted.values()) == COUNT
        assert [counted[fault] for fault in FAULTS] == [0] * len(FAULTS), done.stderr
        assert counted["refused"]
