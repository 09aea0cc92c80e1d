"""What an agent costs its host: guards with room to spare; `python bench/agent.py` measures."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from agent_process import AgentProcess, AgentSite, has_codec
from collector_process import ROOT

from ndagent.footprint import pretending, stand_in
from ndagent.inputs import INPUTS

MEGABYTES = 48
"""The promise is 45; pages of shared libraries count, and differ between machines."""
START_CPU_SECONDS = 0.5
_HEAVY = frozenset({
    "cryptography", "aiohttp", "prometheus_client", "psutil", "uvloop", "watchfiles", "re2", "isal", "dns", "email",
    "zipfile", "http.client", "urllib.request", "importlib.metadata", "ndagent.wire._codec", "aiokafka", "OpenSSL",
    "rich", "multiprocessing", "xml", "csv", "difflib", "ctypes.util", "tempfile", "pydantic.json_schema",
    "pydantic.networks", "ndagent.enrolment", "ndagent.wire.codec", "ndagent.wire.netflow", "ndagent.core.snmp_engine",
    "ndagent.core.flow_intake", "ndagent.core.trap_intake", "ndagent.core.poll_intake", "ndagent.core.datagram_intake",
    "ndagent.core.syslog_stream", "ndagent.core.tcp_listener", "ndagent.core.tls_listener",
})  # fmt: skip
_SHIPPED = ROOT / "conf" / "ndagent.yaml"
_LOAD_EVERYTHING = """
from ndagent.footprint import keep_small
keep_small()
import importlib, os, pathlib, sys, zoneinfo
from ndagent import __main__, app, config, inputs
__main__.build_parser()
settings = config.load(pathlib.Path(sys.argv[1]))
from ndagent.inputs.file_watch import _load_inotify
_load_inotify()
assert "PYTHONTZPATH" not in os.environ and zoneinfo.ZoneInfo("Europe/Berlin")
print(*sorted(name for name, module in sys.modules.items() if hasattr(module, "__spec__") and module.__spec__))
"""


def resident_bytes(agent: AgentProcess) -> int:
    """Of the running agent."""
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def cpu_seconds(agent: AgentProcess) -> float:
    """User and system time of the running agent, all threads."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)


@pytest.mark.parametrize("ways", [("https",), ("mqtt",)], ids="+".join)
def test_an_idle_agent_is_small(site: AgentSite, ways: tuple[str, ...]) -> None:
    """It has sent a line, so everything it needs is loaded, and waits."""
    agent = site.enrolled(outputs={way: {} for way in ways})
    agent.start()
    (agent.logs / "app.log").write_text("one line\n")
    site.wait_for(1)
    time.sleep(1)  # cursors and positions are saved
    assert resident_bytes(agent) / 1e6 <= MEGABYTES
    assert not has_codec(agent), "which only syslog of devices needs"


def test_a_start_costs_little(site: AgentSite) -> None:
    """The cheapest of three: another process may have had the caches."""
    agent = site.enrolled(outputs={"https": {}})
    costs = []
    for _ in range(3):
        agent.start()
        costs.append(cpu_seconds(agent))
        agent.stop()
    assert min(costs) <= START_CPU_SECONDS


def test_nothing_heavy_is_loaded_without_need() -> None:
    """Neither by us nor by what we load: this is where a new version of a package would show.

    With the configuration as shipped; host metrics load psutil when they are made, not when they are configured.
    """
    loaded = set(_python(_LOAD_EVERYTHING, str(_SHIPPED)).split())
    assert sorted(_HEAVY & loaded) == []
    assert [name for name in loaded if name.startswith("_sysconfigdata")] == []
    configured = {INPUTS[name] for name in yaml.safe_load(_SHIPPED.read_text())["inputs"]} | {INPUTS["file"]}
    assert configured <= loaded  # auditd reads its log as `file` does
    assert sorted((set(INPUTS.values()) - configured) & loaded) == []


def test_inotify_is_found_without_a_process() -> None:
    """asyncinotify would run ldconfig, or a compiler, on the event loop of an agent that may be root."""
    said = _python("""
import ctypes, sys
sys.addaudithook(lambda event, _: sys.exit(event) if event in ("subprocess.Popen", "os.posix_spawn") else None)
from ndagent.inputs.file_watch import _load_inotify
with _load_inotify()() as inotify:
    print(inotify.fd >= 0, hasattr(ctypes, "util"), "ctypes.util" in sys.modules)
""")
    assert said.split() == ["True", "False", "False"]


def _python(program: str, *arguments: str) -> str:
    """What it prints, as a process of its own."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_pretending_ends_with_its_context() -> None:
    """What was loaded stays what it is; what was not can be loaded afterwards."""
    stand = stand_in("colorsys", rgb_to_hsv=len)
    known = sys.modules["subprocess"]
    sys.modules.pop("colorsys", None)
    with pretending({"colorsys": stand, "subprocess": ModuleType("subprocess"), "chunk_that_is_not": None}):
        import colorsys

        assert colorsys.rgb_to_hsv is len
        assert sys.modules["subprocess"] is known
        with pytest.raises(ImportError):
            __import__("chunk_that_is_not")
    import colorsys as real

    assert real.rgb_to_hsv is not len
    assert "chunk_that_is_not" not in sys.modules
