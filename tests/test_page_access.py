"""Accounts of the page: what is refused, and that nothing secret and no name is where it should not be (T21)."""

from __future__ import annotations

import contextlib
import html
import json
import re
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner
from playwright.sync_api import expect

from device_agent.agent import Agent, running_state
from device_agent.cli_user import user
from device_agent.config import PageSettings
from device_agent.database import Database
from device_agent.page import access as page_access
from device_agent.page import open_page
from device_agent.page.access import (
    HASHERS,
    IDLE_OPERATOR_S,
    IDLE_S,
    LONGEST_S,
    MAX_COUNTED,
    MAX_TRIES,
    MAX_WAIT_S,
    WAITING,
    Access,
    Role,
)
from device_agent.page.book import open_book
from device_agent.page.guard import SESSION_COOKIE
from device_agent.site_file import load_site
from sdk.bundle import Bundle
from sdk.errors import AccessError, ConfigError, LoginFailed, NameTaken, TooManyTries
from sdk.web.server import PageServer
from tests.commands import headway
from tests.pages import (
    CHEAP,
    DEADLINE_S,
    Device,
    Screen,
    chromium,
    opened,
    running,
    serving,
    wait_for,
    write_stream,
)
from tests.tiny import class_id, tiny_bundle

PASSWORD, PIN = "correct horse", "493817"


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Database]:
    found = open_book(tmp_path)
    yield found
    found.close()


@pytest.fixture
def access(book: Database, clock: Clock) -> Access:
    found = Access(book, clock=clock, hasher=CHEAP)
    found.add("Ann", Role.ADMIN, PASSWORD)
    found.add("Ben", Role.OPERATOR, PIN)
    return found


def test_only_the_right_secret_begins_a_session(access: Access) -> None:
    who = access.session(access.log_in("ben", PIN, "10.0.0.1"))
    assert who is not None
    assert (who.name, who.role) == ("Ben", Role.OPERATOR)
    for name, secret in (("Ben", "493818"), ("Nobody", PIN), ("Ben", ""), ("Ann", PIN)):
        with pytest.raises(LoginFailed):
            access.log_in(name, secret, "10.0.0.1")
    assert access.session("x" * 43) is None


def test_secrets_and_session_values_are_not_in_the_file(access: Access, tmp_path: Path) -> None:
    token, machine = access.log_in("Ann", PASSWORD, ""), access.add_token("plc", Role.OPERATOR)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "page").iterdir())
    for value in (PASSWORD, PIN, token, machine):
        assert value.encode() not in stored
    assert b"$argon2id$" in stored
    assert (tmp_path / "page").stat().st_mode & 0o077 == 0


def test_the_default_hash_is_what_argon2_recommends() -> None:
    hasher = PasswordHasher()
    assert (hasher.memory_cost, hasher.time_cost) >= (64 * 1024, 3)


@pytest.mark.parametrize(
    ("role", "secret"),
    [
        (Role.OPERATOR, "12345"),
        (Role.OPERATOR, "123456"),
        (Role.OPERATOR, "987654"),
        (Role.OPERATOR, "111111"),
        (Role.OPERATOR, "121212"),
        (Role.OPERATOR, "short"),
        (Role.ENGINEER, PIN),
        (Role.ADMIN, "ninechars"),
        (Role.ADMIN, "x" * 129),
    ],
)
def test_a_secret_that_is_too_easy_is_refused(access: Access, role: Role, secret: str) -> None:
    with pytest.raises(AccessError) as refusal:
        access.add("Cem", role, secret)
    assert refusal.value.hint
    assert [a.name for a in access.accounts()] == ["Ann", "Ben"]


@pytest.mark.parametrize(
    "name", ["", "   ", "x" * 49, "a\x00b", "p-123456", "token plc", "system ben", "a/b", ".", ".."]
)
def test_a_name_that_is_none_or_reads_like_an_id_is_refused(access: Access, name: str) -> None:
    with pytest.raises(AccessError):
        access.add(name, Role.OPERATOR, PIN)
    with pytest.raises(AccessError):
        access.add_token(name, Role.OPERATOR)


def test_the_first_account_is_an_admins_and_the_last_admin_stays(book: Database) -> None:
    empty = Access(book, hasher=CHEAP)
    assert not empty.in_use
    with pytest.raises(AccessError, match="first account"):
        empty.add("Ben", Role.OPERATOR, PIN)
    empty.add("Ann", Role.ADMIN, PASSWORD)
    empty.add("Ben", Role.OPERATOR, PIN)
    with pytest.raises(NameTaken):
        empty.add("BEN", Role.OPERATOR, PIN)
    with pytest.raises(AccessError, match="last admin"):
        empty.remove("Ann")
    empty.remove("Ben")
    for erase in (False, True):
        with pytest.raises(AccessError, match="last account"):
            empty.remove("Ann", erase=erase)
    assert [each.name for each in empty.accounts()] == ["Ann"]
    empty.remove("Ann", open_again=True)
    assert not empty.in_use


def test_wrong_tries_are_slowed_down_and_the_clock_frees_them(access: Access, clock: Clock) -> None:
    for _ in range(MAX_TRIES):
        with pytest.raises(LoginFailed):
            access.log_in("Ben", "000001", "10.0.0.1")
    with pytest.raises(TooManyTries):
        access.log_in("Ben", PIN, "10.0.0.2")  # the right one, from elsewhere: nothing is checked
    access.log_in("Ann", PASSWORD, "10.0.0.1")
    clock.now += 31
    access.log_in("Ben", PIN, "10.0.0.1")
    waited = 0.0
    for _ in range(3 * MAX_TRIES):
        try:
            access.log_in("Ben", "000001", "10.0.0.1")
        except TooManyTries:
            clock.now += MAX_WAIT_S
            waited += MAX_WAIT_S
        except LoginFailed:
            pass
    assert waited > 4 * MAX_WAIT_S
    clock.now -= 10 * 365 * 86_400  # a clock that jumps back locks nobody out for ever
    with pytest.raises((TooManyTries, LoginFailed)):
        access.log_in("Ben", "000001", "10.0.0.9")


def test_after_however_many_wrong_tries_the_next_one_waits(access: Access, clock: Clock, book: Database) -> None:
    with book.transaction() as db:  # after eleven days of trying
        db.execute("INSERT INTO tries VALUES ('account ben', 1100, 0.0)")
    with pytest.raises(LoginFailed):
        access.log_in("Ben", "000001", "10.0.0.1")
    clock.now += MAX_WAIT_S - 1
    with pytest.raises(TooManyTries):
        access.log_in("Ben", "000001", "10.0.0.1")


