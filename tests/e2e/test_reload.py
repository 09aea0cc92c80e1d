"""A reload works whole or changes nothing, whichever section changed, and happens when a file was saved."""

import json
import os
import signal
import socket
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from collector_site import Site, messages
from services.process import free_port

from ndcollector import pki

DONE = 'nd_reloads_total{result="done",what="config"}'
REFUSED = 'nd_reloads_total{result="refused",what="config"}'


def test_saving_a_broken_file_leaves_the_running_daemon_untouched(site: Site) -> None:
    """Reload is atomic: the mistake is reported with its place, the connection that was open still delivers."""
    with site.connect() as connection:
        connection.sendall(messages(10))
        site.collector.wait_for_lines(10)
        site.change(lambda config: config["outputs"]["archive"].update(pth="typo"))
        site.wait_for_log("reload refused, the old configuration stays")
        connection.sendall(messages(10, first=10))
        site.collector.wait_for_lines(20)
    assert site.collector.metrics()['nd_reloads_total{result="refused",what="config"}'] == 1
    assert any("pth" in line["message"] and ".yaml:" in line["message"] for line in site.log())


def test_a_reload_adds_an_output_that_gets_the_backlog_it_asks_for(site: Site, tmp_path: Path) -> None:
    """`start: earliest` begins with what the spool still has; the other output does not see an event twice."""
    second = tmp_path / "second.ndjson"
    site.send(10)
    site.collector.wait_for_lines(10)
    site.change(lambda config: config["outputs"].update(second={"type": "file", "path": str(second)}))
    site.wait_for_log("reloaded: syslog_tls → archive, second")
    site.send(10, first=10)
    site.collector.process.wait_until(lambda: second.exists() and b"number 19" in second.read_bytes(), "the last event")
    site.collector.wait_for_lines(20)
    assert site.numbers() == list(range(20))
    assert site.numbers(second)[-10:] == list(range(10, 20))


def test_an_input_whose_new_address_is_taken_goes_on_undisturbed(site: Site) -> None:
    """Addresses are tried before anything is given up: not even its open connections notice, and the log says why."""
    with site.connect() as connection, socket.create_server(("127.0.0.1", 0)) as other:
        connection.sendall(messages(5))
        taken = other.getsockname()[1]
        listen = [f"127.0.0.1:{port}" for port in (*site.collector.ports, taken)]
        site.change(lambda config: config["inputs"]["syslog_tls"].update(listen=listen))
        os.kill(site.collector.pid, signal.SIGHUP)
        site.wait_for_log(f"input syslog_tls: cannot listen on 127.0.0.1:{taken}")
        connection.sendall(messages(5, first=5))
        site.collector.wait_for_lines(10)
    with urllib.request.urlopen(f"http://127.0.0.1:{site.collector.admin_port}/ready", timeout=5) as reply:
        assert json.load(reply)["ready"]


def test_an_input_moves_to_another_address(site: Site) -> None:
    """The old one is free again, the new one serves; a message in between is not lost."""
    port = free_port()
    with site.connect() as connection:
        connection.sendall(messages(5))
        site.change(lambda config: config["inputs"]["syslog_tls"].update(listen=[f"127.0.0.1:{port}"]))
        site.wait_for_metric(DONE, 1)
    with site.connect(port=port) as connection:
        connection.sendall(messages(5, first=5))
        site.collector.wait_for_lines(10)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", site.collector.ports[0]), timeout=5)
    assert site.numbers() == list(range(10))


def test_other_certificate_files_are_taken_up_without_dropping_a_connection(site: Site) -> None:
    """The section `tls` too: live connections stay, the next handshake sees the new certificate."""
    made = pki.issue(site.pki, pki.Subject("server", "other", dns=("localhost",)), now=datetime.now(UTC))
    with site.connect() as old:
        before = old.getpeercert(binary_form=True)
        files = {"cert_file": str(made.certificate_file), "key_file": str(made.key_file)}
        site.change(lambda config: config["tls"].update(files))
        site.wait_for_metric(DONE, 1)
        with site.connect() as new:
            assert new.getpeercert(binary_form=True) != before
        old.sendall(messages(5))
        site.collector.wait_for_lines(5)


