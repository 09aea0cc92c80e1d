"""What may stand in an output's routing, what is refused and where; and the configuration's own tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ndagent.core.yaml_file import ConfigError
from ndcollector.__main__ import main
from ndcollector.config import CollectorConfig, load
from ndcollector.routing.config import RoutedConfig

EXAMPLE = Path(__file__).parents[2] / "conf" / "examples" / "routing.yaml"
HEAD = "outputs:\n  siem:\n    type: file\n    path: /tmp/x.ndjson\n"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write ndcollector.yaml with this below the output `siem`."""

    def write_file(text: str) -> Path:
        path = tmp_path / "ndcollector.yaml"
        path.write_text(HEAD + text, encoding="utf-8")
        return path

    return write_file


def fault(path: Path) -> str:
    """The only fault in the file, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    (only,) = caught.value.faults
    return str(only).removeprefix(f"{path}:")


REFUSED = [  # (below the output, where and what is wrong)
    ("    where: severity <= 9\n", "5:12: outputs.siem.where: column 13: '9': severity is 0 to 7"),
    ("    sample: 0\n", "5:5: outputs.siem.sample.keep: 0 is no share; write 10"),
    ("    sample: {keep: 101%}\n", "5:20: outputs.siem.sample.keep: '101%' is no share"),
    ("    sample: {keep: 2, where: x}\n", "5:30: outputs.siem.sample.where: column 2: expected =="),
    (
        "    transform:\n      - drop_field: [a]\n",
        "6:9: outputs.siem.transform[0].drop_field: unknown key; did you mean 'drop_fields'?",
    ),
    (
        "    transform:\n      - where: a == 1\n",
        "6:9: outputs.siem.transform[0]: does nothing; write one of drop_fields",
    ),
    (
        "    transform:\n      - drop_fields: [a]\n        add: {b: 1}\n",
        "7:9: outputs.siem.transform[0].add: a step does one thing",
    ),
    ("    transform:\n      - drop_fields: []\n", "6:9: outputs.siem.transform[0].drop_fields: is empty"),
    (
        "    transform:\n      - drop_fields: ['a..b']\n",
        "6:23: outputs.siem.transform[0].drop_fields[0]: 'a..b': column 3: expected a name",
    ),
    (
        "    transform:\n      - drop_fields: ['@timestamp']\n",
        "6:23: outputs.siem.transform[0].drop_fields[0]: '@timestamp' takes @timestamp along",
    ),
    (
        "    transform:\n      - drop_fields: [tags, 'event.*']\n",
        "6:29: outputs.siem.transform[0].drop_fields[1]: 'event.*' takes event.id along",
    ),
    ("    transform:\n      - redact: {fields: ['event']}\n", "redact.fields[0]: 'event' takes event.id along"),
    ("    transform:\n      - hash: ['**']\n", "outputs.siem.transform[0].hash"),
    (
        "    transform:\n      - hash: {fields: [a], secret: short}\n",
        "6:37: outputs.siem.transform[0].hash.secret: has fewer than 16",
    ),
    (
        "    transform:\n      - rename: {event: x}\n",
        "6:25: outputs.siem.transform[0].rename.event: 'event' takes event.id along",
    ),
    ("    transform:\n      - rename: {a.b: a}\n", "outputs.siem.transform[0].rename.a.b: 'a' is a.b, or around"),
    ("    transform:\n      - rename: {user.name: host}\n", "rename.user.name: host is where events have other fields"),
    ("    transform:\n      - rename: {a: x, b: x.y}\n", "rename.b: 'x.y' is x, or around or inside it"),
    ("    transform:\n      - rename: {'a*': x}\n", "'a*': one field has to be named here"),
    ("    transform:\n      - rename: {a: event.id.x}\n", "event.id.x is event.id, or around or inside it"),
    ("    transform:\n      - add: {event.id: x}\n", "6:25: outputs.siem.transform[0].add.event.id: event.id is"),
    (
        "    transform:\n      - add: {'\"event.id\"': x}\n",
        'outputs.siem.transform[0].add."event.id": event.id is event.id, or around',
    ),
    ("    transform:\n      - add: {'\"log.syslog\"': x}\n", "log.syslog is where events have other fields"),
    ("    transform:\n      - rename: {'\"event.id\"': x}\n", "'\"event.id\"' takes event.id along"),
    ("    transform:\n      - rename: {a.b: '\"a.b.c\"'}\n", "is a.b, or around or inside it"),
    ("    transform:\n      - add: {a: [1]}\n", "outputs.siem.transform[0].add.a"),
    ("    transform:\n      - add: {a: " + "x" * 1025 + "}\n", "is longer than 1024 characters"),
    (
        "    transform:\n      - redact: {patterns: [card_numbers]}\n",
        "6:29: outputs.siem.transform[0].redact.patterns[0]: 'card_numbers' is no pattern's name; did you mean 'card_n",
    ),
    ("    transform:\n      - redact: {patterns: ['(a']}\n", "redact.patterns[0]: missing )"),
    ("    transform:\n      - redact: {patterns: ['a*']}\n", "redact.patterns[0]: 'a*' finds nothing everywhere"),
    ("    transform:\n      - redact: {patterns: ['(?<=a)b']}\n", "redact.patterns[0]: invalid perl operator"),
    ("    transform:\n      - redact: {replacement: " + "x" * 65 + "}\n", "redact.replacement"),
    ("    transform:\n" + "      - add: {a: 1}\n" * 33, "outputs.siem.transform"),
    ("    format: cev\n", "outputs.siem.format"),
    (
        "    format: raw\n    transform:\n      - hash: [user.name]\n",
        "outputs.siem.transform[0]: does not show in format: raw",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_a_mistake_is_told_with_its_place(write: Write, text: str, words: str) -> None:
    """`file:line:column: key: what is wrong`, and in an expression the column inside it."""
    assert words in fault(write(text))


def test_a_secret_for_hashes_is_never_shown(write: Write) -> None:
    """Neither in a fault nor when the settings are printed."""
    path = write("    transform:\n      - hash: {fields: [a], secret: '${KEY}'}\n")
    assert "0123456789abcdef" not in repr(load(path, {"KEY": "0123456789abcdef"}))
    with pytest.raises(ConfigError) as caught:
        load(path, {"KEY": "tooshortkey"})
    assert "tooshortkey" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "form", "words"),
    [
        ("/tmp/{day}.x", "cef", "may hold {year} {month} {day} {hour} with format: ecs only"),
        ("/tmp/{hour}.x", "flat", "may hold {year} {month} {day} {hour} with format: ecs only"),
        ("/tmp/{host}.x", "rfc5424", "may hold {host} with format: ecs and flat only"),
    ],
)
def test_a_file_path_is_made_of_what_its_lines_say(tmp_path: Path, path: str, form: str, words: str) -> None:
    """A text line no longer says when it came; events would land in another day's file."""
    config = tmp_path / "ndcollector.yaml"
    config.write_text(f"outputs:\n  siem: {{type: file, path: '{path}', format: {form}}}\n")
    assert words in fault(config)


