"""Writes systemd/ndcollector.catalog and systemd/ndagent.catalog: what `journalctl -x` says below a message.

Promises: each message of ndagent/core/messages.py has a subject, what happened, what follows from it, and the one
command to type next; it stands in the catalogue of each program that can log it, which is found in the sources. Run it
after a change (`.venv/bin/python packaging/catalog.py`); tests/systemd/test_catalog.py sees that nobody forgets.
Refuses: any text that is not true whichever part says it. The message itself names the thing; @FIELD@ is a field of its
entry in the journal.
"""

import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ndagent.core import messages  # noqa: E402 - found by the line above, also where nothing is installed

PROGRAMS = {"ndcollector": ("ndcollector", "ndagent/core"), "ndagent": ("ndagent",)}
"""Program → where its code stands."""

WIDTH = 76


class Entry(NamedTuple):
    """What a person reads who has never seen this message."""

    subject: str
    happened: str
    follows: str
    command: str
    agent_command: str | None = None
    """Where an agent needs another one. On a host that has both, journalctl shows the one that it read first."""


ENTRIES = {
    # The daemon
    "READY": Entry(
        "@SYSLOG_IDENTIFIER@ takes data",
        "Every input of the configuration takes data now, and the outputs deliver what waits. The message "
        "names both.",
        "Nothing; this is how a start ends.",
        "systemctl status @_SYSTEMD_UNIT@",
    ),
    "STOPPED": Entry(
        "@SYSLOG_IDENTIFIER@ has stopped",
        "What had been read is durable, and as much of it was delivered as shutdown_timeout allowed. The "
        "message has the ledger: received is delivered, pending, or counted under a reason.",
        "What is pending is delivered after the next start. Senders without a queue of their own lose what "
        "they send meanwhile, unless a socket unit holds their connections.",
        "systemctl start @_SYSTEMD_UNIT@",
    ),
    "CANNOT_START": Entry(
        "@SYSLOG_IDENTIFIER@ cannot start",
        "Something it needs is not there, or the configuration has a mistake; the message, or the lines "
        "before it, name the thing, the place and the remedy. A file written by a newer version is refused as "
        "well, and not touched.",
        "No data is taken. systemd tries again, later and later; nothing that was durable is lost.",
        "@SYSLOG_IDENTIFIER@ check",
    ),
    "CRASHED": Entry(
        "@SYSLOG_IDENTIFIER@ ended by an error nobody foresaw",
        "The traceback stands in this entry. It is a bug of ours.",
        "systemd starts it again. What was acknowledged is on disk and comes out; some of it may come twice, "
        "with the same event.id.",
        "journalctl -u @_SYSTEMD_UNIT@ -n 200 -o json > report.json",
    ),
    "RELOADED": Entry(
        "@SYSLOG_IDENTIFIER@ works with its new configuration",
        "The configuration was read again and taken up whole. Inputs and outputs that did not change went on "
        "undisturbed.",
        "Nothing.",
        "@SYSLOG_IDENTIFIER@ check",
    ),
    "RELOAD_REFUSED": Entry(
        "@SYSLOG_IDENTIFIER@ keeps its old configuration",
        "The new one has a mistake, which the message names with file, line and column, or needs a restart.",
        "It goes on as before, with the old configuration. A restart now would read the new one and fail.",
        "@SYSLOG_IDENTIFIER@ check",
    ),
    "PART_FAILED": Entry(
        "A part of @SYSLOG_IDENTIFIER@ failed and is started again",
        "The message names the part and the reason: a thing of this machine (a file, an address), which is "
        "tried again until it works, or a bug of ours, with its traceback.",
        "The other parts go on. An input that does not run takes nothing, and its senders wait or are "
        "refused.",
        "journalctl -u @_SYSTEMD_UNIT@ -p warning --since -1h",
    ),
    "STUCK": Entry(
        "A part of @SYSLOG_IDENTIFIER@ hangs",
        "It has work and has finished none of it for two minutes: a thread that hangs in a system call (a "
        "disk that does not answer), or a bug of ours. Waiting for room or for a destination is no such "
        "thing.",
        "systemd is no longer told that the daemon is alive and restarts it after WatchdogSec. The stack "
        "traces that follow say where it hung. What was acknowledged is on disk.",
        "dmesg --level=err,warn | tail -n 50",
    ),
    "SOCKETS_TAKEN_OVER": Entry(
        "Addresses are held by systemd",
        "Socket units listen on them, and the daemon serves what comes there.",
        "Connections that come while the daemon restarts wait in the kernel; none is refused.",
        "systemctl list-sockets",
    ),
    "SOCKET_UNUSED": Entry(
        "A socket that systemd holds is served by nobody",
        "A socket unit listens on an address that no input of the configuration has (any more), or in a way that "
        "cannot be served.",
        "Connections there are taken, and wait for nobody until they time out.",
        "systemctl list-sockets",
    ),
    # Spool and disk
    "SPOOL_FILLING": Entry(
        "The spool is filling",
        "Four fifths of spool.max_bytes are in use. The message names the output that holds the most: it is "
        "down, or slower than what comes in.",
        "Nothing yet. When the spool is full, inputs wait (on_full: block) or the oldest events are given up "
        "for that output (on_full: drop_oldest).",
        "journalctl -u @_SYSTEMD_UNIT@ --since -1d -g 'not delivering'",
    ),
    "SPOOL_HAS_ROOM": Entry(
        "The spool has room again",
        "What had filled it was delivered, or given up as configured.",
        "Nothing.",
        "systemctl status @_SYSTEMD_UNIT@",
    ),
    "SPOOL_FULL": Entry(
        "The spool takes nothing, and inputs wait",
        "spool.max_bytes is used up, or the disk is full, or it refuses to write; the message says which, and "
        "which output holds the space.",
        "Inputs stop reading: senders over TCP and TLS wait, agents keep their events, datagrams are dropped "
        "and counted. Nothing that was taken is lost. It goes on by itself as soon as there is room. Never "
        "delete files of the spool.",
        "df -h /var/lib /var/log",
    ),
    "SPOOL_TAKES_AGAIN": Entry(
        "The spool takes events again",
        "There is room, or the disk writes again.",
        "Inputs go on reading.",
        "systemctl status @_SYSTEMD_UNIT@",
    ),
    "EVENTS_EVICTED": Entry(
        "Events were given up to make room",
        "An output with on_full: drop_oldest, or spool.max_age, has lost its oldest undelivered events. The "
        "message says how many; they are counted as evicted, per output and per sender.",
        "These events are gone for that output. Others keep theirs.",
        "journalctl -u @_SYSTEMD_UNIT@ --since -1d -g 'not delivering'",
    ),
    "DISK_FAILED": Entry(
        "The disk failed a read or a write",
        "The system call and the file stand in the message. A failed write is never trusted again: the batch "
        "goes to a new file, and is acknowledged only when that is durable.",
        "Nothing acknowledged is lost. The disk may be dying, though.",
        "dmesg --level=err,warn | tail -n 50",
    ),
    "SPOOL_DAMAGED": Entry(
        "A place in the spool is damaged",
        "A record's checksum is wrong: the disk, or somebody who wrote to the file. The damaged bytes are "
        "kept in the quarantine directory, as far as it has room.",
        "The events of that record are skipped and counted as quarantined; all others are delivered.",
        "dmesg --level=err,warn | tail -n 50",
    ),
    "SPOOL_WENT_BACK": Entry(
        "The spool ends before its outputs stood",
        "Outputs had read further than the spool reaches now: an old copy of the disk was restored, or a disk "
        "lost what it had said was written.",
        "The spool goes on under a new identity, so that no event gets a number that was given before. What "
        "is missing counts as quarantined.",
        "dmesg --level=err,warn | tail -n 50",
    ),
    "OUTPUT_RETIRED": Entry(
        "An output is no longer configured",
        "Its place in the spool was put aside (cursors/retired), and nothing is kept for it any more. A "
        "renamed output is a new one.",
        "Events that only this output had still to get will not be delivered.",
        "@SYSLOG_IDENTIFIER@ check",
    ),
    # Outputs
    "NOT_DELIVERING": Entry(
        "An output does not deliver",
        "The destination is away, refuses the credentials, or does not answer in time; the message has its "
        "reason.",
        "Its events wait in the spool and are sent again until they are taken. Other outputs go on.",
        "journalctl -u @_SYSTEMD_UNIT@ -p warning --since -1h",
    ),
    "DELIVERING_AGAIN": Entry(
        "An output delivers again",
        "Its destination takes events.",
        "What waited is being sent, oldest first.",
        "systemctl status @_SYSTEMD_UNIT@",
    ),
    "BREAKER_OPEN": Entry(
        "A destination is left alone for a while",
        "So many sends in a row failed that trying on would only burden it. One probe at a time finds out "
        "when it is back.",
        "Its events wait in the spool; nothing is lost.",
        "journalctl -u @_SYSTEMD_UNIT@ -p warning --since -1h",
    ),
    "BREAKER_CLOSED": Entry(
        "A destination answers again",
        "The probe was taken.",
        "What waited is being sent, oldest first.",
        "systemctl status @_SYSTEMD_UNIT@",
    ),
    "DEAD_LETTERS": Entry(
        "A destination refused events for good",
        "It will not take these however often they are sent (too large, wrong mapping, not allowed). They are "
        "kept as dead letters, with the destination's own words.",
        "They are not lost, and not delivered either, until somebody mends the cause and sends them again. "
        "All others go on.",
        "ndcollector dlq ls",
        agent_command="ls -l /var/lib/ndagent/dead_letters",
    ),
    "DEAD_LETTERS_FILLING": Entry(
        "Dead letters need room",
        "Those of one output have nearly reached dead_letter_max_bytes.",
        "At the limit this output is blocked: no event may be passed without being delivered or kept.",
        "ndcollector dlq ls",
        agent_command="ls -l /var/lib/ndagent/dead_letters",
    ),
    "OUTPUT_BLOCKED": Entry(
        "An output is blocked by its own dead letters",
        "A refused event cannot be kept, because dead_letter_max_bytes is reached or the disk refuses.",
        "This output delivers nothing until there is room; its events wait in the spool. Other outputs go on.",
        "ndcollector dlq ls",
        agent_command="ls -l /var/lib/ndagent/dead_letters",
    ),
    "OUTPUT_BUG": Entry(
        "An output met an error nobody foresaw",
        "The traceback stands in this entry. It is a bug of ours.",
        "The output begins again at its last saved place. Nothing is lost; events may come twice, with the "
        "same event.id.",
        "journalctl -u @_SYSTEMD_UNIT@ -n 200 -o json > report.json",
    ),
    "FILE_SEALED": Entry(
        "The disk failed under an output file",
        "fdatasync failed. The file ends at its last durable byte, and the rest was written to a new one.",
        "No event is lost; a line may stand in both files.",
        "dmesg --level=err,warn | tail -n 50",
    ),
    # Inputs
    "LISTENING": Entry(
        "An input listens",
        "On the addresses in the message, from now on.",
        "Nothing.",
        "ss -ltnp",
    ),
    "PEER_REFUSED": Entry(
        "A sender was refused",
        "@ND_PEER@ did not get in: @ND_REASON@. The message has the remedy. It is said once a minute for each "
        "address, however often it tries.",
        "Nothing is taken from it until that is mended.",
        "journalctl -u @_SYSTEMD_UNIT@ -o cat ND_PEER=@ND_PEER@",
    ),
    "OUT_OF_FILES": Entry(
        "No more connections can be accepted",
        "The process has as many files open as it may (LimitNOFILE), or the kernel is out of memory.",
        "New connections wait in the kernel's queue; those that are open go on.",
        "systemctl edit @_SYSTEMD_UNIT@",
    ),
    "SENDER_SLOWED": Entry(
        "A sender is read more slowly",
        "It sends more than limits.events_per_second_per_origin or limits.bytes_per_second_per_origin allow.",
        "It waits, all others do not. Nothing is lost, unless it drops by itself what it cannot send.",
        "journalctl -u @_SYSTEMD_UNIT@ -p warning --since -1h",
    ),
    "DATAGRAMS_LOST": Entry(
        "Datagrams were lost in the kernel",
        "They came faster than they were read and found the socket's queue full. UDP cannot wait.",
        "They are gone, and counted as dropped (kernel_queue_full).",
        "sysctl net.core.rmem_max",
    ),
    "LINES_LOST": Entry(
        "A source was thrown away before it was read",
        "A file was removed or replaced, or the journal deleted entries, while some of it was still unread. "
        "An event says the same, at its place among the others.",
        "What was unread is gone.",
        "journalctl -u @_SYSTEMD_UNIT@ -p warning --since -1h",
    ),
    "EVENTS_LOST_AT_STOP": Entry(
        "An input could not hand over what it had read",
        "It was stopped while the spool had no room, and the time for a stop ran out.",
        "What it had read and not made durable is dropped, and counted under the reason stopped. Peers that "
        "wait for an acknowledgement got none and send again.",
        "df -h /var/lib /var/log",
    ),
    # Certificates
    "CERTIFICATES_RELOADED": Entry(
        "New certificates are in use",
        "The files changed and are good. New connections use them.",
        "Open connections stay, except those whose certificate is revoked or no longer trusted.",
        "ndcollector pki list",
        agent_command="ndagent status",
    ),
    "CERTIFICATES_UNUSABLE": Entry(
        "New certificate files cannot be used yet",
        "They do not belong together, or cannot be read; the message says what is wrong. Often only half of "
        "them is there.",
        "The last good ones stay in use until then. A restart now would fail.",
        "ndcollector check",
        agent_command="ndagent check",
    ),
    "CERTIFICATE_EXPIRES": Entry(
        "A certificate or revocation list runs out",
        "The file and the time left stand in the message.",
        "Once it has expired, clients refuse this collector, or it refuses them. A new file is picked up "
        "while running.",
        "ndcollector pki list",
        agent_command="ndagent status",
    ),
    "REVOCATION_LIST_OLD": Entry(
        "The revocation list cannot be signed anew",
        "The built-in CA renews its list at half its life, and could not write it.",
        "When the list expires every client is refused.",
        "ls -l /etc/ndcollector/pki",
    ),
    # An agent
    "IDENTITY": Entry(
        "The agent knows who it is",
        "Its certificate is there and good; the message has its identity and the days that are left.",
        "It can speak to its collectors. It renews by itself at two thirds of the certificate's life.",
        "ndagent status",
    ),
    "NOT_ENROLLED": Entry(
        "The agent cannot speak to a collector",
        "It has no certificate, or one that cannot be used; the message says why.",
        "It reads and keeps everything in its spool, and sends it once it is enrolled.",
        "ndagent status",
    ),
    "SENDING_TO": Entry(
        "The agent sends",
        "The collector in the message takes its events.",
        "Nothing.",
        "ndagent status",
    ),
    "COLLECTOR_LEFT": Entry(
        "The agent uses another collector",
        "The one it used does not take its events; the message has the reason.",
        "The next in its list is used until the first is back. If none answers, events wait in the spool.",
        "ndagent status",
    ),
    "POLICY_IN_FORCE": Entry(
        "A policy is in force",
        "The agent runs with the settings that its collector gave it, as far as policy_allow lets it.",
        "Nothing.",
        "ndagent status",
    ),
    "POLICY_REFUSED": Entry(
        "A policy was refused",
        "It asks for something this host does not allow, or that cannot work here; the message says what.",
        "The agent goes on with the last good one. Only a policy with a higher version is tried again.",
        "ndagent status",
    ),
    "POLICY_ROLLED_BACK": Entry(
        "A policy was taken back",
        "With it, the agent reached no collector.",
        "The last good one is in force again, and this version is never tried a second time.",
        "ndagent status",
    ),
    # Agents, as the collector sees them
    "AGENT_ENROLLED": Entry(
        "An agent got a certificate",
        "It enrolled or renewed; the message has its identity and the certificate's serial number. The audit "
        "trail has it too.",
        "It may send.",
        "ndcollector agents ls",
    ),
    "ENROLMENT_REFUSED": Entry(
        "An enrolment was refused",
        "The token is wrong, used up or expired, or a renewal was not in order; the message says which.",
        "The agent is not let in. Many of these from one address are somebody who guesses.",
        "ndcollector agents token ls",
    ),
    "AGENT_REFUSED": Entry(
        "What an agent sent was refused",
        "It is not in the inventory, is revoked, or sends what it may not; the message says which.",
        "The agent keeps its events and tries again.",
        "ndcollector agents ls",
    ),
    "CLONE_SUSPECTED": Entry(
        "Two hosts seem to share one agent's key",
        "A disk was copied, or a machine set back to a snapshot; the message says what gave it away.",
        "Events are taken meanwhile, under one name for both hosts.",
        "ndcollector agents show @ND_AGENT_ID@",
    ),
    "INVENTORY_DAMAGED": Entry(
        "The inventory of agents was damaged",
        "The file is set aside (quarantine), and a new one was made from what the daemon and the PKI know.",
        "Agents that hold a certificate go on as before. Tokens are gone; groups and names may be.",
        "ndcollector agents ls",
    ),
    "AUDIT_UNWRITTEN": Entry(
        "The audit trail cannot be written",
        "audit.ndjson in the state directory refuses a line: the disk is full, or its owner is wrong.",
        "What must be on record does not happen: nobody can enrol. Events are taken all the same.",
        "df -h /var/lib/ndcollector",
    ),
    # The ledger
    "LEDGER_UNSAVED": Entry(
        "The ledger per sender cannot be saved",
        "The disk refuses. The books are kept in memory meanwhile.",
        "Deliveries go on. After a crash now, some events would stand under (unknown) instead of their "
        "sender.",
        "df -h /var/lib/ndcollector",
    ),
    "LEDGER_SAVED_AGAIN": Entry(
        "The ledger is saved again",
        "The disk takes it, and it holds everything.",
        "Nothing.",
        "ndcollector ledger",
    ),
    "LEDGER_WRONG": Entry(
        "The ledger does not add up",
        "For one output, delivered and pending are not what was received. The traceback stands in this entry. "
        "It is a bug of ours, in the books at least.",
        "Events go on being delivered.",
        "ndcollector ledger --json > report.json",
    ),
}


