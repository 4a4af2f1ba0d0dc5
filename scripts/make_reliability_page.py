"""Run all cases of tests/faults and write their table into docs/reliability.md.

python scripts/make_reliability_page.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.faults.report import page_with, run_cases  # noqa: E402 - needs the path


def main() -> None:
    """Write the page."""
    page = REPOSITORY / "docs" / "reliability.md"
    with tempfile.TemporaryDirectory() as folder:
        rows = run_cases(Path(folder))
    page.write_text(page_with(page.read_text(), rows))


if __name__ == "__main__":
    main()