def crowd(book: Database, until_utc: float) -> None:
    """As many wrong tries under invented names, and from as many addresses, as are counted; before all others."""
    rows = [
        (f"{kind} 0{n:05x}", 4 * MAX_TRIES, until_utc)
        for kind in ("account", "address")
        for n in range(MAX_COUNTED)
    ]
    with book.transaction() as db:
        db.executemany("INSERT INTO tries VALUES (?, ?, ?)", rows)


@pytest.mark.parametrize("ends_in_s", [-1.0, MAX_WAIT_S, 1e9], ids=["over", "waiting", "of a clock ahead"])
def test_however_many_names_are_invented_an_account_and_an_address_wait(
    access: Access, clock: Clock, book: Database, ends_in_s: float
) -> None:
    crowd(book, clock.now + ends_in_s)
    for i in range(MAX_TRIES):
        with pytest.raises(LoginFailed):
            access.log_in("Ben", "000001", f"10.0.1.{i}")
        with pytest.raises(LoginFailed):  # somebody else is counted meanwhile
            access.log_in(f"00 nobody {i}", "000001", f"0.0.0.{i}")
    with pytest.raises(TooManyTries):
        access.log_in("Ben", PIN, "10.0.2.1")
    with pytest.raises(LoginFailed):
        access.log_in("nobody", "000001", "10.0.0.1")
    names, addresses = (
        book.value(f"SELECT count(*) FROM tries WHERE who LIKE '{kind} %'") for kind in ("account", "address")
    )
    assert (names, addresses) == (MAX_COUNTED + 2, MAX_COUNTED + 1), "Ben's, and each the one counted last"


def test_what_ended_longest_ago_is_forgotten_first(access: Access, clock: Clock, book: Database) -> None:
    crowd(book, clock.now - 1)
    for i in range(4 * MAX_TRIES):  # ends later than the crowd's, again and again
        clock.now += 0.01
        with pytest.raises(LoginFailed):
            access.log_in(f"0 nobody {i}", "000001", "10.0.0.1")
    with pytest.raises(TooManyTries):
        access.log_in("Ann", PASSWORD, "10.0.0.1")


