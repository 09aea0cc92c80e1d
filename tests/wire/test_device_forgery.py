"""What a person chose, a name or a directory, does not say where the person came from, who it is or what came of it.

In each message 6.6.6.6 is what an attacker wrote and 192.0.2.9 what the device did.
"""

import time
from typing import Any

import pytest
from decode_twins import Decode, messages_body
from test_device_vectors import AUTO, PLAIN, one

from ndagent.wire.devices import load_family
from ndagent.wire.devices.enrich import Devices
from ndagent.wire.devices.fields import Message
from ndagent.wire.ecs import DecodeSettings

SSHD = "<38>Mar 15 11:59:00 b sshd[1]: "
ASA = "<166>fw01 : %ASA-6-"
IOS = "<189>29: %"
NX_OS = "<187>: 2024 Mar 15 11:59:00 UTC: %AUTHPRIV-3-SYSTEM_MSG: "
F5 = "<134>Mar 15 11:59:00 b1 info httpd(pam_audit)[1]: 01070417:6: AUDIT - "
TOLD = {
    "sshd, a key": (
        SSHD + "Failed publickey for invalid user a from 6.6.6.6 port 1 ssh2: RSA x from 192.0.2.9 port 2 ssh2: RSA y",
        "a from 6.6.6.6 port 1 ssh2: RSA x",
    ),
    "PAM of sssd": (
        SSHD + "pam_sss(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=192.0.2.9 "
        "user=x rhost=6.6.6.6 user=root",
        "x rhost=6.6.6.6 user=root",
    ),
    "IOS": (
        IOS + "SEC_LOGIN-4-LOGIN_FAILED: Login failed [user: a] [Source: 6.6.6.6] [Reason: mine] [Source: 192.0.2.9] "
        "[localport: 22] [Reason: Login Authentication Failed] at 11:59:00 UTC Fri Mar 15 2024",
        "a] [Source: 6.6.6.6] [Reason: mine",
    ),
    "IOS, SSH": (
        IOS + "SSH-5-SSH2_USERAUTH: User 'a' authentication for SSH2 Session from 6.6.6.6 (tty = 0) Succeeded' "
        "authentication for SSH2 Session from 192.0.2.9 (tty = 0) using crypto cipher 'x', hmac 'y' Failed",
        "a' authentication for SSH2 Session from 6.6.6.6 (tty = 0) Succeeded",
    ),
    "NX-OS": (
        NX_OS + "pam_aaa:Authentication failed for user a from 6.6.6.6 from 192.0.2.9 - dcos_sshd[1]",
        "a from 6.6.6.6",
    ),
    "ASA": (
        ASA + "113015: AAA user authentication Rejected : reason = Invalid password : local database : "
        "user = a : user IP = 6.6.6.6 : user IP = 192.0.2.9",
        "a : user IP = 6.6.6.6",
    ),
    "ASA, VPN": (
        ASA + "113039: Group <g> User <a> IP <6.6.6.6> IP <192.0.2.9> AnyConnect parent session started.",
        "a> IP <6.6.6.6",
    ),
    "F5": (
        F5
        + "user a host=6.6.6.6 - RAW: httpd(pam_audit): User=a host=6.6.6.6 tty=(unknown) host=192.0.2.9 attempts=1.",
        "a",
    ),
    "CEF, escaped": ("<134>CEF:0|V|P|1|2|n\\|src=6.6.6.6|3|suser=a src\\=6.6.6.6 src=192.0.2.9", "a src=6.6.6.6"),
    "FortiGate, escaped": (
        '<189>date=2024-03-15 devid="FG1" logid="1" type="event" user="a\\" srcip=6.6.6.6 b=\\"" srcip=192.0.2.9',
        'a" srcip=6.6.6.6 b="',
    ),
}
AMBIGUOUS = {
    "CEF": "<134>CEF:0|V|P|1|2|n|3|suser=a src=6.6.6.6 src=192.0.2.9",
    "LEEF": "<134>LEEF:1.0|V|P|1|2|usrName=a\tsrc=6.6.6.6\tsrc=192.0.2.9",
    "FortiGate": '<189>date=2024-03-15 devid="FG1" logid="1" type="event" user="a" srcip=6.6.6.6 b="" srcip=192.0.2.9',
    "FortiGate, cut": '<189>date=2024-03-15 devid="FG1" logid="1" type="traffic" user="a srcip=6.6.6.6 action=accept ',
    "pairs": "<134>id=firewall user=a src=6.6.6.6 src=192.0.2.9",
    "pairs, cut": '<134>id=firewall m=1 user="a src=6.6.6.6 dst=6.6.6.6',
    "Check Point, cut": '<134>1 - g CheckPoint 1 - - [action:"Drop"; user:"a; src:6.6.6.6; dst:6.6.6.6; ',
    "ASM": '<134>ASM:username="a",ip_client="6.6.6.6",x="",ip_client="192.0.2.9"',
    "ASM, cut": '<134>ASM:method="GET",uri="/,ip_client=6.6.6.6,dest_ip=6.6.6.6',
    "F5, a command's argument": F5 + "pid=1 user=root status=[Command OK] cmd_data=create ltm node host=6.6.6.6",
    "sshd": SSHD
    + "Disconnecting authenticating user root 192.0.2.9 port 22: Change of username or service not allowed: "
    "(root,ssh-connection) -> (y 6.6.6.6 port 9: z,ssh-connection) [preauth]",
}


