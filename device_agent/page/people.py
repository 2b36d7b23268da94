"""Logging in and out, accounts, tokens and the audit log over HTTP. What they mean is `access`'s."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import Field

from device_agent.page.access import MAX_SECRET_CHARS, Access, Account, AuditRow, Role, Token
from device_agent.page.fields import RequestBody
from device_agent.page.guard import SESSION_COOKIE, address_of, needs, who_of

Name = Annotated[str, Field(min_length=1, max_length=48)]
Secret = Annotated[str, Field(min_length=1, max_length=MAX_SECRET_CHARS)]
NamePath = Annotated[str, Path(min_length=1, max_length=48)]


class LoginIn(RequestBody):
    """Who somebody says they are."""

    name: Name
    secret: Secret


class AccountIn(RequestBody):
    """A new account. Operators may have a PIN of six digits or more."""

    name: Name
    role: Role
    secret: Secret


class SecretIn(RequestBody):
    """Another PIN or password."""

    secret: Secret


class ChangeIn(RequestBody):
    """What of an account becomes another; None stays. Who is an operator no more needs a new password."""

    role: Role | None = None
    secret: Secret | None = None


class OwnSecretIn(RequestBody):
    """Another PIN or password of one's own."""

    old: Secret
    new: Secret


class TokenIn(RequestBody):
    """A machine's way in."""

    name: Name
    role: Role = Role.OPERATOR


@dataclass(frozen=True)
class TokenOut:
    """A token's value; it cannot be shown again."""

    name: str
    role: Role
    value: str


@dataclass(frozen=True)
class AuditOut:
    """One thing that somebody did."""

    number: int
    at_utc: float
    who: str
    action: str
    what: str
    address: str


class People:
    """The routes for accounts."""

    def __init__(self, access: Access, *, secure: bool) -> None:
        self.access = access
        self._secure = secure

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        admin = [Depends(needs(Role.ADMIN))]
        api.add_api_route("/login", self.post_login, methods=["POST"])
        api.add_api_route("/logout", self.post_logout, methods=["POST"])
        look = [Depends(needs(Role.OPERATOR))]
        api.add_api_route("/secret", self.put_own_secret, methods=["PUT"], dependencies=look)
        api.add_api_route("/accounts", self.get_accounts, dependencies=admin)
        api.add_api_route("/accounts", self.post_account, methods=["POST"], status_code=201, dependencies=admin)
        api.add_api_route("/accounts/{name:path}/secret", self.put_secret, methods=["PUT"], dependencies=admin)
        api.add_api_route("/accounts/{name:path}", self.put_account, methods=["PUT"], dependencies=admin)
        api.add_api_route("/accounts/{name:path}", self.delete_account, methods=["DELETE"], dependencies=admin)
        api.add_api_route("/tokens", self.get_tokens, dependencies=admin)
        api.add_api_route("/tokens", self.post_token, methods=["POST"], status_code=201, dependencies=admin)
        api.add_api_route("/tokens/{name:path}", self.delete_token, methods=["DELETE"], dependencies=admin)
        api.add_api_route("/audit", self.get_audit, dependencies=admin)
        return api

    def post_login(self, login: LoginIn, request: Request, response: Response) -> dict[str, str]:
        """Begin a session: the answer sets its cookie."""
        token = self.access.log_in(login.name, login.secret, address_of(request))
        response.set_cookie(
            f"__Host-{SESSION_COOKIE}" if self._secure else SESSION_COOKIE,
            token,
            httponly=True,
            samesite="strict",
            secure=self._secure,
            path="/",
        )
        return {"name": login.name}

    def post_logout(self, request: Request, response: Response) -> dict[str, bool]:
        """End the session."""
        name = f"__Host-{SESSION_COOKIE}" if self._secure else SESSION_COOKIE
        token = request.cookies.get(name)
        if token is not None:
            self.access.log_out(token)
        response.delete_cookie(name, path="/", secure=self._secure, httponly=True, samesite="strict")
        return {"out": True}

    def get_accounts(self) -> list[Account]:
        """The accounts, by name."""
        return self.access.accounts()

    def post_account(self, new: AccountIn, request: Request) -> Account:
        """Make an account. The first must be an admin's; from then on everybody logs in."""
        account = self.access.add(new.name, new.role, new.secret)
        self._note(request, "account added", account.id)
        return account

    def put_secret(self, name: NamePath, new: SecretIn, request: Request) -> dict[str, bool]:
        """Give somebody another PIN or password; their sessions end."""
        self.access.set_secret(name, new.secret)
        self._note(request, "secret changed", self._id(name))
        return {"saved": True}

    def put_account(self, name: NamePath, new: ChangeIn, request: Request) -> Account:
        """Give somebody another role, another PIN or password, or both; their sessions end."""
        before = self.access.account(name)
        account = self.access.change(name, role=new.role, secret=new.secret)
        if account.role is not before.role:
            self._note(request, "role changed", account.id)
        if new.secret is not None:
            self._note(request, "secret changed", account.id)
        return account

    def put_own_secret(self, new: OwnSecretIn, request: Request) -> dict[str, bool]:
        """Give oneself another PIN or password; one's sessions end, this one too."""
        who = who_of(request)
        self.access.change_own(who.id, new.old, new.new, address_of(request))
        self._note(request, "secret changed", who.id)
        return {"saved": True}

    def delete_account(self, name: NamePath, request: Request, erase: bool = False) -> dict[str, bool]:
        """End an account; `erase` also forgets the name that goes with its labels, also of one that was removed
        before. `wiped`: nothing of what was erased is left in the file; else there is until the next start."""
        for account_id in self.access.remove(name, erase=erase):
            self._note(request, "account erased" if erase else "account removed", account_id)
        return {"removed": True, "wiped": self.access.wipe()}

    def get_tokens(self) -> list[Token]:
        """The machines' tokens, without their values."""
        return self.access.tokens()

    def post_token(self, new: TokenIn, request: Request) -> TokenOut:
        """Make a token for a machine; its value is shown only now."""
        value = self.access.add_token(new.name, new.role)
        self._note(request, "token added", new.name)
        return TokenOut(new.name, new.role, value)

    def delete_token(self, name: NamePath, request: Request) -> dict[str, bool]:
        """End a machine's access."""
        self.access.remove_token(name)
        self._note(request, "token removed", name)
        return {"removed": True}

    def get_audit(
        self,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    ) -> list[AuditOut]:
        """Who did what, newest first. Labels are not here: they are in the label log."""
        return [self._row(row) for row in self.access.audit(limit, before=before)]

    def _row(self, row: AuditRow) -> AuditOut:
        return AuditOut(
            **{**asdict(row), "who": self.access.name_of(row.who), "what": self.access.name_of(row.what)}
        )

    def _id(self, name: str) -> str:
        return self.access.account(name).id

    def _note(self, request: Request, action: str, what: str) -> None:
        self.access.note(who_of(request).id, action, what, address_of(request))
