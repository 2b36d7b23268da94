"""Who may do what on this device's page: local accounts, sessions, tokens for machines, the audit log.

Rules this module keeps:

- Without accounts whoever reaches the page may do everything, on loopback only (`server`, `guard`). From the first
  account on everybody logs in; the last one stays until somebody says that the page shall be open again.
- The label log never holds a name where there are accounts: it holds the account's random id. Erasing a person
  removes the name that goes with the id; the log's hash chain is untouched.
- Of what is erased nothing is left in the file or beside it once `wipe` has been able to do its work. The agent's
  next start tries again, and does it once for a file of before this rule.
- Secrets, session and token values are not stored: argon2id of what people choose, SHA-256 of what we drew.
- Trying is limited per account and per address; `MAX_TRIES` and what follows say how much. A try is counted before
  it is checked, and taken back where it was right: else as many as come at the same moment would all be checked.
  What was counted of an account is kept however many names are invented; names that nobody has count like others,
  or the difference would tell who has an account.
- A line of the audit log goes when it is one too many, or older than a year. How old it is it does not say itself:
  its time is of a clock that may have been wrong, as may be the one it is compared with. So now and then, while
  the machine holds its clock to be right, it is written down up to which line the log has come.

Cookies, headers and routes are `guard`'s.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from device_agent.database import Database
from device_agent.page.book import set_setting, setting
from sdk.clock_state import clock_synchronised
from sdk.errors import AccountRefused, LastAdmin, LoginFailed, NameTaken, NoAccount, StoreFull, TooManyTries

MIN_PIN_DIGITS: Final = 6
"""Six digits and `MAX_TRIES` leave a stranger one chance in 10,000 for a day of trying; four would leave 1 %."""
MIN_PASSWORD_CHARS: Final = 10
MAX_SECRET_CHARS: Final = 128
MAX_TRIES: Final = 5
"""Wrong tries in a row before the first wait."""
FIRST_WAIT_S: Final = 30.0
MAX_WAIT_S: Final = 15 * 60.0
FORGIVEN_S: Final = 60 * 60.0
"""One wrong try of an address is forgotten each hour that it makes none: a line's one terminal, behind which many
people mistype over the months, must not come to wait at each of them. Of a stranger's four tries an hour it takes
none."""
MAX_COUNTED: Final = 10_000
"""Invented names whose wrong tries are counted, and addresses: a megabyte of each."""
IDLE_S: Final = 60 * 60.0
"""An unused session of an engineer or admin ends after this."""
IDLE_OPERATOR_S: Final = 10 * 60 * 60.0
"""A shift and its overlap: nobody logs in with gloves on for every label."""
LONGEST_S: Final = 24 * 60 * 60.0
CLOCK_SLACK_S: Final = 60.0
"""A session may be so much younger than the moment: clocks are set back a little all the time. One begun while the
clock was further ahead ends, or it would outlive its correction by as much."""
_DOUBLINGS: Final = 16
"""Of the first wait, far past the longest: counting goes no further, and two to that power is a small number."""
MAX_SESSIONS: Final = 200
KEEP_AUDIT: Final = 200_000
AUDIT_S: Final = 365 * 24 * 60 * 60.0
AUDIT_MARK_S: Final = 30 * 24 * 60 * 60.0
"""From one mark to the next: by so much longer a line is kept at most, where others come after it."""
_DATED: Final = "audit dated"
"""Setting: the marks, oldest first. Each is a line's number, and a time at which all up to that one were there."""
SYSTEM: Final = "system "
"""Before the name of a user of the device's own system, in the audit log: who gave a command there."""
_ERASURES: Final = "erasures"
_WIPED: Final = "wiped"
"""Settings: how many erasures there were, and how many the file was rewritten after; none in a file of before."""
HASHERS: Final = 2
"""Secrets that are checked at a time: each takes 64 MiB for a tenth of a second."""
WAITING: Final = 4
"""Logins that wait for that. They hold threads that answer everybody: the next one is refused at once."""


class Role(str, Enum):
    """What somebody may do; each may do what those before may. Values are stored."""

    OPERATOR = "operator"
    ENGINEER = "engineer"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """Return its place in that order."""
        return list(Role).index(self)