@pytest.mark.parametrize(
    ("first", "other", "same"),
    [
        ("2001:db8:0:7::1", "2001:db8:0:7:ffff::9", True),
        ("2001:db8:0:7::1", "2001:db8:0:8::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_one_machines_many_addresses_count_as_one(access: Access, first: str, other: str, same: bool) -> None:
    for i in range(4 * MAX_TRIES):
        with pytest.raises(LoginFailed):
            access.log_in(f"somebody {i}", "000001", first)
    with pytest.raises(TooManyTries if same else LoginFailed):
        access.log_in("somebody else", "000001", other)


def test_a_terminal_where_many_mistype_over_the_months_locks_nobody_out(access: Access, clock: Clock) -> None:
    for _ in range(40):
        clock.now += 86_400
        with pytest.raises(LoginFailed):
            access.log_in("Ben", "000001", "127.0.0.1")
        access.log_in("Ben", PIN, "127.0.0.1")


class Held(PasswordHasher):
    """Checks nothing until it may, and counts."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.checked, self.go_on, self._lock = 0, threading.Event(), threading.Lock()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
        with self._lock:
            self.checked += 1
        assert self.go_on.wait(DEADLINE_S)
        return super().verify(hash, password)


def all_at_once(access: Access, hasher: Held, tries: list[tuple[str, str]], refused: int) -> list[type[Exception]]:
    """Let people try at the same moment; return what they were told, who was refused unchecked first."""
    told: list[type[Exception]] = []

    def one(name: str, address: str) -> None:
        try:
            access.log_in(name, "000001", address)
        except (LoginFailed, TooManyTries) as error:
            told.append(type(error))

    threads = [threading.Thread(target=one, args=each) for each in tries]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(told) == refused)  # while nobody has been checked yet
    hasher.go_on.set()
    for thread in threads:
        thread.join()
    return told


def test_of_many_tries_at_the_same_moment_no_more_are_checked_than_of_as_many_in_a_row(
    access: Access, book: Database, clock: Clock
) -> None:
    hasher = Held()
    told = all_at_once(Access(book, clock=clock, hasher=hasher), hasher, [("Ben", "10.0.0.1")] * 60, 55)
    assert told == [TooManyTries] * (60 - MAX_TRIES) + [LoginFailed] * MAX_TRIES
    assert hasher.checked == MAX_TRIES
    with pytest.raises(TooManyTries):
        access.log_in("Ben", PIN, "10.0.0.2")


def test_logins_wait_for_each_other_in_few_threads_and_the_next_is_refused(
    access: Access, book: Database, clock: Clock
) -> None:
    """Else they would hold all the threads that answer everybody."""
    hasher, most = Held(), HASHERS + WAITING
    tries = [(f"somebody {i}", f"10.0.0.{i}") for i in range(40)]
    told = all_at_once(Access(book, clock=clock, hasher=hasher), hasher, tries, 40 - most)
    assert told == [TooManyTries] * (40 - most) + [LoginFailed] * most
    assert book.value("SELECT count(*) FROM tries") == 2 * most, "who was only refused is not counted"


def test_a_right_try_counts_for_nothing(access: Access, book: Database) -> None:
    for i in range(4 * MAX_TRIES - 1):
        with pytest.raises(LoginFailed):
            access.log_in(f"somebody {i}", "000001", "10.0.0.1")
        for _ in range(3):
            access.log_in("Ben", PIN, "10.0.0.1")
    assert book.value("SELECT failed FROM tries WHERE who = 'address 10.0.0.1'") == 4 * MAX_TRIES - 1
    assert book.value("SELECT count(*) FROM tries WHERE who = 'account ben'") == 0
    with pytest.raises(LoginFailed):
        access.log_in("somebody", "000001", "10.0.0.1")
    with pytest.raises(TooManyTries):
        access.log_in("Ben", PIN, "10.0.0.1")


def test_people_who_log_in_do_not_keep_a_mistyped_pin_from_being_forgotten(access: Access, clock: Clock) -> None:
    for _ in range(8 * MAX_TRIES):
        with pytest.raises(LoginFailed):
            access.log_in("Ben", "000001", "10.0.0.1")
        for _ in range(3):
            clock.now += 50 * 60.0
            access.log_in("Ben", PIN, "10.0.0.1")


def test_a_stranger_is_forgiven_no_try(access: Access, clock: Clock) -> None:
    tries, began = 0, clock.now
    while clock.now < began + 86_400:
        try:
            access.log_in(f"somebody {tries}", "000001", "10.0.0.1")
        except TooManyTries:
            clock.now += 60.0
        except LoginFailed:
            tries += 1
    assert tries < 24 * 4 + 4 * MAX_TRIES + 10


@pytest.mark.parametrize(("name", "secret", "idle_s"), [("Ann", PASSWORD, IDLE_S), ("Ben", PIN, IDLE_OPERATOR_S)])
def test_a_session_ends(access: Access, clock: Clock, name: str, secret: str, idle_s: float) -> None:
    unused, used, out, changed = (access.log_in(name, secret, "") for _ in range(4))
    clock.now += idle_s - 1
    assert access.session(used) is not None
    clock.now += 2
    assert access.session(unused) is None
    assert access.session(used) is not None
    access.log_out(out)
    assert access.session(out) is None
    access.set_secret(name, "another secret")
    assert access.session(changed) is None
    fresh = access.log_in(name, "another secret", "")
    for _ in range(int(LONGEST_S / idle_s) + 2):
        clock.now += idle_s - 1
        access.session(fresh)
    assert access.session(fresh) is None


@pytest.mark.parametrize("back_s", [61.0, 10 * 365 * 86_400.0])
def test_a_session_begun_while_the_clock_was_ahead_ends_with_its_correction(
    access: Access, clock: Clock, back_s: float
) -> None:
    """Else it would last until the clock is there again, and a session's length after that."""
    token, kept = access.log_in("Ann", PASSWORD, ""), access.log_in("Ben", PIN, "")
    clock.now -= 59.0  # clocks are set back a little all the time
    assert access.session(kept) is not None
    clock.now -= back_s - 59.0
    assert access.session(token) is None
    clock.now += back_s
    assert access.session(token) is None
    assert access.session(kept) is not None, "nobody asked meanwhile"


def test_removing_keeps_a_name_and_erasing_forgets_it(access: Access, tmp_path: Path, book: Database) -> None:
    ben = next(a for a in access.accounts() if a.name == "Ben")
    with pytest.raises(LoginFailed):
        access.log_in("Ben", "000001", "10.0.0.7")
    token = access.log_in("Ben", PIN, "10.0.0.7")
    access.remove("Ben")
    assert access.session(token) is None
    assert access.name_of(ben.id) == "Ben"
    access.remove("Ben", erase=True)
    assert access.name_of(ben.id) == ben.id
    told = [(row.what, row.address) for row in access.audit(100) if row.who == ben.id or row.what == "Ben"]
    assert all(address == "" for _, address in told)
    assert "Ben" not in json.dumps([vars(row) for row in access.audit(100)])


def test_who_was_removed_can_be_erased_afterwards(access: Access) -> None:
    first = access.account("Ben").id
    access.remove("Ben")
    second = access.add("Ben", Role.OPERATOR, PIN).id
    assert access.remove("ben", erase=True) == [second]
    assert (access.name_of(first), access.name_of(second)) == ("Ben", second)
    assert access.remove("ben", erase=True) == [first], "the one of before"
    assert access.name_of(first) == first
    for erase in (False, True):
        with pytest.raises(AccessError, match="no account"):
            access.remove("Ben", erase=erase)


def written(folder: Path, *names: str) -> list[str]:
    """Return those names that can be read in the page's files, however they are written."""
    held = (
        b"".join(path.read_bytes() for path in (folder / "page").iterdir()).decode("utf-8", "replace").casefold()
    )
    return [name for name in names if name.casefold() in held]


def test_nothing_of_who_was_erased_can_be_read_in_the_files(tmp_path: Path, book: Database, clock: Clock) -> None:
    """Also while another process, a command, has them open."""
    access = Access(book, clock=clock, hasher=CHEAP)
    access.add("Ann", Role.ADMIN, PASSWORD)
    access.add("Jörg Fünfhaus", Role.OPERATOR, PIN)
    with contextlib.closing(open_book(tmp_path)) as other:
        for typed in ("JÖRG FÜNFHAUS", "jörg  fünfhaus", "Jo\u0308rg Fünfhaus"):
            with pytest.raises(LoginFailed):
                Access(other, clock=clock, hasher=CHEAP).log_in(typed, "000001", "10.0.0.7")
        assert access.session(access.log_in("jörg fünfhaus", PIN, "10.0.0.7")) is not None
        access.note("system jörg fünfhaus", "secret changed", access.account("Ann").id)
        assert written(tmp_path, "Jörg", "rg Fünfhaus", "Ann") == ["Jörg", "rg Fünfhaus", "Ann"]
        access.remove("JÖRG FÜNFHAUS", erase=True)
        assert access.wipe()
        assert written(tmp_path, "Jörg", "rg Fünfhaus", "Ann") == ["Ann"]
        assert [row.action for row in access.audit(9)] == ["secret changed", "login"] + 3 * ["login refused"]


def test_what_was_erased_before_is_wiped_once(tmp_path: Path, book: Database) -> None:
    """A device in the field has erased people and kept them in its file."""
    access = Access(book, hasher=CHEAP)
    with book.transaction() as db:
        db.execute("PRAGMA secure_delete = OFF")
        db.executemany("INSERT INTO settings VALUES (?, ?)", [(f"former/p-{i}", f"Ben-{i}") for i in range(500)])
    with book.transaction() as db:
        db.execute("DELETE FROM settings")
    book.shrink()
    assert written(tmp_path, "Ben-")
    assert access.wipe()
    assert not written(tmp_path, "Ben-")
    kept = (tmp_path / "page" / "page.sqlite3").stat()
    assert access.wipe()
    assert (tmp_path / "page" / "page.sqlite3").stat() == kept, "nothing was left to do"


def test_an_erasure_that_could_not_be_wiped_is_wiped_later(tmp_path: Path, book: Database) -> None:
    access = Access(book, hasher=CHEAP)
    access.add("Ann", Role.ADMIN, PASSWORD)
    access.add("Ben", Role.OPERATOR, PIN)
    book.rows("PRAGMA busy_timeout = 50")  # the reader will not let go however long one waits
    reader = sqlite3.connect(tmp_path / "page" / "page.sqlite3", isolation_level=None)
    with contextlib.closing(reader):
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM accounts").fetchone()
        access.remove("Ben", erase=True)
        assert not access.wipe()
        assert written(tmp_path, "Ben")
    assert access.wipe()
    assert not written(tmp_path, "Ben")


def test_names_that_differ_in_how_they_are_written_are_one(access: Access) -> None:
    access.add("Jörg", Role.OPERATOR, PIN)
    for name in ("JÖRG", "Jo\u0308rg", " jörg"):
        with pytest.raises(NameTaken):
            access.add(name, Role.OPERATOR, PIN)
        assert access.account(name).name == "Jörg"
        assert access.session(access.log_in(name, PIN, "")) is not None


def test_erasing_happens_whole_or_not_at_all(access: Access, book: Database) -> None:
    """A name that nothing could be erased by any more must not be left by a power cut between two steps."""
    ben = access.account("Ben").id
    access.note(ben, "logged in", address="10.0.0.7")
    with book.transaction() as db:
        db.execute("CREATE TRIGGER cut BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'cut'); END")
    with pytest.raises(sqlite3.IntegrityError):
        access.remove("Ben", erase=True)
    assert access.account("Ben").id == ben


# -- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("access") / "bundle")


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle) -> Iterator[Device]:
    stream = write_stream(tmp_path / "stream", {"rings": 3, "pit": 3})
    with serving(tmp_path / "data", stream, bundle) as found:
        found.access.add("Ann", Role.ADMIN, PASSWORD)
        found.access.add("Ben", Role.OPERATOR, PIN)
        found.access.add("Eva", Role.ENGINEER, PASSWORD)
        yield found


@contextlib.contextmanager
def logged_in(device: Device, name: str, secret: str) -> Iterator[httpx.Client]:
    """Give a client with a session and its token, as the page would send it."""
    with httpx.Client(base_url=device.url, timeout=60) as http:
        assert http.post("/api/login", json={"name": name, "secret": secret}).status_code == 200
        who = device.access.session(http.cookies[SESSION_COOKIE])
        assert who is not None
        http.headers["X-Headway-CSRF"] = who.csrf
        yield http


PAGES = (
    "/",
    "/label",
    "/learned",
    "/learned/part",
    "/learned/labels",
    "/quality",
    "/quality/pictures?figure=lot&name=B",
    "/settings",
)


def test_without_a_session_there_is_nothing_but_the_login(device: Device) -> None:
    assert device.http.get("/openapi.json").status_code == 401
    for path in PAGES:
        answer = device.http.get(path)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login")
        assert httpx.URL(answer.headers["location"]).params["then"] == path
    app_paths = [
        ("GET", path)
        for path in (
            "state", "queue", "samples", "labels", "heads", "suspects", "outlook", "events", "shift",
            "quality", "quality.csv", "quality/pictures", "operating", "accounts", "tokens", "audit",
            f"samples/{'0' * 64}/image",
        )
    ]  # fmt: skip
    for method, path in [*app_paths, ("POST", "labels"), ("POST", "inspect"), ("PUT", "operating")]:
        assert device.http.request(method, f"/api/{path}").status_code == 401, path
    assert device.http.get("/login").status_code == 200
    assert device.labels() == []


@pytest.mark.browser
@pytest.mark.parametrize("over", [False, True])
def test_after_an_outage_the_page_goes_on_or_asks_to_log_in(device: Device, *, over: bool) -> None:
    with logged_in(device, "Ben", PIN) as ben, chromium() as browser, opened(browser) as (context, on):
        context.add_cookies([{"name": SESSION_COOKIE, "value": ben.cookies[SESSION_COOKIE], "url": device.url}])
        on.page.goto(device.url)
        on.ready()
        context.set_offline(True)
        on.until("document.querySelector('#device-state.bad')")
        if over:
            device.access.set_secret("Ben", "273645")
        context.set_offline(False)
        if over:
            on.page.wait_for_url("**/login**")
        else:
            on.until("document.querySelector('#device-state:not(.bad)')")


def test_the_cookie_is_not_for_scripts_or_other_sites(device: Device) -> None:
    answer = device.http.post("/api/login", json={"name": "Ben", "secret": PIN})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    refused = httpx.post(f"{device.url}api/login", json={"name": "Ben", "secret": "0" * 6})
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers


def test_a_write_needs_the_sessions_own_token(device: Device) -> None:
    sample = device.station.store.samples.newest(limit=1)[0].sample_id.hex()
    body = {"sample": sample, "class_id": class_id("pit").hex()}
    with logged_in(device, "Ben", PIN) as ben, logged_in(device, "Ann", PASSWORD) as ann:
        foreign = ann.headers["X-Headway-CSRF"]
        for headers in ({"X-Headway-CSRF": ""}, {"X-Headway-CSRF": foreign}, {"Origin": "http://evil.example"}):
            assert ben.post("/api/labels", json=body, headers=headers).status_code == 403
        cross = {"Sec-Fetch-Site": "cross-site"}
        assert ben.post("/api/labels", json=body, headers=cross).status_code == 403
        assert device.labels() == []
        assert ben.post("/api/labels", json=body).status_code == 201
    assert len(device.labels()) == 1


PUBLIC = "https://line-1.plant:8443"


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """The page of a device behind a proxy on this machine: what the tests send is what a proxy passes on."""
    folder = tmp_path_factory.mktemp("behind-proxy")
    write_stream(folder / "pictures", {"rings": 1})
    with running(folder / "data", folder / "pictures", public_url=PUBLIC) as device:
        assert device.http.get("/api/state").status_code == 401, "no account yet: nobody may"
        device.access.add("Ann", Role.ADMIN, PASSWORD)
        device.access.add("Ben", Role.OPERATOR, PIN)
        yield device


@pytest.mark.parametrize("host", ["line-1.plant:8443", "line-1.plant", "LINE-1.plant:8443", ""])
@pytest.mark.parametrize("origin", [PUBLIC, None])
def test_people_log_in_and_write_through_a_proxy(behind_proxy: Device, host: str, origin: str | None) -> None:
    """A proxy passes the name on with or without its port, or says where it connects to."""
    headers = {"Origin": origin} if origin else {}
    headers |= {"Host": host} if host else {}
    answer = behind_proxy.http.post("/api/login", json={"name": "Ann", "secret": PASSWORD}, headers=headers)
    assert answer.status_code == 200
    name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
    assert name.startswith("__Host-")
    assert "secure" in answer.headers["set-cookie"].lower()
    headers["Cookie"] = f"{name}={value}"
    assert behind_proxy.http.get("/settings", headers=headers).status_code == 200
    who = behind_proxy.access.session(value)
    assert who is not None
    made = {"name": "plc", "role": "operator"}
    assert behind_proxy.http.post("/api/tokens", json=made, headers=headers).status_code == 403
    headers["X-Headway-CSRF"] = who.csrf
    assert behind_proxy.http.post("/api/tokens", json=made, headers=headers).status_code == 201
    assert behind_proxy.http.delete("/api/tokens/plc", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"Host": "line-1.plant:8443", "Origin": "https://evil.example"}, "another site's page"),
        ({"Host": "line-1.plant:8443", "Origin": "http://line-1.plant:8443"}, "another site's page"),
        ({"Host": "line-1.plant", "Origin": "https://line-1.plant"}, "another site's page"),
        ({"Origin": "https://line-1.plant"}, "another site's page"),
        ({"Host": "line-1.plant:8443", "Origin": PUBLIC, "Sec-Fetch-Site": "cross-site"}, "another site's page"),
        ({"Host": "evil.example", "Origin": PUBLIC}, "this page is not"),
        ({"Host": "evil.example"}, "this page is not"),
    ],
)
def test_no_other_site_writes_through_a_proxy(behind_proxy: Device, headers: dict[str, str], error: str) -> None:
    answer = behind_proxy.http.post("/api/login", json={"name": "Ann", "secret": PASSWORD}, headers=headers)
    assert (answer.status_code, error in answer.json()["error"]) == (403, True)


