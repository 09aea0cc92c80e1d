"""Cisco IOS, IOS-XE, IOS-XR, NX-OS and AireOS: %FACILITY-SEVERITY-MNEMONIC, and what the mnemonics below say.

Promises: every such message gets its facility, severity and mnemonic (event.code); access lists, logins, commands,
configuration and interfaces that go up or down also who, where and what became of it.
Refuses: guessing which of the systems it is, and so a product: the messages are alike.

After Cisco's "System Message Guides" for IOS and NX-OS.
"""

import re

from ndagent.wire.devices.fields import ALLOWED, DENIED, Family, Flat, Message, login, transport
from ndagent.wire.devices.signatures import Signature

_HEAD = re.compile(r"%([A-Z][A-Z0-9_]*(?:-[A-Z][A-Z0-9_]*)*)-([0-7])-([A-Z][A-Z0-9_]*)(?![^\s:])")
_ACCESS = re.compile(
    r"(?:access-list |list )(?P<rule>\S+) (?P<verb>permitted|denied) (?P<protocol>\w+) (?:on \S+ )?"
    r"(?P<source>[0-9A-Fa-f:.]+)(?:\((?P<source_port>\d+)\))?(?: \((?P<interface>[^()]*)\))? ?-> ?"
    r"(?P<destination>[0-9A-Fa-f:.]+)(?:\((?P<destination_port>\d+)\))?(?: \(\d+/\d+\))?, "
    r"(?P<packets>\d+) packet"
)
_ACCESS_SOURCE = re.compile(
    r"list (?P<rule>\S+) (?P<verb>permitted|denied) (?P<source>[0-9A-Fa-f:.]+) (?P<packets>\d+) packet"
)
# A name may look like the rest of its message: what stands behind it is searched from the end.
_LOGIN = re.compile(
    r"Login (?P<verb>Success|failed) \[user: ?(?P<user>.*)\] \[Source: ?(?P<source>[^\]]*)\]", re.DOTALL
)
_REASON = re.compile(r"\[Reason: ?(?P<reason>[^\]]*)\]")
_CONFIGURED = re.compile(
    r"Configured from (?P<from>\S+)(?: by (?P<user>\S+))?(?: on (?P<line>\S+))?(?: \((?P<source>[^()\s]+)\))?"
)
_COMMAND = re.compile(r"User:(?P<user>\S+) +logged command:(?P<command>.*)", re.DOTALL)
_LOGOUT = re.compile(r"User (?P<user>\S+) has exited tty session \d+\((?P<source>[^()]*)\)")
_SSH = re.compile(
    r"(?=.*(?P<verb>Succeeded|Failed))User '(?P<user>.*)' authentication for SSH2? Session from (?P<source>\S+) ",
    re.DOTALL,
)
_PAM = re.compile(
    r"pam_aaa:Authentication (?P<verb>failed)(?: for user (?P<user>.*?))?(?: from (?P<source>\S+))?(?: - \S+)? ?\Z",
    re.DOTALL,
)
_INTERFACE = re.compile(
    r"(?:Interface|Line protocol on Interface) (?P<interface>[^\s,]+)"
    r"(?:, changed state to (?P<state>[A-Za-z ]+)| is (?P<is>up|down))"
)


def read(message: Message) -> Flat | None:
    """None where neither the program's name nor the text begins with a mnemonic."""
    text = message.text
    head = _HEAD.match(message.app)
    if head is None:
        head = _HEAD.match(text)
        if head is None:
            return None
        text = text[head.end() :].lstrip(" :")
    facility, severity, mnemonic = head.groups()
    flat: Flat = {
        "event.module": "cisco_ios",
        "event.dataset": "cisco_ios.log",
        "event.code": mnemonic,
        "event.severity": int(severity),
        "observer.vendor": "Cisco",
        "cisco.ios": {"facility": facility},
    }
    if mnemonic.startswith(("IPACCESSLOG", "ACCESSLOG")):
        flat.update(_access(text))
    elif (reader := _READERS.get(mnemonic)) is not None:
        flat.update(reader(text))
    return flat


def _access(text: str) -> Flat:
    found = _ACCESS.match(text) or _ACCESS_SOURCE.match(text)
    if found is None:
        return {}
    part = found.groupdict()
    flat: Flat = {
        **(DENIED if part["verb"] == "denied" else ALLOWED),
        "event.action": "firewall-rule",
        "rule.name": part["rule"],
        "network.packets": part["packets"],
        "source.ip": part["source"],
        "source.port": part.get("source_port"),
        "destination.ip": part.get("destination"),
        "destination.port": part.get("destination_port"),
    }
    if interface := part.get("interface"):
        flat["observer.ingress.interface.name"] = interface.split(" ")[0]  # "Gi0/1 0011.2233.4455"
    if protocol := part.get("protocol"):
        flat.update(transport(protocol))
    return flat


def _login(text: str) -> Flat:
    found = _LOGIN.match(text) or _SSH.match(text) or _PAM.match(text)
    if found is None:
        return {}
    reason = _REASON.search(text, found.end())
    return {
        **login(found["verb"] in ("Success", "Succeeded")),
        "event.action": "login",
        "user.name": found["user"],
        "source.ip": found["source"],
        "event.reason": reason["reason"] if reason else None,
    }


def _logout(text: str) -> Flat:
    found = _LOGOUT.match(text)
    if found is None:
        return {}
    flat: Flat = {"user.name": found["user"], "source.ip": found["source"], "event.action": "logout"}
    return {**login(True), **flat, "event.type": ["end"]}


def _configured(text: str) -> Flat:
    found = _CONFIGURED.match(text)
    if found is None:
        return {}
    return {
        "event.category": ["configuration"],
        "event.type": ["change"],
        "event.action": "configuration-changed",
        "user.name": found["user"],
        "source.ip": found["source"],
    }


def _command(text: str) -> Flat:
    found = _COMMAND.match(text)
    if found is None:
        return {}
    return {
        "event.category": ["process"],
        "event.type": ["info"],
        "event.action": "command-executed",
        "user.name": found["user"],
        "process.command_line": found["command"].strip(),
    }


def _interface(text: str) -> Flat:
    found = _INTERFACE.match(text)
    if found is None:
        return {}
    state = found["state"] or found["is"]
    return {
        "event.category": ["network"],
        "event.type": ["info"],
        "event.action": f"interface-{state.strip().lower().replace(' ', '-')}",
        "observer.ingress.interface.name": found["interface"],
    }


_READERS = {
    **dict.fromkeys(("LOGIN_SUCCESS", "LOGIN_FAILED", "SSH2_USERAUTH", "SSH_USERAUTH", "SYSTEM_MSG"), _login),
    **dict.fromkeys(("CONFIG_I", "VSHD_SYSLOG_CONFIG_I"), _configured),
    **dict.fromkeys(("UPDOWN", "IF_UP", "IF_DOWN", "CHANGED"), _interface),
    "CFGLOG_LOGGEDCMD": _command,
    "LOGOUT": _logout,
}
FAMILY = Family("cisco_ios", (Signature(app_starts=b"%"), Signature(starts=b"%")), read)
