"""What topics should be against what they are: the changes that `ndcollector topics` shows and makes. Pure.

Promises: topics are made, partitions added, settings raised; nothing is ever taken away: no topic, no partition, no
copy and no day of retention. What differs and is left alone is said, with the remedy.
Refuses: talking to brokers (kafka_admin.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ndagent.core.settings import format_duration

KEYS = ("retention.ms", "min.insync.replicas", "max.message.bytes", "cleanup.policy")
"""The topic settings that are looked at."""

KAFKA_MESSAGE_BYTES = 1_048_588
"""Kafka's own default of max.message.bytes."""


@dataclass(frozen=True, slots=True)
class WantedTopic:
    """A topic as the configuration asks for it."""

    name: str
    partitions: int
    replication: int
    retention_ms: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic as the cluster has it; `settings` holds the KEYS that the brokers told."""

    partitions: int
    replication: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of the diff. `warn` is said and never acted on; `price` is what a change costs."""

    action: Literal["create", "grow", "set", "warn"]
    topic: str
    text: str
    price: str = ""
    partitions: int = 0
    replication: int = 0
    settings: tuple[tuple[str, str], ...] = ()


def compare(wanted: Sequence[WantedTopic], found: Mapping[str, FoundTopic], *, brokers: int) -> list[Difference]:
    """What is missing, topic by topic; a cluster of `brokers` cannot keep more copies than that."""
    return [
        difference
        for topic in wanted
        for difference in (
            _existing(topic, found[topic.name], brokers) if topic.name in found else _missing(topic, brokers)
        )
    ]


def _missing(topic: WantedTopic, brokers: int) -> Iterator[Difference]:
    replication = min(topic.replication, brokers)
    if replication < topic.replication:
        yield _warn(topic, f"replication {topic.replication} becomes {replication}: the cluster has no more brokers")
    settings = (
        ("retention.ms", str(topic.retention_ms)),
        ("min.insync.replicas", str(_min_insync(replication))),
        ("max.message.bytes", str(max(topic.max_message_bytes, KAFKA_MESSAGE_BYTES))),
    )
    text = (
        f"create with {topic.partitions} partitions, replication {replication}, retention "
        f"{_days(topic.retention_ms)}, min.insync.replicas {_min_insync(replication)}"
    )
    yield Difference(
        "create", topic.name, text, partitions=topic.partitions, replication=replication, settings=settings
    )


def _existing(topic: WantedTopic, found: FoundTopic, brokers: int) -> Iterator[Difference]:
    if found.partitions < topic.partitions:
        price = "hosts move to other partitions: around the change their events are not in order"
        text = f"partitions {found.partitions} → {topic.partitions}"
        yield Difference("grow", topic.name, text, price, partitions=topic.partitions)
    elif found.partitions > topic.partitions:
        yield _warn(topic, f"has {found.partitions} partitions, more than {topic.partitions}: kept")
    yield from _replication(topic, found, brokers)
    yield from _settings(topic, found)
    if "compact" in found.settings.get("cleanup.policy", ""):
        yield _warn(topic, "cleanup.policy is compact: of each host only the last event is kept; set it to delete")


def _replication(topic: WantedTopic, found: FoundTopic, brokers: int) -> Iterator[Difference]:
    replication = min(topic.replication, brokers)
    if found.replication < replication:
        remedy = "kafka-reassign-partitions adds copies"
        yield _warn(topic, f"replication is {found.replication}, not {replication}; {remedy}")
    elif replication < topic.replication:
        yield _warn(topic, f"replication {topic.replication} cannot be had: the cluster has {brokers} brokers")


def _settings(topic: WantedTopic, found: FoundTopic) -> Iterator[Difference]:
    lowest = {
        "retention.ms": topic.retention_ms,
        "min.insync.replicas": _min_insync(found.replication),
        "max.message.bytes": topic.max_message_bytes,
    }
    for key, value in lowest.items():
        if key not in found.settings:
            yield _warn(topic, f"{key} is not told to us; grant DescribeConfigs on the topic")
            continue
        current = int(found.settings[key])
        if key == "retention.ms" and (current < 0 or current > value):
            yield _warn(topic, f"retention is {_days(current)}, longer than {_days(value)}: kept")
        elif current < value:
            yield Difference("set", topic.name, f"{key} {current} → {value}", settings=((key, str(value)),))


def _min_insync(replication: int) -> int:
    """With Kafka's default of 1, acks=all is answered by a leader that is alone, and its loss is the data's."""
    return 2 if replication >= 3 else 1


def _warn(topic: WantedTopic, text: str) -> Difference:
    return Difference("warn", topic.name, text)


def _days(milliseconds: int) -> str:
    return "unlimited" if milliseconds < 0 else format_duration(milliseconds / 1000)