def test_behind_a_proxy_each_address_has_its_own_tries(behind_proxy: Device) -> None:
    def tries(forwarded: str, name: str, secret: str) -> int:
        body = {"name": name, "secret": secret}
        headers = {"Host": "line-1.plant:8443", "X-Forwarded-For": forwarded}
        return behind_proxy.http.post("/api/login", json=body, headers=headers).status_code

    # What came with the request stands first, and counts for nothing.
    codes = [tries(f"10.0.1.{number}, 10.0.0.6", f"Nobody {number}", "x" * 12) for number in range(21)]
    assert (codes[0], codes[-1]) == (401, 429)
    assert tries("10.0.0.6", "Ann", PASSWORD) == 429
    assert tries("10.0.0.6, 10.0.0.7", "Ann", PASSWORD) == 200


def test_without_a_proxy_nobody_says_by_a_header_where_he_is(device: Device) -> None:
    for headers in ({"Host": "line-1.plant:8443"}, {"Origin": PUBLIC}):
        refused = device.http.post("/api/login", json={"name": "Ann", "secret": PASSWORD}, headers=headers)
        assert refused.status_code == 403
        assert "public_url" in refused.json()["hint"]
    wrong = {"name": "Nobody at all", "secret": "x" * 12}
    device.http.post("/api/login", json=wrong, headers={"X-Forwarded-For": "10.0.0.6"})
    assert "address 10.0.0.6" not in {row[0] for row in device.access.book.rows("SELECT who FROM tries")}


