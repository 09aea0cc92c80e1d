"""OpenSSH's sshd: logins that succeeded or failed, unknown users, sessions, and connections closed before a login.

Promises: an address and a port are those at the message's end: what a client gives as its user name may look like the
rest of a message ("root from 192.0.2.1 port 22") and changes nothing. Method, key and what happened also stand under
system.auth.ssh, as Elastic's system integration names them.
Refuses: lines with anything behind what sshd writes, lines in which two addresses may be the client's, and lines of
sshd that are not below.
"""

import re

from ndagent.wire.devices.fields import Family, Flat, Message, login
from ndagent.wire.devices.signatures import Signature

_WHERE = r"from (?P<source>\S+)(?: port (?P<port>\d+))?"
_TRIED = re.compile(
    r"(?P<event>Accepted|Failed) (?P<method>\S+) for (?P<invalid>invalid user )?"
    rf"(?P<user>.*) {_WHERE} ssh2(?:: (?P<signature>.*))?\Z",
    re.DOTALL,
)
_UNKNOWN = re.compile(rf"(?P<event>Invalid) user (?P<user>.*) {_WHERE}\Z", re.DOTALL)
_EXCEEDED = re.compile(
    r"error: maximum authentication attempts exceeded for (?P<invalid>invalid user )?"
    rf"(?P<user>.*) {_WHERE} ssh2 \[preauth\]\Z",
    re.DOTALL,
)
_FROM = r"(?P<source>[0-9A-Fa-f.:]+) port (?P<port>\d+)"
_GONE = re.compile(
    r"(?:Connection (?:closed|reset) by|Disconnected from|Disconnecting)"
    rf"(?: (?P<kind>authenticating|invalid) user| user)?(?: (?P<user>.*))? {_FROM}(?P<more>: .*| \[preauth\])?\Z",
    re.DOTALL,
)
_ANOTHER = re.compile(r" [0-9A-Fa-f.:]+ port \d+: ")
_LEFT = re.compile(rf"Received disconnect {_WHERE}:\d+: (?P<reason>.*)\Z", re.DOTALL)
_DENIED = re.compile(r"User (?P<user>.*) from (?P<source>\S+) not allowed because (?P<reason>.*)\Z", re.DOTALL)
_PAM_FAILED = re.compile(
    r"pam_\w+\(sshd:auth\): authentication failure; .*? rhost=(?P<source>\S*)(?: +user=(?P<user>.*))?\Z", re.DOTALL
)
_PAM_SESSION = re.compile(
    r"pam_\w+\(sshd:session\): session (?P<way>opened|closed) for user (?P<user>[^\s(]+)(?:\(uid=(?P<uid>\d+)\))?"
)


def read(message: Message) -> Flat | None:
    """None for a line that is not wholly one of those above."""
    text = message.text
    for pattern, told in _TOLD:
        found = pattern.match(text)
        if found is not None:
            part = found.groupdict()
            if (part.get("more") or "").startswith(":") and _ANOTHER.search(part["user"] or ""):
                return None  # "not allowed: (…) -> (…)" ends with what the client sent: which of both is its address?
            own = {name: part[name] for name in ("event", "method", "signature") if part.get(name)}
            return {
                "event.module": "system",
                "event.dataset": "system.auth",
                **told(part),
                "user.name": part.get("user"),
                "user.id": part.get("uid"),
                "source.ip": part.get("source"),
                "source.port": part.get("port"),
                "event.reason": part.get("reason"),
                "system.auth": {"ssh": own} if own else {},
            }
    return None


def _tried(part: dict[str, str | None]) -> Flat:
    return {**login(part["event"] == "Accepted"), "event.action": "ssh_login"}


def _failed(_part: dict[str, str | None]) -> Flat:
    return {**login(False), "event.action": "ssh_login"}


def _gone(part: dict[str, str | None]) -> Flat:
    if part.get("kind") is not None:
        return {**login(False), "event.action": "ssh_disconnect"}
    return {"event.category": ["session"], "event.type": ["end"], "event.action": "ssh_disconnect"}


def _session(part: dict[str, str | None]) -> Flat:
    way = "start" if part["way"] == "opened" else "end"
    return {"event.category": ["session"], "event.type": [way], "event.action": f"ssh_session_{way}"}


_TOLD = (
    (_TRIED, _tried),
    (_UNKNOWN, _failed),
    (_GONE, _gone),
    (_LEFT, _gone),
    (_PAM_FAILED, _failed),
    (_PAM_SESSION, _session),
    (_EXCEEDED, _failed),
    (_DENIED, _failed),
)
_TRIES = (b"Accepted ", b"Failed ")
_STARTS = (
    b"Invalid user ", b"Connection closed by ", b"Connection reset by ",
    b"Disconnected from ", b"Disconnecting ", b"Received disconnect from ", b"pam_unix(sshd:", b"pam_sss(sshd:",
    b"error: maximum auth", b"User ",
)  # fmt: skip
FAMILY = Family(
    "sshd",
    tuple(
        signature
        for app in (b"sshd", b"sshd-session")
        for signature in (
            *(Signature(app=app, starts=start) for start in _STARTS),
            *(Signature(app=app, starts=start, ends=b" ssh2") for start in _TRIES),
            *(Signature(app=app, starts=start + b"publickey ") for start in _TRIES),  # has its key behind "ssh2"
        )
    ),
    read,
)
