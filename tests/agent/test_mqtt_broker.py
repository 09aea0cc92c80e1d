"""Agents through the customer's own broker: real mosquitto, real agent, real collector, each of them killed."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from agent_process import AgentProcess
from broker_site import BrokerSite
from services import fetch
from services.need import need

Open = Callable[..., BrokerSite]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """`opened(settings=…)`: broker and collector that run until the test ends."""
    need(fetch.MOSQUITTO)
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(BrokerSite(tmp_path, **options))


def write(agent: AgentProcess, first: int, count: int) -> None:
    """So many lines, numbered."""
    with (agent.logs / "app.log").open("a") as log:
        log.writelines(f"line {number}\n" for number in range(first, first + count))


def lines(count: int) -> dict[str, int]:
    """Each of the first `count` lines, once."""
    return {f"line {number}": 1 for number in range(count)}


def id_of(agent: AgentProcess) -> str:
    """Of a running agent."""
    agent.process.wait_until(lambda: bool(agent.status()["agent_id"]), "its id")
    found: str = agent.status()["agent_id"]
    return found


def dropped(here: BrokerSite, reason: str) -> float:
    """Events that the input counted so."""
    return here.collector.metrics().get(f'nd_input_dropped_events_total{{input="mqtt_broker",reason="{reason}"}}', 0)


def test_lines_arrive_once_under_the_agents_own_name(opened: Open) -> None:
    """The broker took the certificate; the signature says the same, the events carry it, the inventory knows how."""
    here = opened()
    agent = here.agent()
    agent.start()
    write(agent, 0, 500)
    here.site.wait_for(500)
    events = here.collector.events()
    assert {event["message"]: 1 for event in events} == lines(500)
    assert len({event["event"]["id"] for event in events}) == 500
    assert {event["agent"]["id"] for event in events} == {id_of(agent)}
    way = f"mqtt://{here.broker.endpoint}"
    agent.process.wait_until(lambda: agent.status()["endpoint"].startswith(way), "the broker in its status")

    def shown() -> bool:
        return "mqtt_broker" in here.site.command("agents", "show", id_of(agent)).stdout

    here.collector.process.wait_until(shown, "the way it speaks by in the inventory", 30)
    here.collector.process.wait_until(
        lambda: '"run_id"' in here.site.command("agents", "show", id_of(agent), "--json").stdout, "a report", 60
    )


def test_without_a_subscriber_the_agent_keeps_its_events(opened: Open) -> None:
    """PUBACK 16: nobody took it. With one it arrives."""
    here = opened()
    agent = here.agent()
    here.collector.stop()
    here.broker.kill()
    (here.broker.directory / "mosquitto.db").unlink()  # a broker that never saw a collector
    here.broker.start()
    agent.start()
    write(agent, 0, 50)
    agent.process.wait_until(lambda: agent.said("no collector is subscribed to") > 0, "a word about it")
    here.collector.start()
    here.site.wait_for(50)
    assert here.site.distinct() == lines(50)


def test_what_the_broker_held_survives_its_death(opened: Open) -> None:
    """autosave_on_changes: PUBACKed for a collector that is away, the broker killed once it is quiet, all arrives."""
    here = opened()
    agent = here.agent()
    agent.start()
    write(agent, 0, 10)
    here.site.wait_for(10)
    here.collector.stop()
    write(agent, 10, 200)

    def is_handed_over() -> bool:
        status = agent.status()  # some seconds old
        pending = sum(spool["pending_events"] for spool in status["spools"])
        return sum(one["received"] for one in status["inputs"]) == 210 and pending == 0

    agent.process.wait_until(is_handed_over, "everything handed over", 40)
    agent.kill()
    here.broker.wait_until_saved()
    here.broker.kill()
    here.broker.start()
    here.collector.start()
    here.site.wait_for(210)
    assert here.site.distinct() == lines(210)
    assert here.collector.metrics()['nd_input_lost_sessions_total{input="mqtt_broker"}'] == 0


def test_what_is_larger_than_the_broker_takes_is_split(opened: Open) -> None:
    """The broker would keep it from the collector without a word, so the agent does not let it come to that."""
    here = opened(settings={"max_packet_bytes": "16KiB"})
    broker = {"tls": {"ca_file": str(here.site.pki / "ca.crt")}, "max_packet_bytes": "16KiB"}
    agent = here.agent(outputs={"mqtt": {"endpoints": [here.broker.endpoint], "broker": broker}})
    dice = random.Random(7)
    texts = [f"{number} {dice.randbytes(600).hex()}" for number in range(300)]  # some 100 KB that zstd cannot shrink
    (agent.logs / "app.log").write_text("".join(f"{text}\n" for text in texts))
    agent.start()
    here.site.wait_for(300)
    assert here.site.distinct() == dict.fromkeys(texts, 1)


def test_an_agent_that_does_not_sign_is_refused_and_counted(opened: Open) -> None:
    """Its `broker: {}` was forgotten: the trail and the log say which agent and what to set."""
    here = opened()
    agent = here.agent(outputs={"mqtt": {"endpoints": [here.broker.endpoint]}})
    agent.start()
    write(agent, 0, 10)
    here.collector.process.wait_until(lambda: dropped(here, "unsigned") > 0, "a refusal", 30)
    trail = here.collector.directory / "state" / "audit.ndjson"
    # It is written beside the count, and may come after it.
    here.collector.process.wait_until(lambda: '"unsigned"' in trail.read_text(), "the trail's word", 20)
    assert id_of(agent) in trail.read_text()
    assert here.collector.events() == []


def test_a_revoked_agent_is_refused_though_the_broker_lets_it_in(opened: Open) -> None:
    """The broker does not know our revocations unless it has our list; the collector does."""
    here = opened()
    agent = here.agent()
    agent.start()
    write(agent, 0, 10)
    here.site.wait_for(10)
    assert here.site.command("agents", "revoke", id_of(agent)).returncode == 0
    log = here.collector.directory / "ndcollector.log"
    count = 10
    while not dropped(here, "not_admitted"):
        write(agent, count, 1)
        count += 1
        time.sleep(0.2)
        assert count < 150, "it is still taken"
    assert "revoked_agent" in log.read_text()


def test_the_broker_dies_and_https_takes_over(opened: Open) -> None:
    """One body, signed for the broker and bare for the collector: each line once."""
    here = opened()
    broker = {"endpoints": [here.broker.endpoint], "broker": {}, "keepalive": 5}
    agent = here.agent(outputs={"mqtt": broker, "https": {}})
    agent.start()
    write(agent, 0, 50)
    here.site.wait_for(50)
    here.broker.kill()
    write(agent, 50, 50)
    here.site.wait_for(100)
    agent.process.wait_until(lambda: agent.said("sending to https://") == 1, "the agent's word", 20)
    here.broker.start()
    agent.process.wait_until(lambda: agent.said("is back") > 0, "the broker to be back", 60)
    here.wait_until_reading(2)
    write(agent, 100, 50)
    here.site.wait_for(150)
    assert here.site.distinct() == lines(150)


def test_a_policy_reaches_the_agent_through_the_broker(opened: Open) -> None:
    """Retained there, verified by the agent, reported back signed."""
    here = opened()
    agent = here.agent(policy_allow={"paths": ["/**"]})
    agent.start()
    write(agent, 0, 10)
    here.site.wait_for(10)
    more = agent.directory / "more"
    more.mkdir()
    (more / "x.log").write_text("line 10\n")
    base = here.collector.config.parent / "policies" / "global" / "base.yaml"
    base.parent.mkdir(parents=True)
    base.write_text(f"inputs:\n  more: {{type: file, paths: ['{more}/*.log'], start: beginning}}\n")
    done = here.site.command("policy", "apply")
    assert done.returncode == 0, done.stderr
    here.site.wait_for(11)
    assert here.site.distinct() == lines(11)
    here.collector.process.wait_until(
        lambda: "applied" in here.site.command("policy", "status").stdout, "the agent's word", 40
    )


def _storm(here: BrokerSite, agent: AgentProcess, *, kills: int, seed: int) -> int:
    """Write lines and kill agent, collector or broker at random moments; how many lines were written.

    Broker and collector do not die together: what such a broker acknowledged and had not saved is lost, as
    docs/mqtt-broker.md says.
    """
    dice = random.Random(seed)
    written, readings = 0, here.collector_reads()
    for _ in range(kills):
        count = dice.randrange(50, 400)
        write(agent, written, count)
        written += count
        time.sleep(dice.random() * 0.6)
        victims = dice.choice((("agent",), ("collector",), ("broker",), ("agent", "broker"), ("agent", "collector")))
        if "broker" in victims:
            here.broker.kill()
            here.broker.start()
        if "agent" in victims:
            agent.kill()
        if "collector" in victims:
            here.collector.kill()
            here.collector.start()
        if "agent" in victims:
            agent.start()
        if victims != ("agent",):
            readings += 1
            here.wait_until_reading(readings)
    return written


def _check_storm(here: BrokerSite, agent: AgentProcess, written: int) -> None:
    deadline = time.monotonic() + 120
    while len(here.site.distinct()) < written and time.monotonic() < deadline:
        time.sleep(0.2)
    found = here.site.distinct()
    assert len(found) == written
    assert found == lines(written), "a line came twice under two ids"
    repeated = sum(here.site.messages().values()) - written
    print(f"{written} lines, {repeated} repeats with the same event.id")
    agent.kill()
    assert here.site.command("spool", "verify").returncode == 0
    assert here.collector.metrics()['nd_input_lost_sessions_total{input="mqtt_broker"}'] == 0


@pytest.mark.timeout(300)
def test_kills_of_agent_collector_and_broker_lose_and_double_nothing(opened: Open) -> None:
    """Five kills here, fifty in the long run: every line under exactly one event.id."""
    here = opened()
    agent = here.agent()
    agent.start()
    _check_storm(here, agent, _storm(here, agent, kills=5, seed=4))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_kills_of_agent_collector_and_broker_lose_and_double_nothing(opened: Open) -> None:
    """The same for longer."""
    here = opened()
    agent = here.agent()
    agent.start()
    _check_storm(here, agent, _storm(here, agent, kills=50, seed=5))
