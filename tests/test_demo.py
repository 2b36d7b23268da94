"""The demo, whole: real export, broker, service and two agents, on small pictures and a random backbone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sdk.demo.plant import DemoFailed, Device, Service
from sdk.errors import BrokerError
from tests.commands import headway
from tests.pages import wait_for
from tests.tiny import write_pictures

pytestmark = [pytest.mark.broker, pytest.mark.torch]

ROOT = Path(__file__).parents[1]
CLASSES = ("good", "pit", "rings", "scratch")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("parts"), CLASSES, per_class=28)


def test_one_device_learns_a_defect_and_the_other_knows_it(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "demo", tmp_path / "figures.json"
    ended = headway(
        capfd, "demo", "--data", data, "--backbone", "test_resnet", "--weights", "none", "--strategy", "frozen",
        "--hold-back", "rings", "--labels", "6", "--out", out, "--json", figures,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads(figures.read_text())
    assert report == json.loads((out / "report.json").read_text())
    a, b = report["devices"]
    assert (a["labels_given"], b["labels_given"]) == (6, 0)  # the stream alone has four for device a
    for device in (a, b):
        assert device["trust"] == "signed"
        assert device["new_class_recall_before"] == 0
        assert device["new_class_recall_after"] >= 0.5
        assert 0 < device["mqtt_bytes_head"] < device["mqtt_bytes_release"]
    assert a["recall_after"] == b["recall_after"]
    assert len(set(report["live_set_digests"].values())) == 1
    assert set(report["live_set_digests"]) == {"a", "b", "fleet"}
    assert 0 < a["label_to_live_ms"] < 5000
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 6 + len(CLASSES)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "The digests are equal." in ended.out

    # It runs again over its own folder, and over nobody else's.
    (out / "headway-demo").unlink()
    again = headway(capfd, "demo", "--data", data, "--hold-back", "rings", "--out", out)
    assert again.code == 2
    assert "holds other things" in again.err
    assert (out / "report.json").is_file()


def test_wrong_use_is_said_before_any_work(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    no_class = headway(capfd, "demo", "--data", data, "--out", out)
    assert no_class.code == 2
    assert "--hold-back" in no_class.err
    no_data = headway(capfd, "demo", "--backbone", "test_resnet", "--out", out)
    assert no_data.code == 2
    assert "--data" in no_data.err
    assert not out.exists()
    unknown = headway(capfd, "demo", "--data", data, "--hold-back", "dent", "--out", out)
    assert unknown.code == 2
    assert "rings" in unknown.err
    too_many = headway(capfd, "demo", "--data", data, "--hold-back", "rings", "--labels", "40", "--out", out)
    assert too_many.code == 2
    assert "device a would meet 11 images of rings, and 40 are to be labelled" in too_many.err
    assert "--labels 11" in too_many.err
    assert not (out / "export.json").exists()


def test_what_is_missing_is_said_before_an_earlier_demo_is_emptied(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "headway-demo").write_text("made by a demo before")
    (tmp_path / "report.html").write_text("of then")

    def missing() -> Path:
        raise BrokerError("Mosquitto is not installed on this machine", hint="apt-get install mosquitto")

    assert headway(capfd, "demo", "--out", tmp_path, "--seed", "-1").code == 2
    monkeypatch.setattr("sdk.demo.cli.find_mosquitto", missing)
    told = headway(capfd, "demo", "--out", tmp_path)
    assert (told.code, "apt-get install mosquitto" in told.err) == (2, True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["headway-demo", "report.html"]


SILENT = """
import json, sys, time
print(json.dumps({"event": "ready", "page": "http://127.0.0.1:9/"}), flush=True)
time.sleep(600)
"""


def test_a_device_that_does_not_answer_ends_the_demo_with_words(tmp_path: Path) -> None:
    service = Service("a", [sys.executable, "-c", SILENT], tmp_path / "log")
    try:
        with pytest.raises(DemoFailed, match="a does not answer to /api/state") as caught:
            Device("a", service).state()
        assert str(tmp_path / "log") in str(caught.value.hint)
    finally:
        service.stop()


KILLED = """
import signal, sys
from pathlib import Path
from sdk.demo.plant import Guard, Service
from sdk.fleet.broker import Mosquitto
with Guard() as guard, Mosquitto() as broker:
    sleeps = Service("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], Path(sys.argv[1]))
    for pid in (sleeps.pid, broker.pid):
        guard.watch(pid)
    print(sleeps.pid, broker.pid, flush=True)
    signal.pause()
"""


def test_a_demo_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "log"], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as demo:
        assert demo.stdout is not None
        pids = [int(pid) for pid in demo.stdout.readline().split()]
        assert len(pids) == 2
        assert all(runs(pid) for pid in pids)
        demo.kill()
    wait_for(lambda: not any(runs(pid) for pid in pids))


def runs(pid: int) -> bool:
    """Return whether a process is there and no zombie, which only waits to be noticed by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_place_that_cannot_be_is_said_and_nothing_is_emptied(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, demo = tmp_path / "file", tmp_path / "demo"
    file.write_bytes(b"")
    own = write_pictures(demo / "images", CLASSES, per_class=1)
    (demo / "headway-demo").write_text("made by a demo before")
    for words, *args in (
        ("Not a directory", "--data", data, "--out", file),
        ("Not a directory", "--data", data, "--out", file / "demo"),
        ("which is emptied", "--data", own, "--out", demo),
        ("no such folder", "--data", data, "--out", demo, "--json", tmp_path / "no" / "figures.json"),
    ):
        ended = headway(capfd, "demo", "--hold-back", "rings", *args)
        assert ended.code == 2, ended.err
        assert words in ended.err
        assert len(ended.err.splitlines()) == 2
    assert (own / "rings" / "000.png").is_file()
