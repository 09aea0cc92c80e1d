"""A seeded storm over a real collector, its agents, devices, broker and receivers, and a final account.

    chaos.py --seconds 300 --seeds 10            ten seeds, drawn at random and said
    chaos.py --seconds 60 --seed 4711            that one again: what a failed run tells you to type
    chaos.py --seconds 60 --outlets file,s3      these receivers, and not those that the seed draws

Promises: exit 0 only if, for every seed, all that was owed (chaos_account.py says what that is) came out of every
output after the faults had stopped, the collector's ledger agrees, its memory stayed below RSS_LIMIT_BYTES, and no log
of ours tells of an exception that nobody expected. Else 1, with the seed, the faults as they were, the missing ids, the
command that repeats it, and the files of the run kept.
Everything else lies in a temporary directory that is removed; every process is ended by its own id, on Ctrl-C too. As
root the run has network, mount and process namespaces of its own, so the host sees nothing of its links and mounts, and
if the driver is killed the kernel ends the rest.
A seed fixes what is done, to what, when and for how long. It does not fix what two processes do meanwhile, so a rare
failure may need the command more than once.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what all tests share
from chaos_account import Arrived, Claims, History, Id, judge
from chaos_faults import Strikes, heal
from chaos_outlets import OUTLETS, FileOutlet, drawn
from chaos_plan import plan
from chaos_site import Site
from far_network import FarNetwork
from services import fetch

from ndcollector.admin_client import AdminClient, AdminError

RSS_LIMIT_BYTES = 256 << 20
"""For the collector with all these plugs; DESIGN's 200 MB are for one with hostile input alone."""
DRAIN_SECONDS = 150.0
"""An agent's probes of a collector that was away come up to a minute apart."""
LINES_PER_SECOND = 40
_FETCHED: dict[str, fetch.Service | fetch.Jars] = {"kafka": fetch.KAFKA, "relp": fetch.RSYSLOG_RELP}
_INSIDE = "--inside-namespaces"
_LOOK_SECONDS = 0.5
_NO_BUG = '"logger":"asyncio"'
"""What aiohttp, aiomqtt and paho leave uncollected when a connection breaks; the call itself failed as it should."""


