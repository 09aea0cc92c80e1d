"""One joined audit event as one line of ECS JSON.

Promises: `@timestamp` is the kernel's, `event.sequence` its serial; who (user.*), with what (process.*), on what
(file.*, source.*, destination.*) and with which result (event.outcome) stand where ECS has them; every other field of
every record stands below `auditd.<record type>`, a list where the event has several records of the type. Lines that
could not be read are events too, tagged _parse_failure, with their text. Bytes that are not UTF-8 get U+FFFD, and the
lines as they were stand in event.original_base64. Refuses: looking anything up (users, hosts): what the log does not
say is not there.

ECS says user.id is who the process acts for, user.effective.* whose rights it has where that differs; the login user
(auid), whom su and sudo do not change, is user.audit.*. For what programs report about somebody (a login), user.* is
that somebody (acct, id).
"""

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from ndagent.wire.auditd import UNSET, Record, arguments, enriched_of, fields_of, socket_address
from ndagent.wire.auditd_actions import BY_SYSCALL, BY_TYPE, Action
from ndagent.wire.auditd_join import Joined
from ndagent.wire.auditd_syscalls import ARCHITECTURES, SYSCALLS

MAX_ARGUMENTS = 256
"""process.args of one event; more are counted in process.args_count only."""

_PRIMARY = ("AVC", "SECCOMP", "ANOM_", "NETFILTER_CFG", "CONFIG_CHANGE", "LOGIN", "KERN_MODULE", "MAC_", "BPF", "TIME_")
"""Records that say more about an event than the SYSCALL beside them, by beginning of their type."""
_COMPANIONS = frozenset({"SYSCALL", "CWD", "PATH", "EXECVE", "PROCTITLE", "SOCKADDR", "EOE"})
_OUTCOMES = dict.fromkeys(("yes", "success", "1"), "success") | dict.fromkeys(("no", "failed", "0"), "failure")
_IDENTITIES = (
    ("uid", ("user",)), ("gid", ("user", "group")), ("auid", ("user", "audit")),
    ("euid", ("user", "effective")), ("egid", ("user", "effective", "group")),
    ("suid", ("user", "saved")), ("sgid", ("user", "saved", "group")),
    ("fsuid", ("user", "filesystem")), ("fsgid", ("user", "filesystem", "group")),
)  # fmt: skip
_DERIVED = frozenset({"euid", "egid", "suid", "sgid", "fsuid", "fsgid"})


def event_line(joined: Joined, *, base: Mapping[str, Any], created: str, keep_original: bool) -> bytes:
    """The event, LF included. `base` has what all events of the input share (ecs, agent, host); `created` RFC 3339."""
    event = _Event(joined, created)
    document = {**base, **event.document}
    if event.node:
        document["host"] = {"hostname": event.node, "name": event.node}
    raw = b"\n".join(joined.lines)
    text = raw.decode("utf-8", "replace")
    described = document["event"]
    if "\ufffd" in text and text.encode() != raw:
        described["original_base64"] = b64encode(raw).decode()
    if keep_original or not joined.records:
        described["original"] = text
    return orjson.dumps(document) + b"\n"


