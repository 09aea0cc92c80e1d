"""A real collector rotates its CA under a real agent; and a lost answer to an enrolment costs one use of a token."""

import json
import time

from agent_process import AgentProcess, AgentSite


def write(agent: AgentProcess, first: int, count: int) -> None:
    """So many lines, numbered."""
    with (agent.logs / "app.log").open("a") as log:
        log.writelines(f"line {number}\n" for number in range(first, first + count))


def trusted(agent: AgentProcess) -> int:
    """How many CAs it trusts."""
    return json.loads((agent.state / "identity" / "identity.json").read_text())["ca"].count("BEGIN CERTIFICATE")


def test_an_agent_survives_the_rotation_of_the_ca(site: AgentSite) -> None:
    """Staged: it takes the second CA over. Activated: it trusts the collector's new certificate, and renews by it."""
    agent = site.enrolled(status_every="1s")
    agent.start()
    write(agent, 0, 10)
    site.wait_for(10)
    done = site.command("pki", "rotate", "--stage")
    assert done.returncode == 0, done.stderr
    agent.stop()
    agent.start()  # it asks at its start, and every hour
    agent.process.wait_until(lambda: trusted(agent) == 2, "both CAs", 30)
    agent.process.wait_until(lambda: agent.said("the collectors' CAs changed; 2 are trusted now") == 1, "a word of it")
    write(agent, 10, 10)
    site.wait_for(20)
    deadline = time.monotonic() + 30
    while (done := site.command("pki", "rotate", "--activate")).returncode != 0:
        assert "would no longer trust this collector" in done.stderr  # until it has reported what it trusts
        assert time.monotonic() < deadline
    site.collector.stop()
    site.collector.start()
    write(agent, 20, 10)
    site.wait_for(30)
    done = agent.command("renew")
    assert done.returncode == 0, done.stderr
    write(agent, 30, 10)
    site.wait_for(40)
    assert site.distinct() == {f"line {number}": 1 for number in range(40)}
    assert agent.stop() == 0


def test_a_lost_answer_costs_no_second_use_of_a_token(site: AgentSite) -> None:
    """What stops `ndagent enroll` before it stored the answer: it asks again with its key, and is the same agent."""
    token = site.token()
    agent = site.agent()
    agent.state.mkdir(parents=True)
    # A directory in the place of identity.json's successor stops the store after the answer came.
    (agent.state / "identity").mkdir(mode=0o700)
    (agent.state / "identity" / "identity.json").mkdir()
    done = agent.command("enroll", "--url", site.url, "--token", token)
    assert done.returncode == 1, done.stderr
    assert "irectory" in done.stderr
    (agent.state / "identity" / "identity.json").rmdir()
    agent.enroll(site.url, token)
    assert len(site.command("agents", "ls", "--json").stdout.splitlines()) == 1
    second = site.agent("second").command("enroll", "--url", site.url, "--token", token)
    assert second.returncode == 1
    assert "used" in second.stderr
