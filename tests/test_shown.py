"""What devices, bundles and releases are called is shown as it is: as no markup, and nothing a terminal obeys."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from device_agent.agent import Agent
from device_agent.config import LogSettings
from device_agent.history import read_history
from device_agent.logs import set_up_logs
from device_agent.site_file import load_site
from export.set_report import DoubtfulLabel, LabelsReport
from export.terminal import show_doubtful
from sdk.bundle import MANIFEST_NAME, Bundle, decode_manifest, encode_manifest
from sdk.console import Console
from sdk.errors import HeadwayError
from sdk.fleet.broker import Mosquitto
from sdk.fleet.store import FleetStore
from sdk.labels import DefineClass, Quarantine
from sdk.mqtt import Publication
from sdk.wire import DeviceState, UpdateEvent, UpdateState, encode_json
from tests.builders import set_report_on
from tests.commands import headway
from tests.simulators import LiveDevice, SimDevice, wait_for
from tests.test_agent import running
from tests.tiny import class_id, picture, tiny_bundle

NAME = "part [/line-3] [gross]"
ESCAPES = "\x1b]0;owned\x1b\\\x9b2J\x1b[1A\u202eall is well\nchannel b"
OBEYED = ("\x1b", "\x9b", "\u202e", "\nchannel b")

SHOWN = r"\x1b]0;owned"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("shown") / "bundle", classes=("Riss [gross]", "[/x]"), name=NAME)


@pytest.fixture
def fleet(tmp_path: Path, bundle: Bundle) -> Path:
    """A fleet with this release, and a device that says whatever it likes."""
    state = DeviceState(
        device="evil", channel="default", online=True, faults=[ESCAPES], trust="signed", agent_version=ESCAPES
    )
    with FleetStore(tmp_path / "fleet") as store:
        with store.write() as ledger:
            ledger.note_state(state, seen_utc=time.time())
        store.publish(bundle, channel="default")
    return tmp_path / "fleet"


@pytest.mark.parametrize("command", ["devices", "rollout show", "precision show", "classes", "suspects", "log"])
def test_what_a_fleet_hears_is_shown_as_it_is(
    fleet: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    ended = headway(capsys, "fleet", *command.split(), "--dir", fleet)
    assert ended.code in (0, 2), ended.err
    assert not [each for each in OBEYED if each in ended.out + ended.err]
    if command == "devices":
        assert f"release {NAME}" in ended.out
        assert ended.out.count(r"\x1b]0;owned") == 2, "its version and its fault"


FORGED = "out of memory\n2026-11-27 16:30:00Z  quarantine: device line-3, by anna, reason poisoned labels"


def test_no_device_begins_a_line_in_the_log_of_the_service(fleet: Path, mosquitto: Mosquitto) -> None:
    with FleetStore(fleet) as store, store.read() as ledger:
        release = ledger.current("default")
    assert release is not None
    event = UpdateEvent(release_id=release.ref.release_id, state=UpdateState.ROLLED_BACK, reason=FORGED)
    command = [sys.executable, "-m", "sdk.cli", "fleet", "serve", "--dir", str(fleet)]
    with (
        subprocess.Popen(
            [*command, "--broker", mosquitto.settings.address], stdout=subprocess.PIPE, text=True
        ) as serve,
        LiveDevice(mosquitto.settings, "evil") as evil,
    ):
        assert serve.stdout is not None
        lines = iter(serve.stdout.readline, "")
        try:
            assert "ready on" in next(lines)
            evil.label(1)
            wait_for(lambda: not evil.outbox, what="the service listens")
            evil.session.send(Publication(evil.topics.up_event("evil"), encode_json(event)))
            told = next(line for line in lines if "rolled_back" in line)
        finally:
            serve.terminate()
        rest = list(lines)
    assert r"reason out of memory\n2026-11-27 16:30:00Z  quarantine: device line-3" in told
    assert not [line for line in rest if "quarantine" in line]


@pytest.mark.parametrize("command", ["classes", "log", "suspects"])
def test_no_operator_or_class_begins_a_line_of_what_a_fleet_shows(
    fleet: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    line = SimDevice("line-2")
    for number in range(2):
        line.write(DefineClass(class_id(f"{number}"), f"R\nmay be {number}", "a\nb: c"))
    with FleetStore(fleet) as store, store.write() as ledger:
        ledger.note_state(DeviceState(device="line-2", channel="default", online=True), seen_utc=1.0)
        ledger.take("line-2", line.log, {})
        ledger.decide("default", [Quarantine("line-2", "a\nb: c", 1, "so\nit is", "anna\nbob")])
    ended = headway(capsys, "fleet", *command.split(), "--dir", fleet)
    assert ended.code == 0, ended.err
    assert r"\n" in ended.out
    assert not [each for each in ended.out.splitlines() if each.startswith(("may be 0", "b: c", "it is", "bob"))]


def test_no_file_begins_a_line_of_what_an_export_or_an_evaluation_shows(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set" / "good\nclass 2"
    folder.mkdir(parents=True)
    for i in range(6):
        (folder / f"{i}\nforged.png").write_bytes(picture("good", 300 + i))
    (folder / "torn\nforged.png").write_bytes(b"torn")
    for told in (
        headway(capfd, "export", "--check", tmp_path / "set"),
        headway(capfd, "evaluate", bundle.path, "--data", tmp_path / "set"),
    ):
        lines = (told.out + told.err).splitlines()
        assert r"torn\nforged.png" in told.out + told.err
        assert not [each for each in lines if each.strip("│ ").startswith(("forged", "class 2"))]


def test_what_people_read_of_labels_to_look_at_is_a_line_each() -> None:
    label = DoubtfulLabel(path="a\nb", label="pit", looks_like="x\ny", probability=0.01)
    labels = LabelsReport(learned=9, judged=9, otherwise=1, doubtful=1, below=0.1, listed=[label])
    out = io.StringIO()
    report = msgspec.structs.replace(set_report_on("parts", 9), labels=labels)
    show_doubtful(report, Console(file=out, width=80))
    assert r"  a\nb: pit, looks like x\ny" in out.getvalue().splitlines()


def test_a_bundle_is_shown_under_the_names_that_it_has(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    told = headway(capsys, "bundle", "show", bundle.path)
    assert told.code == 0
    assert told.out.startswith(NAME)
    assert "Riss [gross]" in told.out
    assert "[/x]" in told.out
    assert headway(capsys, "bundle", "lineage", bundle.path).out.startswith(NAME)


@pytest.mark.parametrize("what", ["name", "class"])
def test_a_bundle_with_control_characters_in_a_name_is_refused(tmp_path: Path, what: str) -> None:
    made = tiny_bundle(tmp_path / "bundle", per_class=6)
    file = made.path / MANIFEST_NAME
    manifest = decode_manifest(file.read_bytes())
    if what == "name":
        manifest = msgspec.structs.replace(manifest, name="a\x1b[2J")
    else:
        first = msgspec.structs.replace(manifest.classes[0], name="good\n")
        manifest = msgspec.structs.replace(manifest, classes=[first, *manifest.classes[1:]])
    file.write_bytes(encode_manifest(manifest))
    with pytest.raises(HeadwayError):
        Bundle.open(made.path)


def test_an_agent_shows_names_as_they_are(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / f"[x]{ESCAPES}.png".replace("\n", "")).write_bytes(picture("pit", 701)[:100])  # it is damaged
    file = tmp_path / "site.toml"
    file.write_text(
        f'device = "line-1"\ndata_dir = "data"\nbundle = "{bundle.path}"\n'
        '[camera]\nkind = "folder"\npath = "images"\n[page]\nport = 0\n'
    )
    with Agent(load_site(file)) as agent, running(agent):
        wait_for(lambda: bool(agent.state().faults) and sum(1 for _ in read_history(tmp_path / "data")) == 1)
        status = headway(capsys, "agent", "status", file).out
        assert f"release   {NAME} (fp32)" in status
        assert f"[x]{SHOWN}" in status
    assert "[x]" in headway(capsys, "agent", "history", file).out
    table = headway(capsys, "agent", "history", file, "--csv", "-").out
    assert f"[x]{SHOWN}" in table
    for told in (status, table):
        assert not [each for each in OBEYED if each in told]


def test_a_log_line_has_no_terminal_obeyed() -> None:
    out = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        set_up_logs(LogSettings(), "line-1", to=out)
        logging.getLogger("test").warning("a part is called %s", ESCAPES)
    finally:
        root.handlers[:], root.level = before
    assert not [each for each in OBEYED if each in out.getvalue()]
    assert r"\x1b]0;owned" in out.getvalue()
