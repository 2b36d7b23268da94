"""T15: whatever operation the disk refuses, a label is refused visibly or kept, and the store goes on after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crashes import SOURCE, build_tracer


def test_every_single_operation_may_be_refused_by_the_disk(tmp_path: Path) -> None:
    """No space and read errors, at each write, sync, truncation and new file of a sample and its label."""
    tracer = build_tracer(tmp_path)
    if tracer is None:
        pytest.skip("needs a C compiler to make the disk refuse")
    done = subprocess.run(
        [sys.executable, "-m", "tests.disk_errors", str(tmp_path / "disk")],
        env={
            **os.environ,
            "LD_PRELOAD": str(tracer),
            "TRACE_ROOT": str(tmp_path / "disk"),
            "TRACE_LOG": os.devnull,
            "OMP_NUM_THREADS": "1",
        },
        cwd=SOURCE.parents[1],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["operations"] > 30
    assert counts["refused"] > 20
    assert counts["samples_lost"] > 4
    assert counts["acknowledged"] > 4
