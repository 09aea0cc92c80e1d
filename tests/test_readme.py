"""What README.md and docs/ tell people to type, set and watch is there: commands, configuration, metrics, files.

(That the snippets for rsyslog and syslog-ng work is shown with the real programs in e2e/test_real_clients.py.)
"""

import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ndagent import config as agent_config
from ndagent.__main__ import build_parser as agent_parser
from ndagent.core.ledger import Bookkeeper
from ndagent.core.metrics import Metrics
from ndagent.core.yaml_file import ConfigError
from ndcollector.__main__ import build_parser
from ndcollector.config import load
from ndcollector.ledger_metrics import LedgerMetrics

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURING = [page for page in PAGES if page.name != "policy.md"]  # its example is applied in test_policy_command.py
BASE = "outputs: {archive: {type: file, path: a}}\n"
SECTIONS = {"tls", "spool", "decode", "inputs", "outputs", "agents", "policies", "admin", "log"}
SECTIONS |= {"delivery", "policy_allow"}
REFERENCES = [(ROOT / "conf" / f"{program}.reference.yaml").read_text() for program in ("ndcollector", "ndagent")]
PARSERS = {"ndcollector": build_parser, "ndagent": agent_parser}


def code(page: Path) -> Iterator[str]:
    """Everything set as code, a line at a time: blocks, indented lines, inline."""
    text = page.read_text()
    for _language, block in re.findall(r"^```(\w*[-\w]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))
    yield from (" ".join(one.split()) for one in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))


def commands() -> list[str]:
    """Every `ndcollector …` and `ndagent …` command line, without what stands around it."""
    found = set()
    for page in PAGES:
        for line in code(page):
            for part in re.split(r"&&|\||#|>", line):
                words = part.strip().removeprefix("runuser -u ndcollector -- ")
                if words.startswith(("ndcollector ", "ndagent ")):
                    found.add(words)
    return sorted(found)


def settings() -> list[str]:
    """Every piece of configuration that stands on a line of its own: `key: {…}`."""
    found = {line for page in CONFIGURING for line in code(page) if re.fullmatch(r"[a-z_]+: \{.*\}", line)}
    return sorted(found)


def names(pattern: str, pages: Sequence[Path] = PAGES) -> list[str]:
    """Every name of this form that stands in code."""
    found = {name for page in pages for line in code(page) for name in re.findall(pattern, line)}
    return sorted(found)


def test_there_is_something_to_check() -> None:
    """A change of style in the pages must not leave the tests below with nothing."""
    assert len(commands()) > 10
    assert len(settings()) > 1
    assert len(names(r"nd_[a-z_]+")) > 5


@pytest.mark.parametrize("line", commands())
def test_every_command_can_be_typed(line: str) -> None:
    """argparse exits where it cannot."""
    program, *arguments = shlex.split(line)
    PARSERS[program]().parse_args(arguments)


def nested(piece: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The piece below these keys."""
    for key in reversed(keys):
        piece = {key: piece}
    return piece


@pytest.mark.parametrize("line", settings())
def test_every_piece_of_configuration_is_valid_somewhere(tmp_path: Path, line: str) -> None:
    """At the top, in an input, in an output or among its transform steps; or in the agent's file, or its inputs."""
    piece = yaml.safe_load(line)
    step = nested([piece], "outputs", "archive", "transform")
    siem = nested({"type": "https", "url": "https://siem.example.net", **piece}, "outputs", "siem")
    refusals = []
    for whole in (piece, nested(piece, "inputs", "syslog_tls"), nested(piece, "outputs", "archive"), step, siem):
        (tmp_path / "conf.d").mkdir(exist_ok=True)
        (tmp_path / "c.yaml").write_text(BASE)
        (tmp_path / "conf.d" / "piece.yaml").write_text(yaml.safe_dump(whole))
        try:
            load(tmp_path / "c.yaml", {})
        except ConfigError as error:
            refusals.append(str(error))
    (tmp_path / "agent").mkdir()
    for whole in (piece, nested(piece, "inputs")):
        (tmp_path / "agent" / "ndagent.yaml").write_text(yaml.safe_dump(whole))
        try:
            agent_config.load(tmp_path / "agent" / "ndagent.yaml", {})
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) < 7, refusals


