"""A dozen kinds of devices and what they say, in the formats that they really use.

Promises: the same seed and times give the same messages; each kind varies what a real one varies; every address is from
the ranges set aside for documentation (RFC 5737, RFC 3849), every name from example.net; no message holds a line feed.
Refuses: the network (senders.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from random import Random

Message = Callable[[Random, datetime], str]

_ACCOUNTS = ("admin", "backup", "deploy", "guest", "operator", "oracle", "root", "svc-build", "test", "ubnt")
_PORTS = (22, 25, 53, 80, 123, 443, 445, 993, 1433, 3306, 3389, 5432, 8080, 8443)
_PATHS = ("/", "/login", "/api/v1/orders", "/api/v1/orders/4711", "/static/app.js", "/wp-login.php", "/.env", "/health")
_AGENTS = (
    "curl/8.5.0",
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "-",
    "Go-http-client/2.0",
)


@dataclass(frozen=True, slots=True)
class Device:
    """One sender: `name` is its host name and the name in its certificate."""

    name: str
    kind: str
    octet_counted: bool  # RFC 6587 §3.4.1, else a line feed after each message
    message: Message

    def frame(self, random: Random, now: datetime) -> bytes:
        """The next message as it goes over the wire."""
        text = self.message(random, now).encode()
        return b"%d %s" % (len(text), text) if self.octet_counted else text + b"\n"


def _inside(random: Random) -> str:
    return f"192.0.2.{random.randint(1, 254)}"


def _service(random: Random) -> str:
    return f"198.51.100.{random.randint(1, 254)}"


def _outside(random: Random) -> str:
    return f"203.0.113.{random.randint(1, 254)}"


def _port(random: Random) -> int:
    return random.randint(32768, 60999)


def _bsd(now: datetime) -> str:
    """RFC 3164 §4.1.2: the day is padded with a space."""
    return f"{now:%b} {now.day:2d} {now:%H:%M:%S}"


def _iso(now: datetime) -> str:
    return f"{now:%Y-%m-%dT%H:%M:%S.%f}Z"


def app_server(random: Random, now: datetime) -> str:
    """RFC 5424 in full: structured data with escapes, a BOM, text beyond ASCII."""
    order, milliseconds = random.randint(10_000, 99_999), random.randint(2, 900)
    what = random.choice(("order accepted", "payment declined", "Rückfrage an den Kunden", 'stock "low"'))
    escaped = what.replace('"', '\\"')  # RFC 5424 §6.3.3
    severity = 4 if "declined" in what else 6
    data = f'[req@32473 id="{random.getrandbits(64):016x}" ms="{milliseconds}" note="{escaped}"][meta sequenceId="{order}"]'
    return f"<{16 * 8 + severity}>1 {_iso(now)} app-1.example.net shop {random.randint(800, 880)} ORDER {data} \ufefforder {order}: {what}"


def cisco_asa(random: Random, now: datetime) -> str:
    """ASA with `logging timestamp` and a device id: year after the day, a lone colon where the tag would be."""
    flow = random.randint(10**7, 10**8)
    source, target, port = _outside(random), _service(random), random.choice(_PORTS)
    text = random.choice(
        (
            f"6-302013: Built inbound TCP connection {flow} for outside:{source}/{_port(random)} ({source}/{_port(random)}) to dmz:{target}/{port} ({target}/{port})",
            f"6-302014: Teardown TCP connection {flow} for outside:{source}/{_port(random)} to dmz:{target}/{port} duration 0:{random.randint(0, 59):02d}:{random.randint(0, 59):02d} bytes {random.randint(80, 10**6)} TCP FINs",
            f'4-106023: Deny tcp src outside:{source}/{_port(random)} dst dmz:{target}/{port} by access-group "outside_in" [0x0, 0x0]',
            f"3-710003: TCP access denied by ACL from {source}/{_port(random)} to outside:{target}/22",
        )
    )
    return f"<{20 * 8 + int(text[0])}>{now:%b %d %Y %H:%M:%S} asa-1 : %ASA-{text}"


def cisco_ios(random: Random, now: datetime) -> str:
    """IOS with sequence numbers and milliseconds; the asterisk means that its clock was never set."""
    sequence, unset = random.randint(1, 999_999), random.choice(("*", "", "."))
    interface = f"GigabitEthernet0/{random.randint(0, 23)}"
    facility, severity, text = random.choice(
        (
            (
                "SEC-6-IPACCESSLOGP",
                6,
                f"list 101 denied tcp {_outside(random)}({_port(random)}) -> {_inside(random)}({random.choice(_PORTS)}), 1 packet",
            ),
            (
                "LINEPROTO-5-UPDOWN",
                5,
                f"Line protocol on Interface {interface}, changed state to {random.choice(('up', 'down'))}",
            ),
            ("LINK-3-UPDOWN", 3, f"Interface {interface}, changed state to {random.choice(('up', 'down'))}"),
            ("SYS-5-CONFIG_I", 5, f"Configured from console by operator on vty0 ({_inside(random)})"),
        )
    )
    stamp = f"{_bsd(now)}.{now.microsecond // 1000:03d}"
    return f"<{23 * 8 + severity}>{sequence}: rtr-1: {unset}{stamp}: %{facility}: {text}"


def pan_os(random: Random, now: datetime) -> str:
    """PAN-OS traffic and threat logs: comma-separated, many of the fields empty."""
    stamp, source, target = f"{now:%Y/%m/%d %H:%M:%S}", _inside(random), _outside(random)
    head = f"<14>{_bsd(now)} pa-1.example.net 1,{stamp},013201000001"
    rule = random.choice(("allow-web", "allow-dns", "deny-all"))
    app = random.choice(("ssl", "web-browsing", "dns", "ms-rdp"))
    flow = f"{source},{target},0.0.0.0,0.0.0.0,{rule},,,{app},vsys1,trust,untrust,ethernet1/2,ethernet1/1,syslog,{stamp},{random.randint(1, 10**6)},1,{_port(random)},{random.choice(_PORTS)},0,0,0x19,tcp"
    if random.random() < 0.2:
        threat = random.choice(
            ("Generic HTTP Cross Site Scripting Attempt(31477)", "SSH User Authentication Brute Force Attempt(40015)")
        )
        return f'{head},THREAT,vulnerability,2561,{stamp},{flow},reset-both,"index.php",{threat},any,high,client-to-server,{random.getrandbits(32)},0x0,US,DE,,,'
    action, size = ("deny" if rule == "deny-all" else "allow"), random.randint(60, 10**6)
    return f"{head},TRAFFIC,end,2561,{stamp},{flow},{action},{size},{size // 3},{size - size // 3},{random.randint(1, 900)},{stamp},{random.randint(0, 300)},any,,{random.getrandbits(32)},0x0,US,DE,,{random.randint(1, 400)},{random.randint(1, 500)},tcp-fin"


def fortigate(random: Random, now: datetime) -> str:
    """FortiGate: key=value behind the PRI, no header at all."""
    action = random.choice(("accept", "deny", "close", "timeout"))
    level = "warning" if action == "deny" else "notice"
    return (
        f'<{23 * 8 + (4 if action == "deny" else 5)}>date={now:%Y-%m-%d} time={now:%H:%M:%S} devname="fgt-1" devid="FGT60F0000000001" '
        f'eventtime={int(now.timestamp() * 1e9)} tz="+0000" logid="0000000013" type="traffic" subtype="forward" level="{level}" vd="root" '
        f'srcip={_inside(random)} srcport={_port(random)} srcintf="internal" dstip={_outside(random)} dstport={random.choice(_PORTS)} dstintf="wan1" '
        f'policyid={random.randint(0, 40)} proto=6 action="{action}" sentbyte={random.randint(0, 10**6)} rcvdbyte={random.randint(0, 10**6)}'
    )


def juniper_srx(random: Random, now: datetime) -> str:
    """SRX with `structured-data`: RFC 5424, all of it in one SD-ELEMENT, no MSG."""
    name = random.choice(("RT_FLOW_SESSION_CREATE", "RT_FLOW_SESSION_CLOSE", "RT_FLOW_SESSION_DENY"))
    data = (
        f'source-address="{_inside(random)}" source-port="{_port(random)}" destination-address="{_outside(random)}" '
        f'destination-port="{random.choice(_PORTS)}" service-name="junos-https" protocol-id="6" policy-name="trust-to-untrust" '
        f'source-zone-name="trust" destination-zone-name="untrust" session-id-32="{random.randint(1, 10**6)}"'
    )
    return f"<14>1 {_iso(now)} srx-1 RT_FLOW - {name} [junos@2636.1.1.1.2.129 {data}]"


def check_point(random: Random, now: datetime) -> str:
    """Check Point's Log Exporter: looks like RFC 5424, but its structured data has colons and semicolons."""
    action = random.choice(("Accept", "Drop", "Reject", "Detect"))
    return (
        f'<134>1 {now:%Y-%m-%dT%H:%M:%S}Z cp-1 CheckPoint 18160 - [action:"{action}"; flags:"411908"; ifdir:"inbound"; ifname:"eth1"; '
        f'loguid:"{{0x{random.getrandbits(32):x},0x0,0x{random.getrandbits(32):x},0x{random.getrandbits(32):x}}}"; origin:"{_service(random)}"; '
        f'product:"VPN-1 & FireWall-1"; src:"{_outside(random)}"; s_port:"{_port(random)}"; dst:"{_service(random)}"; service:"{random.choice(_PORTS)}"; proto:"6"; rule:"{random.randint(1, 60)}"]'
    )