class Writers(threading.Thread):
    """Programs that log: each agent's file gets whole, numbered lines at a steady pace."""

    def __init__(self, site: Site) -> None:
        super().__init__(name="writers", daemon=True)
        self.written = dict.fromkeys(site.agents, 0)
        self._files = {name: (agent.logs / "app.log").open("ab", buffering=0) for name, agent in site.agents.items()}
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until stop()."""
        began = time.monotonic()
        while not self._stopped.wait(0.05):
            due = int((time.monotonic() - began) * LINES_PER_SECOND)
            for name, file in self._files.items():
                first, self.written[name] = self.written[name], due  # claimed before it is there
                file.write(b"".join(b"id %s.0.%d; text\n" % (name.encode(), number) for number in range(first, due)))

    def stop(self) -> None:
        """Write no more."""
        self._stopped.set()
        self.join(30)
        for file in self._files.values():
            file.close()


class Memory(threading.Thread):
    """The largest resident set that the collector had, restarts included."""

    def __init__(self, site: Site) -> None:
        super().__init__(name="memory", daemon=True)
        self._site = site
        self._stopped = threading.Event()
        self.most_bytes = 0

    def run(self) -> None:
        """Until stop()."""
        while not self._stopped.wait(_LOOK_SECONDS):
            with contextlib.suppress(OSError, RuntimeError, StopIteration):
                status = Path(f"/proc/{self._site.collector.pid}/status").read_text().splitlines()
                line = next(line for line in status if line.startswith("VmRSS:"))
                self.most_bytes = max(self.most_bytes, int(line.split()[1]) * 1024)

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self.join(10)


class Run:
    """One seed."""

    def __init__(self, site: Site, *, seed: int, seconds: float) -> None:
        self.site = site
        self.history = History()
        self.failures: list[str] = []
        self.strikes: Strikes | None = None
        self.summary = ""
        self._seed = seed
        self._seconds = seconds
        self._archive = next(outlet for outlet in site.outlets if isinstance(outlet, FileOutlet))

    def run(self) -> None:
        """All of it; what is wrong is in `failures`."""
        site = self.site
        site.start()
        self._writers = Writers(site)
        memory = Memory(site)
        self.strikes = Strikes(site, self.history, before_broker_dies=self._note_lines_at_risk)
        faults = plan(self._seed, seconds=self._seconds, targets=self.strikes.kinds)
        self._writers.start()
        memory.start()
        self.strikes.begin(faults, time.monotonic())
        site.over.wait(self._seconds)
        site.over.set()
        self.strikes.join()
        heal(site)
        self.failures += [f"the driver failed: {error!r}" for error in self.strikes.errors]
        self._writers.stop()
        site.stop_devices(limit_seconds=30)
        claims = self._claims()
        self._drain(claims)
        memory.stop()
        self._settle(claims, memory.most_bytes, len(faults))

    def _note_lines_at_risk(self) -> None:
        """A broker that is killed may forget what it has acknowledged: lines written and not delivered by now."""
        arrived = Arrived.read(self._archive.lines()).ids
        written = self._writers.written["a3"] + LINES_PER_SECOND  # the kill follows in less than a second
        late = {number for number in range(written) if Id("a3", 0, number) not in arrived}
        self.history.at_risk["a3"] = self.history.at_risk.get("a3", set()) | late

    def _claims(self) -> Claims:
        claims = Claims()
        for name, written in self._writers.written.items():
            claims.add_agent(name, written, self.history.at_risk.get(name, set()))
        for name in self.site.devices:
            claims.add_device(name, self.site.journal(name), self.history)
        return claims

    def _drain(self, claims: Claims) -> None:
        """Until nothing is owed any more, or for as long as recovering may take; the account says what is missing."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.site.collector.pending() == 0 and not any(self._waits(name) for name in self.site.agents):
                    owed = claims.owed - Arrived.read(self._archive.lines()).ids.keys()
                    if not owed and self.site.collector.pending() == 0:
                        return
            time.sleep(_LOOK_SECONDS)
        self.failures.append(f"not drained within {DRAIN_SECONDS:g}s of the last fault: {self._backlog()}")

    def _waits(self, agent: str) -> bool:
        return self.site.agents[agent].pending() > 0

    def _backlog(self) -> str:
        agents = {name: agent.pending() for name, agent in self.site.agents.items()}
        with contextlib.suppress(OSError):
            return f"collector {self.site.collector.pending():g}, agents {agents}"
        return f"collector does not answer, agents {agents}"

    def _settle(self, claims: Claims, rss_bytes: int, faults: int) -> None:
        ledger = self._ledger()
        lines = {line["output"]: line for line in ledger.get("outputs", ()) if line["stream"] == "security_events"}
        if not ledger.get("adds_up"):
            self.failures.append(f"the ledger does not add up: {json.dumps(ledger)}")
        if rss_bytes > RSS_LIMIT_BYTES:
            self.failures.append(f"the collector grew to {rss_bytes >> 20} MiB, allowed are {RSS_LIMIT_BYTES >> 20}")
        told = []
        for outlet in self.site.outlets:
            arrived = Arrived.read(outlet.lines())
            if outlet.by_id:
                arrived.recognise(Arrived.read(self._archive.lines()))
            self.failures += judge(outlet.name, arrived, claims, lines.get(outlet.name), once=outlet.once)
            told.append(f"{outlet.name} {len(arrived.ids)} (+{arrived.duplicates} twice)")
        if self.site.collector.stop() != 0:
            self.failures.append("the collector did not stop well")
        self.failures += self._verify() + self._confessions()
        self.summary = (
            f"{faults} faults, owed {len(claims.owed)}, maybe {len(claims.maybe)}; {', '.join(told)}; "
            f"collector at most {rss_bytes >> 20} MiB"
        )

    def _ledger(self) -> dict[str, Any]:
        try:
            with contextlib.closing(AdminClient(self.site.collector.directory / "admin.sock")) as client:
                found: dict[str, Any] = json.load(client.get("/v1/ledger"))
        except AdminError as error:
            return {"error": str(error)}
        return found

    def _verify(self) -> list[str]:
        command = [sys.executable, "-m", "ndcollector", "spool", "verify", "-c", str(self.site.collector.config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return [f"spool verify: {done.stdout}{done.stderr}"] if done.returncode else []

    def _confessions(self) -> list[str]:
        """What logs of ours say only if there is a bug, whatever the machine does."""
        logs = [daemon.process.log for daemon in (self.site.collector, *self.site.agents.values())]
        lines = ((log, line) for log in logs for line in log.read_text(errors="replace").splitlines())
        return [f"{log.name}: {line[:1000]}" for log, line in lines if _is_unexpected(line)]


def _is_unexpected(line: str) -> bool:
    """An exception in the log at ERROR, or beside the log; libraries tell of theirs at DEBUG."""
    if not line.startswith("{"):
        return line.startswith("Traceback")
    return '"level":"ERROR"' in line and '"exception":' in line and _NO_BUG not in line


@contextlib.contextmanager
def far_network(wanted: bool) -> Iterator[FarNetwork | None]:
    """One, where there may be one."""
    if not wanted:
        yield None
        return
    with FarNetwork() as far:
        yield far


def storm(seed: int, *, seconds: float, outlets: Sequence[str], inside: bool, say: Callable[[str], None]) -> bool:
    """Run one seed; whether it was clean."""
    directory = Path(tempfile.mkdtemp(prefix="nd-chaos-"))
    run: Run | None = None
    made = []
    interrupted = False
    try:
        with far_network(inside) as far:
            for name in outlets:
                made.append(OUTLETS[name](directory, seed))
                made[-1].start()
            site = Site(directory, seed=seed, outlets=made, far=far, own_mounts=inside)
            run = Run(site, seed=seed, seconds=seconds)
            try:
                run.run()
            finally:
                site.over.set()
                site.close()
    except (KeyboardInterrupt, SystemExit):
        interrupted = True
        raise
    finally:
        for outlet in made:
            outlet.close()
        if not interrupted and (run is None or run.failures or not run.summary):
            say(f"its files: {_keep(directory)}")
        _remove(directory)
    if not run.failures:
        say(f"seed {seed}: clean; {run.summary}")
        return True
    _tell(run, seed, seconds=seconds, outlets=outlets, say=say)
    return False


def _tell(run: Run, seed: int, *, seconds: float, outlets: Sequence[str], say: Callable[[str], None]) -> None:
    say(f"seed {seed}: FAILED; {run.summary}")
    for fault in sorted(run.strikes.said if run.strikes else ()):
        say(f"    {fault}")
    for failure in run.failures:
        say(f"  {failure}")
    arguments = f"--seed {seed} --outlets {','.join(outlets)}"
    say(f'to repeat it: make chaos SECONDS={seconds:g} SEEDS=1 ARGS="{arguments}"')


def _keep(directory: Path) -> Path:
    """Copy what is in file systems that go away with us."""
    kept = directory.with_name(f"{directory.name}-failed")
    shutil.copytree(
        directory, kept, symlinks=True, ignore_dangling_symlinks=True,
        ignore=lambda at, names: [name for name in names if (Path(at) / name).is_socket()],
    )
    return kept


def _remove(directory: Path) -> None:
    for mount in sorted(Path("/proc/self/mounts").read_text().splitlines()):
        where = mount.split()[1]
        if where.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", where], check=False)
    shutil.rmtree(directory, ignore_errors=True)


def enter_namespaces(arguments: list[str]) -> None:
    """Become this program in namespaces of its own; returns only where they may not be had."""
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("ip") and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        os.execvp(command[0], [*command, sys.executable, __file__, *arguments, _INSIDE])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A seeded storm over a real collector, and a final account.")
    parser.add_argument("--seconds", type=float, default=60, help="how long each seed's faults go on")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after another")
    parser.add_argument("--seed", type=int, help="the first of them; drawn if not given")
    parser.add_argument(
        "--outlets", help=f"receivers, separated by commas, of {', '.join(OUTLETS)}; drawn by each seed if not given"
    )
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """See the module."""
    wanted = parse(arguments)
    if not wanted.inside_namespaces:
        fetch.ensure(fetch.MOSQUITTO)  # in there is no network to fetch from
        fetch.ensure(fetch.NFTABLES)
        for outlet, service in _FETCHED.items():
            if wanted.outlets is None or outlet in wanted.outlets.split(","):
                fetch.ensure(service)
        enter_namespaces(arguments)
        print("no namespaces of its own here: no far cable, no full disks; as root there are", flush=True)
    else:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    first = wanted.seed if wanted.seed is not None else random.SystemRandom().randrange(10**6)
    seeds = range(first, first + wanted.seeds)
    clean = 0
    for seed in seeds:
        outlets = wanted.outlets.split(",") if wanted.outlets else drawn(seed)
        print(f"seed {seed}: {wanted.seconds:g}s into {', '.join(outlets)} …", flush=True)
        clean += storm(seed, seconds=wanted.seconds, outlets=outlets, inside=wanted.inside_namespaces, say=_say)
    print(f"{clean} of {len(seeds)} seeds clean", flush=True)
    return 0 if clean == len(seeds) else 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