def test_an_output_that_needs_ecs_refuses_other_formats(tmp_path: Path) -> None:
    """Kafka's consumers read the registered schema."""
    config = tmp_path / "ndcollector.yaml"
    config.write_text("outputs:\n  bus: {type: kafka, bootstrap_servers: ['k:9092'], format: cef}\n")
    assert "outputs.bus.format: output type kafka cannot send cef; it takes: ecs" in fault(config)


def test_every_output_of_the_collector_can_be_routed() -> None:
    """`where`, `sample`, `transform` and `format` mean the same at each."""
    from ndagent.core.plugs import PlugTypes
    from ndcollector.outputs import OUTPUTS

    types = PlugTypes("output", OUTPUTS)
    assert [name for name in OUTPUTS if not issubclass(types.config(name), RoutedConfig)] == []


# ---- tests:

TESTED = """\
  all: {{type: file, path: /tmp/all.ndjson, streams: [alerts]}}
tests:
  one:
    input: "<38>1 2026-01-01T00:00:00Z fw-1 sshd 17 - - password=x"
    expect:
      siem: {expect}
"""
SIEM = "    where: severity >= notice\n    transform: [{redact: }, {add: {labels.n: 2}}]\n    format: {name: cef}\n"


def outcome(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Of `check --tests`."""
    status = main(["check", "--tests", "-c", str(path)])
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("expect", "wrong"),
    [
        ("{fields: {message: 'password=[redacted]', labels.n: 2}, absent: [nowhere, event.original]}", None),
        ("{fields: {message: password=x}}", 'message: expected "password=x", got "password=[redacted]"'),
        ("{fields: {labels.n: true}}", "labels.n: expected true, got 2"),
        ("{fields: {labels.x: 1}}", "labels.x: expected 1, got nothing"),
        ("{absent: [process.name]}", 'process.name: expected nothing, got "sshd"'),
        ("{delivered: false}", 'delivered: {"@timestamp":"2026-01-01T00:00:00Z"'),
        ("{line: x}", "line: expected 'x'"),
    ],
)
def test_a_test_says_what_came_instead(
    write: Write, capsys: pytest.CaptureFixture[str], expect: str, wrong: str | None
) -> None:
    """Passed: status 0; failed: 1, with what was expected and what came."""
    status, out, err = outcome(write(SIEM + TESTED.format(expect=expect)), capsys)
    if wrong is None:
        assert (status, out) == (0, "ok: one: siem\n1 passed, 0 failed\n")
    else:
        assert status == 1
        assert err.startswith(f"FAIL: one: siem\n    {wrong}")
        assert err.endswith("0 passed, 1 failed\n")


def test_the_line_is_what_is_sent(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind the format, byte for byte; an event as input, and originals for `raw`."""
    text = """\
    format: raw
    transform: [{redact: {patterns: [secret]}}]
tests:
  bytes:
    input: {base64: PDEzPmNhZukgcGFzc3dvcmQ9eA==}
    expect: {siem: {delivered: true}}
  text:
    input: "<13>Jan  1 00:00:00 h a: password=x"
    expect: {siem: {line: "<13>Jan  1 00:00:00 h a: password=[redacted]"}}
  event:
    input: {event: {"@timestamp": "t", event: {id: i}, message: token=y}}
    stream: metrics
    expect: {siem: {fields: {message: "token=[redacted]", event.id: i}}}
"""
    status, out, err = outcome(write(text), capsys)
    assert (status, err) == (0, ""), err
    assert out.endswith("3 passed, 0 failed\n")


def test_a_filtered_event_says_by_what(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """`where`, or the output's streams."""
    text = TESTED.format(expect="{delivered: true}\n      all: {delivered: true}")
    status, _, err = outcome(write("    where: severity <= err\n" + text), capsys)
    assert status == 1
    assert "FAIL: one: siem\n    not delivered: where: severity <= err\n" in err
    assert "FAIL: one: all\n    not delivered: stream security_events is not among its streams\n" in err


def test_a_sample_is_no_matter_of_one_event(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """A test must not depend on a draw."""
    status, _, _ = outcome(write("    sample: 1000000\n" + TESTED.format(expect="{delivered: true}")), capsys)
    assert status == 0


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("{input: x, expect: {sien: {}}}", "expect.sien: there is no such output; did you mean 'siem'?"),
        ("{input: {}, expect: {siem: {}}}", "tests.t.input: write one of text, base64 and event"),
        ("{input: {base64: '!'}, expect: {siem: {}}}", "tests.t.input.base64: is not base64"),
        ("{input: {text: x, received_at: today}, expect: {siem: {}}}", "received_at: 'today' is not a time"),
        ("{input: x, expect: {}}", "tests.t.expect: should not be empty"),
        ("{input: x, expect: {siem: {fields: {a..b: 1}}}}", "expect.siem.fields.a..b: 'a..b': column 3"),
        ("{input: x, expect: {siem: {delivered: false, line: x}}}", "delivered: is false, so there are no fields"),
    ],
)
def test_a_test_that_can_test_nothing_is_refused(write: Write, test: str, words: str) -> None:
    """With its place, like any other mistake."""
    assert words in fault(write(f"tests:\n  t: {test}\n"))


def test_the_examples_tests_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/routing.md explains."""
    status, out, err = outcome(EXAMPLE, capsys)
    assert (status, err) == (0, "")
    assert out.endswith("5 passed, 0 failed\n")


def test_a_reload_sees_a_changed_route(write: Write) -> None:
    """Settings are compared to decide which outputs are made anew."""
    first: CollectorConfig = load(write("    where: severity <= 4\n"), {})
    assert load(write("    where: severity <= 4\n"), {}) == first
    assert load(write("    where: severity <= 5\n"), {}) != first
