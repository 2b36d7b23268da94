"""A PostgreSQL that is not as the fleet needs it is told in words, and remembered only once it is usable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sdk.errors import DatabaseAway, FleetError
from sdk.fleet.broker import Mosquitto
from sdk.fleet.cli import _report_text
from sdk.fleet.database import URL_NAME, engine_of, name_database
from sdk.fleet.page.app import HOST, make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.schema import _upgrade, begin_in
from sdk.fleet.store import FleetStore
from tests.commands import headway
from tests.postgres import Postgres
from tests.simulators import LiveDevice, wait_for
from tests.test_database_away import PATIENCE_S, Served
from tests.test_fleet_live import stored

pytestmark = pytest.mark.postgres


@pytest.mark.broker
@pytest.mark.parametrize(
    ("takes", "gives"),
    [
        ("REVOKE INSERT ON {0}.entries FROM {0}", "GRANT INSERT ON {0}.entries TO {0}"),
        ("REVOKE USAGE ON SCHEMA {0} FROM {0}", "GRANT USAGE ON SCHEMA {0} TO {0}"),
    ],
    ids=["of a table", "of the schema, where its tables are seen no more"],
)
def test_a_service_whose_user_lost_a_right_waits_for_it(
    mosquitto: Mosquitto, postgres: Postgres, tmp_path: Path, takes: str, gives: str
) -> None:
    name, url = postgres.new_schema()
    begin_in(tmp_path / "fleet", url)
    with (
        FleetStore(tmp_path / "fleet") as store,
        Served(store, mosquitto) as served,
        LiveDevice(mosquitto.settings, "a") as device,
    ):
        device.label(1)
        wait_for(lambda: not device.outbox, PATIENCE_S, "the control")
        postgres.execute(takes.format(name))
        device.label(2)
        wait_for(lambda: served.told("database") or not served.thread.is_alive(), PATIENCE_S, "the report")
        assert served.thread.is_alive()
        told = served.told("database")[0]
        assert "does not let its user" in told["error"]
        assert "GRANT ALL" in told["hint"]
        postgres.execute(gives.format(name))
        wait_for(lambda: not device.outbox, PATIENCE_S, "what was sent meanwhile")
    assert served.error is None
    assert stored(tmp_path / "fleet") == device.log


def test_a_database_without_the_right_to_make_tables_is_not_remembered(
    postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, url = postgres.new_schema()
    postgres.execute(f"REVOKE CREATE ON SCHEMA {name} FROM {name}")
    refused = headway(capsys, "fleet", "serve", "--dir", tmp_path / "fleet", "--database", url)
    assert (refused.code, "permission denied for schema" in refused.err) == (2, True), refused
    assert "CREATE DATABASE name OWNER user ENCODING 'UTF8'" in refused.err
    assert not (tmp_path / "fleet" / URL_NAME).exists()
    postgres.execute(f"GRANT CREATE ON SCHEMA {name} TO {name}")
    begin_in(tmp_path / "fleet", url)
    with FleetStore(tmp_path / "fleet") as store, store.read() as ledger:
        assert ledger.channels() == []


def test_an_address_that_leads_nowhere_is_not_remembered_and_the_right_one_is_taken(
    postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "fleet"
    for wrong in (
        "postgresql://headway:geheim@127.0.0.1:1/fleet",
        "postgresql://headway:geheim@127.0.0.1:5432x/f",
    ):
        refused = headway(capsys, "fleet", "serve", "--dir", directory, "--database", wrong)
        assert (refused.code, "hint: " in refused.err, "geheim" in refused.err) == (2, True, False), refused
        assert not (directory / URL_NAME).exists()
    right = postgres.new_database()
    begin_in(directory, right)
    assert (directory / URL_NAME).read_text().strip() == right
    other = headway(capsys, "fleet", "serve", "--dir", directory, "--database", postgres.new_database())
    assert f"mend {directory / URL_NAME}" in other.err


@pytest.mark.parametrize(
    ("wrong", "told", "hint"),
    [
        ("geheim@127.0.0.1:1/fleet?sslmod=require", "does not know: sslmod", "Did you mean sslmode?"),
        ("geheim@127.0.0.1:1/fleet?autocommit=1", "does not know: autocommit", "libpq"),
        ("geh@eim@127.0.0.1:1/fleet", "has an @ in its password", "%40"),
    ],
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_an_address_that_cannot_be_meant_is_told_in_words_and_without_its_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, told: str, hint: str, by_hand: bool
) -> None:
    directory, url = tmp_path / "fleet", f"postgresql://headway:{wrong}"
    if by_hand:
        directory.mkdir()
        (directory / URL_NAME).write_text(f"{url}\n")
        refused = headway(capsys, "fleet", "devices", "--dir", directory)
    else:
        refused = headway(capsys, "fleet", "serve", "--dir", directory, "--database", url)
        assert not (directory / URL_NAME).exists()
    assert (refused.code, told in refused.err, hint in refused.err) == (2, True, True), refused
    assert ("eim" in refused.err, str(directory / URL_NAME) in refused.err) == (False, by_hand)


@pytest.mark.parametrize("command", ["serve", "move-store"])
@pytest.mark.parametrize("given", ["line", "environment", "file", "line without"])
def test_a_password_that_others_can_read_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, given: str
) -> None:
    if command == "move-store":
        FleetStore(tmp_path / "fleet").close()
    url = "postgresql://headway:geheim@127.0.0.1:1/fleet"
    (tmp_path / "address").write_text(f"{url}\n")
    if given == "environment":
        monkeypatch.setenv("HEADWAY_DATABASE", url)
    ways: dict[str, list[object]] = {
        "line": ["--database", url],
        "line without": ["--database", url.replace(":geheim", "")],
        "file": ["--database-file", tmp_path / "address"],
    }
    ended = headway(capsys, "fleet", command, "--dir", tmp_path / "fleet", *ways.get(given, []))
    assert (ended.code, "connection to server" in ended.err) == (2, True), ended
    assert ended.err.count("every user of this machine") == (given == "line")
    assert "geheim" not in ended.err


def test_a_file_with_no_address_and_two_addresses_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*args: object) -> str:
        ended = headway(capsys, "fleet", "move-store", "--dir", tmp_path, *args)
        assert ended.code == 2
        return ended.err

    file = tmp_path / "address"
    assert "No such file" in refused("--database-file", file)
    file.write_bytes(b"\n")
    assert "is empty" in refused("--database-file", file)
    file.write_bytes(b"\xff\n")
    assert "is no text" in refused("--database-file", file)
    assert "both name a database" in refused("--database-file", file, "--database", "postgresql://h/d")
    assert "--database-file FILE" in refused()


@pytest.mark.broker
def test_nobody_reads_the_password_of_a_service_that_runs(
    mosquitto: Mosquitto, postgres: Postgres, tmp_path: Path
) -> None:
    directory, file = tmp_path / "fleet", tmp_path / "address"
    _, url = postgres.new_schema()
    file.write_text(f"{url}\n")
    command = [sys.executable, "-m", "sdk.cli", "fleet", "serve", "--dir", str(directory)]
    command += ["--broker", mosquitto.settings.address, "--database-file", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serve:
        assert serve.stdout is not None
        try:
            assert "ready on" in serve.stdout.readline()
            assert url.encode() not in Path(f"/proc/{serve.pid}/cmdline").read_bytes()
            assert (directory / URL_NAME).read_text().strip() == url
        finally:
            serve.terminate()


def test_a_database_that_cannot_hold_every_name_is_refused(
    postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres.new_latin_database()
    refused = headway(capsys, "fleet", "serve", "--dir", tmp_path / "fleet", "--database", url)
    assert (refused.code, "encoding is LATIN1" in refused.err) == (2, True), refused
    assert "ENCODING 'UTF8'" in refused.err
    assert not (tmp_path / "fleet" / URL_NAME).exists()


def test_a_fleet_that_is_in_such_a_one_goes_on_and_a_name_too_much_is_no_end_of_it(
    postgres: Postgres, tmp_path: Path
) -> None:
    name_database(tmp_path, postgres.new_latin_database())  # as it was done before they were refused
    engine = engine_of(tmp_path)
    _upgrade(tmp_path, engine)
    engine.dispose()
    with FleetStore(tmp_path) as store:
        with pytest.raises(DatabaseAway, match="cannot hold a name") as caught, store.write() as ledger:
            ledger.note_broker("漢字:1883", None)
        assert "ENCODING 'UTF8'" in caught.value.hint
        with store.write() as ledger:
            ledger.note_broker("Müller:1883", 1.0)
        with store.read() as ledger:
            assert ledger.broker_away() is not None


def test_the_page_says_that_its_database_is_away(postgres: Postgres, tmp_path: Path) -> None:
    begin_in(tmp_path / "fleet", postgres.new_database())
    with FleetStore(tmp_path / "fleet") as store:
        client = TestClient(make_app(FleetView(store)), base_url=f"http://{HOST}", raise_server_exceptions=False)
        assert client.get("/api/fleet").status_code == 200
        postgres.kill()
        try:
            answers = {path: client.get(path) for path in ("/", "/part/devices", "/api/fleet")}
            assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(answers, 503)
            assert "PostgreSQL cannot be used" in answers["/api/fleet"].json()["error"]
            assert "<title>Not now" in answers["/"].text
            with pytest.raises(DatabaseAway):
                store.served()
        finally:
            postgres.start()
        assert client.get("/api/fleet").status_code == 200


def test_the_log_says_why_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    error = FleetError(
        "the fleet's PostgreSQL cannot be used: " + "so it is, " * 20 + "and why", hint="mend it so"
    )
    _report_text("database", {"error": str(error), "hint": error.hint})
    assert capsys.readouterr().out.rstrip().endswith("and why, hint mend it so")
