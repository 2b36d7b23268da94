"""What users do wrong most often, over the command line: two lines that say what to do, and exit code 2."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.commands import headway
from tests.tiny import tiny_bundle, write_pictures


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("parts"), per_class=12)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny_bundle(out, per_class=12)
    return out


def refused(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[str, str]:
    """Run a command that must be refused, and return its error and its hint."""
    ended = headway(capfd, *args)
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    said = [line for line in ended.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [line.split(":")[0] for line in said] == ["error", "hint"], ended.err
    return said[0], said[1]


def truncated_jpegs(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = cv2.imencode(".jpg", noise)[1].tobytes()
    for name in ("good", "scratch"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            (folder / name / f"{i}.jpg").write_bytes(whole[: len(whole) // 2 + i])
    return folder


@pytest.mark.torch
def test_truncated_jpegs_only(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = truncated_jpegs(tmp_path / "data")
    for command in (
        ("export", data, "--backbone", "test_resnet", "--weights", "none", "--out", tmp_path / "out"),
        ("evaluate", bundle, "--data", data),
        ("rehearse", bundle, "--data", data, "--labels", "3"),
        (
            "demo",
            "--data",
            data,
            "--backbone",
            "test_resnet",
            "--hold-back",
            "scratch",
            "--out",
            tmp_path / "demo",
        ),
    ):
        error, _ = refused(capfd, *command)
        assert "truncated" in error or "0.jpg" in error, error
    assert not (tmp_path / "out").exists()


@pytest.mark.torch
def test_an_empty_folder(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in (
        ("export", empty, "--backbone", "test_resnet", "--weights", "none", "--out", tmp_path / "out"),
        ("evaluate", bundle, "--data", empty),
        ("rehearse", bundle, "--data", empty, "--labels", "3"),
        ("demo", "--data", empty, "--backbone", "test_resnet", "--hold-back", "x", "--out", tmp_path / "demo"),
    ):
        error, hint = refused(capfd, *command)
        assert "empty" in error
        assert "index.csv" in hint or "folder" in hint
    assert not (tmp_path / "out").exists()


def test_a_bundle_with_one_flipped_byte(
    images: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = next(bundle.glob("backbone.*.onnx")).name
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    content = bytearray((damaged / model).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / model).write_bytes(content)
    for command in (
        ("bundle", "verify", damaged),
        ("evaluate", damaged, "--data", images),
        ("rehearse", damaged, "--data", images, "--labels", "3"),
        ("fleet", "publish", damaged, "--dir", tmp_path / "fleet"),
    ):
        error, _ = refused(capfd, *command)
        assert model in error
    assert not (tmp_path / "fleet").exists() or not list((tmp_path / "fleet").rglob("*.onnx"))


def test_a_broker_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error, hint = refused(capfd, "fleet", "serve", "--dir", tmp_path / "fleet", "--broker", f"127.0.0.1:{port}")
    assert str(port) in error
    assert "broker" in hint.lower()


@pytest.mark.torch
def test_an_unknown_backbone(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error, hint = refused(capfd, "export", images, "--backbone", "mobilenet_v2_100", "--out", tmp_path / "out")
    assert "mobilenet_v2_100" in error
    assert "mobilenetv2_100" in hint
    assert not (tmp_path / "out").exists()
