"""`ndcollector agents …` and `pki rotate` as people type them, beside a running fleet; how fast a revocation cuts."""

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from fleet_site import RUNS, SPOOLS, FleetSite, enrol, group_of, new_key, renewal, request, serial
from tls_peers import Authority

from ndagent.core.allow_list import AllowConfig, AllowList
from ndagent.core.metrics import Metrics
from ndagent.core.settings import Listen
from ndagent.core.tls import TlsConfig, TlsContexts
from ndagent.core.tls_identity import PeerCertificate
from ndagent.core.tls_listener import LimitsConfig, TlsListener
from ndagent.core.tls_protocol import TlsConnection
from ndagent.wire.enrolment import Answer, Token
from ndagent.wire.status import AgentStatus
from ndcollector import pki
from ndcollector.__main__ import main
from ndcollector.agents import recovery
from ndcollector.agents.fleet import Fleet
from ndcollector.pki import store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def site(tmp_path: Path) -> FleetSite:
    site = FleetSite(tmp_path)
    tls = {"ca_file": "pki/ca.crt", "cert_file": "pki/server.crt", "key_file": "pki/server.key"}
    config = {"state_dir": "state", "tls": tls, "outputs": {"archive": {"type": "file", "path": "out"}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return site


@pytest.fixture
def run(site: FleetSite, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `ndcollector …`: (status, stdout, stderr)."""

    def run_command(*words: object) -> tuple[int, str, str]:
        status = main([*map(str, words), "-c", str(site.state.parent / "c.yaml")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command


async def typed(run: Run, *words: object) -> str:
    """What a command says that must succeed, typed while the loop goes on."""
    status, out, err = await asyncio.to_thread(run, *words)
    assert status == 0, err
    return out


async def report(site: FleetSite, fleet: Fleet, agent_id: str) -> None:
    """The agent says which bundle it has."""
    bundle = fleet.trust_bundle().fingerprint
    status = AgentStatus(RUNS[0], 0, "1", "linux", "web-1", trust_bundle=bundle)
    fleet.status(agent_id, status.to_json())
    await fleet.write()


async def test_the_life_of_an_agent_from_its_token_to_its_end(site: FleetSite, run: Run) -> None:
    """Every command, beside a fleet that has the same file open."""
    async with site.fleet() as fleet:
        out = await typed(run, "agents", "token", "create", "--group", "web", "--role", "edge", "--uses", 2)
        token = Token.parse(out.splitlines()[0])
        assert "ndagent enroll --url https://COLLECTOR:8443 --token ndt1_" in out
        answer = await fleet.enrolment.enrol(request(token), "192.0.2.1")
        assert (answer.group, group_of(fleet, answer.agent_id)) == ("web", ("web", ("edge",)))
        (row,) = [json.loads(line) for line in (await typed(run, "agents", "token", "ls", "--json")).splitlines()]
        assert (row["uses"], row["uses_left"], row["state"]) == (2, 1, "usable")
        fleet.admit(answer.agent_id, spool_id=SPOOLS[0], run_id=RUNS[0], address="192.0.2.1")
        await fleet.settle()
        await report(site, fleet, answer.agent_id)
        listed = await typed(run, "agents", "ls")
        assert answer.agent_id in listed
        assert "active" in listed
        assert "web-1" not in await typed(run, "agents", "ls", "--group", "db")
        await typed(run, "agents", "rename", answer.agent_id, "front door")
        await typed(run, "agents", "move", "front door", "--group", "db")
        found = json.loads(await typed(run, "agents", "show", "front door", "--json"))
        assert (found["id"], found["group"], found["roles"]) == (answer.agent_id, "db", ["edge"])
        assert (found["spool_ids"], found["certificate_serial"]) == ([SPOOLS[0]], serial(answer))
        assert "certificate not after" in await typed(run, "agents", "show", answer.agent_id)
        status, _, err = await asyncio.to_thread(run, "agents", "rm", "front door")
        assert (status, "is not revoked" in err, err.count("\n")) == (1, True, 1)
        await typed(run, "agents", "revoke", "front door", "--reason", "keyCompromise")
        await fleet._look()
        assert fleet.admit(answer.agent_id) == "revoked_agent"
        assert "revoked" in await typed(run, "agents", "ls")
        await typed(run, "agents", "rm", "front door")
        await fleet._look()
        assert fleet.admit(answer.agent_id) == "unknown_agent"
        again = await fleet.enrolment.enrol(request(token), "192.0.2.1")
        assert again.agent_id != answer.agent_id
    assert {one.revoked_at is None for one in pki.list_certificates(site.pki) if one.name == answer.agent_id} == {False}
    kinds = [json.loads(line)["kind"] for line in site.trail.splitlines()]
    assert [kind for kind in kinds if kind != "agent_refused"] == [
        "token_created", "agent_enrolled", "spool_registered", "agent_renamed", "agent_moved", "agent_revoked",
        "agent_removed", "agent_enrolled",
    ]  # fmt: skip
    assert json.loads(site.trail.splitlines()[0])["by"] not in ("", "daemon")


def test_tokens_are_revoked_and_forgotten(site: FleetSite, run: Run) -> None:
    """One that can still be used is not forgotten by a slip."""
    made = json.loads(run("agents", "token", "create", "--expires", "never", "--json")[1])
    assert made["expires_at"] is None
    assert Token.parse(made["token"]).id == made["id"]
    status, _, err = run("agents", "token", "rm", made["id"])
    assert (status, "revoke it first" in err) == (1, True)
    assert run("agents", "token", "revoke", made["id"])[0] == 0
    assert "revoked" in run("agents", "token", "ls")[1]
    assert run("agents", "token", "rm", made["id"])[0] == 0
    assert run("agents", "token", "revoke", made["id"])[0] == 1
    assert made["token"] not in site.trail
    assert made["token"].encode() not in site.file.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("token", "create", "--uses", "0"), "--uses must be"),
        (("token", "create", "--group", "a\x1bb"), "cannot name a group"),
        (("show", "nobody"), "agents ls"),
        (("revoke", "nobody"), "agents ls"),
        (("move", "nobody"), "agents ls"),
        (("add", "c.yaml"), "not a certificate"),
    ],
)
def test_mistakes_are_one_line_and_status_1(site: FleetSite, run: Run, words: tuple[str, ...], said: str) -> None:
    """And name the remedy."""
    words = tuple(str(site.state.parent / word) if word == "c.yaml" else word for word in words)
    status, out, err = run("agents", *words)
    assert (status, out, said in err, err.count("\n")) == (1, "", True, 1), err


@pytest.mark.parametrize("text", ["0s", "soon", "-5m"])
def test_a_time_that_is_none_is_wrong_usage(run: Run, text: str) -> None:
    """argparse says what would be right."""
    with pytest.raises(SystemExit):
        run("agents", "token", "create", f"--expires={text}")


def test_without_a_state_directory_the_remedy_is_said(site: FleetSite, run: Run) -> None:
    """It is the daemon's to make: made by root it would be root's."""
    site.state.rmdir()
    status, _, err = run("agents", "ls")
    assert (status, "its first start" in err) == (1, True)


async def test_an_agent_of_another_pki_is_added_by_its_certificate(site: FleetSite, run: Run) -> None:
    """The way for who has a PKI of his own; revoking it here is not the whole of it, and that is said."""
    other = Authority("company CA").issue("x", names=["URI:nd:agent:laptop-7"])
    nobody = Authority("company CA").issue("x", names=["URI:nd:device:fw"])
    for name, pair in (("agent", other), ("nobody", nobody)):
        (site.state / f"{name}.crt").write_bytes(pair.pem())
    async with site.fleet() as fleet:
        await typed(run, "agents", "add", site.state / "agent.crt", "--group", "laptops")
        await fleet._look()
        assert fleet.admit("laptop-7") is None
        assert len(fleet.public_keys("laptop-7")) == 1
        assert (await asyncio.to_thread(run, "agents", "add", site.state / "agent.crt"))[0] == 1
        status, _, err = await asyncio.to_thread(run, "agents", "add", site.state / "nobody.crt")
        assert (status, "URI:nd:agent:<id>" in err) == (1, True)
        assert "revoke it there too" in await typed(run, "agents", "revoke", "laptop-7")


async def test_without_the_cas_key_a_revocation_counts_here_and_says_what_is_missing(site: FleetSite, run: Run) -> None:
    """Every route asks the inventory; the CRL needs the key."""
    async with site.fleet() as fleet:
        agent_id = (await enrol(site, fleet)).agent_id
        (site.pki / "ca.key").rename(site.pki / "elsewhere")
        status, _, err = await asyncio.to_thread(run, "agents", "revoke", agent_id)
        assert (status, "no CRL says so" in err) == (1, True)
        await fleet._look()
        assert fleet.admit(agent_id) == "revoked_agent"
        status, _, err = await asyncio.to_thread(run, "agents", "rm", agent_id)
        assert (status, "bring ca.key back" in err) == (1, True)
        (site.pki / "elsewhere").rename(site.pki / "ca.key")
        await typed(run, "agents", "revoke", agent_id)
        await typed(run, "agents", "rm", agent_id)


async def test_a_rotation_waits_for_the_agents(site: FleetSite, run: Run) -> None:
    """For their report of the new bundle, then for their renewal; a revoked one is not waited for."""
    async with site.fleet() as fleet:
        answer, gone = await enrol(site, fleet), await enrol(site, fleet)
        await typed(run, "agents", "revoke", gone.agent_id)
        await typed(run, "agents", "token", "create")
        await report(site, fleet, answer.agent_id)
        assert "steady" in await typed(run, "pki", "rotate")
        out = await typed(run, "pki", "rotate", "--stage")
        assert "waiting for  1: web-1" in out
        assert "name the first CA only" in out
        status, _, err = await asyncio.to_thread(run, "pki", "rotate", "--activate")
        assert (status, "web-1 would no longer trust this collector" in err) == (1, True)
        await report(site, fleet, answer.agent_id)
        assert "next         ndcollector pki rotate --activate" in await typed(run, "pki", "rotate")
        await typed(run, "pki", "rotate", "--activate")
        status, _, err = await asyncio.to_thread(run, "pki", "rotate", "--retire")
        assert (status, "web-1 would be refused" in err) == (1, True)
        renewed = await fleet.enrolment.renew(answer.agent_id, renewal(), serial(answer))
        assert renewed.ca.count("BEGIN CERTIFICATE") == 2
        await typed(run, "pki", "rotate", "--retire")
        assert fleet.trust_bundle().pem.count("BEGIN CERTIFICATE") == 1
        assert "CA retired" in await typed(run, "pki", "list")
        await typed(run, "agents", "revoke", answer.agent_id)
    assert site.trail.count('"kind":"ca_rotation"') == 3


async def test_force_leaves_behind_whom_it_names(site: FleetSite, run: Run) -> None:
    """A host that is never switched on again must not keep a stolen CA alive."""
    async with site.fleet() as fleet:
        await enrol(site, fleet)
        await typed(run, "pki", "rotate", "--stage")
        await typed(run, "pki", "rotate", "--activate", "--force")
        await typed(run, "pki", "rotate", "--retire", "--force")


# -- live connections ------------------------------------------------------------------------------------------------


class Silent:
    """Takes what an agent says and answers nothing."""

    def received(self, data: memoryview) -> None:
        """See tls_protocol.Handler."""

    def ended(self) -> None:
        """See tls_protocol.Handler."""


async def test_a_revoked_agent_is_cut_off_within_five_seconds(site: FleetSite, tmp_path: Path) -> None:
    """A live connection on a real listener, `agents revoke` in a process of its own; another agent stays connected."""
    files = TlsConfig(ca_file=site.pki / "ca.crt", cert_file=site.pki / "server.crt", key_file=site.pki / "server.key")
    contexts = TlsContexts(files, metrics=Metrics(), clock=time.time)

    def handler(_certificate: PeerCertificate | None, _connection: TlsConnection) -> Silent:
        return Silent()

    listener = TlsListener(
        [Listen("127.0.0.1", 0)], name="mqtt", kind="agent", contexts=contexts, allow=AllowList(AllowConfig()),
        limits=LimitsConfig(), handler=handler, metrics=Metrics(),
    )  # fmt: skip
    await listener.start()
    tasks = [asyncio.create_task(one) for one in (listener.serve(), contexts.watch())]
    try:
        async with site.fleet() as fleet:
            stays, goes = [await connect(site, fleet, listener, tmp_path) for _ in range(2)]
            command = ["-m", "ndcollector", "agents", "revoke", goes[0].agent_id, "-c", str(tmp_path / "c.yaml")]
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(sys.executable, *command)
            async with asyncio.timeout(10):
                with suppress(ConnectionError, ssl.SSLError):
                    assert await goes[1].read() == b""
            typed, written = time.monotonic() - began, time.time() - (site.pki / "ca.crl").stat().st_mtime
            assert await process.wait() == 0
            print(f"cut off {typed:.1f} s after the command was typed, {written:.1f} s after the CRL was written")
            assert written < 5  # what lies before is the start of a process, on a machine that does other things too
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stays[1].read(1), 0.5)
            await fleet._look()
            assert fleet.admit(goes[0].agent_id, spool_id=SPOOLS[0], run_id=RUNS[0]) == "revoked_agent"
            for _, _, writer in (stays, goes):
                writer.close()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listener.stop()


async def connect(
    site: FleetSite, fleet: Fleet, listener: TlsListener, directory: Path
) -> tuple[Answer, asyncio.StreamReader, asyncio.StreamWriter]:
    """An agent that enrolled and holds a connection."""
    key = new_key()
    answer = await enrol(site, fleet, key=key)
    (directory / "agent.crt").write_text(answer.certificate)
    (directory / "agent.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(cadata=answer.ca)
    context.load_cert_chain(directory / "agent.crt", directory / "agent.key")
    port = listener.addresses[0].port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    writer.write(b"hello")
    await writer.drain()
    return answer, reader, writer


async def test_a_thousand_revocations_keep_the_index_readable(
    site: FleetSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large index is appended to without being read; a fleet's look at it reads what is new."""
    lines = []
    now = datetime.now(UTC)
    for number in range(20_000):
        end = (now + timedelta(days=90)).isoformat()
        entry = {"event": "issued", "serial": f"{number + 1:X}", "kind": "agent", "name": f"a{number % 1000}"}
        lines.append(json.dumps({**entry, "not_before": now.isoformat(), "not_after": end, "issuer": ""}))
    with (site.pki / "index.jsonl").open("a") as stream:
        stream.write("\n".join(lines) + "\n")
    read: list[int] = []
    really = store.read_index

    def read_index(directory: Path, start: int = 0) -> tuple[list[dict[str, str]], int]:
        entries, end = really(directory, start)
        read.append(len(entries))
        return entries, end

    async with site.fleet() as fleet:
        assert len(fleet) == 1000
        monkeypatch.setattr(recovery, "read_index", read_index)
        monkeypatch.setattr(store, "read_index", read_index)
        await enrol(site, fleet)
        await fleet._look()
    assert sum(read) == 1, f"entries read by each look: {read}"
