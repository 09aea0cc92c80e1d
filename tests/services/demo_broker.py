"""The broker of `make demo ARGS="--kafka"`: a real Apache Kafka of one node, for as long as its stdin is open.

    python -m services.demo_broker DIRECTORY    prints one line of JSON once the broker takes data, see ready()

Promises: what is missing is fetched first, as for the tests (root gets Java and Maven installed, anyone else is told
the line to run); the broker ends with its starter, however that one ends, and leaves only the directory behind.
Refuses: Tansu in Kafka's place where there is no Java: the build that PyPI has takes nothing from an idempotent
producer (see tansu.py), and the kafka output is no other.
"""

import json
import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from services import fetch
from services.kafka import Cluster


def ready(cluster: Cluster, jars: fetch.Jars) -> dict[str, str]:
    """What a demo is told: where the broker is, what it is, and how a person reads a topic of it."""
    (core,) = jars.prefix.glob("kafka_2.13-*.jar")
    reader = ["java", "-cp", f"{jars.prefix}/*", "org.apache.kafka.tools.consumer.ConsoleConsumer"]
    reader += ["--bootstrap-server", cluster.bootstrap(), "--formatter-property", "print.key=true"]
    return {
        "bootstrap": cluster.bootstrap(),
        "what": f"Apache Kafka {core.stem.partition('-')[2]}",
        "consumer": f"{shlex.join(reader)} --from-beginning --max-messages 3 --topic",
    }


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def main(directory: Path) -> int:
    """Serve until stdin ends or SIGTERM; the exit status."""
    signal.signal(signal.SIGTERM, _end)
    if not fetch.KAFKA.stamp.exists():
        java = "" if shutil.which("java") and shutil.which("mvn") else ", after Java and Maven by apt-get"
        print(f"fetching Apache Kafka by Maven{java}: once, about a minute …", file=sys.stderr, flush=True)
    try:
        jars = fetch.ensure(fetch.KAFKA)
    except fetch.ServiceMissingError as error:
        print(error, file=sys.stderr)
        return 1
    with Cluster(directory) as cluster:
        print(json.dumps(ready(cluster, jars)), flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).absolute()))
