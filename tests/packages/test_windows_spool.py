"""The spool on Windows' file API: its own tests, run by a Windows Python."""

import re
from pathlib import PurePosixPath

import pytest
from packages.wine import PROJECT, Wine, windows_path

pytestmark = [pytest.mark.packages, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("file", ["core/test_spool.py", "core/test_checkpoints.py"])
def test_the_spools_own_tests_pass(wine: Wine, file: str) -> None:
    """Appends, crashes, damage, full disks, locks and removal of segments that are being read."""
    path = windows_path(PROJECT / "tests" / PurePosixPath(file))
    options = ("--noconftest", "-q", "-p", "no:cacheprovider", "--rootdir", PROJECT)
    said = wine.python("-m", "pytest", *options, str(path), timeout=1000).stdout
    assert " passed" in said
    assert " failed" not in said


def test_another_process_cannot_take_the_lock_and_a_dead_one_frees_it(wine: Wine) -> None:
    """`state_dir` belongs to one agent."""
    take = (
        "from pathlib import Path; from ndagent.core import system_files as f; p = Path(r'C:\\lock'); "
        "p.touch(); fd = f.open_write(p); print('taken', f.lock(fd), flush=True); "
    )
    with wine.start(wine.python_exe, "-B", "-c", f"{take}import time; time.sleep(600)") as holder:
        assert holder.stdout is not None
        assert "taken True" in holder.stdout.readline()
        assert "taken False" in wine.python("-c", take).stdout
        holder.kill()
    assert "taken True" in wine.python("-c", take).stdout


def test_only_system_and_administrators_are_let_in_and_what_others_left_is_refused(wine: Wine) -> None:
    """Wine binds no access lists: what is checked is what Windows is asked for."""
    program = (
        "from pathlib import Path; from ndagent import windows_security as s; import win32security as w\n"
        "asked = []; real = w.SetNamedSecurityInfo\n"
        "w.SetNamedSecurityInfo = lambda *call: asked.append(call) or real(*call)\n"
        "home = Path(r'C:\\home'); s.protect(home); _, kind, what, _, _, access, _ = asked[0]\n"
        "sids = [w.ConvertSidToStringSid(access.GetAce(n)[2]) for n in range(access.GetAceCount())]\n"
        "assert sorted(sids) == ['S-1-5-18', 'S-1-5-32-544'], sids\n"
        "assert what & w.PROTECTED_DACL_SECURITY_INFORMATION\n"
        "(home / 'ndagent.yaml').write_text('outputs: {}')\n"
        "owner = s._owner; s._owner = lambda path: 'S-1-5-21-1-2-3-1001' if path.suffix else owner(path)\n"
        "s._is_protected = lambda directory: False\n"
        "try:\n    s.protect(home)\nexcept s.Planted as error:\n    print('refused', error)\n"
    )
    said = wine.python("-c", program).stdout
    assert "refused C:\\home\\ndagent.yaml: made by a user who is no Administrator" in said


def test_a_link_that_another_user_made_is_not_followed(wine: Wine) -> None:
    """Or the service would give itself, and take from all others, whatever directory the link leads to."""
    program = (
        "from pathlib import Path; from ndagent import windows_security as s; import win32security as w\n"
        "home = Path(r'C:\\linked'); home.mkdir(); asked = []\n"
        "w.SetNamedSecurityInfo = lambda *call: asked.append(call)\n"
        "print('is a link', s._is_link(home), 'same owner', s._owner_of_link(home) == s._owner(home))\n"
        "s._is_link = lambda path: True\n"
        "s.protect(home); print('its own', len(asked)); asked.clear()\n"
        "s._owner_of_link = lambda path: 'S-1-5-21-1-2-3-1001'\n"
        "try:\n    s.protect(home)\nexcept s.Planted as error:\n    print('refused', error, len(asked))\n"
    )
    said = wine.python("-c", program).stdout
    assert "is a link False same owner True" in said
    assert "its own 1" in said
    assert re.search(r"refused C:\\linked: made by a user who is no Administrator.* 0$", said, re.MULTILINE)
