"""Nothing tells others about a plant: libraries that report to their makers are kept from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parent.parent
SESSION = """
import sys
from pathlib import Path
import {module}
import onnxruntime
onnxruntime.InferenceSession(Path(sys.argv[1]).read_bytes(), providers=["CPUExecutionProvider"])
"""


def left_by(module: str, model: Path, home: Path) -> list[str]:
    """Run a network where a module was imported first; return the files that are then in the home folder."""
    home.mkdir()
    # Only this: ONNX Runtime reports nothing from what looks like a test, or where somebody forbade it.
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", SESSION.format(module=module), str(model)]
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    return sorted(path.name for path in home.rglob("*") if path.is_file())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "backbone.onnx"
    file.write_bytes(tiny.backbone())
    return file


@pytest.mark.parametrize("module", ["device_agent", "export"])
def test_onnx_runtime_keeps_no_events_to_send(module: str, model: Path, tmp_path: Path) -> None:
    if not left_by("sys", model, tmp_path / "control"):
        pytest.skip("this ONNX Runtime does not report")
    assert left_by(module, model, tmp_path / "home") == []


def test_what_somebody_set_stays() -> None:
    code = "import os, device_agent, export; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, timeout=60, capture_output=True, text=True
    )
    assert told.stdout.strip() == "0"
