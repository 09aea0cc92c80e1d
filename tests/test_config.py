"""The collector's configuration, and what `check` says of it and of the machine around it."""

import argparse
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import Field, SecretStr

from ndagent.core.settings import ConfigPath, Listen, ListenAddress, OutputConfig, Settings
from ndagent.core.yaml_file import ConfigError
from ndagent.wire.devices import FAMILIES
from ndcollector import check_command
from ndcollector.config import CollectorConfig, load
from ndcollector.inputs import INPUTS
from ndcollector.outputs import OUTPUTS
from ndcollector.pki import Subject, init, issue

NOW = datetime.now(UTC)
CONF = Path(__file__).parent.parent / "conf"


class EarConfig(Settings):
    """An input of the tests' own."""

    type: Literal["ear"] = "ear"
    listen: tuple[ListenAddress, ...] = Field(default=("127.0.0.1:7",))
    connections: int = Field(default=10, ge=1)


class MouthConfig(OutputConfig):
    """An output of the tests' own."""

    type: Literal["mouth"]
    path: ConfigPath
    token: SecretStr | None = None


@pytest.fixture(autouse=True)
def _plugs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register `ear` and `mouth`, and one that is not installed."""
    for registry, name, config in ((INPUTS, "ear", EarConfig), (OUTPUTS, "mouth", MouthConfig)):
        module: Any = ModuleType(f"plug_{name}")
        module.Config = config
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(registry, name, module.__name__)
    monkeypatch.setitem(OUTPUTS, "absent", "no_such_module_of_ours")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write ndcollector.yaml."""

    def write_file(text: str) -> Path:
        path = tmp_path / "ndcollector.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def faults(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def test_an_output_is_all_that_must_be_said(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Everything else has a default; relative defaults lie beside the file."""
    config = load(write("outputs: {mouth: {path: out}}"), {})
    assert config.node_name == socket.gethostname()
    assert config.state_dir == Path("/var/lib/ndcollector")
    assert config.tls.ca_file == tmp_path / "pki" / "ca.crt"
    assert config.spool.max_bytes == 20 << 30
    assert config.admin.listen == Listen("127.0.0.1", 9600)
    assert config.admin.socket == Path("/run/ndcollector/admin.sock")
    assert (config.shutdown_timeout, config.log.level, config.decode.timezone) == (30.0, "info", "UTC")
    assert config.inputs == {}


def test_the_type_defaults_to_the_name(write: Callable[[str], Path], tmp_path: Path) -> None:
    """And two plugs of one type have names of their own; an empty section means defaults."""
    config = load(write("inputs:\n  ear:\noutputs:\n  mouth: {path: a}\n  other: {type: mouth, path: b}\n"), {})
    assert config.inputs == {"ear": EarConfig()}
    assert {name: output.type for name, output in config.outputs.items()} == {"mouth": "mouth", "other": "mouth"}  # type: ignore[attr-defined]  # outputs have one
    assert isinstance(config.outputs["other"], MouthConfig)
    assert config.outputs["other"].path == tmp_path / "b"


def test_equal_files_give_equal_configurations(write: Callable[[str], Path]) -> None:
    """A reload that changes nothing must see that."""
    text = "inputs: {ear: {}}\noutputs: {mouth: {path: a, token: t}}"
    assert load(write(text), {}) == load(write(text + "\n# comment\n"), {})
    assert load(write(text), {}) != load(write(text.replace("token: t", "token: u")), {})