def ids() -> dict[str, str]:
    """Name → identity, of every message in the code."""
    return {name: value["message_id"] for name, value in vars(messages).items() if name.isupper()}


def names_of(program: str) -> list[str]:
    """Messages that this program can log, in the table's order."""
    code = "".join(path.read_text() for place in PROGRAMS[program] for path in sorted((ROOT / place).rglob("*.py")))
    return [name for name in ids() if re.search(rf"messages\.{name}\b", code)]


def catalog(program: str) -> str:
    """The catalogue, in the format of systemd's Message Catalog Developer Documentation."""
    intro = f"# What the messages of {program} mean, for `journalctl -x`. Made by packaging/catalog.py; do not edit.\n"
    found = [intro + "# journalctl --update-catalog takes it up.\n"]
    for name in names_of(program):
        entry, identity = ENTRIES[name], ids()[name]
        head = f"-- {identity}\nSubject: {entry.subject}\nDefined-By: {program}\nDocumentation: man:{program}(1)\n"
        parts = [entry.happened, f"What follows: {entry.follows}"]
        text = "\n\n".join(textwrap.fill(part, WIDTH, break_on_hyphens=False) for part in parts)
        command = (entry.agent_command if program == "ndagent" else None) or entry.command
        found.append(f"{head}\n{text}\n\nNext:\n    {command}\n")
    return "\n".join(found)


def main() -> None:
    """Write both."""
    for program in PROGRAMS:
        (ROOT / "systemd" / f"{program}.catalog").write_text(catalog(program))


if __name__ == "__main__":
    main()
