"""Accounts that become others: another PIN, password or role, given by an admin, or by oneself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from device_agent.page.access import MAX_TRIES, Access, Role
from device_agent.page.guard import SESSION_COOKIE
from sdk.bundle import Bundle
from sdk.errors import AccountRefused, LastAdmin, LoginFailed, NoAccount, TooManyTries
from tests.pages import Device, Screen, chromium, opened, serving, write_stream
from tests.test_page_access import PASSWORD, PIN, access, book, clock, logged_in
from tests.tiny import tiny_bundle

__all__ = ["access", "book", "clock"]

OTHER_PIN = "273645"
OTHER_PASSWORD = "a horse of another colour"
HERE = "10.0.0.7"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("people") / "bundle")


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle) -> Iterator[Device]:
    stream = write_stream(tmp_path / "stream", {"rings": 1})
    with serving(tmp_path / "data", stream, bundle) as found:
        found.access.add("Ann", Role.ADMIN, PASSWORD)
        found.access.add("Ben", Role.OPERATOR, PIN)
        yield found


def role_of(access: Access, name: str) -> Role:
    return access.account(name).role


def test_who_was_given_a_new_pin_need_not_wait_for_the_wrong_tries_of_the_old(access: Access) -> None:
    for _ in range(MAX_TRIES):
        with pytest.raises(LoginFailed):
            access.log_in("Ben", "000001", HERE)
    with pytest.raises(TooManyTries):
        access.log_in("Ben", PIN, HERE)
    access.set_secret("Ben", OTHER_PIN)
    who = access.session(access.log_in("Ben", OTHER_PIN, HERE))
    assert who is not None
    assert who.name == "Ben"


def test_another_role_keeps_the_person_and_ends_the_sessions(access: Access) -> None:
    before, token = access.account("Ben"), access.log_in("Ben", PIN, HERE)
    access.change("Ben", role=Role.ENGINEER, secret=OTHER_PASSWORD)
    assert access.session(token) is None
    assert (access.account("Ben").id, role_of(access, "Ben")) == (before.id, Role.ENGINEER)
    who = access.session(access.log_in("Ben", OTHER_PASSWORD, HERE))
    assert who is not None
    assert who.role is Role.ENGINEER
    access.change("Ben", role=Role.OPERATOR)
    assert access.session(access.log_in("Ben", OTHER_PASSWORD, HERE)) is not None, "a password will do for less"


@pytest.mark.parametrize(
    ("name", "role", "secret", "error"),
    [
        ("Ben", Role.ENGINEER, None, AccountRefused),
        ("Ben", Role.ENGINEER, OTHER_PIN, AccountRefused),
        ("Ben", None, "123456", AccountRefused),
        ("Ann", Role.ENGINEER, None, LastAdmin),
        ("Nobody", Role.OPERATOR, None, NoAccount),
    ],
)
def test_a_change_that_will_not_do_changes_nothing(
    access: Access, name: str, role: Role | None, secret: str | None, error: type[Exception]
) -> None:
    token = access.log_in("Ben", PIN, HERE)
    with pytest.raises(error):
        access.change(name, role=role, secret=secret)
    assert access.session(token) is not None
    assert (role_of(access, "Ann"), role_of(access, "Ben")) == (Role.ADMIN, Role.OPERATOR)


def test_only_who_knows_the_old_pin_gives_oneself_another(access: Access) -> None:
    ben, token = access.account("Ben").id, access.log_in("Ben", PIN, HERE)
    for old, new in (("000001", OTHER_PIN), (PIN, "123456")):
        with pytest.raises(AccountRefused):
            access.change_own(ben, old, new, HERE)
        assert access.session(token) is not None
    access.change_own(ben, PIN, OTHER_PIN, HERE)
    assert access.session(token) is None
    with pytest.raises(LoginFailed):
        access.log_in("Ben", PIN, HERE)
    access.log_in("Ben", OTHER_PIN, HERE)


def test_guessing_the_old_pin_at_an_open_page_has_to_wait(access: Access) -> None:
    ben = access.account("Ben").id
    for _ in range(MAX_TRIES):
        with pytest.raises(AccountRefused):
            access.change_own(ben, "000001", OTHER_PIN, HERE)
    with pytest.raises(TooManyTries):
        access.change_own(ben, PIN, OTHER_PIN, HERE)


def test_a_token_has_no_pin_to_change(device: Device) -> None:
    value = device.access.add_token("plc", Role.ADMIN)
    with httpx.Client(base_url=device.url, headers={"Authorization": f"Bearer {value}"}, timeout=60) as plc:
        assert plc.put("/api/secret", json={"old": PIN, "new": OTHER_PIN}).status_code == 422


@contextmanager
def settings_of(device: Device, name: str, secret: str) -> Iterator[Screen]:
    with logged_in(device, name, secret) as http, chromium() as browser, opened(browser) as (context, on):
        context.add_cookies([{"name": SESSION_COOKIE, "value": http.cookies[SESSION_COOKIE], "url": device.url}])
        on.page.goto(f"{device.url}settings")
        on.ready()
        yield on


@pytest.mark.browser
def test_an_admin_gives_a_new_pin_and_a_new_role_on_the_page(device: Device) -> None:
    with settings_of(device, "Ann", PASSWORD) as on:
        row = on.page.locator('[data-account="Ben"]')
        dialog = on.page.locator("#account-change")
        row.click()
        expect(dialog.get_by_role("heading")).to_have_text("Change Ben")
        dialog.get_by_label("New PIN or password").fill("123456")
        dialog.get_by_role("button", name="Save").click()
        expect(dialog.get_by_role("alert")).to_contain_text("that PIN is too easy")
        dialog.get_by_label("New PIN or password").fill(OTHER_PIN)
        dialog.get_by_role("button", name="Save").click()
        expect(on.page.locator("td", has_text="changed a secret of Ben")).to_be_visible()
        device.access.log_in("Ben", OTHER_PIN, HERE)
        on.ready()
        row.click()
        dialog.get_by_label("Role").select_option("engineer")
        dialog.get_by_label("New PIN or password").fill(OTHER_PASSWORD)
        dialog.get_by_role("button", name="Save").click()
        expect(on.page.locator("td", has_text="changed the role of Ben")).to_be_visible()
        expect(on.page.locator('[data-account="Ben"]')).to_have_attribute("data-role", "engineer")
    assert role_of(device.access, "Ben") is Role.ENGINEER


@pytest.mark.browser
def test_an_operator_changes_his_own_pin_on_the_page(device: Device) -> None:
    with settings_of(device, "Ben", PIN) as on:
        on.page.locator("#own-secret-open").click()
        dialog = on.page.locator("#own-secret")
        dialog.get_by_label("until now").fill("000001")
        dialog.get_by_label("New PIN or password").fill(OTHER_PIN)
        dialog.get_by_role("button", name="Save").click()
        expect(dialog.get_by_role("alert")).to_contain_text("that is not the PIN or password until now")
        dialog.get_by_label("until now").fill(PIN)
        dialog.get_by_role("button", name="Save").click()
        on.page.wait_for_url("**/login**")
        on.page.get_by_label("Name").fill("Ben")
        on.page.get_by_label("PIN or password").fill(OTHER_PIN)
        on.page.locator(".pad .main").click()
        on.page.wait_for_url(device.url)