def f5_big_ip(random: Random, now: datetime) -> str:
    """BIG-IP: the level stands between host and tag."""
    member, pid = f"/Common/{_service(random)}:443", random.randint(4000, 9000)
    severity, level, text = random.choice(
        (
            (
                5,
                "notice",
                f"mcpd[{pid}]: 01070638:5: Pool /Common/pool_shop member {member} monitor status down. [ /Common/https: down; last error: /Common/https: Response Code: 503 ] [ was up for {random.randint(0, 99)}hrs:{random.randint(0, 59)}mins:{random.randint(0, 59)}sec ]",
            ),
            (
                5,
                "notice",
                f"mcpd[{pid}]: 01070727:5: Pool /Common/pool_shop member {member} monitor status up. [ /Common/https: up ] [ was down for 0hr:0min:{random.randint(1, 59)}sec ]",
            ),
            (
                6,
                "info",
                f"tmm[{pid}]: Rule /Common/log_requests <HTTP_REQUEST>: {_outside(random)} {random.choice(_PATHS)}",
            ),
            (
                4,
                "warning",
                f"tmm[{pid}]: 01260013:4: SSL Handshake failed for TCP {_outside(random)}:{_port(random)} -> {_service(random)}:443",
            ),
        )
    )
    return f"<{16 * 8 + severity}>{_bsd(now)} bigip-1 {level} {text}"