def test_the_label_log_holds_an_id_and_the_page_a_name(device: Device) -> None:
    sample = device.station.store.samples.newest(limit=1)[0].sample_id.hex()
    with logged_in(device, "Ben", PIN) as ben:
        body = {"sample": sample, "class_id": class_id("pit").hex(), "operator": "Somebody Else"}
        ben.post("/api/labels", json=body).raise_for_status()
        assert ben.get("/api/labels").json()[0]["who"] == "Ben"
    (label,) = device.labels()
    assert label.operator == next(a.id for a in device.access.accounts() if a.name == "Ben")
    before = [record.entry.prev for record in device.station.store.log.records()]
    with logged_in(device, "Ann", PASSWORD) as ann:
        ann.delete("/api/accounts/Ben", params={"erase": "true"}).raise_for_status()
        assert ann.get("/api/labels").json()[0]["who"] == label.operator
        assert "Ben" not in ann.get("/settings").text
    assert [record.entry.prev for record in device.station.store.log.records()] == before


@pytest.mark.parametrize("name", ["PLC 1/2", "a/../b", "x/secret", "?#%2F\\"])
def test_a_name_of_before_with_a_slash_can_be_removed_by_the_page(device: Device, name: str) -> None:
    """New ones are refused; the page must reach those that were made before."""
    with device.book.transaction() as db:
        db.execute("INSERT INTO tokens VALUES (?, ?, 'operator', 0)", (b"t" * 32, name))
        db.execute("INSERT INTO accounts VALUES ('p-old', ?, 'operator', '', 0)", (name,))
    with logged_in(device, "Ann", PASSWORD) as ann:
        deletes = re.findall(r'data-delete="([^"]*)"', ann.get("/settings").text)
        (token,) = [each for each in deletes if each.startswith("/api/tokens/")]
        (account,) = [each for each in deletes if each.startswith("/api/accounts/") and "%" in each][:1]
        assert ann.delete(html.unescape(token)).status_code == 200
        assert ann.delete(html.unescape(account)).status_code == 200
    assert device.access.tokens() == []
    assert name not in [each.name for each in device.access.accounts()]


def test_the_page_erases_who_was_removed_before(device: Device) -> None:
    ben = device.access.account("Ben").id
    device.access.remove("Ben")
    with logged_in(device, "Ann", PASSWORD) as ann:
        page = ann.get("/settings").text
        assert 'data-delete="/api/accounts/Ben?erase=true"' in page
        assert 'data-delete="/api/accounts/Ben"' not in page
        ann.delete("/api/accounts/Ben", params={"erase": "true"}).raise_for_status()
        assert "Ben" not in ann.get("/settings").text
    assert device.access.name_of(ben) == ben
    assert (device.access.audit(1)[0].action, device.access.audit(1)[0].what) == ("account erased", ben)


@pytest.mark.parametrize(
    ("method", "path", "lowest"),
    [
        ("POST", "/api/heads/1/restore", Role.ENGINEER),
        ("DELETE", f"/api/samples/{'0' * 64}", Role.ENGINEER),
        ("PUT", "/api/operating", Role.ENGINEER),
        ("PUT", f"/api/classes/{'0' * 32}", Role.ENGINEER),
        ("PUT", f"/api/classes/{'0' * 32}/put-away", Role.ENGINEER),
        ("POST", f"/api/classes/{'0' * 32}/merge", Role.ENGINEER),
        ("GET", "/api/accounts", Role.ADMIN),
        ("POST", "/api/accounts", Role.ADMIN),
        ("PUT", "/api/accounts/Ann/secret", Role.ADMIN),
        ("PUT", "/api/accounts/Ann", Role.ADMIN),
        ("DELETE", "/api/accounts/Ann", Role.ADMIN),
        ("GET", "/api/tokens", Role.ADMIN),
        ("POST", "/api/tokens", Role.ADMIN),
        ("DELETE", "/api/tokens/plc", Role.ADMIN),
        ("GET", "/api/audit", Role.ADMIN),
    ],
)
def test_a_lower_role_is_refused(device: Device, method: str, path: str, lowest: Role) -> None:
    for name, secret, role in (("Ben", PIN, Role.OPERATOR), ("Eva", PASSWORD, Role.ENGINEER)):
        with logged_in(device, name, secret) as http:
            answer = http.request(method, path, json={})
            assert (answer.status_code == 403) == (role.rank < lowest.rank), (name, answer.text)