@dataclass(frozen=True)
class Account:
    """A person. `id` is what the label log says of them."""

    id: str
    name: str
    role: Role
    created_utc: float


@dataclass(frozen=True)
class Token:
    """A machine's way in; its value is shown once, when it is made."""

    name: str
    role: Role
    created_utc: float


@dataclass(frozen=True)
class Who:
    """Who asks.

    Attributes:
        id: For the label log; empty where nobody is known.
        name: For people.
        role: What they may do.
        csrf: What a writing request of this session must carry; empty where no cookie speaks for anybody.
    """

    id: str
    name: str
    role: Role
    csrf: str = ""


LOCAL: Final = Who("", "", Role.ADMIN)
"""Whoever sits at the device, where there are no accounts."""


@dataclass(frozen=True)
class AuditRow:
    """One thing that somebody did."""

    number: int
    at_utc: float
    who: str
    action: str
    what: str
    address: str


class Access:
    """Accounts of one device. Any thread may call.

    Args:
        book: The page's file.
        clock: Seconds since 1970.
        is_right: Whether the machine holds that clock to be right; None where it does not say.
        hasher: argon2id; tests take a cheap one.
    """

    def __init__(
        self,
        book: Database,
        *,
        clock: Callable[[], float] = time.time,
        is_right: Callable[[], bool | None] = clock_synchronised,
        hasher: PasswordHasher | None = None,
    ) -> None:
        self.book = book
        self._clock = clock
        self._is_right = is_right
        self._hasher = hasher or PasswordHasher()
        self._slots = threading.BoundedSemaphore(HASHERS)
        self._queue = threading.BoundedSemaphore(HASHERS + WAITING)
        # Somebody who does not exist must take as long to refuse as somebody who does.
        self._nobody = self._hasher.hash(secrets.token_hex(16))
        self.local_token = f"hw_{secrets.token_urlsafe(32)}"
        """For `headway agent status`: in a file that only the agent's own user may read, until the agent stops."""

    # -- accounts ------------------------------------------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Return whether there are accounts, so that people must log in."""
        return self.book.row("SELECT 1 FROM accounts WHERE name IS NOT NULL LIMIT 1") is not None

    def accounts(self) -> list[Account]:
        """Return the accounts, by name."""
        rows = self.book.rows(
            "SELECT id, name, role, created_utc FROM accounts WHERE name IS NOT NULL ORDER BY name"
        )
        return [Account(id_, name, Role(role), created) for id_, name, role, created in rows]

    def check_new(self, name: str, role: Role) -> str:
        """Return the name that a new account would have, before anybody is asked for a secret.

        Raises:
            AccountRefused: the name will not do, or the first account is no admin's.
            NameTaken: somebody has that name.
        """
        name = _name(name)
        if role is not Role.ADMIN and not self.in_use:
            raise AccountRefused(
                "the first account must be an admin's", hint="Add one with --role admin, then the operators."
            )
        self._check_free(name)
        return name

    def _check_free(self, name: str) -> None:
        if self._find(name) is not None:
            raise NameTaken(f"there is an account {name!r} already", hint="Choose another name.")

    def _find(self, name: str) -> tuple[Account, str] | None:
        """Return the account of that name, however it is written, and its secret's hash; None where nobody has it.

        SQLite tells ASCII letters only. It has let in names that differ in others: then as it is written.
        """
        rows = self.book.rows(
            "SELECT id, name, role, created_utc, secret FROM accounts WHERE name IS NOT NULL ORDER BY name"
        )
        found = [row for row in rows if _folded(row[1]) == _folded(name)]
        found.sort(key=lambda row: row[1] != " ".join(name.split()))
        if not found:
            return None
        id_, called, role, created, secret = found[0]
        return Account(id_, called, Role(role), created), str(secret)

    def add(self, name: str, role: Role, secret: str) -> Account:
        """Make an account.

        Raises:
            AccountRefused: the name or the secret will not do, or the first account is no admin's.
            NameTaken: somebody has that name.
        """
        name = self.check_new(name, role)
        _check_secret(role, secret)
        account = Account(f"p-{secrets.token_hex(6)}", name, role, self._clock())
        hashed = self._hash(secret)
        with self.book.transaction() as db:
            self._check_free(name)
            db.execute(
                "INSERT INTO accounts VALUES (?, ?, ?, ?, ?)",
                (account.id, name, role.value, hashed, account.created_utc),
            )
        return account

    def set_secret(self, name: str, secret: str) -> None:
        """Give an account another PIN or password. See `change`."""
        self.change(name, secret=secret)

    def change(self, name: str, *, role: Role | None = None, secret: str | None = None) -> Account:
        """Give an account another role, another PIN or password, or both; its sessions end.

        With a new secret the wrong tries of the old one are forgotten: who has just been given it need not wait.

        Args:
            name: Whose.
            role: None for what it is.
            secret: None for what it is. An operator's may be a PIN, which nobody can tell from its hash: who is to
                have another role needs a new one.

        Raises:
            NoAccount: no such account.
            AccountRefused: the secret will not do for the role, or there must be a new one.
            LastAdmin: the last admin would be none.
        """
        account = self.account(name)
        if secret is not None:
            _check_secret(role or account.role, secret)
        elif account.role is Role.OPERATOR and (role or account.role) is not Role.OPERATOR:
            raise AccountRefused(
                f"{account.name!r} needs a password for that role",
                hint="Give the account a new one with the role.",
            )
        hashed = None if secret is None else self._hash(secret)
        with self.book.transaction() as db:
            # Meanwhile it may have been given another role; then the secret may not do for it.
            now = self.account(name)
            if now != account:
                raise AccountRefused(f"{account.name!r} was changed meanwhile", hint="Look again, and try again.")
            others = [each for each in self.accounts() if each.id != account.id]
            role = role or account.role
            if account.role is Role.ADMIN is not role and not any(each.role is Role.ADMIN for each in others):
                raise LastAdmin(f"{account.name!r} is the last admin", hint="Make another admin first.")
            db.execute("UPDATE accounts SET role = ? WHERE id = ?", (role.value, account.id))
            if hashed is not None:
                db.execute("UPDATE accounts SET secret = ? WHERE id = ?", (hashed, account.id))
                db.execute("DELETE FROM tries WHERE who = ?", (_tries_of(account.name),))
            db.execute("DELETE FROM sessions WHERE account = ?", (account.id,))
        return Account(account.id, account.name, role, account.created_utc)

    def change_own(self, account_id: str, old: str, new: str, address: str) -> None:
        """Give whoever asks another PIN or password; all sessions of the account end.

        Args:
            account_id: Whose session asks.
            old: The PIN or password until now: a session that was left open is no proof. A wrong one counts as a
                try.
            new: The PIN or password from now on.
            address: Where the request comes from.

        Raises:
            AccountRefused: there is no such account, `old` is wrong, or `new` will not do.
            TooManyTries: there were too many wrong tries; nothing was checked.
        """
        account = next((each for each in self.accounts() if each.id == account_id), None)
        if account is None:
            raise AccountRefused("only an account has a PIN or password", hint="Log in on the page.")
        _check_secret(account.role, new)
        try:
            self.log_in(account.name, old, address)
        except LoginFailed as error:
            hint = "Try again, or ask an admin for a new one."
            raise AccountRefused("that is not the PIN or password until now", hint=hint) from error
        self.set_secret(account.name, new)

    def remove(self, name: str, *, erase: bool = False, open_again: bool = False) -> list[str]:
        """End an account and its sessions; return its id.

        The name stays readable beside earlier labels and in the audit log, unless it is erased from both: the
        random id stays in the label log and says nothing about anybody. Where nobody has that name any more, those
        who had it and were removed before are erased, and their ids returned.

        Args:
            name: Whose.
            erase: Forget the name too.
            open_again: The last account may go: on loopback everybody may do everything then, beyond it nobody may
                do anything.

        Raises:
            NoAccount: no such account.
            LastAdmin: the last admin would go while others stay, or the last account would and nobody said that it
                shall.
        """
        if erase and self._find(name) is None:
            before = {k: v for k, v in self.former().items() if _folded(v) == _folded(name)}
            with self.book.transaction() as db:
                for account_id, called in before.items():
                    _erase(db, account_id, called)
            if before:
                return list(before)
        with self.book.transaction() as db:  # two admins may remove each other at the same moment
            account = self.account(name)
            others = [each for each in self.accounts() if each.id != account.id]
            if others and not any(each.role is Role.ADMIN for each in others):
                raise LastAdmin(f"{account.name!r} is the last admin", hint="Make another admin first.")
            if not others and not open_again:
                raise LastAdmin(
                    f"{account.name!r} is the last account: without any, nobody would have to log in",
                    hint="Make another admin first; or on the device: headway agent user remove --open-again.",
                )
            db.execute("DELETE FROM sessions WHERE account = ?", (account.id,))
            db.execute("UPDATE accounts SET name = NULL, secret = NULL WHERE id = ?", (account.id,))
            if erase:
                _erase(db, account.id, account.name)
            else:
                db.execute("REPLACE INTO settings VALUES (?, ?)", (f"former/{account.id}", account.name))
        return [account.id]

    def wipe(self) -> bool:
        """Leave nothing in the file, or beside it, of what was erased; return whether that could be done now."""
        erasures = setting(self.book, _ERASURES) or "0"
        if setting(self.book, _WIPED) == erasures:
            return True
        try:
            self.book.rewrite()
            set_setting(self.book, _WIPED, erasures)
        except StoreFull:
            return False
        return True

    def former(self) -> dict[str, str]:
        """Return the names of removed accounts that were not erased, by id."""
        rows = self.book.rows("SELECT key, value FROM settings WHERE key LIKE 'former/%'")
        return {key.removeprefix("former/"): value for key, value in rows}

    def name_of(self, who: str) -> str:
        """Return the name of who gave a label: an account's, a removed one's, or what the log says itself."""
        name = self.book.value("SELECT name FROM accounts WHERE id = ?", who)
        if name is None:
            name = self.book.value("SELECT value FROM settings WHERE key = ?", f"former/{who}")
        return who if name is None else str(name)

    def account(self, name: str) -> Account:
        """Return somebody's account, by name.

        Raises:
            NoAccount: nobody has that name.
        """
        found = self._find(name)
        if found is None:
            raise NoAccount(f"there is no account {name[:64]!r}", hint="headway agent user list names them.")
        return found[0]

    # -- logging in ----------------------------------------------------------------------------------------------

    def log_in(self, name: str, secret: str, address: str) -> str:
        """Return the value of a new session.

        Raises:
            LoginFailed: name and secret do not go together.
            TooManyTries: there were too many wrong tries, or too many try now; nothing was checked.
        """
        if not self._queue.acquire(blocking=False):
            raise TooManyTries("too many people log in at this moment", hint="Try again in a moment.")
        try:
            return self._log_in(name, secret, address)
        finally:
            self._queue.release()

    def _log_in(self, name: str, secret: str, address: str) -> str:
        account_key, address_key = keys = (_tries_of(name), _tries_from(address))
        before, counted = self._count_try(keys)
        found = self._find(name)
        right = self._verify(self._nobody if found is None else found[1], secret[: MAX_SECRET_CHARS + 1])
        if found is None or not right:
            self.note("", "login refused", name.strip()[:64], address)
            raise LoginFailed("name and PIN or password do not go together", hint="Try again.")
        token, now = secrets.token_urlsafe(32), self._clock()
        with self.book.transaction() as db:
            db.execute("DELETE FROM tries WHERE who = ?", (account_key,))
            _take_back(db, address_key, before[address_key], counted[address_key], now)
            db.execute("DELETE FROM sessions WHERE began_utc < ?", (now - LONGEST_S,))
            db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)",
                (_digest(token), found[0].id, secrets.token_urlsafe(24), now, now),
            )
            db.execute(
                "DELETE FROM sessions WHERE token IN"
                " (SELECT token FROM sessions ORDER BY used_utc DESC LIMIT -1 OFFSET ?)",
                (MAX_SESSIONS,),
            )
        self.note(found[0].id, "login", "", address)
        return token

    def session(self, token: str, *, used: bool = True) -> Who | None:
        """Return whose session this is; None where it is none, or has ended.

        Args:
            token: Its value.
            used: Somebody uses it now, which puts off its end; else it is only looked at.
        """
        row = self.book.row(
            "SELECT a.id, a.name, a.role, s.csrf, s.began_utc, s.used_utc FROM sessions s"
            " JOIN accounts a ON a.id = s.account WHERE s.token = ? AND a.name IS NOT NULL",
            _digest(token),
        )
        if row is None:
            return None
        id_, name, role, csrf, began, last = row
        now, who = self._clock(), Who(id_, name, Role(role), csrf)
        idle_s = IDLE_OPERATOR_S if who.role is Role.OPERATOR else IDLE_S
        unused_s, old_s = now - last, now - began
        if not (-CLOCK_SLACK_S <= unused_s <= idle_s and -CLOCK_SLACK_S <= old_s <= LONGEST_S):
            self.log_out(token)
            return None
        if used and unused_s > idle_s / 60:  # not at every request: each is a write
            with self.book.transaction(durable=False) as db:
                db.execute("UPDATE sessions SET used_utc = ? WHERE token = ?", (now, _digest(token)))
        return who

    def log_out(self, token: str) -> None:
        """End a session."""
        with self.book.transaction() as db:
            db.execute("DELETE FROM sessions WHERE token = ?", (_digest(token),))

    def _count_try(self, keys: tuple[str, ...]) -> tuple[dict[str, _Tries | None], dict[str, _Tries]]:
        """Count one more wrong try; return what was counted before, and what is now.

        Raises:
            TooManyTries: none is allowed now; nothing was counted.
        """
        now = self._clock()
        was: dict[str, _Tries | None] = {}
        are: dict[str, _Tries] = {}
        with self.book.transaction() as db:
            for key in keys:
                row = db.execute("SELECT failed, until_utc FROM tries WHERE who = ?", (key,)).fetchone()
                was[key] = None if row is None else (int(row[0]), float(row[1]))
            until = max((each[1] for each in was.values() if each is not None), default=0.0)
            # A clock that jumped back must not lock a line out for longer than the longest wait.
            wait_s = min(until - now, MAX_WAIT_S)
            if wait_s > 0:
                raise TooManyTries(
                    f"too many wrong tries; wait {wait_s:.0f} s", hint="Ask an admin for a new PIN."
                )
            for key, row in was.items():
                before, last = (0, now) if row is None else row
                allowed = _allowed(key)
                if allowed > MAX_TRIES and now > last:
                    before = max(0, before - int((now - last) // FORGIVEN_S))
                failed = min(before + 1, allowed + _DOUBLINGS)
                wait_s = min(FIRST_WAIT_S * 2 ** (failed - allowed), MAX_WAIT_S) if failed >= allowed else 0.0
                are[key] = failed, now + wait_s
                db.execute("REPLACE INTO tries VALUES (?, ?, ?)", (key, *are[key]))
            _bound_tries(db, keys, now)
        return was, are

    # -- machines ------------------------------------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        """Return the machines' tokens, by name, without their values."""
        rows = self.book.rows("SELECT name, role, created_utc FROM tokens ORDER BY name")
        return [Token(name, Role(role), created) for name, role, created in rows]

    def add_token(self, name: str, role: Role) -> str:
        """Return the value of a new token.

        Raises:
            AccountRefused: the name will not do.
            NameTaken: there is one of that name.
        """
        name, value = _name(name), f"hw_{secrets.token_urlsafe(32)}"
        with self.book.transaction() as db:
            if db.execute("SELECT 1 FROM tokens WHERE name = ?", (name,)).fetchone():
                raise NameTaken(
                    f"there is a token {name!r} already", hint="Remove it first, or choose another name."
                )
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", (_digest(value), name, role.value, self._clock()))
        return value

    def remove_token(self, name: str) -> None:
        """End a machine's access.

        Raises:
            NoAccount: no such token.
        """
        with self.book.transaction() as db:
            if db.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount == 0:
                raise NoAccount(f"there is no token {name[:64]!r}", hint="Look at the list of tokens.")

    def machine(self, value: str) -> Who | None:
        """Return whose token this is; None where it is none."""
        if same(value, self.local_token):
            return Who("", "this machine", Role.OPERATOR)
        row = self.book.row("SELECT name, role FROM tokens WHERE token = ?", _digest(value))
        return None if row is None else Who(f"token {row[0]}"[:64], row[0], Role(row[1]))

    # -- audit ---------------------------------------------------------------------------------------------------

    def note(self, who: str, action: str, what: str = "", address: str = "") -> None:
        """Write one line of the audit log, and let go of what is too old or too much."""
        now = self._clock()
        with self.book.transaction(durable=False) as db:
            last = db.execute(
                "INSERT INTO audit (at_utc, who, action, what, address) VALUES (?, ?, ?, ?, ?)",
                (now, who, action, what[:200], address),
            ).lastrowid
            if last is None:
                return
            if last % 1000 == 0:
                db.execute("DELETE FROM audit WHERE number <= ?", (last - KEEP_AUDIT,))
            if self._is_right():
                _forget_old(db, last, now)

    def audit(self, limit: int, *, before: int | None = None) -> list[AuditRow]:
        """Return what was done, newest first."""
        rows = self.book.rows(
            "SELECT number, at_utc, who, action, what, address FROM audit"
            " WHERE number < ? ORDER BY number DESC LIMIT ?",
            2**62 if before is None else before,
            limit,
        )
        return [AuditRow(*row) for row in rows]

    # -- secrets -------------------------------------------------------------------------------------------------

    def _hash(self, secret: str) -> str:
        with self._slots:
            return self._hasher.hash(secret)

    def _verify(self, hashed: str, secret: str) -> bool:
        with self._slots:
            try:
                return self._hasher.verify(hashed, secret)
            except (VerificationError, InvalidHashError):
                return False


def _forget_old(db: sqlite3.Connection, last: int, now: float) -> None:
    """Delete the lines of the audit log that are older than a year, at a moment that is known for sure.

    Args:
        db: The page's file.
        last: The newest line's number.
        now: Seconds since 1970, by a clock that is held to be right.
    """
    stored = db.execute("SELECT value FROM settings WHERE key = ?", (_DATED,)).fetchone()
    marks = [] if stored is None else msgspec.json.decode(stored[0], type=list[tuple[int, float]])
    kept = [(number, at) for number, at in marks if now - AUDIT_S <= at <= now + CLOCK_SLACK_S]
    old = [number for number, at in marks if at < now - AUDIT_S]
    if old:
        db.execute("DELETE FROM audit WHERE number <= ?", (max(old),))
    if not kept or kept[-1][1] <= now - AUDIT_MARK_S:
        kept.append((last, now))
    if kept != marks:
        db.execute("REPLACE INTO settings VALUES (?, ?)", (_DATED, msgspec.json.encode(kept).decode()))


_Tries = tuple[int, float]
"""Wrong tries in a row, and until when there may be no other."""


def _allowed(key: str) -> int:
    # One address may be a gateway with a whole shift behind it.
    return MAX_TRIES if key.startswith("account") else 4 * MAX_TRIES


def _bound_tries(db: sqlite3.Connection, kept: tuple[str, ...], now: float) -> None:
    """Forget what was counted beyond `MAX_COUNTED` names that nobody has, and as many addresses.

    Never what was counted just now or of an account: whoever invents names or has many addresses would else free
    it. Of the rest goes first what a clock that was ahead has written, then what ended longest ago.
    """
    named = db.execute("SELECT name FROM accounts WHERE name IS NOT NULL").fetchall()
    stays = {*kept, *(_tries_of(name) for (name,) in named)}
    for kind in ("account", "address"):
        rows = db.execute(
            "SELECT who FROM tries WHERE who >= ? AND who < ? ORDER BY until_utc > ?, until_utc DESC",
            (f"{kind} ", f"{kind}!", now + MAX_WAIT_S),
        )
        others = [who for (who,) in rows if who not in stays]
        db.executemany("DELETE FROM tries WHERE who = ?", [(who,) for who in others[MAX_COUNTED:]])


def _take_back(db: sqlite3.Connection, key: str, before: _Tries | None, counted: _Tries, now: float) -> None:
    """Let a try that was right count for nothing; those that came meanwhile stay."""
    row = db.execute("SELECT failed, until_utc FROM tries WHERE who = ?", (key,)).fetchone()
    if row is None:
        return
    if row == counted and before is None:
        db.execute("DELETE FROM tries WHERE who = ?", (key,))
        return
    failed, until = before if row == counted and before is not None else (max(0, row[0] - 1), row[1])
    if failed < _allowed(key):
        until = min(until, now)
    db.execute("REPLACE INTO tries VALUES (?, ?, ?)", (key, failed, until))


def _erase(db: sqlite3.Connection, account_id: str, name: str) -> None:
    """Forget what an account's id stands for, here and in the audit log."""
    db.execute("DELETE FROM settings WHERE key = ?", (f"former/{account_id}",))
    db.execute("DELETE FROM tries WHERE who = ?", (_tries_of(name),))
    db.execute("UPDATE audit SET address = '' WHERE who = ?", (account_id,))
    # However it was written: refused logins hold what was typed, and SQLite tells ASCII letters only.
    for column, blank in (("what", ""), ("who", SYSTEM)):
        for (said,) in db.execute(f"SELECT DISTINCT {column} FROM audit").fetchall():
            if _folded(said.removeprefix(SYSTEM)) == _folded(name):
                db.execute(f"UPDATE audit SET {column} = ? WHERE {column} = ?", (blank, said))
    db.execute(
        "INSERT INTO settings VALUES (?, '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
        (_ERASURES,),
    )


def _folded(name: str) -> str:
    """Return a name for comparing: however spaces, letters and their parts were typed."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", " ".join(name.split())).casefold())


def _tries_of(name: str) -> str:
    return f"account {_folded(name)[:64]}"


def _tries_from(address: str) -> str:
    """Return what tries from an address are counted as: one machine has 2^64 addresses of IPv6, a network's."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"address {address}"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return f"address {found.ipv4_mapped}"
        return f"address {ipaddress.ip_network((found, 64), strict=False)}"
    return f"address {found}"


def same(one: str, other: str) -> bool:
    """Return whether two secrets are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()


def _name(name: str) -> str:
    name = " ".join(name.split())
    if not name or len(name) > 48 or not name.isprintable() or name.startswith(("p-", "token ", SYSTEM)):
        raise AccountRefused(
            f"{name[:48]!r} is no name for an account", hint="1 to 48 letters, as people call them."
        )
    if "/" in name or name in {".", ".."}:  # no address of the interface could name it for sure
        raise AccountRefused(f"{name!r} is no name for an account or token", hint="Leave the slash out.")
    return name


def _check_secret(role: Role, secret: str) -> None:
    if len(secret) > MAX_SECRET_CHARS:
        raise AccountRefused("that secret is too long", hint=f"At most {MAX_SECRET_CHARS} characters.")
    if role is Role.OPERATOR and secret.isdigit():
        if len(secret) < MIN_PIN_DIGITS or secret in _EASY or len(set(secret)) < 3:
            raise AccountRefused(
                "that PIN is too easy", hint=f"At least {MIN_PIN_DIGITS} digits, no row and no repetition."
            )
        return
    if len(secret) < MIN_PASSWORD_CHARS:
        pin = f", or a PIN of {MIN_PIN_DIGITS} digits" if role is Role.OPERATOR else ""
        raise AccountRefused("that password is too short", hint=f"At least {MIN_PASSWORD_CHARS} characters{pin}.")


_ROWS: Final = "01234567890", "09876543210"
_EASY: Final = frozenset(
    row[i : i + n] for row in _ROWS for n in range(MIN_PIN_DIGITS, 12) for i in range(len(row) - n + 1)
)
"""Runs of digits, up and down."""
