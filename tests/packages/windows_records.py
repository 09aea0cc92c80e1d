"""The event log that wevtapi.c makes of a file: writing records into it, and putting the DLL where Python finds it."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packages.wine import Wine, compile_dll, windows_path

NAMESPACE = "http://schemas.microsoft.com/win/2004/08/events/event"


class Records:
    """The channel "Canned"; programs find it by the environment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.touch()
        self._number = 0
        self.environment = {"WEVTAPI_RECORDS": str(windows_path(path))}

    def write(self, value: str, *, provider: str = "Test-Provider") -> None:
        """One more record with this value."""
        self._number += 1
        xml = (
            f"<Event xmlns='{NAMESPACE}'><System><Provider Name='{provider}'/><EventID>1</EventID><Version>0</Version>"
            f"<Level>4</Level><Task>0</Task><Opcode>0</Opcode><Keywords>0x80000000000000</Keywords>"
            f"<TimeCreated SystemTime='2026-11-20T08:15:47.{self._number:07d}Z'/><EventRecordID>{self._number}"
            f"</EventRecordID><Correlation/><Execution ProcessID='4' ThreadID='8'/><Channel>Canned</Channel>"
            f"<Computer>winehost</Computer><Security/></System><EventData><Data Name='text'>{value}</Data></EventData>"
            "</Event>"
        )
        data = xml.encode("utf-16-le", "surrogatepass")
        with self._path.open("ab") as records:
            records.write(struct.pack("<I", len(data)) + data)


@contextmanager
def event_log(wine: Wine) -> Iterator[None]:
    """The prefix's Python has this event log until the block ends."""
    library = compile_dll(Path(__file__).with_name("wevtapi.c"), wine.python_home / "wevtapi.dll")
    try:
        yield
    finally:
        library.unlink()
