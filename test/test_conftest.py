# SPDX-License-Identifier: Apache-2.0
"""What a run of the tests prints at its end."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SKIPPING = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_gpu(number):
    pytest.skip("no GPU: run this on a machine with one")

@pytest.mark.skip(reason="no browser: apt-get install chromium")
def test_page():
    pass
"""


def test_a_run_ends_with_what_was_skipped_and_why(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_page.py").write_text(SKIPPING)
    (tmp_path / "test_model.py").write_text("from test_page import test_gpu")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    assert run.stdout.splitlines()[-3:-1] == [
        "   6 in test_model.py, test_page.py: no GPU: run this on a machine with one",
        "   1 in test_page.py: no browser: apt-get install chromium",
    ]
