"""Endpoints from the token to the collector's file: enrol, read, ship over both protocols, survive, be revoked."""

import json
import random
import time
from pathlib import Path

import pytest
import yaml
from agent_process import AgentProcess, AgentSite, run

from ndagent.core.spool.files import OsFiles
from ndagent.core.spool.recovery import load_cursors
from ndagent.outputs.collector import NAME
from ndcollector.top_command import fetch

PROTOCOLS = [("https",), ("mqtt",), ("mqtt", "https")]


def write(agent: AgentProcess, first: int, count: int, name: str = "app.log") -> None:
    """So many lines, numbered."""
    with (agent.logs / name).open("a") as log:
        log.writelines(f"line {number}\n" for number in range(first, first + count))


def lines(count: int) -> dict[str, int]:
    """Each of the first `count` lines, once."""
    return {f"line {number}": 1 for number in range(count)}


@pytest.mark.parametrize("ways", PROTOCOLS, ids="+".join)
def test_an_enrolled_agents_lines_arrive_under_its_own_certificate(site: AgentSite, ways: tuple[str, ...]) -> None:
    """Token, enrol, run: within seconds the lines are there, each once, named by the agent's id."""
    agent = site.enrolled(outputs={way: {} for way in ways})
    agent.start()
    write(agent, 0, 1000)
    site.wait_for(1000)
    events = site.collector.events()
    assert {event["message"]: 1 for event in events} == lines(1000)
    assert len({event["event"]["id"] for event in events}) == 1000
    identity = events[0]["agent"]["id"]
    assert all(event["agent"]["id"] == identity for event in events)
    agent.process.wait_until(lambda: agent.status().get("endpoint", "") != "", "an endpoint in its status")
    status = agent.status()
    assert status["agent_id"] == identity
    assert status["endpoint"].startswith(f"{ways[0]}://localhost:")
    assert agent.command("status").returncode == 0
    listed = site.command("agents", "ls", "--json")
    assert identity in listed.stdout
    assert agent.stop() == 0
    assert "received 1000 · delivered 1000 · dropped 0" in agent.process.tail()


def test_without_a_collector_lines_wait_and_arrive_when_it_is_back(site: AgentSite) -> None:
    """A stop of the collector costs no line, and none comes twice under another id."""
    agent = site.enrolled()
    agent.start()
    write(agent, 0, 100)
    site.wait_for(100)
    site.collector.stop()
    write(agent, 100, 400)
    agent.process.wait_until(lambda: agent.said("not delivering") > 0, "a word about the collector")
    site.collector.start()
    site.wait_for(500)
    assert site.distinct() == lines(500)


def test_an_agent_that_is_not_enrolled_reads_and_enrols_by_itself_where_it_is_told_to(site: AgentSite) -> None:
    """ND_COLLECTOR_URL and ND_ENROLL_TOKEN in its environment: what it read before is not lost."""
    agent = site.agent()
    write(agent, 0, 50)
    agent.start(environment={"ND_COLLECTOR_URL": site.url, "ND_ENROLL_TOKEN": site.token()})
    site.wait_for(50)
    assert site.distinct() == lines(50)


def test_a_token_is_good_once_and_the_reason_is_told(site: AgentSite) -> None:
    """Used, unknown, of another collector, mistyped: four different sentences, exit status 1."""
    token = site.token()
    site.agent("first").enroll(site.url, token)
    second = site.agent("second")
    done = second.command("enroll", "--url", site.url, "--token", token)
    assert done.returncode == 1
    assert "used" in done.stderr
    done = second.command("enroll", "--url", site.url, "--token", token[:-4] + "AAAA")
    assert done.returncode == 1
    assert "copy it anew" in done.stderr
    assert not (second.state / "identity" / "identity.json").exists()


def test_a_collector_that_is_not_the_tokens_gets_no_token(site: AgentSite, tmp_path: Path) -> None:
    """Somebody in between has a CA of his own: the agent says so and sends nothing secret."""
    with AgentSite(tmp_path / "other") as other:
        agent = site.agent()
        done = agent.command("enroll", "--url", other.url, "--token", site.token())
        assert done.returncode == 1
        assert "not the collector that made this token" in done.stderr
        assert "enrolment_refused" not in (other.collector.directory / "ndcollector.log").read_text()


@pytest.mark.parametrize("protocol", ["mqtt", "https"])
def test_a_revoked_agent_is_cut_off_within_five_seconds(site: AgentSite, protocol: str) -> None:
    """On its live connection; what it reads from then on waits on its disk."""
    agent = site.enrolled(outputs={protocol: {}})
    agent.start()
    write(agent, 0, 10)
    site.wait_for(10)
    identity = json.loads((agent.state / "identity" / "identity.json").read_text())["agent_id"]
    done = site.command("agents", "revoke", identity)
    began = time.monotonic()
    assert done.returncode == 0, done.stderr
    while agent.said("not delivering") == 0:
        write(agent, 10, 1)
        assert time.monotonic() - began < 5, "it still delivers"
        time.sleep(0.05)
    arrived = len(site.collector.events())
    write(agent, 11, 100)
    agent.process.wait_until(lambda: agent.pending() >= 100, "lines in its spool", 30)
    assert len(site.collector.events()) == arrived


