"""F5 BIG-IP: ASM's name="value" lists, and messages of LTM, APM and the system that begin with a number and a severity.

Promises: of ASM all pairs, those without an ECS name under f5.bigip; of the others the number (event.code), severity,
and for APM's sessions, pool members and audit records also who, where and what; of an iRule's own messages the rule. A
message of another program of the device, or with other text, is left alone.
Refuses: ASM's comma-separated form without names (its columns are chosen in the logging profile); cef.py has its CEF.

After "Configuring Application Security Event Logging" and the BIG-IP error message reference.
"""

import re

from ndagent.wire.devices.fields import ALLOWED, CONNECTION, DENIED, Family, Flat, Message, sort_out
from ndagent.wire.devices.pairs import by_commas
from ndagent.wire.devices.signatures import Signature

_ASM = {
    "ip_client": "source.ip", "src_port": "source.port", "dest_ip": "destination.ip", "dest_port": "destination.port",
    "uri": "url.path", "query_string": "url.query", "method": "http.request.method",
    "response_code": "http.response.status_code", "protocol": "network.protocol", "policy_name": "rule.ruleset",
    "sig_ids": "rule.id", "sig_names": "rule.name", "username": "user.name",
    "geo_location": "source.geo.country_iso_code", "unit_hostname": "observer.hostname",
    "management_ip_address": "observer.ip", "virus_name": "threat.software.name", "request_status": "event.action",
}  # fmt: skip
_NONE = ("N/A", "n/a", "N/A,N/A")
_RULE = re.compile(r"Rule (?P<rule>\S+) <(?P<event>\w+)>: ")
_HEAD = re.compile(r"([0-9a-f]{8}):([0-7]): ")
_SESSION = re.compile(r"(?P<profile>/[^\s:]+):(?P<partition>[^\s:]+):(?P<session>[0-9a-f]{8}): ")
_NEW = re.compile(
    r"New session from client IP (?P<source>\S+) \(ST=[^/]*/CC=(?P<country>[^/]*)/C=[^)]*\) at VIP (?P<vip>\S+)"
)
_USER = re.compile(r"Username '(?P<user>[^']*)'")
_BYTES = re.compile(r"Session statistics - bytes in: (?P<received>\d+), bytes out: (?P<sent>\d+)")
_AGENT = re.compile(r"Received User-Agent header: (?P<agent>.*)", re.DOTALL)
_RESULT = re.compile(r"Access policy result: (?P<result>.*)")
_MEMBER = re.compile(r"Pool (?P<pool>\S+) member (?P<member>\S+) monitor status (?P<state>[a-z ]+)\.?")
_AUDIT = re.compile(r"AUDIT - (?:user (?P<user>[^\s,]+)|pid=\d+ user=(?P<user_2>\S+))")
_AUDIT_COMMAND = re.compile(r"cmd_data=(?P<command>.*)", re.DOTALL)
_AUDIT_HOST = re.compile(r"\bhost=([0-9A-Fa-f.:]+)")


def read(message: Message) -> Flat | None:
    """None for what is neither ASM's list nor begins with a number."""
    text = message.text
    if text.startswith("ASM:") or message.app == "ASM":
        return _asm(text.removeprefix("ASM:"))
    flat: Flat = {
        "event.module": "f5_bigip",
        "event.dataset": "f5_bigip.log",
        "observer.vendor": "F5",
        "observer.product": "BIG-IP",
    }
    if (rule := _RULE.match(text)) is not None:  # what an iRule's author logs; the text is theirs
        return {**flat, "rule.name": rule["rule"], "f5.bigip": {"irule_event": rule["event"]}}
    head = _HEAD.match(text)
    if head is None:
        return None
    flat["event.code"], flat["event.severity"] = head[1], int(head[2])
    rest = text[head.end() :]
    session = _SESSION.match(rest)
    if session is not None:
        rest = rest[session.end() :]
        flat["f5.bigip"] = {"access_profile": session["profile"], "session_id": session["session"]}
    flat.update(_told(rest, in_session=session is not None))
    return flat


def _asm(text: str) -> Flat | None:
    pairs = [(name, value) for name, value in by_commas(text) if value not in _NONE]
    if not pairs:
        return None
    flat = sort_out(pairs, _ASM, own="f5.bigip")
    if "network.protocol" in flat:
        flat["network.protocol"] = flat["network.protocol"].lower()
    if flat.get("http.response.status_code") == "0":  # there was no response
        del flat["http.response.status_code"]
    status = flat.get("event.action")
    flat.update(DENIED if status == "blocked" else ALLOWED if status in ("passed", "alerted") else CONNECTION)
    flat["event.category"] = ["network", "web"] + (["intrusion_detection"] if "violations" in flat["f5.bigip"] else [])
    flat["event.module"], flat["event.dataset"] = "f5_bigip", "f5_bigip.log"
    flat["observer.vendor"], flat["observer.product"], flat["observer.type"] = "F5", "BIG-IP ASM", "waf"
    return flat


def _told(rest: str, *, in_session: bool) -> Flat:
    if in_session:
        return _access(rest)
    if (found := _MEMBER.match(rest)) is not None:
        own = {"pool": found["pool"], "member": found["member"], "monitor_status": found["state"].strip()}
        return {"event.category": ["host"], "event.type": ["change"], "f5.bigip": own, "event.action": "monitor-status"}
    if (found := _AUDIT.match(rest)) is not None:
        command = _AUDIT_COMMAND.search(rest)
        hosts = [] if command else _AUDIT_HOST.findall(rest)  # in a command it is the command's
        return {
            "event.category": ["configuration"],
            "event.type": ["change"],
            "event.action": "audit",
            "user.name": found["user"] or found["user_2"],
            "process.command_line": command["command"] if command else None,
            "source.ip": hosts[-1] if hosts else None,  # a name may have one too, and stands in front
        }
    return {}


def _access(rest: str) -> Flat:
    """APM: what a session's messages say one by one (session_id joins them)."""
    flat: Flat = {"event.category": ["session"], "event.type": ["info"]}
    if (found := _NEW.match(rest)) is not None:
        flat.update({"event.type": ["start"], "event.action": "session-started", "source.ip": found["source"]})
        flat.update({"source.geo.country_iso_code": found["country"], "destination.ip": found["vip"]})
    elif rest.startswith("Session deleted"):
        flat.update({"event.type": ["end"], "event.action": "session-ended", "event.reason": rest[:1024]})
    elif (found := _USER.match(rest)) is not None:
        flat["user.name"] = found["user"]
    elif (found := _BYTES.match(rest)) is not None:
        flat.update({"source.bytes": found["received"], "destination.bytes": found["sent"]})
    elif (found := _AGENT.match(rest)) is not None:
        flat["user_agent.original"] = found["agent"]
    elif (found := _RESULT.match(rest)) is not None:
        refused = "deny" in found["result"].lower()
        flat.update({"event.action": "policy-result", "event.outcome": "failure" if refused else "success"})
    return flat


_PROGRAMS = (b"mcpd", b"apmd", b"apd", b"tmsh", b"bigd", b"sod", b"httpd(pam_audit)", b"websso", b"iControlPortal.cgi")
FAMILY = Family(
    "f5",
    (
        Signature(starts=b"ASM:"),
        Signature(app=b"ASM"),
        Signature(app_starts=b"tmm", starts=b"01"),
        Signature(app_starts=b"tmm", starts=b"Rule "),
        *(Signature(app=name, starts=b"01") for name in _PROGRAMS),
    ),
    read,
)