def test_a_machine_uses_a_token_and_no_cookie(device: Device) -> None:
    with logged_in(device, "Ann", PASSWORD) as ann:
        made = ann.post("/api/tokens", json={"name": "plc", "role": "operator"}).json()
        assert made["value"] not in ann.get("/settings").text
    bearer = {"Authorization": f"Bearer {made['value']}"}
    assert device.http.get("/api/state", headers=bearer).status_code == 200
    assert device.http.get("/api/accounts", headers=bearer).status_code == 403
    assert device.http.get("/api/state", headers={"Authorization": "Bearer hw_wrong"}).status_code == 401
    device.access.remove_token("plc")
    assert device.http.get("/api/state", headers=bearer).status_code == 401


@pytest.mark.parametrize(
    "then",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        # A browser takes these out of an address before it looks at it.
        "/\t/evil.example",
        "/\n/evil.example",
        "/\r/evil.example",
        "\t//evil.example",
        "/label\n",
        "/label?sample=1\n",
        "/label?then=//evil.example",
    ],
)
def test_the_login_leads_to_pages_of_this_device_only(device: Device, then: str) -> None:
    assert 'data-then="/"' in device.http.get("/login", params={"then": then}).text
    for page in ("/label", "/learned", "/quality", "/settings", "/quality/pictures?figure=lot&name=B%207+&head=3"):
        assert f'data-then="{html.escape(page)}"' in device.http.get("/login", params={"then": page}).text


@pytest.mark.browser
def test_an_operator_logs_in_with_a_pin_on_the_pad(device: Device) -> None:
    touch = {"has_touch": True, "viewport": {"width": 800, "height": 480}}
    with chromium() as browser, opened(browser, **touch) as (_, on):
        on.page.goto(device.url + "label")
        expect(on.page).to_have_url(f"{device.url}login?then=/label")
        on.page.get_by_label("Name").fill("Ben")
        for digit in PIN:
            on.page.locator(f'.pad [data-digit="{digit}"]').tap()
        on.page.locator(".pad .main").tap()
        expect(on.page).to_have_url(device.url + "label")
        on.ready()
        sample = on.asked()
        on.settled()
        on.page.locator('#classes button[data-class="pit"]').tap()
        on.quiet()
        assert on.problems == []
    (label,) = device.labels()
    assert label.sample.hex() == sample
    assert device.access.name_of(label.operator) == "Ben"


@pytest.mark.browser
def test_an_answer_that_found_the_session_over_is_sent_after_the_login(device: Device) -> None:
    with logged_in(device, "Ben", PIN) as ben, chromium() as browser, opened(browser) as (context, on):
        context.add_cookies([{"name": SESSION_COOKIE, "value": ben.cookies[SESSION_COOKIE], "url": device.url}])
        on.page.goto(device.url + "label")
        on.ready()
        sample = on.asked()
        on.settled()
        on.page.evaluate("events.close()")  # it would notice, too
        device.access.log_out(ben.cookies[SESSION_COOKIE])
        on.page.locator('#classes button[data-class="pit"]').click()
        on.page.wait_for_url("**/login**")
        on.page.get_by_label("Name").fill("Ben")
        on.page.get_by_label("PIN or password").fill(PIN)
        on.page.locator(".pad .main").click()
        expect(on.page).to_have_url(device.url + "label")
        expect(on.page.locator("#saved")).to_have_text("✓ saved: 1 of the page before")
    (label,) = device.labels()
    assert (label.sample.hex(), label.class_id) == (sample, class_id("pit"))
    assert device.access.name_of(label.operator) == "Ben"


# -- beyond loopback ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "page.pem", folder / "page.key"
    subject = ["-subj", "/CN=line-1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-keyout", key, "-out", cert, *subject],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


def test_beyond_loopback_there_must_be_accounts_and_tls(book: Database, certificate: tuple[Path, Path]) -> None:
    access = Access(book, hasher=CHEAP)
    cert, key = certificate
    for settings, wrong in (
        (PageSettings(host="0.0.0.0", port=0), "without TLS"),
        (PageSettings(host="0.0.0.0", port=0, cert_file=cert, key_file=key), "no accounts"),
        (PageSettings(host="0.0.0.0", port=0, plain_http=True), "no accounts"),
        (PageSettings(port=0, public_url=PUBLIC), "page at https://line-1.plant:8443 .* no accounts"),
    ):
        with pytest.raises(ConfigError, match=wrong) as refusal:
            open_page(settings, access)
        assert refusal.value.hint
    open_page(PageSettings(port=0), access).stop()
    access.add("Ann", Role.ADMIN, PASSWORD)
    served = open_page(PageSettings(host="0.0.0.0", port=0, cert_file=cert, key_file=key), access)
    assert served.url.startswith("https://127.0.0.1:")
    served.stop()
    open_page(PageSettings(port=0, public_url=PUBLIC), access).stop()