def test_certificate_files_that_cannot_be_used_refuse_the_whole_reload(site: Site) -> None:
    """Not even the outputs that came with them are changed."""

    def edit(config: dict[str, Any]) -> None:
        config["tls"].update(cert_file="nowhere.crt")
        config["outputs"].update(second={"type": "file", "path": str(site.collector.directory / "second")})

    site.change(edit)
    site.wait_for_metric(REFUSED, 1)
    site.send(5)
    site.collector.wait_for_lines(5)
    assert any("nowhere.crt" in line["message"] for line in site.log())
    assert not any('"second"' in name for name in site.collector.metrics())


def test_inputs_come_and_go(site: Site) -> None:
    """One with another name beside the first; then the first alone is taken away."""
    port = free_port()
    first = site.collector.ports[0]
    second = {"type": "syslog_tls", "listen": [f"127.0.0.1:{port}"]}
    site.change(lambda config: config["inputs"].update(dmz=second))
    site.wait_for_metric(DONE, 1)
    with site.connect(port=port) as kept:
        site.change(lambda config: config["inputs"].pop("syslog_tls"))
        site.wait_for_metric(DONE, 2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first), timeout=5)
        kept.sendall(messages(5))
        site.collector.wait_for_lines(5)


def test_decoding_and_log_level_change_while_running(site: Site) -> None:
    """No input restarts for it, and what was sent before is not sent again."""
    site.send(5)
    site.collector.wait_for_lines(5)

    def edit(config: dict[str, Any]) -> None:
        config["decode"] = {"keep_original": "always"}
        config["log"] = {"level": "warning"}

    site.change(edit)
    site.wait_for_metric(DONE, 1)
    site.send(5, first=5)
    site.collector.wait_for_lines(10)
    assert ["original" in event["event"] for event in site.collector.events()] == [False] * 5 + [True] * 5
    assert not any("reloaded" in line["message"] for line in site.log())


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("node_name", "another"),
        ("state_dir", "elsewhere"),
        ("spool", {"max_bytes": "1GiB"}),
        ("admin", {"listen": "127.0.0.1:9601"}),
    ],
)
def test_what_only_a_restart_can_change_is_named(site: Site, section: str, value: object) -> None:
    """And nothing else of that file is taken."""
    site.change(lambda config: config.update({section: value}))
    site.wait_for_log(f"{section}: changed, which needs a restart: systemctl restart ndcollector")
    site.send(2)
    site.collector.wait_for_lines(2)


def test_a_save_without_a_change_does_nothing(site: Site) -> None:
    """Only the save that did change something is counted."""
    site.change(lambda config: None)
    (site.collector.config.parent / "unrelated.txt").write_text("x")
    site.change(lambda config: config.update(shutdown_timeout="20s"))
    site.wait_for_metric(DONE, 1)
    assert site.collector.metrics()[REFUSED] == 0


def test_a_conf_d_made_after_the_start_is_followed(site: Site) -> None:
    """Drop-ins are how packages and automation configure; nobody restarts for the first one."""
    fragments = site.collector.config.parent / "conf.d"
    fragments.mkdir()
    (fragments / "10.yaml").write_text("shutdown_timeout: 20s\n")
    site.wait_for_metric(DONE, 1)
    (fragments / "20.yaml").write_text("shutdown_timeout: 21s\n")
    site.wait_for_metric(DONE, 2)
    (fragments / "20.yaml").write_text("shutdown_timeout: soon\n")
    site.wait_for_metric(REFUSED, 1)
    assert any(str(fragments / "20.yaml") + ":1:" in line["message"] for line in site.log())


def test_a_configuration_behind_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    """As configuration management lays them: the link stays, its target is replaced."""
    site = Site(tmp_path)
    real = tmp_path / "managed" / "ndcollector.yaml"
    real.parent.mkdir()
    site.collector.config.rename(real)
    site.collector.config.symlink_to(real)
    with site.collector:
        replacement = real.with_suffix(".new")
        replacement.write_text(real.read_text() + "shutdown_timeout: 20s\n")
        replacement.replace(real)
        site.wait_for_metric(DONE, 1)
