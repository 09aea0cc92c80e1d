"""Who may look into the agent's directories on Windows: SYSTEM and Administrators, nobody else.

Promises: `protect` makes the directory if it is not there and gives it an access list that inherits nothing from above
(ProgramData lets every user make files) and is passed on to all below. What somebody else put there before is never
taken up: `protect` then raises Planted, which names it and the remedy. Of a link (every user may make junctions) who
made it counts as well as who has what it leads to: nobody but an Administrator leads us to another directory.
Refuses: file systems without access lists: their OSError comes through.
"""

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pywintypes
import win32con
import win32file
import win32security

assert sys.platform == "win32"  # noqa: S101 - for mypy, which reads what follows with --platform win32 only

_ACCESS = "D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
"""SDDL: protected from inheritance; full access for Local System and Built-in Administrators, also to all below."""
_TRUSTED = ("S-1-5-18", "S-1-5-32-544", "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464")
"""Local System, Built-in Administrators, Trusted Installer (well-known SIDs)."""
_PROTECTED = win32security.DACL_SECURITY_INFORMATION | win32security.PROTECTED_DACL_SECURITY_INFORMATION
_MAX_NAMED = 5
_LINKS = (stat.IO_REPARSE_TAG_SYMLINK, stat.IO_REPARSE_TAG_MOUNT_POINT)
_THE_LINK_ITSELF = 0x00200000 | win32con.FILE_FLAG_BACKUP_SEMANTICS  # FILE_FLAG_OPEN_REPARSE_POINT


class Planted(Exception):
    """Something in the directory belongs to a user who could not be trusted with it."""


def protect(directory: Path) -> None:
    """See the module. Raises Planted, OSError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        was_protected = _is_protected(directory)
        _refuse([directory])
        _set_access(directory)
        if not was_protected:
            _refuse(directory.rglob("*"))
    except pywintypes.error as error:
        raise OSError(0, error.strerror, str(directory), error.winerror) from error


def make_private(directory: Path) -> None:
    """As `protect` for a directory that was just made, for whoever runs us (a person, in a test) as well."""
    try:
        _set_access(directory, f"(A;OICI;FA;;;{_own_sid()})" if _own_sid() not in _TRUSTED else "")
    except pywintypes.error as error:
        raise OSError(0, error.strerror, str(directory), error.winerror) from error


def _set_access(directory: Path, more: str = "") -> None:
    descriptor = win32security.ConvertStringSecurityDescriptorToSecurityDescriptor(
        _ACCESS + more, win32security.SDDL_REVISION_1
    )
    access = descriptor.GetSecurityDescriptorDacl()
    win32security.SetNamedSecurityInfo(
        str(directory), win32security.SE_FILE_OBJECT, _PROTECTED, None, None, access, None
    )


def _is_protected(directory: Path) -> bool:
    descriptor = win32security.GetNamedSecurityInfo(
        str(directory), win32security.SE_FILE_OBJECT, win32security.DACL_SECURITY_INFORMATION
    )
    control, _ = descriptor.GetSecurityDescriptorControl()
    return bool(control & win32security.SE_DACL_PROTECTED)


def _refuse(paths: "Iterator[Path] | list[Path]") -> None:
    trusted = {*_TRUSTED, _own_sid()}
    planted: list[Path] = []
    for path in paths:
        is_link = _is_link(path)
        if _owner(path) not in trusted or (is_link and _owner_of_link(path) not in trusted):
            planted.append(path)
            if is_link or len(planted) == _MAX_NAMED:
                break  # a link may lead to all of the disk
    if planted:
        names = ", ".join(map(str, planted))
        raise Planted(
            f"{names}: made by a user who is no Administrator, so nothing in there is used. Look at it, then delete "
            "it, or take it over: takeown /A /R /F"
        )


def _owner(path: Path) -> str:
    descriptor = win32security.GetNamedSecurityInfo(
        str(path), win32security.SE_FILE_OBJECT, win32security.OWNER_SECURITY_INFORMATION
    )
    return str(win32security.ConvertSidToStringSid(descriptor.GetSecurityDescriptorOwner()))


def _is_link(path: Path) -> bool:
    return path.lstat().st_reparse_tag in _LINKS


def _owner_of_link(path: Path) -> str:
    share = win32con.FILE_SHARE_READ | win32con.FILE_SHARE_WRITE | win32con.FILE_SHARE_DELETE
    handle = win32file.CreateFile(
        str(path), win32con.READ_CONTROL, share, None, win32con.OPEN_EXISTING, _THE_LINK_ITSELF, None
    )
    try:
        descriptor = win32security.GetSecurityInfo(
            int(handle), win32security.SE_FILE_OBJECT, win32security.OWNER_SECURITY_INFORMATION
        )
        return str(win32security.ConvertSidToStringSid(descriptor.GetSecurityDescriptorOwner()))
    finally:
        handle.Close()


def _own_sid() -> str:
    token = win32security.OpenProcessToken(_this_process(), win32security.TOKEN_QUERY)
    sid, _ = win32security.GetTokenInformation(token, win32security.TokenUser)
    return str(win32security.ConvertSidToStringSid(sid))


def _this_process() -> int:
    import win32api

    return int(win32api.GetCurrentProcess())