def blocks() -> list[str]:
    """Every YAML block that is a piece of the collector's file: it begins with one of its sections."""
    shown = (re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE) for page in CONFIGURING)
    return [block for found in shown for block in found if re.match(r"(?:#.*\n)*(inputs|outputs):\n", block)]


@pytest.mark.parametrize("block", blocks(), ids=lambda block: " ".join(block.split())[:60])
def test_every_block_of_configuration_is_valid(tmp_path: Path, block: str) -> None:
    """Copied as it stands, for the collector or for the agent; secrets in files and variables are taken as given."""
    given = re.sub(r"\$\{[^}]*\}", "given, and long enough", block)
    (tmp_path / "c.yaml").write_text(given if "\noutputs:" in f"\n{given}" else BASE + given)
    (tmp_path / "a.yaml").write_text(given)
    try:
        load(tmp_path / "c.yaml", {})
    except ConfigError as error:
        try:
            agent_config.load(tmp_path / "a.yaml", {})
        except ConfigError:
            raise error from None


def layers() -> list[str]:
    """Every policy layer that is shown: a YAML block that begins with the file it stands in."""
    shown = (
        re.findall(r"^```yaml\n(# policies/.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE) for page in PAGES
    )
    return [block for blocks in shown for block in blocks]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: layer.partition("\n")[0])
def test_every_layer_that_is_shown_is_one_that_agents_take(tmp_path: Path, layer: str) -> None:
    """The collector leaves the settings of input types to agents, and an agent refuses a policy whole."""
    sections = {"inputs", "delivery", "spool", "log"}
    settings = {key: value for key, value in yaml.safe_load(layer).items() if key in sections}
    (tmp_path / "ndagent.yaml").write_text("inputs: {}\n")
    assert settings
    assert agent_config.load(tmp_path / "ndagent.yaml", {}, policy=settings)


KEYS = [name for name in names(r"\b[a-z_]+\.[a-z_.]+\b", CONFIGURING) if name.partition(".")[0] in SECTIONS]
# Fields of events, the end of a file's name, a program.
OTHERS = ("log.syslog.", "log.source", "log.file.", "log.record.", "tls.client.", "log.zst", "outputs.py")
KEYS = [name for name in KEYS if not name.startswith(OTHERS)]


@pytest.mark.parametrize("name", KEYS)
def test_every_key_that_is_named_is_in_the_reference(name: str) -> None:
    """`spool.max_bytes` and the like, of the collector or the agent; references are generated from the programs."""
    sections = [
        section[1]
        for reference in REFERENCES
        if (section := re.search(rf"^{name.partition('.')[0]}:\n((?:[ #].*\n|\n)+)", reference, re.MULTILINE))
    ]
    assert sections, name
    assert any(re.search(rf"\b{name.rpartition('.')[2]}:", section) for section in sections), name


def test_every_metric_that_is_named_is_exported() -> None:
    """An alert on a name that is misspelt never fires."""
    metrics = Metrics()
    metrics.registry.register(LedgerMetrics(Bookkeeper({}, metrics)))
    exported = {sample for family in metrics.registry.collect() for sample in (family.name, f"{family.name}_total")}
    for name in names(r"\bnd_[a-z_]+\b"):
        assert any(one.startswith(name) for one in exported), name


def test_every_extra_that_is_named_is_one_and_has_no_underscore() -> None:
    """pip 23 (Debian 12) warns of an extra with an underscore and installs without it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for words in names(r"pip install '[^']*\[([^]]+)\]") for extra in words.split(",")}
    assert {"fast", "host-metrics", "kafka"} <= named <= set(extras)
    assert not [extra for extra in extras if "_" in extra]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    """Relative to the page."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
