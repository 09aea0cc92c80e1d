"""What packages say of themselves: the man page has every command, the changelog is what Debian's tools read."""

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest
from ndpackages import manual
from ndpackages.__main__ import inside_environ
from ndpackages.changelog import debian_changelog

from ndagent.__main__ import build_parser as agent_parser
from ndcollector.__main__ import build_parser as collector_parser

ROOT = Path(__file__).parent.parent
EPOCH = 1_700_000_000


def page(parser: argparse.ArgumentParser) -> str:
    return manual.man_page(parser, version="1.2.3", epoch=EPOCH, closing={"FILES": "/etc/x: it.\n\n.not a request"})


@pytest.mark.parametrize("parser", [agent_parser(), collector_parser()], ids=lambda parser: parser.prog)
def test_a_man_page_has_every_command_and_groff_reads_it_without_a_word(parser: argparse.ArgumentParser) -> None:
    """A command that is added is in the page without anybody thinking of it."""
    text = page(parser)
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name in commands.choices:
        assert f".SS \\fB{name}".replace("-", "\\-") in text
    assert "\\-c FILE, \\-\\-config FILE" in text
    assert "%(default)s" not in text
    assert "\\&.not a request" in text
    if shutil.which("groff"):
        groff = ["groff", "-K", "utf8", "-man", "-ww", "-Tutf8", "-z"]
        done = subprocess.run(groff, input=text, capture_output=True, text=True, check=True)
        assert done.stderr == ""


def test_the_changelog_is_one_that_debians_tools_read() -> None:
    """Ours, as it is: a head line, items, a date; dpkg-parsechangelog takes the version from it."""
    markdown = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    text = debian_changelog(markdown, package="ndagent", revision="7", maintainer="A B <a@b.example>", epoch=EPOCH)
    assert text.startswith("ndagent (0.1.0-7) stable; urgency=medium\n\n  * ")
    assert " -- A B <a@b.example>  Tue, 14 Nov 2023 22:13:20 +0000\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_released_version_has_its_own_date_and_the_newest_stands_first() -> None:
    """The date in brackets counts; what is between two heads belongs to the first of them."""
    markdown = "# Changelog\n\n## 2.0 (2026-03-01)\n\n- **New**: `x`\n  goes on\n\n## 1.0 (unreleased)\n\n- Old\n"
    text = debian_changelog(markdown, package="p", revision="1", maintainer="M <m@m.example>", epoch=EPOCH)
    assert text.index("p (2.0-1)") < text.index("  * New: x goes on\n") < text.index("p (1.0-1)") < text.index("* Old")
    assert "Sun, 01 Mar 2026 00:00:00 +0000" in text


def test_who_answers_for_a_package_is_told_to_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build runs in a root of its own, which knows nothing else of the builder's environment."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    assert "ND_MAINTAINER" not in inside_environ()
    monkeypatch.setenv("ND_MAINTAINER", "A B <a@b.example>")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.net/")
    assert inside_environ()["ND_MAINTAINER"] == "A B <a@b.example>"
    assert "PIP_INDEX_URL" not in inside_environ()


def test_a_changelog_without_releases_is_refused() -> None:
    """Better no package than one whose version nobody can explain."""
    with pytest.raises(ValueError, match=r"no line such as"):
        debian_changelog("# Changelog\n", package="p", revision="1", maintainer="M <m@m.example>", epoch=EPOCH)
