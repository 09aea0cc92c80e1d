"""Enrolment tokens on the collector's side: made by an operator, used by agents, counted durably.

Promises: of a secret only its SHA-256 is kept (192 random bits need no slow hash) and it is compared in constant time;
a use is counted, and the agent it made is in the inventory, before a certificate exists, so that no crash gives a use
away; the same key with the same token is the same agent, for a day and at no further use, because an answer can get
lost; one public key never belongs to two agents. Each refusal has a reason of its own.
"""

import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from ndagent.wire.enrolment import ID_BYTES, SECRET_BYTES, HostFacts, Reason, Token
from ndcollector.agents.inventory import Inventory, NotThere, insert_agent, owner_of_key
from ndcollector.agents.rows import Newcomer
from ndcollector.agents.schema import InventoryError

REPEAT_SECONDS = 86400.0
"""How long after it was used a token answers the same key again."""
MAX_TOKENS = 10_000

_NOBODY = hashlib.sha256(b"").digest()


class TokenRefused(Exception):
    """This token does not let this key in; `reason` is for programs, the text for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as it is kept. `ca_fingerprints` (hex) are those in its text."""

    id: str
    group: str
    roles: tuple[str, ...]
    uses: int
    uses_left: int
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None
    ca_fingerprints: tuple[str, ...]

    def state(self, now: float) -> str:
        """In one word."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "used" if self.uses_left <= 0 else "usable"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new token is to be."""

    uses: int = 1
    expires_at: float | None = None
    group: str = ""
    roles: tuple[str, ...] = ()


def create(inventory: Inventory, wish: Wish, *, ca_fingerprints: Sequence[bytes], created_by: str, now: float) -> Token:
    """A new token; its text cannot be had again later."""
    token = Token(secrets.token_hex(ID_BYTES), secrets.token_bytes(SECRET_BYTES), tuple(ca_fingerprints))
    with inventory.writing() as database:
        if database.execute("SELECT count(*) FROM tokens").fetchone()[0] >= MAX_TOKENS:
            raise InventoryError(f"there are {MAX_TOKENS} tokens; remove some: `ndcollector agents token rm`")
        database.execute(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?)",
            (
                token.id,
                _hash(token),
                wish.group,
                json.dumps(wish.roles),
                wish.uses,
                wish.uses,
                now,
                created_by,
                wish.expires_at,
                json.dumps([one.hex() for one in ca_fingerprints]),
            ),
        )
    return token


def list_tokens(inventory: Inventory) -> list[TokenRow]:
    """All that are kept, the oldest first."""
    with inventory.reading() as database:
        return [_row(one) for one in database.execute(f"SELECT {_COLUMNS} FROM tokens ORDER BY created_at")]  # noqa: S608 - a constant


def revoke(inventory: Inventory, token_id: str, *, now: float) -> None:
    """Nobody enrols with it from now on; who did stays. Raises NotThere."""
    query = "UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?"
    with inventory.writing() as database:
        if database.execute(query, (now, token_id)).rowcount == 0:
            raise NotThere(f"{token_id} is not the id of a token; see `ndcollector agents token ls`")


def forget(inventory: Inventory, token_id: str, *, now: float) -> None:
    """Delete one that can no longer be used; raises NotThere, InventoryError for one that can."""
    with inventory.writing() as database:
        found = database.execute(f"SELECT {_COLUMNS} FROM tokens WHERE id = ?", (token_id,)).fetchone()  # noqa: S608 - a constant
        if found is None:
            raise NotThere(f"{token_id} is not the id of a token; see `ndcollector agents token ls`")
        if _row(found).state(now) == "usable":
            raise InventoryError(f"{token_id} can still be used; revoke it first")
        database.execute("DELETE FROM tokens WHERE id = ?", (token_id,))


def check(inventory: Inventory, token: Token) -> None:
    """Raise TokenRefused where this secret was never given out: before a request costs more than a look."""
    with inventory.reading() as database:
        _stored(database, token)


def claim(
    inventory: Inventory, token: Token, *, spki: bytes, facts: HostFacts, agent_id: str, address: str, now: float
) -> str:
    """Count a use and add the agent `agent_id`; gives the id of the agent that this key is.

    That is another one where this key has used this token before: nothing is counted then. Raises TokenRefused.
    """
    with inventory.writing() as database:
        row = _stored(database, token)
        if row.revoked_at is not None:
            raise TokenRefused("revoked_token", "the token was revoked; ask for another")
        known = _same_key(database, token, spki, now)
        if known is not None:
            return known
        _check_usable(row, now)
        _check_new(database, spki)
        database.execute("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?", (token.id,))
        insert_agent(database, Newcomer(agent_id, facts, "token", row.group, row.roles, token.id), now=now)
        database.execute("INSERT INTO token_uses VALUES (?, ?, ?, ?, ?)", (token.id, spki, agent_id, now, address))
    return agent_id


_COLUMNS = "id, group_name, roles, uses, uses_left, created_at, created_by, expires_at, revoked_at, ca_fingerprints"


def _hash(token: Token) -> bytes:
    return hashlib.sha256(token.secret).digest()


def _stored(database: sqlite3.Connection, token: Token) -> TokenRow:
    row = database.execute(f"SELECT secret_sha256, {_COLUMNS} FROM tokens WHERE id = ?", (token.id,)).fetchone()  # noqa: S608 - a constant
    expected = row[0] if row is not None else _NOBODY
    if not hmac.compare_digest(expected, _hash(token)) or row is None:
        raise TokenRefused("unknown_token", "this collector does not know the token; is it another collector's?")
    return _row(row[1:])


def _same_key(database: sqlite3.Connection, token: Token, spki: bytes, now: float) -> str | None:
    query = (
        "SELECT agent_id, used_at, revoked_at FROM token_uses JOIN agents ON id = agent_id "
        "WHERE token_uses.token_id = ? AND spki = ?"
    )
    row = database.execute(query, (token.id, spki)).fetchone()
    if row is None:
        return None
    agent_id, used_at, revoked_at = row
    if revoked_at is not None:
        raise TokenRefused("revoked_agent", f"agent {agent_id}, which has this key, was revoked; make a new key")
    if now - used_at > REPEAT_SECONDS:
        raise TokenRefused("used_token", f"the token was used with this key a day or more ago, for agent {agent_id}")
    return str(agent_id)


def _check_usable(row: TokenRow, now: float) -> None:
    if row.expires_at is not None and row.expires_at <= now:
        raise TokenRefused("expired_token", "the token has expired; ask for another, and check this host's clock")
    if row.uses_left <= 0:
        times = "once, as often as it may be" if row.uses == 1 else f"{row.uses} times, as often as it may be"
        raise TokenRefused("used_token", f"the token was used {times}; ask for another")


def _check_new(database: sqlite3.Connection, spki: bytes) -> None:
    owner = owner_of_key(database, spki)
    if owner is not None:
        raise TokenRefused("bad_csr", f"the key belongs to agent {owner} already; make a new one for each agent")


def _row(row: Sequence[object]) -> TokenRow:
    values = list(row)
    values[2] = tuple(json.loads(str(row[2])))
    values[9] = tuple(json.loads(str(row[9])))
    return TokenRow(*values)  # type: ignore[arg-type]  # the columns of _COLUMNS, in order