def test_a_certificate_that_is_none_is_told_at_the_start(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    (tmp_path / "bad.pem").write_text("no certificate")
    for pair in ((tmp_path / "bad.pem", key), (cert, tmp_path / "missing.key")):
        with pytest.raises(ConfigError, match="certificate"):
            PageServer("127.0.0.1", 0, pair)
    with pytest.raises(ValueError, match="both cert_file and key_file"):
        PageSettings(cert_file=cert)


# -- beside the page ----------------------------------------------------------------------------------------------


def test_accounts_are_made_from_the_command_line_while_the_agent_runs(
    tmp_path: Path,
    certificate: tuple[Path, Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site_file = tmp_path / "site.toml"
    write_stream(tmp_path / "images", {"pit": 1})
    site_file.write_text(
        'device = "line-1"\n[camera]\nkind = "folder"\npath = "images"\n[page]\nport = 0\n'
        f'cert_file = "{certificate[0]}"\nkey_file = "{certificate[1]}"\n'
    )
    add = ("agent", "user", "add", site_file)
    site = load_site(site_file)
    with Agent(site) as agent:
        stop, ready = threading.Event(), threading.Event()
        thread = threading.Thread(target=agent.run, args=(stop,), kwargs={"on_ready": lambda _: ready.set()})
        thread.start()
        try:
            assert ready.wait(60)
            for name, role, secret in (("Ann", "admin", PASSWORD), ("Ben", "operator", PIN)):
                assert (
                    headway(capfd, *add, name, "--role", role, "--secret-file", _file(tmp_path, secret)).code == 0
                )
            listed = headway(capfd, "agent", "user", "list", site_file, "--json")
            assert [(a["name"], a["role"]) for a in json.loads(listed.out)] == [
                ("Ann", "admin"),
                ("Ben", "operator"),
            ]
            refused = headway(capfd, *add, "Cem", "--secret-file", _file(tmp_path, "123"))
            assert refused.code == 2
            assert "too easy" in refused.err

            # The page asks who somebody is from now on; this machine's own command line need not say.
            trusted = ssl.create_default_context(cafile=str(certificate[0]))
            with httpx.Client(base_url=agent.page_url, verify=trusted) as http:
                assert http.get("/api/state").status_code == 401
                cookie = http.post("/api/login", json={"name": "Ben", "secret": PIN}).headers["set-cookie"]
                assert cookie.startswith("__Host-")
                assert "secure" in cookie.lower()
                assert "max-age" in http.get("/login").headers["strict-transport-security"]
            assert running_state(site, 30)["device"] == "line-1"
            assert (site.data_dir / "agent.json").stat().st_mode & 0o077 == 0
            assert headway(capfd, "agent", "user", "remove", site_file, "Ben", "--erase").code == 0
        finally:
            stop.set()
            thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(FileNotFoundError):
        running_state(site, 1)


def test_beyond_loopback_a_running_agent_lets_nobody_in_once_its_last_account_is_gone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its start asks for accounts; they may be removed afterwards."""
    site_file = tmp_path / "site.toml"
    write_stream(tmp_path / "images", {"pit": 1})
    site_file.write_text(
        'device = "line-1"\n[camera]\nkind = "folder"\npath = "images"\n'
        '[page]\nhost = "0.0.0.0"\nport = 0\nplain_http = true\n'
    )
    ann = (site_file, "Ann", "--secret-file", _file(tmp_path, PASSWORD))
    assert headway(capfd, "agent", "user", "add", *ann, "--role", "admin").code == 0
    with Agent(load_site(site_file)) as agent:
        stop, ready = threading.Event(), threading.Event()
        thread = threading.Thread(target=agent.run, args=(stop,), kwargs={"on_ready": lambda _: ready.set()})
        thread.start()
        try:
            assert ready.wait(60)
            with httpx.Client(base_url=agent.page_url, timeout=60) as http:
                intruder = {"name": "intruder", "role": "admin", "secret": "longlonglong1"}
                assert http.post("/api/accounts", json=intruder).status_code == 401
                remove = ("agent", "user", "remove", site_file, "Ann")
                refused = headway(capfd, *remove)
                assert refused.code == 2
                assert "last account" in refused.err
                assert "--open-again" in refused.err
                removed = headway(capfd, *remove, "--open-again")
                assert removed.code == 0
                assert "nobody gets into the page at 0.0.0.0" in removed.out
                for method, path in (("GET", "/api/state"), ("POST", "/api/accounts"), ("GET", "/api/events")):
                    answer = http.request(method, path, json=intruder)
                    assert (answer.status_code, "no accounts" in answer.json()["error"]) == (401, True), path
                assert http.get("/settings").headers["location"] == "/login?then=/settings"
                assert "This device has no accounts" in http.get("/login").text
                assert headway(capfd, "agent", "user", "add", *ann, "--role", "admin").code == 0
                assert http.post("/api/login", json={"name": "Ann", "secret": PASSWORD}).status_code == 200
                assert http.get("/api/state").status_code == 200
        finally:
            stop.set()
            thread.join(60)


@contextlib.contextmanager
def settings_of_ann(device: Device) -> Iterator[Screen]:
    """Give the settings as an admin sees them."""
    with logged_in(device, "Ann", PASSWORD) as ann, chromium() as browser, opened(browser) as (context, on):
        context.add_cookies([{"name": SESSION_COOKIE, "value": ann.cookies[SESSION_COOKIE], "url": device.url}])
        on.page.goto(f"{device.url}settings")
        on.ready()
        yield on


def another_state(device: Device, on: Screen, name: str) -> None:
    """Let the page hear that something has changed."""
    device.station.define_class(name, "ann")
    on.until(f"latest.state.classes.some((each) => each.name === '{name}')")


@pytest.mark.browser
def test_what_is_refused_in_the_settings_is_said_until_the_next_try(device: Device) -> None:
    device.station.define_class("dent", "ann")
    with settings_of_ann(device) as on:
        form = on.page.locator('form[data-form="/api/accounts"]')
        wrong = form.get_by_role("alert")
        form.locator("input[name=name]").fill("Cem")
        form.locator("input[name=secret]").fill("123456")
        form.locator("button[type=submit]").click()
        expect(wrong).to_contain_text("something is missing or wrong (that PIN is too easy")
        another_state(device, on, "crack")
        expect(wrong).to_contain_text("that PIN is too easy")
        on.page.route("**/put-away", lambda route: route.fulfill(status=409, json={"error": "no", "hint": ""}))
        on.page.locator('[data-class-do="away"]').first.click()
        expect(on.page.locator("#notice")).to_contain_text("Not saved")
        another_state(device, on, "stain")
        expect(on.page.locator("#notice")).to_contain_text("Not saved")
        form.locator("input[name=secret]").fill("739182 cem")
        form.locator("button[type=submit]").click()
        expect(on.page.locator("td", has_text="Cem").first).to_be_visible()
        expect(wrong).to_be_empty()


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/api/accounts", {"name": "Cem", "role": "operator", "secret": "123456"}, 422),
        ("POST", "/api/accounts", {"name": "p-1", "role": "operator", "secret": PIN}, 422),
        ("POST", "/api/accounts", {"name": "Ben", "role": "operator", "secret": PIN}, 409),
        ("POST", "/api/tokens", {"name": "a/b"}, 422),
        ("PUT", "/api/accounts/Nobody/secret", {"secret": PIN}, 404),
        ("PUT", "/api/accounts/Ben/secret", {"secret": "123456"}, 422),
        ("DELETE", "/api/accounts/Nobody", None, 404),
        ("DELETE", "/api/accounts/Ann", None, 409),
        ("DELETE", "/api/tokens/none", None, 404),
    ],
)
def test_an_account_that_cannot_be_as_asked_is_no_question_of_who_may(
    device: Device, method: str, path: str, body: dict[str, str] | None, expected: int
) -> None:
    with logged_in(device, "Ann", PASSWORD) as ann:
        answer = ann.request(method, path, json=body)
        assert (answer.status_code, bool(answer.json()["hint"])) == (expected, True)


def test_the_page_does_not_remove_its_last_account(device: Device) -> None:
    with logged_in(device, "Ann", PASSWORD) as ann:
        for name in ("Ben", "Eva"):
            assert ann.delete(f"/api/accounts/{name}").status_code == 200
        for erase in ("false", "true"):
            answer = ann.delete("/api/accounts/Ann", params={"erase": erase})
            assert (answer.status_code, "last account" in answer.json()["error"]) == (409, True)
        assert ann.get("/api/accounts").status_code == 200
    assert device.http.get("/api/state").status_code == 401


def test_what_is_done_at_the_command_line_is_in_the_audit_log(
    device: Device, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.toml"
    site.write_text('device = "line-1"\ndata_dir = "data"\n[camera]\nkind = "folder"\npath = "images"\n')
    monkeypatch.setenv("SUDO_USER", "marta")
    ben = device.access.account("Ben").id
    for command, *rest in (
        ("add", "Cem", "--secret-file", _file(tmp_path, PIN)),
        ("secret", "ben", "--secret-file", _file(tmp_path, "273645")),
        ("remove", "Ben"),
        ("remove", "Cem", "--erase"),
    ):
        assert headway(capfd, "agent", "user", command, site, *rest).code == 0
    done = [(row.who, row.action) for row in reversed(device.access.audit(4))]
    actions = ["account added", "secret changed", "account removed", "account erased"]
    assert done == [("system marta", action) for action in actions]
    assert [row.what for row in device.access.audit(3)][1:] == [ben, ben]
    with logged_in(device, "Ann", PASSWORD) as ann:
        assert "marta (command line)" in ann.get("/settings").text


DAY_S = 86_400.0


@pytest.mark.parametrize(
    "before_s", [400 * DAY_S, 26 * 365 * DAY_S], ids=["it is 400 days ahead now", "it had begun anew"]
)
def test_a_clock_that_is_or_was_wrong_takes_nothing_from_the_audit_log(device: Device, before_s: float) -> None:
    """Each time that an admin did something, all went that was older than a year by that."""
    earlier = Access(device.access.book, clock=lambda: time.time() - before_s, hasher=CHEAP)
    earlier.note("", "login refused", "Mallory", "10.0.0.66")
    with logged_in(device, "Ann", PASSWORD) as ann:
        assert (
            ann.post("/api/accounts", json={"name": "Cem", "role": "operator", "secret": PIN}).status_code == 201
        )
        told = [(row["action"], row["what"]) for row in ann.get("/api/audit").json()]
    assert told == [("account added", "Cem"), ("login", ""), ("login refused", "Mallory")]


def keeper(book: Database, clock: Clock, *, is_right: bool | None = True) -> Callable[[str], list[str]]:
    """Return what writes a line at the clock's time, and tells those that are left, oldest first."""
    access = Access(book, clock=clock, is_right=lambda: is_right, hasher=CHEAP)

    def note(what: str) -> list[str]:
        access.note("", "login refused", what)
        return [row.what for row in reversed(access.audit(500))]

    return note


def test_a_line_of_the_audit_log_goes_after_a_year(book: Database, clock: Clock) -> None:
    note = keeper(book, clock)
    began = clock.now
    for day in range(0, 500, 20):
        clock.now = began + day * DAY_S
        left = note(str(day))
        assert all(day - 365 - 50 <= int(each) for each in left), "a mark each 30 days, a line each 20"
        assert {str(each) for each in range(0, day + 1, 20) if each >= day - 365} <= set(left)
    assert len(left) < 500 // 20


@pytest.mark.parametrize("wrong_s", [400 * DAY_S, 10 * 365 * DAY_S, -26 * 365 * DAY_S])
@pytest.mark.parametrize("known", [False, None])
def test_of_a_clock_that_is_not_held_right_no_line_is_old_or_young(
    book: Database, clock: Clock, wrong_s: float, known: bool | None
) -> None:
    right, unsure = keeper(book, clock), keeper(book, clock, is_right=known)
    right("1")
    clock.now += DAY_S + wrong_s
    assert unsure("2") == ["1", "2"]
    clock.now += DAY_S - wrong_s
    assert right("3") == ["1", "2", "3"]
    clock.now += 31 * DAY_S
    right("4")
    clock.now += 335 * DAY_S
    assert right("5") == ["2", "3", "4", "5"], "of what came between the first mark and the second"
    clock.now += 31 * DAY_S
    assert right("6") == ["5", "6"], "whatever their own times say"


def test_a_mark_of_the_future_is_none_once_the_clock_is_right(book: Database, clock: Clock) -> None:
    note = keeper(book, clock)
    clock.now += 5 * 365 * DAY_S
    note("1")
    clock.now -= 5 * 365 * DAY_S
    note("2")
    clock.now += 366 * DAY_S
    assert note("3") == ["3"]


def test_so_many_lines_of_the_audit_log_are_kept(
    book: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_access, "KEEP_AUDIT", 500)
    note = keeper(book, clock, is_right=None)
    for number in range(1, 1001):
        left = note(str(number))
    assert left == [str(number) for number in range(501, 1001)]


def test_nobody_is_asked_for_a_secret_in_vain(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('device = "line-1"\n[camera]\nkind = "folder"\npath = "images"\n')

    def run(*args: str, typed: str) -> tuple[str, str]:
        ended = CliRunner().invoke(user, [args[0], str(site), *args[1:]], input=f"{typed}\n{typed}\n")
        return ended.output, str(ended.exception or "")

    assert run("add", "Ben", typed=PIN) == ("", "the first account must be an admin's")
    out, wrong = run("add", "Ann", "--role", "admin", typed=PASSWORD)
    assert ("Password (10 characters or more)" in out, wrong) == (True, "")
    assert run("add", "ann", typed=PIN) == ("", "there is an account 'ann' already")
    assert "PIN (6 digits or more) or password (10 characters or more)" in run("add", "Ben", typed=PIN)[0]
    assert run("secret", "Bob", typed=PIN) == ("", "there is no account 'Bob'")


def _file(folder: Path, secret: str) -> Path:
    (folder / "secret").write_text(secret + "\n")
    return folder / "secret"
