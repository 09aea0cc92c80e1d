"""sudo: commands run, refused and mistyped passwords, and sessions that pam_unix opens for it.

Promises: who (user.name) became whom (user.effective.name) to run what (process.command_line); why not, where sudo
refused. Also under system.auth.sudo, as Elastic's system integration names them.
Refuses: splitting the command into arguments (sudo joins them with spaces, so it cannot be told); and, where a second
COMMAND= follows, saying who the user became, since a directory may be called `x ; USER=bob ; COMMAND=y`.
"""

import re

from ndagent.wire.devices.fields import Family, Flat, Message
from ndagent.wire.devices.signatures import Signature

_RUN = re.compile(
    r"\s*(?P<user>\S+) : (?:(?P<error>[^;=]+?) ; )?(?:HOST=(?P<host>\S+) ; )?(?:TTY=(?P<tty>\S+) ; )?"
    r"(?:PWD|CWD)=(?P<pwd>[^;]*?) ; USER=(?P<effective>\S+) ; (?:GROUP=(?P<group>\S+) ; )?(?:TSID=\S+ ; )?"
    r"(?:ENV=[^;]*? ; )?COMMAND=(?P<command>.*)\Z",
    re.DOTALL,
)
_ANOTHER = " ; COMMAND="
_PAM = re.compile(
    r"pam_\w+\(sudo(?:-i)?:session\): session (?P<way>opened|closed) for user (?P<effective>[^\s(]+)(?:\(uid=\d+\))?"
    r"(?: by (?P<user>[^\s(]*)\(uid=(?P<uid>\d+)\))?"
)
_PAM_FAILED = re.compile(r"pam_\w+\(sudo(?:-i)?:auth\): authentication failure; .*?\bruser=(?P<user>\S*)")


def read(message: Message) -> Flat | None:
    """None for a line of sudo that is neither."""
    text = message.text
    flat: Flat = {"event.module": "system", "event.dataset": "system.auth"}
    if (found := _RUN.match(text)) is not None:
        own = {name: found[name] for name in ("tty", "pwd", "error") if found[name]}
        flat.update({"event.category": ["process"], "event.type": ["start"], "event.action": "sudo_command"})
        flat["event.outcome"] = "failure" if found["error"] else "success"
        flat["event.reason"], flat["process.command_line"] = found["error"], found["command"]
        flat["process.working_directory"], flat["group.name"] = found["pwd"], found["group"]
        own |= {"user": found["effective"], "command": found["command"]}
        if _ANOTHER in found["command"]:  # of a directory's name, or of the command: who and where cannot be told
            own = {name: own[name] for name in own.keys() - {"user", "pwd"}}
            flat["process.working_directory"] = flat["group.name"] = None
        flat["system.auth"] = {"sudo": own}
    elif (found := _PAM.match(text)) is not None:
        way = "start" if found["way"] == "opened" else "end"
        flat.update({"event.category": ["session"], "event.type": [way], "event.action": f"sudo_session_{way}"})
        flat["user.id"] = found["uid"]
    elif (found := _PAM_FAILED.match(text)) is not None:
        flat.update({"event.category": ["authentication"], "event.type": ["start"], "event.outcome": "failure"})
        flat["event.action"] = "sudo_login"
    else:
        return None
    part = found.groupdict()
    flat["user.name"] = part.get("user")
    flat["user.effective.name"] = None if _ANOTHER in part.get("command", "") else part.get("effective")
    return flat


FAMILY = Family("sudo", (Signature(app=b"sudo", contains=b"COMMAND="), Signature(app=b"sudo", starts=b"pam_")), read)
