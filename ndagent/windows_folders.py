"""Where Windows keeps what programs share: asked of Windows itself, as an environment variable is anybody's to set."""

import ctypes
import sys
import uuid
from ctypes import wintypes
from pathlib import Path

assert sys.platform == "win32"  # noqa: S101 - for mypy, which reads what follows with --platform win32 only

_PROGRAM_DATA = uuid.UUID("62AB5D82-FDC1-4DC3-A9DD-070D1D495D97")  # FOLDERID_ProgramData


def program_data() -> Path:
    """C:\\ProgramData, wherever it is; raises OSError."""
    shell, ole = ctypes.WinDLL("shell32"), ctypes.WinDLL("ole32")
    ole.CoTaskMemFree.argtypes = (ctypes.c_void_p,)
    ask = shell.SHGetKnownFolderPath
    ask.argtypes = (ctypes.c_char_p, wintypes.DWORD, wintypes.HANDLE, ctypes.POINTER(ctypes.c_wchar_p))
    found = ctypes.c_wchar_p()
    status = ask(_PROGRAM_DATA.bytes_le, 0, None, ctypes.byref(found))
    if status != 0 or not found.value:
        raise OSError(0, "the folder ProgramData is not known", None, status)
    try:
        return Path(found.value)
    finally:
        ole.CoTaskMemFree(found)
