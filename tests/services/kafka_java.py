"""Kafka's Java programs: how a JVM is started here, and its command-line tools run to their end.

Promises: a tool that fails raises ToolError with what it printed. JVMs are told to start fast (one garbage collector
thread, one compiler), share the classes that `archive()` holds once it exists, and log warnings only.
"""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from services import fetch

_JVM = ("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
        "-Xlog:disable", "-Djava.net.preferIPv4Stack=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info")  # fmt: skip
_LOGGED_ERROR = "] ERROR "  # slf4j-simple: "[thread] LEVEL logger - message"


class ToolError(RuntimeError):
    """A Java tool failed; the message is what it printed."""


class Consumed(NamedTuple):
    """A record as Kafka's console consumer prints it; `headers` as it prints them ("name:value,…"), None where none."""

    partition: int
    offset: int
    timestamp_ms: int
    headers: str | None
    key: str | None
    value: str


def java() -> list[str]:
    """The command of every JVM here, up to the class. Raises ServiceMissingError."""
    jars = fetch.ensure(fetch.KAFKA)
    recorded = archive(jars)
    shared = [f"-XX:SharedArchiveFile={recorded}"] if recorded.exists() else []
    return [*_JVM, *shared]


def environment() -> dict[str, str]:
    """What java() must run in: the jars stand here, so that a command line stays readable."""
    return {**os.environ, "CLASSPATH": fetch.KAFKA.classpath}


def archive(jars: fetch.Jars) -> Path:
    """Where the classes of a broker lie as a JVM holds them (AppCDS), once one has been recorded."""
    return jars.prefix / "classes.jsa"


def run_tool(main: str, *arguments: str, text: str = "", timeout_seconds: float = 60) -> str:
    """Run a class with a main() from Kafka's jars, `text` on its standard input; what it printed. Raises ToolError."""
    command, asked = [*java(), main, *arguments], " ".join((main.rpartition(".")[2], *arguments))
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=timeout_seconds, check=False, env=environment()
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{asked}: still running after {timeout_seconds} s\n{error.stderr!r}") from error
    if done.returncode or _LOGGED_ERROR in done.stderr:  # the console producer ends with 0 although a send failed
        raise ToolError(f"{asked}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def consumed(line: str) -> Consumed:
    """A line of the console consumer: `CreateTime:1 Partition:0 Offset:0 NO_HEADERS key value`, with tabs."""
    timestamp, partition, offset, headers, key, value = line.split("\t", 5)
    return Consumed(
        partition=int(partition.partition(":")[2]),
        offset=int(offset.partition(":")[2]),
        timestamp_ms=int(timestamp.partition(":")[2]),
        headers=None if headers == "NO_HEADERS" else headers,
        key=None if key == "null" else key,
        value=value,
    )