class _Event:
    """A document that grows; what is mapped to ECS is taken out of the records' fields, the rest goes to auditd.*."""

    def __init__(self, joined: Joined, created: str) -> None:
        self.document: dict[str, Any] = {
            "event": {"kind": "event", "module": "auditd", "dataset": "auditd.log", "created": created}
        }
        self.node = ""
        tags = ["_incomplete"] if joined.is_cut else []
        if joined.records:
            self._read(joined.records)
        else:
            tags.append("_parse_failure")
            self.document["@timestamp"] = created
            self.document["message"] = joined.line.decode("utf-8", "replace")
            self.document["error"] = {"message": "not a line of an audit log"}
        if tags:
            self.document["tags"] = tags

    def _read(self, records: list[Record]) -> None:
        first = records[0]
        self.node = first.node
        moment = datetime.fromtimestamp(first.seconds, UTC)
        self.document["@timestamp"] = f"{moment:%Y-%m-%dT%H:%M:%S}.{first.milliseconds:03d}Z"
        self._put("event", "sequence", first.serial)
        fields: dict[str, list[dict[str, Any]]] = {}
        names: dict[str, str] = {}
        for record in records:
            names |= enriched_of(record)
            found = {} if record.type == "EXECVE" else fields_of(record)
            fields.setdefault(record.type, []).append(found)
        self._names = names
        syscall = next(iter(fields.get("SYSCALL", ())), None)
        kind, primary = _primary(fields)
        self._action(kind, primary, syscall)
        for part in [primary] if syscall is None or syscall is primary else [syscall, primary]:
            self._identities(part)
            self._process(part)
        if kind not in _COMPANIONS:
            self._reported(kind, primary)
        self._companions(records, fields)
        self._put_rest(fields)
        self._summary()

    def _action(self, kind: str, primary: dict[str, Any], syscall: dict[str, Any] | None) -> None:
        action = BY_TYPE.get(kind)
        if syscall is not None:
            name = self._syscall(syscall)
            if kind == "SYSCALL":
                action = BY_SYSCALL.get(name) or Action(name)
        action = action or Action(kind.lower().replace("_", "-"))
        self._put("event", "action", action.verb)
        if action.categories:
            self._put("event", "category", list(action.categories))
            self._put("event", "type", list(action.types))
        self._outcome(kind, primary, syscall)

    def _syscall(self, fields: dict[str, Any]) -> str:
        """Name the call and the architecture in the record, by what auditd resolved or by the tables."""
        arch, number = str(fields.get("arch", "")), str(fields.get("syscall", ""))
        name = self._names.get("syscall") or SYSCALLS.get(arch, {}).get(number) or number or "syscall"
        fields["syscall"] = name
        if arch:
            fields["arch"] = self._names.get("arch") or ARCHITECTURES.get(arch, arch)
        return name

    def _outcome(self, kind: str, primary: dict[str, Any], syscall: dict[str, Any] | None) -> None:
        said = primary.pop("res", None) or primary.pop("result", None)
        if said is None and syscall is not None:
            said = syscall.pop("success", None)
        if kind == "AVC":
            said = {"denied": "no", "granted": "yes"}.get(str(primary.get("seresult")), said)
        outcome = _OUTCOMES.get(str(said).lower())
        if outcome:
            self._put("event", "outcome", outcome)

    def _identities(self, fields: dict[str, Any]) -> None:
        real = {"u": fields.get("uid"), "g": fields.get("gid")}
        for key, path in _IDENTITIES:
            value = fields.pop(key, None)
            if not isinstance(value, str) or value in (UNSET, "-1", "unset"):
                continue
            if key in _DERIVED and value == real[key[-3]]:
                continue  # the process has its own user's rights, as most have
            self._put(*path, "id", value)
            name = self._names.get(key)
            if name not in ("unset", "unknown"):
                self._put(*path, "name", name)

    def _process(self, fields: dict[str, Any]) -> None:
        for key, path in (("pid", ("pid",)), ("ppid", ("parent", "pid"))):
            number = fields.get(key)
            if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 11:
                self._put("process", *path, int(fields.pop(key)))
        for key, leaf in (("exe", "executable"), ("comm", "name"), ("cwd", "working_directory")):
            if isinstance(fields.get(key), str):
                self._put("process", leaf, fields.pop(key))

    def _reported(self, kind: str, fields: dict[str, Any]) -> None:
        """What a program said about somebody: an account, an address it came from, a command it ran."""
        account, account_id = fields.pop("acct", None), fields.pop("id", None)
        if isinstance(account, str):
            self.document.get("user", {}).pop("id", None)
            self.document.get("user", {}).pop("name", None)
            self._put("user", "name", account)
        elif isinstance(account_id, str) and account_id.isdigit():
            self.document.get("user", {}).pop("name", None)
            self._put("user", "name", self._names.get("id"))
        if isinstance(account_id, str) and account_id.isdigit() and account_id != UNSET:
            self._put("user", "id", account_id)
        if isinstance(fields.get("grp"), str):
            self._put("group", "name", fields.pop("grp"))
        for key in ("addr", "hostname"):
            address = fields.get(key)
            if isinstance(address, str) and _is_address(address):
                self._put("source", "ip", fields.pop(key))
                self._put("source", "address", address)
            elif key == "hostname" and isinstance(address, str):
                self._put("source", "domain", fields.pop(key))
        if kind == "USER_CMD" and isinstance(fields.get("cmd"), str):
            self._put("process", "command_line", fields.pop("cmd"))
        if kind in ("SERVICE_START", "SERVICE_STOP") and isinstance(fields.get("unit"), str):
            self._put("service", "name", fields.pop("unit"))

    def _companions(self, records: list[Record], fields: dict[str, list[dict[str, Any]]]) -> None:
        for found in fields.get("CWD", ()):
            self._put("process", "working_directory", found.pop("cwd", None))
        for found in fields.get("PROCTITLE", ()):
            self._put("process", "title", found.pop("proctitle", None))
        executed = [record for record in records if record.type == "EXECVE"]
        if executed:
            given = arguments(executed, limit=MAX_ARGUMENTS)
            self._put("process", "args", given)
            count = fields_of(executed[0]).get("argc", "")
            self._put("process", "args_count", int(count) if count.isdigit() and len(count) < 10 else len(given))
        self._file(fields.get("PATH", []))
        for found in fields.get("SOCKADDR", ()):
            self._socket(found)

    def _file(self, paths: list[dict[str, Any]]) -> None:
        """The object of the call: the last path that is not its parent directory (the new name of a rename)."""
        named = [path for path in paths if isinstance(path.get("name"), str)]
        objects = [path for path in named if path.get("nametype") != "PARENT"] or named
        if not objects or self.document["event"].get("action") == "executed":
            return
        chosen = objects[-1]
        path = chosen["name"]
        directory = self.document.get("process", {}).get("working_directory")
        if not path.startswith("/") and directory:
            path = f"{directory.rstrip('/')}/{path.removeprefix('./')}"
        self._put("file", "path", path)
        self._put("file", "inode", chosen.get("inode"))
        mode = chosen.get("mode")
        if isinstance(mode, str) and mode.isdigit():
            self._put("file", "mode", mode[-4:])
        for key, leaf in (("ouid", "uid"), ("ogid", "gid")):
            self._put("file", leaf, chosen.get(key))

    def _socket(self, fields: dict[str, Any]) -> None:
        address = socket_address(str(fields.get("saddr", "")))
        if not address:
            return
        fields.pop("saddr")
        fields.update(address)
        if address["family"] in ("ipv4", "ipv6"):
            came_in = self.document["event"].get("action") in ("accepted", "received")
            side = "source" if came_in else "destination"
            self._put(side, "ip", address["address"])
            self._put(side, "port", address["port"])
            self._put("network", "type", address["family"])
            if self.document["event"].get("action") in ("connected", "accepted"):
                self._put("network", "direction", "ingress" if came_in else "egress")
        elif address["family"] == "unix" and address["path"].startswith("/"):
            self._put("file", "path", address["path"])

    def _put_rest(self, fields: dict[str, list[dict[str, Any]]]) -> None:
        rest: dict[str, Any] = {"types": list(fields)}
        for kind, found in fields.items():
            left = [part for part in found if part]
            if left:
                rest[kind.lower()] = left if len(left) > 1 or kind == "PATH" else left[0]
        self.document["auditd"] = rest

    def _summary(self) -> None:
        """message: who did what to what, for people."""
        document = self.document
        user, process = document.get("user", {}), document.get("process", {})
        who = user.get("name") or (f"uid {user['id']}" if "id" in user else "somebody")
        thing = document.get("file", {}).get("path") or process.get("title") or process.get("executable")
        service = document.get("service", {}).get("name")
        words = [who, document["event"]["action"].replace("-", " "), service or process.get("command_line") or thing]
        for preposition, side in (("from", "source"), ("to", "destination")):
            if "ip" in document.get(side, {}):
                words += [preposition, document[side]["ip"]]
        failed = ": failed" if document["event"].get("outcome") == "failure" else ""
        document["message"] = " ".join(word for word in words if word) + failed

    def _put(self, *path_and_value: Any) -> None:
        """Set a field by its path; None is no value."""
        *path, leaf, value = path_and_value
        if value is None:
            return
        place = self.document
        for name in path:
            place = place.setdefault(name, {})
        place[leaf] = value


def _primary(fields: dict[str, list[dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    """The record that tells what the event is about, by type, and its fields."""
    for kind, found in fields.items():
        if kind.startswith(_PRIMARY):
            return kind, found[0]
    if "SYSCALL" in fields:
        return "SYSCALL", fields["SYSCALL"][0]
    for kind, found in fields.items():
        if kind not in _COMPANIONS:
            return kind, found[0]
    kind = next(iter(fields))
    return kind, fields[kind][0]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