@pytest.mark.parametrize("case", TOLD)
def test_a_name_that_looks_like_the_rest_of_its_message_is_a_name(decode: Decode, case: str) -> None:
    """The format tells where it ends."""
    text, user = TOLD[case]
    event = one(decode(AUTO, messages_body([text.encode()])))
    client = event["client"]
    assert client["ip"] == "192.0.2.9"
    assert (event.get("user") or client["user"])["name"] == user
    assert event["event"].get("outcome") in (None, "failure", "success" if "VPN" in case else None)
    assert event["event"].get("reason") != "mine"


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_where_two_readings_are_left_neither_is_taken(decode: Decode, case: str) -> None:
    """An event without an address is looked at; one with a forged address accuses somebody."""
    event = one(decode(AUTO, messages_body([AMBIGUOUS[case].encode()])))
    assert "ip" not in event.get("client", {})
    assert "ip" not in event.get("server", {})
    assert "6.6.6.6" not in event.get("related", {}).get("ip", [])


def test_a_name_said_twice_keeps_its_values(decode: Decode) -> None:
    """So that a rule can ask for them; said twice alike it is no contradiction."""
    event = one(decode(AUTO, messages_body([b"<134>id=firewall src=10.0.0.1 src=10.0.0.2 dst=10.0.0.3 dst=10.0.0.3"])))
    assert event["key_value"] == {"id": "firewall", "said_twice": {"src": ["10.0.0.1", "10.0.0.2"]}}
    assert event["server"] == {"ip": "10.0.0.3"}


def test_check_point_names_each_layer_whose_rule_matched(decode: Decode) -> None:
    """The first layer's rule is the event's, as it always was: behind escaped quotes nobody can put a name."""
    layers = 'layer_name:"A"; layer_name:"B"; rule_name:"1"; rule_name:"2"'
    pairs = rf'[action:"Accept"; user:"a\"; src:\"6.6.6.6"; src:"10.0.0.1"; {layers}]'
    event = one(decode(AUTO, messages_body([f"<134>1 - g CheckPoint 1 - - {pairs}".encode()])))
    assert event["rule"] == {"name": "1", "ruleset": "A"}
    assert event["client"]["ip"] == "10.0.0.1"
    assert event["user"]["name"] == 'a"; src:"6.6.6.6'


def test_a_directory_does_not_say_who_sudo_made_of_a_user(decode: Decode) -> None:
    """ada stands in /tmp/x ; USER=bob ; COMMAND=/bin and became root."""
    text = "ada : TTY=pts/0 ; PWD=/tmp/x ; USER=bob ; COMMAND=/bin ; USER=root ; COMMAND=/bin/sh"
    event = one(decode(AUTO, messages_body([f"<85>Mar 15 11:59:00 w sudo:  {text}".encode()])))
    assert event["user"] == {"name": "ada"}
    assert event["process"]["command_line"] == "/bin ; USER=root ; COMMAND=/bin/sh"
    assert event["system"]["auth"]["sudo"] == {"tty": "pts/0", "command": "/bin ; USER=root ; COMMAND=/bin/sh"}


def test_nx_os_without_a_user_names_the_address_no_user(decode: Decode) -> None:
    """`Authentication failed from 192.0.2.9` has no user."""
    text = f"{NX_OS}pam_aaa:Authentication failed from 192.0.2.9 - login"
    event = one(decode(AUTO, messages_body([text.encode()])))
    assert event["client"] == {"ip": "192.0.2.9"}
    assert "user" not in event


@pytest.mark.parametrize(
    ("family", "front", "fill"),
    [
        ("cisco_ios", "%SSH-5-SSH2_USERAUTH: User '", "' authentication for SSH2 Session from a "),
        ("cisco_ios", "%SEC_LOGIN-4-LOGIN_FAILED: Login failed [user: ", "] [Source: "),
        ("cisco_ios", "%A-3-SYSTEM_MSG: pam_aaa:Authentication failed for user ", " from a"),
        ("cisco_ios", "%A-3-SYSTEM_MSG: pam_aaa:Authentication failed for user ", " "),
        ("cisco_asa", "%ASA-6-113015: AAA user authentication Rejected : local database : user = ", " : user IP = a"),
        ("cisco_asa", "%ASA-6-113039: Group <g> User <", "> IP <"),
        ("sshd", "pam_sss(sshd:auth): authentication failure; ", " rhost="),
        ("sshd", "Disconnecting user ", " 1 port 1: "),
    ],
)
def test_names_that_look_so_a_thousand_times_cost_linear_time(family: str, front: str, fill: str) -> None:
    """Searching from the end must not try every end."""
    read = load_family(family).read
    started = time.process_time()
    for _ in range(5):
        read(Message(front + fill * (32_000 // len(fill))))
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "said", [{"event.code": 2**70}, {"user.name": ["a"]}, {"source": "x", "source.ip": "10.0.0.1"}]
)
def test_what_a_family_may_not_say_costs_no_event(
    monkeypatch: pytest.MonkeyPatch, decode: Decode, said: dict[str, Any]
) -> None:
    """It fails behind `read`: where names are related, or JSON is written."""
    family = load_family("sshd")
    monkeypatch.setattr("ndagent.wire.devices.sshd.FAMILY", family._replace(read=lambda _: dict(said)))
    body = messages_body([(SSHD + "Invalid user a from 192.0.2.9").encode()])
    assert Devices(DecodeSettings("collector-1", devices=("sshd",))).signatures
    assert decode(AUTO, body) == decode(PLAIN, body)
