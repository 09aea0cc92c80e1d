"""`ndagent service` where there is no Windows; what it does on one: tests/packages/test_windows_service.py."""

import pytest

from ndagent.__main__ import main


@pytest.mark.parametrize("action", ["install", "remove", "start", "stop", "status"])
def test_on_linux_it_says_what_to_type_instead(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that does nothing must not look as if it had."""
    assert main(["service", action]) == 1
    said = capsys.readouterr().err
    assert said.startswith("there are no Windows services here; type: systemctl ")
    assert said.endswith(" ndagent\n")