def test_secrets_do_not_show_in_the_configuration_s_text(write: Callable[[str], Path]) -> None:
    """Configurations get logged."""
    config = load(write("outputs: {mouth: {path: a, token: '${TOKEN}'}}"), {"TOKEN": "hunter2!!"})
    assert "hunter" not in f"{config!r}{config.model_dump_json()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: outputs: is empty; at least one is needed"),
        ("outputs:\n", "1:9: outputs: is empty"),
        ("outputs: {mouht: {}}", "1:11: outputs.mouht.type: 'mouht' is not a type of output; did you mean 'mouth'?"),
        ("outputs: {a: {type: 5}}", "1:21: outputs.a.type: '5' is not a type of output; set `type` to one of: absent"),
        ("outputs: {absent: {}}", "1:11: outputs.absent.type: output type 'absent' is not installed: No module named"),
        ("outputs: {mouth: 5}", "1:18: outputs.mouth: should be a mapping"),
        ("outputs: [mouth]", "1:1: outputs: should be a mapping"),
        ("outputs: {Mouth: {type: mouth, path: a}}", "1:11: outputs.Mouth: a name is 1 to 64 characters of a-z"),
        ("outputs: {mouth: {pth: a, path: a}}", "1:19: outputs.mouth.pth: unknown key; did you mean 'path'?"),
        ("outputs: {mouth: {path: a, retry: {inital: 1s}}}", "1:36: outputs.mouth.retry.inital: unknown key; did you"),
    ],
)
def test_mistakes_in_plugs_are_said_where_they_stand(write: Callable[[str], Path], text: str, expected: str) -> None:
    """One line each, with what to write instead."""
    (line,) = faults(write(text))
    assert line.startswith(expected)


def test_faults_of_all_plugs_come_together(write: Callable[[str], Path]) -> None:
    """Inputs, outputs and the rest in one list."""
    text = "node_name: ''\ninputs: {ear: {connections: 0, listen: [x]}}\noutputs: {mouth: {}, b: {}}\n"
    keys = [line.split(": ")[1] for line in faults(write(text))]
    assert keys == [
        "node_name", "inputs.ear.connections", "inputs.ear.listen[0]", "outputs.mouth.path", "outputs.b.type",
    ]  # fmt: skip


def test_two_listeners_on_one_address_are_a_mistake(write: Callable[[str], Path]) -> None:
    """Said with both places; port 0 is never taken."""
    out = "outputs: {mouth: {path: a}}\n"
    text = out + "inputs:\n  ear: {listen: ['127.0.0.1:9', '127.0.0.1:0', '127.0.0.1:0']}\n"
    load(write(text), {})
    assert faults(write(text + "  two: {type: ear, listen: ['127.0.0.1:8', '127.0.0.1:9']}\n")) == [
        "4:44: inputs.two.listen[1]: 127.0.0.1:9 is taken by inputs.ear (127.0.0.1:9); choose another port"
    ]
    assert "is taken by admin.listen" in faults(write(out + "inputs: {ear: {listen: ['127.0.0.1:9600']}}"))[0]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("{match: 10.2.3.4/16, timezone: UTC}", "has host bits set; did you mean '10.2.0.0/16'?"),
        ("{match: 10.2.0.0/33, timezone: UTC}", "'10.2.0.0/33' is not a network"),
        ("{match: 10.2, timezone: UTC}", "should be text"),
        ("{match: 10.2.0.999, timezone: UTC}", "is neither an address nor a network"),
        ("{match: '', timezone: UTC}", "is empty; write a network"),
        ("{match: 10.2.0.0/16, timezone: Europe/Berln}", "is not a time zone; did you mean 'Europe/Berlin'?"),
        ("{match: 10.2.0.0/16, timezone: ../../etc/passwd}", "is not a time zone"),
        ("{match: 10.2.0.0/16, timezone: ''}", "is not a time zone"),
        ("{match: 10.2.0.0/16}", "decode.origins[0]: has neither timezone nor device"),
        ("{match: 10.2.0.0/16, device: cisco_aso}", "decode.origins[0].device: 'cisco_aso' is not a family of devices"),
    ],
)
def test_origins_are_checked(write: Callable[[str], Path], origin: str, expected: str) -> None:
    """A network that is none would match nothing, and nobody would notice."""
    (line,) = faults(write(f"decode: {{origins: [{origin}]}}\noutputs: {{mouth: {{path: a}}}}"))
    assert expected in line


