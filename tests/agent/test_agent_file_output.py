"""Agents' events in files: a crash of the collector brings none of them twice."""

import time

from agent_process import AgentSite


def test_kills_of_the_collector_double_no_line_in_the_file(site: AgentSite) -> None:
    """Its cursor is saved every second and each life is shorter: the file itself says how far it is."""
    agent = site.enrolled()
    agent.start()
    written = 0
    for _ in range(4):
        with (agent.logs / "app.log").open("a") as log:
            log.writelines(f"line {number}\n" for number in range(written, written + 200))
        written += 200
        site.collector.process.wait_until(lambda: len(site.messages()) == written, f"{written} lines", 60)  # noqa: B023 - at once
        site.collector.kill()
        site.collector.start()
    time.sleep(1.5)  # what a start would write again, it writes within its first second
    assert site.messages() == {f"line {number}": 1 for number in range(written)}