def test_a_certificate_is_renewed_under_load_without_a_lost_line(site: AgentSite) -> None:
    """`ndagent renew` beside a running agent: new certificate, same id, nothing missing."""
    agent = site.enrolled()
    agent.start()
    write(agent, 0, 200)
    site.wait_for(200)
    first = (agent.state / "identity" / "identity.json").read_text()
    for number in range(3):
        write(agent, 200 + 200 * number, 100)
        before = agent.said("this is agent")
        done = agent.command("renew")
        assert done.returncode == 0, done.stderr
        agent.process.wait_until(lambda: agent.said("this is agent") > before, "the certificate taken up")  # noqa: B023
        write(agent, 300 + 200 * number, 100)
    site.wait_for(800)
    assert site.distinct() == lines(800)
    second = (agent.state / "identity" / "identity.json").read_text()
    assert first != second
    assert len({event["agent"]["id"] for event in site.collector.events()}) == 1


def test_the_other_protocol_takes_over_and_hands_back(site: AgentSite) -> None:
    """MQTT goes away while HTTPS stays: lines go on arriving; MQTT comes back: it is preferred again."""
    agent = site.enrolled()
    agent.start()
    write(agent, 0, 10)
    site.wait_for(10)
    configured = site.collector.config.read_text()
    settings = yaml.safe_load(configured)
    del settings["inputs"]["mqtt"]
    site.reconfigure(yaml.safe_dump(settings))
    write(agent, 10, 10)
    site.wait_for(20)
    agent.process.wait_until(lambda: agent.said("sending to https://") == 1, "HTTPS to be used")
    site.reconfigure(configured)
    agent.process.wait_until(lambda: agent.said(") is back") > 0, "MQTT to be back", 60)
    write(agent, 20, 10)
    site.wait_for(30)
    assert site.distinct() == lines(30)
    agent.process.wait_until(lambda: agent.said("sending to mqtt://") == 2, "MQTT to be used again")


def _storm(site: AgentSite, agent: AgentProcess, *, kills: int, seed: int) -> int:
    """Write lines and kill agent, collector or both at random moments; how many lines were written."""
    dice = random.Random(seed)
    written = 0
    for _ in range(kills):
        count = dice.randrange(50, 400)
        write(agent, written, count)
        written += count
        time.sleep(dice.random() * 0.6)
        victims = dice.choice((("agent",), ("collector",), ("agent", "collector")))
        if "agent" in victims:
            agent.kill()
        if "collector" in victims:
            site.collector.kill()
        if "collector" in victims:
            site.collector.start()
        if "agent" in victims:
            agent.start()
    return written


def _check_storm(site: AgentSite, agent: AgentProcess, written: int) -> None:
    deadline = time.monotonic() + 120
    while len(site.distinct()) < written and time.monotonic() < deadline:
        time.sleep(0.2)
    found = site.distinct()
    assert len(found) == written
    assert found == lines(written), "a line came twice under two ids"
    repeated = sum(site.messages().values()) - written
    print(f"{written} lines, {repeated} repeats with the same event.id")
    _check_ledgers(site, agent, written)
    agent.kill()
    assert site.command("spool", "verify").returncode == 0


def _check_ledgers(site: AgentSite, agent: AgentProcess, written: int) -> None:
    """Conservation on both sides, by sequences that lived through every kill."""
    agent.process.wait_until(lambda: agent.status()["pid"] == agent.process.pid and agent.pending() == 0, "a report")
    assert agent.status()["adds_up"], agent.status()["ledger"]
    assert agent.status()["shed"] == []
    agent.stop()
    slots = load_cursors(OsFiles(), agent.state / "spool" / "security_events" / "cursors")[NAME].saved
    assert slots is not None
    account = slots.position.account(slots.position.sequence)
    lost = account.filtered + account.dead_lettered + account.quarantined + account.evicted
    assert (account.delivered, lost) == (written, 0)
    now = fetch(site.collector.directory / "admin.sock")
    assert now["adds_up"], now


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1])
def test_kills_of_agent_and_collector_lose_and_double_nothing(site: AgentSite, seed: int) -> None:
    """Six kills here, fifty in the long run: every line under exactly one event.id."""
    agent = site.enrolled()
    agent.start()
    _check_storm(site, agent, _storm(site, agent, kills=6, seed=seed))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ways", PROTOCOLS, ids="+".join)
def test_fifty_kills_of_agent_and_collector_lose_and_double_nothing(site: AgentSite, ways: tuple[str, ...]) -> None:
    """Over each protocol and both."""
    agent = site.enrolled(outputs={way: {} for way in ways})
    agent.start()
    _check_storm(site, agent, _storm(site, agent, kills=50, seed=len(ways)))


def test_a_damaged_configuration_is_told_with_its_place(tmp_path: Path) -> None:
    """`ndagent check` and `ndagent run` say file, line and column; exit status 1."""
    config = tmp_path / "ndagent.yaml"
    config.write_text("state_dir: state\ninputs:\n  app: {type: file, path: [/var/log/x]}\n")
    for command in ("check", "run"):
        done = run("ndagent", command, "-c", str(config))
        assert done.returncode == 1
        assert f"{config}:3:" in done.stderr


def test_renewal_asks_the_collectors_that_the_configuration_names(site: AgentSite) -> None:
    """The collector moved and ndagent.yaml says where to: no certificate ends because enrolment knew no better."""
    agent = site.enrolled()
    identity = agent.state / "identity" / "identity.json"
    identity.write_text(identity.read_text().replace(str(site.https_port), "1"))
    assert agent.command("renew").returncode == 75
    agent.configure({**agent.settings, "outputs": {"https": {"endpoints": [f"localhost:{site.https_port}"]}}})
    done = agent.command("renew")
    assert done.returncode == 0, done.stderr