def linux_sshd(random: Random, now: datetime) -> str:
    """rsyslog's RSYSLOG_ForwardFormat: an RFC 3339 time in an RFC 3164 header."""
    peer = f"{_outside(random)} port {_port(random)}"
    account = random.choice(_ACCOUNTS)
    severity, text = random.choice(
        (
            (6, f"Failed password for invalid user {account} from {peer} ssh2"),
            (6, f"Accepted publickey for deploy from {peer} ssh2: ED25519 SHA256:{random.getrandbits(128):032x}"),
            (6, f"Connection closed by authenticating user {account} {peer} [preauth]"),
            (3, f"error: maximum authentication attempts exceeded for {account} from {peer} ssh2 [preauth]"),
        )
    )
    return f"<{10 * 8 + severity}>{_iso(now)[:-1]}+00:00 web-1 sshd[{random.randint(1000, 99_999)}]: {text}"


def linux_sudo(random: Random, now: datetime) -> str:
    """sudo through syslog(3): leading spaces belong to the message."""
    command = random.choice(
        (
            "/usr/bin/systemctl restart shop",
            "/usr/bin/apt-get update",
            "/bin/cat /etc/shadow",
            "/usr/bin/vim /etc/hosts",
        )
    )
    account = random.choice(("deploy", "operator", "svc-build"))
    refused = "command not allowed ; " if "shadow" in command else ""
    return f"<{10 * 8 + (1 if refused else 5)}>{_bsd(now)} db-1 sudo[{random.randint(1000, 99_999)}]:   {account} : {refused}TTY=pts/{random.randint(0, 9)} ; PWD=/srv ; USER=root ; COMMAND={command}"


def kernel_firewall(random: Random, now: datetime) -> str:
    """netfilter's LOG target (nft, iptables) on a gateway."""
    uptime = f"{random.randint(10**4, 10**6)}.{random.randint(0, 999_999):06d}"
    v6 = random.random() < 0.2
    source, target = ("2001:db8::bad", "2001:db8::1") if v6 else (_outside(random), _service(random))
    return (
        f"<4>{_bsd(now)} gw-1 kernel: [{uptime}] nft-drop: IN=eth0 OUT= MAC=00:00:5e:00:53:01:00:00:5e:00:53:02:08:00 SRC={source} DST={target} "
        f"LEN={random.randint(40, 60)} TOS=0x00 TTL={random.randint(30, 250)} ID={random.randint(0, 65535)} DF PROTO=TCP SPT={_port(random)} DPT={random.choice(_PORTS)} WINDOW=1024 RES=0x00 SYN URGP=0"
    )


