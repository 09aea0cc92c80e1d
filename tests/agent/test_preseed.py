"""The token that an agent was given before its first start: used, and then gone from the file."""

from pathlib import Path

import pytest

from ndagent import preseed
from ndagent.preseed import forget_token

TOKEN_LINE = "ND_ENROLL_TOKEN=ndt1_abcdefghijklmnopqrstuvwxyz0123456789\n"


def test_every_line_but_the_tokens_stays_as_it_is_and_so_does_the_mode(tmp_path: Path) -> None:
    """The file is the administrator's: order, remarks and permissions are kept."""
    file = tmp_path / "ndagent"
    file.write_text(f"# ours\nND_COLLECTOR_URL=https://c:8443\n{TOKEN_LINE}HTTPS_PROXY=http://p\n")
    file.chmod(0o640)
    forget_token(file)
    lines = file.read_text().splitlines()
    assert lines[:2] == ["# ours", "ND_COLLECTOR_URL=https://c:8443"]
    assert lines[2].strip() == "# The token that stood here is used."
    assert lines[3:] == ["HTTPS_PROXY=http://p"]
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("content", ["", "#ND_ENROLL_TOKEN=ndt1_example\n", "ND_COLLECTOR_URL=https://c\n"])
def test_a_file_without_a_token_is_not_touched(tmp_path: Path, content: str) -> None:
    """Nothing is written where nothing is to be removed."""
    file = tmp_path / "ndagent"
    file.write_text(content)
    before = file.stat().st_mtime_ns
    forget_token(file)
    assert (file.read_text(), file.stat().st_mtime_ns) == (content, before)


@pytest.mark.parametrize("line", ["ND_ENROLL_TOKEN=", "ND_ENROLL_TOKEN=x", "  ND_ENROLL_TOKEN='ndt1_quoted'"])
def test_a_short_a_quoted_and_a_last_line_without_an_end_become_remarks(tmp_path: Path, line: str) -> None:
    """The same length, whatever it is: systemd reads the file again at the next start."""
    file = tmp_path / "ndagent"
    file.write_text(line)
    forget_token(file)
    text = file.read_text()
    assert text.startswith("# ")
    assert len(text) == len(line)
    assert "ndt1" not in text


def test_without_the_file_nothing_happens(tmp_path: Path) -> None:
    """An agent that was enrolled by hand has none."""
    forget_token(tmp_path / "none")


def test_a_token_that_cannot_be_removed_is_said_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only place: the agent goes on, and whoever reads its log knows what is left to do."""
    file = tmp_path / "ndagent"
    file.write_text(TOKEN_LINE)

    def refused(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(preseed.os, "open", refused)
    forget_token(file)
    assert "remove the line ND_ENROLL_TOKEN=" in caplog.text
    assert "ndt1_" not in caplog.text
