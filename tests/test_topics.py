"""What `ndcollector topics` would change: pure comparison, no broker."""

from ndcollector.outputs import kafka
from ndcollector.topics import FoundTopic, WantedTopic, compare
from ndcollector.topics_command import wanted_topics

DAY_MS = 86_400_000
WANTED = WantedTopic("events", partitions=32, replication=3, retention_ms=7 * DAY_MS, max_message_bytes=2**20)
SETTINGS = {"retention.ms": str(7 * DAY_MS), "min.insync.replicas": "2", "max.message.bytes": "1048588"}
FOUND = FoundTopic(partitions=32, replication=3, settings=SETTINGS)


def texts(found: FoundTopic | None, *, brokers: int = 3) -> list[tuple[str, str]]:
    differences = compare([WANTED], {"events": found} if found else {}, brokers=brokers)
    return [(one.action, one.text) for one in differences]


def test_the_missions_topics_are_the_defaults() -> None:
    """A configuration that names no topic gets what the mission asks for."""
    wanted = wanted_topics(kafka.Config(bootstrap_servers=["k:9092"]))
    assert [(one.name, one.partitions, one.replication, one.retention_ms // DAY_MS) for one in wanted] == [
        ("security_events", 32, 3, 7), ("alerts", 16, 3, 30), ("metrics", 8, 2, 1),
    ]  # fmt: skip


def test_a_name_alone_keeps_the_streams_other_defaults() -> None:
    """`alerts: soc-alerts` renames and changes nothing else."""
    config = kafka.Config.model_validate(
        {"bootstrap_servers": ["k:9092"], "topics": {"alerts": "soc-alerts", "metrics": {"name": "m", "partitions": 3}}}
    )
    assert (config.topic("alerts").name, config.topic("alerts").partitions) == ("soc-alerts", 16)
    assert (config.topic("metrics").partitions, config.topic("metrics").replication) == (3, 2)


def test_what_is_as_wanted_is_left_alone() -> None:
    """Applying twice does nothing the second time."""
    assert texts(FOUND) == []


def test_a_missing_topic_is_made_with_two_replicas_in_sync() -> None:
    """Kafka's default of one would make acks=all hollow."""
    [made] = compare([WANTED], {}, brokers=3)
    assert (made.action, made.partitions, made.replication) == ("create", 32, 3)
    assert dict(made.settings)["min.insync.replicas"] == "2"


def test_a_small_cluster_gets_as_many_copies_as_it_has_brokers_and_a_warning() -> None:
    """A trial on one broker must work; that it is not safe must be said."""
    warning, made = compare([WANTED], {}, brokers=1)
    assert warning.text == "replication 3 becomes 1: the cluster has no more brokers"
    assert (made.replication, dict(made.settings)["min.insync.replicas"]) == (1, "1")


def test_nothing_is_ever_taken_away() -> None:
    """More partitions, longer retention, stricter settings and larger messages stay."""
    richer = {"retention.ms": "-1", "min.insync.replicas": "3", "max.message.bytes": "9999999"}
    found = texts(FoundTopic(64, 3, richer))
    assert {action for action, _ in found} == {"warn"}
    said = [text for _, text in found]
    assert said == ["has 64 partitions, more than 32: kept", "retention is unlimited, longer than 7d: kept"]


def test_added_partitions_name_their_price() -> None:
    """Hosts move to other partitions then: order per host breaks around the change."""
    [grown] = compare([WANTED], {"events": FoundTopic(8, 3, SETTINGS)}, brokers=3)
    assert (grown.action, grown.text) == ("grow", "partitions 8 → 32")
    assert "not in order" in grown.price


def test_settings_that_are_too_low_are_raised_one_by_one() -> None:
    """Each is a change of its own."""
    low = {"retention.ms": "1000", "min.insync.replicas": "1", "max.message.bytes": "1000"}
    assert texts(FoundTopic(32, 3, low)) == [
        ("set", f"retention.ms 1000 → {7 * DAY_MS}"),
        ("set", "min.insync.replicas 1 → 2"),
        ("set", "max.message.bytes 1000 → 1048576"),
    ]


def test_too_few_copies_and_compaction_are_said() -> None:
    """Neither is ours to change: one moves data, the other would bring back what was thrown away."""
    settings = SETTINGS | {"min.insync.replicas": "1", "cleanup.policy": "compact"}
    found = texts(FoundTopic(32, 1, settings))
    assert [action for action, _ in found] == ["warn", "warn"]
    assert "kafka-reassign-partitions" in found[0][1]
    assert "compact" in found[1][1]


def test_settings_that_brokers_do_not_tell_are_said() -> None:
    """Without DescribeConfigs nobody knows whether acks=all is hollow."""
    assert any("DescribeConfigs" in text for _, text in texts(FoundTopic(32, 3, {})))
