"""`ndcollector topics diff | apply`: the topics of every `kafka` output as configured against what its cluster has.

Promises: diff only looks; apply makes topics, adds partitions and raises settings, says each step, and never deletes or
shrinks. Exit status 0: nothing differs, or all was done; 1: something differs (diff) or could not be done.
"""

import argparse
import asyncio
import sys
from typing import Any

from ndagent.core.yaml_file import ConfigError
from ndcollector.config import add_config_option, load
from ndcollector.topics import Difference, WantedTopic, compare

STREAMS = ("security_events", "alerts", "metrics")
"""Streams that an output without `streams` may get sooner or later."""

_SIGNS = {"create": "+", "grow": "~", "set": "~", "warn": "!"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `topics` and its subcommands."""
    topics = subparsers.add_parser("topics", help="make the Kafka topics as configured: diff, apply")
    commands = topics.add_subparsers(dest="topics_command", required=True, metavar="COMMAND")
    for name, text in (("diff", "say what differs; exit 1 if anything does"), ("apply", "make it so; never deletes")):
        parser = commands.add_parser(name, help=text, description=text)
        add_config_option(parser)
        parser.add_argument("--output", metavar="NAME", help="only this output's cluster (default: all)")
        parser.set_defaults(handler=_handle, is_apply=name == "apply")


def _handle(arguments: argparse.Namespace) -> int:
    try:
        config = load(arguments.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    outputs = {
        name: settings
        for name, settings in config.outputs.items()
        if getattr(settings, "type", "") == "kafka" and arguments.output in (None, name)
    }
    if not outputs:
        which = f"named {arguments.output}" if arguments.output else "of type kafka"
        print(f"{arguments.config}: there is no output {which}", file=sys.stderr)
        return 1
    return max(asyncio.run(_one(name, settings, is_apply=arguments.is_apply)) for name, settings in outputs.items())


async def _one(name: str, settings: Any, *, is_apply: bool) -> int:
    from ndcollector.kafka_admin import KafkaAdmin, KafkaAdminError  # late: aiokafka is there only with [kafka]
    from ndcollector.kafka_client import Connection

    wanted = wanted_topics(settings)
    print(f"output {name} ({', '.join(settings.bootstrap_servers)}):")
    status = 0
    try:
        async with KafkaAdmin(Connection(settings)) as admin:
            brokers, found = await admin.look([topic.name for topic in wanted])
            differences = compare(wanted, found, brokers=brokers)
            for difference in differences:
                _say(difference)
                if is_apply:
                    await admin.make(difference)
                elif difference.action != "warn":
                    status = 1
            if is_apply:
                await admin.see([one.topic for one in differences if one.action == "create"])
    except KafkaAdminError as error:
        print(f"  {error}", file=sys.stderr)
        return 1
    changes = [one for one in differences if one.action != "warn"]
    print(f"  {'done' if is_apply and changes else f'{len(changes)} to change' if changes else 'nothing to change'}")
    return status


def wanted_topics(settings: Any) -> list[WantedTopic]:
    """The topics of an output's streams; two streams on one topic want what the greedier one wants."""
    streams = settings.streams if settings.streams is not None else dict.fromkeys((*STREAMS, *settings.topics))
    wanted: dict[str, WantedTopic] = {}
    for stream in streams:
        topic = settings.topic(stream)
        one = WantedTopic(
            name=topic.name,
            partitions=topic.partitions,
            replication=topic.replication,
            retention_ms=int(topic.retention * 1000),
            max_message_bytes=settings.max_message_bytes,
        )
        other = wanted.get(topic.name, one)
        wanted[topic.name] = WantedTopic(
            topic.name,
            max(one.partitions, other.partitions),
            max(one.replication, other.replication),
            max(one.retention_ms, other.retention_ms),
            one.max_message_bytes,
        )
    return list(wanted.values())


def _say(difference: Difference) -> None:
    print(f"  {_SIGNS[difference.action]} {difference.topic}: {difference.text}")
    if difference.price:
        print(f"    {difference.price}")