def windows_security(random: Random, now: datetime) -> str:
    """A domain controller's security log, forwarded by NXLog as RFC 5424 (to_syslog_ietf)."""
    number, text = random.choice(
        (
            (4624, "An account was successfully logged on."),
            (4625, "An account failed to log on."),
            (4688, "A new process has been created."),
            (4720, "A user account was created."),
        )
    )
    kind = "AUDIT_FAILURE" if number == 4625 else "AUDIT_SUCCESS"
    data = (
        f'Keywords="-9214364837600034816" EventType="{kind}" EventID="{number}" ProviderGuid="{{54849625-5478-4994-A5BA-3E3B0328C30D}}" '
        f'RecordNumber="{random.randint(1, 10**8)}" ThreadID="{random.randint(100, 9000)}" Channel="Security" TargetUserName="{random.choice(_ACCOUNTS)}" '
        f'TargetDomainName="EXAMPLE" LogonType="{random.choice((2, 3, 5, 10))}" IpAddress="{_inside(random)}" IpPort="{_port(random)}"'
    )
    return f"<{13 * 8 + (4 if number == 4625 else 6)}>1 {_iso(now)} dc-1.example.net Microsoft-Windows-Security-Auditing {random.randint(500, 900)} - [NXLOG@14506 {data}] {text}"


def nginx(random: Random, now: datetime) -> str:
    """nginx's own `access_log syslog:`, combined format."""
    status = random.choices((200, 304, 401, 404, 502), (80, 8, 4, 6, 2))[0]
    method = random.choice(("GET", "GET", "GET", "POST"))
    return (
        f"<{23 * 8 + 6}>{_bsd(now)} web-2 nginx: {_outside(random)} - - [{now:%d/%b/%Y:%H:%M:%S} +0000] "
        f'"{method} {random.choice(_PATHS)} HTTP/1.1" {status} {random.randint(0, 50_000)} "-" "{random.choice(_AGENTS)}"'
    )


def vpn_gateway(random: Random, now: datetime) -> str:
    """strongSwan on a gateway, forwarded as RFC 5424."""
    peer, number = _outside(random), random.randint(1, 400)
    text = random.choice(
        (
            f"IKE_SA roadwarrior[{number}] established between 198.51.100.1[vpn.example.net]...{peer}[branch-{number % 20}.example.net]",
            f"CHILD_SA roadwarrior{{{number}}} established with SPIs c{random.getrandbits(28):07x}_i c{random.getrandbits(28):07x}_o and TS 192.0.2.0/24 === {_inside(random)}/32",
            f"deleting IKE_SA roadwarrior[{number}] between 198.51.100.1[vpn.example.net]...{peer}[branch-{number % 20}.example.net]",
            f"received AUTHENTICATION_FAILED notify error from {peer}",
        )
    )
    return f"<{3 * 8 + (4 if 'FAILED' in text else 6)}>1 {_iso(now)} vpn-1.example.net charon {random.randint(700, 720)} - - {random.randint(1, 16):02d}[IKE] {text}"


DEVICES = (
    Device("app-1", "application server (RFC 5424)", True, app_server),
    Device("asa-1", "Cisco ASA", False, cisco_asa),
    Device("rtr-1", "Cisco IOS router", False, cisco_ios),
    Device("pa-1", "Palo Alto PAN-OS", False, pan_os),
    Device("fgt-1", "Fortinet FortiGate", True, fortigate),
    Device("srx-1", "Juniper SRX", True, juniper_srx),
    Device("cp-1", "Check Point", False, check_point),
    Device("bigip-1", "F5 BIG-IP", False, f5_big_ip),
    Device("web-1", "Linux sshd", True, linux_sshd),
    Device("db-1", "Linux sudo", False, linux_sudo),
    Device("gw-1", "Linux nftables", False, kernel_firewall),
    Device("dc-1", "Windows security log (NXLog)", True, windows_security),
    Device("web-2", "nginx", False, nginx),
    Device("vpn-1", "strongSwan VPN", True, vpn_gateway),
)