@pytest.mark.parametrize("match", ["10.2.0.0/16", "10.2.0.1", "2001:db8::/32", "::1", "nd:device:*", "CN=fw", "fw/*"])
def test_networks_addresses_and_patterns_are_matches(write: Callable[[str], Path], match: str) -> None:
    """All three ways to say who."""
    text = f"decode: {{origins: [{{match: '{match}', timezone: Asia/Tokyo}}]}}\noutputs: {{mouth: {{path: a}}}}"
    assert load(write(text), {}).decode.origins[0].match == match


# -- check -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], tuple[int, str, str]]:
    """Run `ndcollector check -c FILE`."""

    def run(path: Path) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        check_command.add_parser(parser.add_subparsers())
        arguments = parser.parse_args(["check", "-c", str(path)])
        status = arguments.handler(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


Check = Callable[[Path], tuple[int, str, str]]
VALID = "state_dir: state\ninputs: {ear: {}}\noutputs: {mouth: {path: a}}\n"


def test_check_prints_every_fault_and_exits_1(check: Check, write: Callable[[str], Path]) -> None:
    """As the user will see it."""
    path = write("a: 1\nb: 2\n")
    status, out, err = check(path)
    assert (status, out) == (1, "")
    assert f"{path}:1:1: a: unknown key" in err
    assert err.splitlines()[-1] == "3 errors"


def test_check_of_a_valid_file_exits_0_and_touches_nothing(
    check: Check, write: Callable[[str], Path], tmp_path: Path
) -> None:
    """No directory is made, no certificate moved."""
    path = write(VALID)
    init(tmp_path / "pki", Subject("server", "c"), now=NOW)
    before = sorted(tmp_path.rglob("*"))
    assert check(path) == (0, f"{path}: valid; inputs: ear; outputs: mouth\n", "")
    assert sorted(tmp_path.rglob("*")) == before


def findings(path: Path, now: datetime = NOW) -> list[str]:
    return [str(finding) for finding in check_command.inspect(load(path, {}), now=now)]


def test_check_names_missing_certificates_with_the_remedy(check: Check, write: Callable[[str], Path]) -> None:
    """The state right after installing."""
    status, _, err = check(write(VALID))
    assert status == 1
    assert err.count("`ndcollector pki init` makes") == 3


def test_check_sees_what_time_does_to_certificates(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Soon is a warning, past is an error; the CRL's end locks every sender out."""
    path = write(VALID)
    init(tmp_path / "pki", Subject("server", "c"), now=NOW)
    assert findings(path) == []
    assert "warning: tls.crl_file" in findings(path, NOW + timedelta(days=25))[0]
    assert "every sender is refused" in findings(path, NOW + timedelta(days=31))[0]
    late = findings(path, NOW + timedelta(days=800))
    assert any("warning: tls.cert_file" in line and "in 24 days" in line for line in late)
    assert any("error: tls.cert_file" in line for line in findings(path, NOW + timedelta(days=826)))
    assert any("error: tls.ca_file" in line for line in findings(path, NOW + timedelta(days=3651)))
    assert any("is the clock right" in line for line in findings(path, NOW - timedelta(days=1)))


def test_check_sees_files_that_do_not_fit(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Another key, a client's certificate, another CA's CRL, no CRL, no certificate at all."""
    path, pki, other = write(VALID), tmp_path / "pki", tmp_path / "other"
    init(pki, Subject("server", "c"), now=NOW)
    init(other, Subject("server", "c"), now=NOW)
    device = issue(pki, Subject("device", "fw"), now=NOW)
    files = {name: (pki / name).read_bytes() for name in ("server.crt", "server.key", "ca.crl", "ca.crt")}

    def with_file(name: str, content: bytes | None) -> str:
        (pki / name).unlink() if content is None else (pki / name).write_bytes(content)
        (line,) = findings(path)
        (pki / name).write_bytes(files[name])
        return line

    assert "is not the key of" in with_file("server.key", (other / "server.key").read_bytes())
    assert "is not the key of" in with_file("server.key", b"junk")
    assert "is not in ca_file" in with_file("ca.crl", (other / "ca.crl").read_bytes()).replace("which is", "is")
    assert "holds no CRL in PEM" in with_file("ca.crl", b"junk")
    assert "warning: tls.crl_file: there is no CRL" in with_file("ca.crl", None)
    assert "holds no certificate in PEM" in with_file("ca.crt", b"junk")
    assert "holds no certificate in PEM" in with_file("server.crt", b"junk")
    (pki / "server.crt").write_bytes(device.certificate_file.read_bytes())
    assert any("is not for servers" in line for line in findings(path))


def test_check_sees_a_state_directory_that_is_none(write: Callable[[str], Path], tmp_path: Path) -> None:
    """A file in its place."""
    init(tmp_path / "pki", Subject("server", "c"), now=NOW)
    (tmp_path / "state").write_text("")
    assert findings(write(VALID)) == [f"error: state_dir: {tmp_path / 'state'} is not a directory"]


def test_check_sees_an_output_that_cannot_be_written(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Below a file, there will never be one; what events decide of the path is left out."""
    init(tmp_path / "pki", Subject("server", "c"), now=NOW)
    (tmp_path / "file").write_text("")
    path = write("state_dir: state\ninputs: {ear: {}}\noutputs: {mouth: {path: 'file/{stream}/{day}.ndjson'}}\n")
    assert findings(path) == [f"error: outputs.mouth.path: {tmp_path / 'file'} is not a directory"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inputs: {ear: {listen: [6514]}}", "inputs.ear.listen[0]: 6514 is not an address to listen on"),
        ("inputs: {syslog_tls: {listen: []}}", "inputs.syslog_tls.listen: should not be empty"),
        ("inputs: {syslog_tls: {listen: [6514]}}", "inputs.syslog_tls.listen[0]: 6514 is not an address to listen on"),
        ('inputs: {ear: {listen: ["0.0.0.0:6514", "127.0.0.1:6514"]}}', "is taken by inputs.ear (0.0.0.0:6514)"),
        ('inputs: {ear: {listen: ["0.0.0.0:9600"]}}', "is taken by admin.listen (127.0.0.1:9600)"),
        ('inputs: {syslog_tls: {allow: {names: [""]}}}', "allow.names[0]: is empty"),
        ("outputs: {mouth: {path: a}, b: {type: mouth, path: a}}", "outputs.b.path: is written by outputs.mouth"),
    ],
)
def test_what_would_fail_only_later_is_said_now(write: Callable[[str], Path], text: str, expected: str) -> None:
    """One line for one mistake, where it stands."""
    (line,) = faults(write(text if "outputs" in text else f"{text}\noutputs: {{mouth: {{path: a}}}}"))
    assert expected in line


@pytest.mark.parametrize("listen", ['["0.0.0.0:6514", "[::]:6514"]', '["127.0.0.1:0", "127.0.0.1:0"]'])
def test_addresses_that_do_not_collide_are_left_alone(write: Callable[[str], Path], listen: str) -> None:
    """Both families on one port; ports that the kernel chooses."""
    assert load(write(f"inputs: {{ear: {{listen: {listen}}}}}\noutputs: {{mouth: {{path: a}}}}"), {})


def test_one_port_serves_both_transports(write: Callable[[str], Path]) -> None:
    """Syslog's 514 over UDP beside something else over TCP; over UDP it is taken once."""
    both = "inputs: {{ear: {{listen: ['0.0.0.0:514']}}, one: {{type: syslog_udp}}{}}}\noutputs: {{mouth: {{path: a}}}}"
    both = both.replace("ear: {{", "ear: {{type: syslog_tls, ")
    assert load(write(both.format("")), {})
    (line,) = faults(write(both.format(", two: {type: syslog_udp}")))
    assert "inputs.two.listen[0]: 0.0.0.0:514 is taken by inputs.one (0.0.0.0:514)" in line


def test_check_warns_when_nothing_is_taken_in(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Draining a spool is a use; forgetting the input is likelier."""
    init(tmp_path / "pki", Subject("server", "c"), now=NOW)
    assert findings(write("state_dir: state\noutputs: {mouth: {path: a}}"))[0].startswith("warning: inputs: is empty")


AGENTS = "state_dir: state\ninputs: {https: {}, mqtt: {}}\noutputs: {mouth: {path: a}}\n"


def test_check_says_what_agents_would_lack(write: Callable[[str], Path], tmp_path: Path) -> None:
    """A CA key to issue with, a name to send to, https to enrol at; each by itself, and nothing where all is there."""
    init(tmp_path / "pki", Subject("server", "c", dns=("localhost", "c.example.net")), now=NOW)
    assert findings(write(AGENTS)) == []
    assert "inputs: has no https: agents enrol" in "".join(findings(write(AGENTS.replace("https: {}, ", ""))))
    (missing,) = findings(write(AGENTS + "agents: {ca_file: none.crt}\n"))
    assert missing.startswith("error: agents.ca_file: ")
    (tmp_path / "pki" / "ca.key").rename(tmp_path / "away.key")
    (line,) = findings(write(AGENTS))
    assert line.startswith("warning: agents: nobody can enrol or renew here, since ")
    assert findings(write(VALID)) == []


def test_check_warns_when_agents_would_be_sent_to_their_own_host(write: Callable[[str], Path], tmp_path: Path) -> None:
    """The certificate's only name is localhost, and no endpoint is named."""
    init(tmp_path / "pki", Subject("server", "c", dns=("localhost",)), now=NOW)
    (line,) = findings(write(AGENTS))
    assert line.startswith("warning: agents.endpoints: is empty, and agents would be told to send to localhost")
    assert findings(write(AGENTS + "agents: {endpoints: {mqtt: ['c:8883'], https: ['c:8443']}}\n")) == []


def test_the_shipped_configuration_is_valid() -> None:
    """Ready to use means ready to use."""
    config = load(CONF / "ndcollector.yaml", {})
    assert list(config.inputs) == ["syslog_tls", "mqtt", "https"]
    assert list(config.outputs) == ["archive"]
    assert isinstance(config, CollectorConfig)


@pytest.mark.parametrize(
    ("decode", "families", "forced"),
    [
        ("{}", FAMILIES, ()),
        ("{devices: none}", (), ()),
        ("{devices: [sshd, panos]}", ("sshd", "panos"), ()),
        (
            "{devices: none, origins: [{match: 10.0.0.0/8, timezone: CET}, {match: 'fw-*', device: junos}]}",
            (),
            (("10.0.0.0/8", ""), ("fw-*", "junos")),
        ),
    ],
)
def test_families_of_devices_are_chosen_and_forced(
    write: Callable[[str], Path], decode: str, families: tuple[str, ...], forced: tuple[tuple[str, str], ...]
) -> None:
    """An origin without a device still ends the search: the first match wins for both of its keys."""
    settings = load(write(f"decode: {decode}\noutputs: {{mouth: {{path: a}}}}")).decode_settings()
    assert (settings.devices, settings.origin_devices) == (families, forced)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("all", "'all' is neither auto nor none"),
        ("[pan-os]", "'pan-os' is not a family of devices; did you mean 'panos'?"),
        ("{panos: true}", "is neither auto nor none nor a list"),
    ],
)
def test_a_family_that_is_none_is_named(write: Callable[[str], Path], devices: str, expected: str) -> None:
    """Passed over in silence, it would leave a device's events as they were."""
    (line,) = faults(write(f"decode: {{devices: {devices}}}\noutputs: {{mouth: {{path: a}}}}"))
    assert expected in line
