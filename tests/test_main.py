"""The command line as a whole: its exit statuses, and no traceback for what the machine refuses."""

import errno

import pytest

from ndcollector import __main__ as command
from ndcollector import __version__


def test_the_version_is_said_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    """As other programs do, and as ours do."""
    assert command.main(["version"]) == 0
    with pytest.raises(SystemExit) as ended:
        command.main(["--version"])
    assert ended.value.code == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith(f"ndcollector {__version__} (codec: ")


def test_a_file_that_may_not_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever command meets it: file, reason, user; exit status 1."""

    def refuse(_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/var/lib/ndcollector/spool")

    monkeypatch.setattr(command, "_version", refuse)
    assert command.main(["version"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("/var/lib/ndcollector/spool: Permission denied (as user ")
    assert said.count("\n") == 1
