"""What devices, bundles and releases are called is shown as it is: as no markup, and nothing a terminal obeys."""

from __future__ import annotations

import io
import logging
import time
from pathlib import Path

import msgspec
import pytest

from device_agent.agent import Agent
from device_agent.config import LogSettings
from device_agent.history import read_history
from device_agent.logs import set_up_logs
from device_agent.site_file import load_site
from sdk.bundle import MANIFEST_NAME, Bundle, decode_manifest, encode_manifest
from sdk.errors import HeadwayError
from sdk.fleet.store import FleetStore
from sdk.wire import DeviceState
from tests.commands import headway
from tests.simulators import wait_for
from tests.test_agent import running
from tests.tiny import picture, tiny_bundle

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
