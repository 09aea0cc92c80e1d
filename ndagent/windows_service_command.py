"""The service manager, asked by a person: what `ndagent service` does on Windows.

Promises: each function returns an exit status and says on stdout what it did; `start` and `stop` return when the state
is reached, or say after WAIT_SECONDS that it was not. Refuses: being useful without an Administrator's rights.
"""

# ruff: noqa: E402 - mypy is to read nothing below the assertion unless the platform is win32
import sys

assert sys.platform == "win32"  # noqa: S101 - as above

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pywintypes
import win32service
import winerror

from ndagent.config import DEFAULT_PATH
from ndagent.windows_log import register_source, remove_source
from ndagent.windows_security import Planted
from ndagent.winservice import DESCRIPTION, DISPLAY_NAME, NAME, close_home, configure_recovery, opened

WAIT_SECONDS, _LOOK_SECONDS = 120, 0.25
MESSAGE_FILE = "ndagent_messages.dll"
_STATES = {
    win32service.SERVICE_RUNNING: "running",
    win32service.SERVICE_STOPPED: "stopped",
    win32service.SERVICE_PAUSED: "paused",
    win32service.SERVICE_START_PENDING: "starting",
    win32service.SERVICE_STOP_PENDING: "stopping",
    win32service.SERVICE_PAUSE_PENDING: "pausing",
    win32service.SERVICE_CONTINUE_PENDING: "continuing",
}
_PASSING = frozenset(state for state, words in _STATES.items() if words.endswith("ing") and words != "running")
"""In these a service takes no orders."""
_DELETE = 0x10000
"""The standard right DELETE."""


def in_words(action: Callable[[Path], int], config: Path) -> int:
    """Do it; what Windows refuses is said."""
    try:
        return action(config)
    except pywintypes.error as error:
        remedy = {
            winerror.ERROR_ACCESS_DENIED: "; run it as an Administrator",
            winerror.ERROR_SERVICE_DOES_NOT_EXIST: "; ndagent service install makes it",
        }.get(error.winerror, "")
        print(f"service {NAME}: {error.strerror.rstrip('.')}{remedy}", file=sys.stderr)
    except (Planted, OSError) as error:
        print(error, file=sys.stderr)
    return 1


def install(config: Path) -> int:
    """Register it, to be started with Windows; one that is there gets this program and configuration."""
    close_home(config)
    manager = win32service.OpenSCManager(None, None, win32service.SC_MANAGER_CREATE_SERVICE)
    try:
        service = _create(manager, command_line(config))
        try:
            win32service.ChangeServiceConfig2(service, win32service.SERVICE_CONFIG_DESCRIPTION, DESCRIPTION)
            try:
                configure_recovery(service)
            except pywintypes.error as error:
                print(f"recovery actions were not taken: {error.strerror}; the rest is done", file=sys.stderr)
        finally:
            win32service.CloseServiceHandle(service)
    finally:
        win32service.CloseServiceHandle(manager)
    register_source(Path(sys.executable).with_name(MESSAGE_FILE))
    print(f"service {NAME} is installed; ndagent service start starts it, and so does Windows")
    return 0


def _create(manager: Any, command: str) -> Any:
    start = (win32service.SERVICE_WIN32_OWN_PROCESS, win32service.SERVICE_AUTO_START, win32service.SERVICE_ERROR_NORMAL)
    try:
        return win32service.CreateService(
            manager, NAME, DISPLAY_NAME, win32service.SERVICE_ALL_ACCESS, *start, command, None, False, None, None, None
        )
    except pywintypes.error as error:
        if error.winerror != winerror.ERROR_SERVICE_EXISTS:
            raise
    service = win32service.OpenService(manager, NAME, win32service.SERVICE_ALL_ACCESS)
    win32service.ChangeServiceConfig(service, *start, command, None, False, None, None, None, DISPLAY_NAME)
    return service


def command_line(config: Path) -> str:
    """What the service manager runs; every path quoted, so that none is tried up to its first blank."""
    more = "" if config == DEFAULT_PATH else f' -c "{config}"'
    return f'"{sys.executable}" -B -m ndagent.winservice{more}'


def remove(config: Path) -> int:
    """Stop it, take it away with its event log source."""
    if _state() != win32service.SERVICE_STOPPED and stop(config):
        return 1
    with opened(_DELETE) as service:
        win32service.DeleteService(service)
    remove_source()
    print(f"service {NAME} is removed; {config.parent} stays")
    return 0


def start(_config: Path) -> int:
    """Start it, or let it continue, and wait."""
    state = _settled()
    with opened(win32service.SERVICE_START | win32service.SERVICE_PAUSE_CONTINUE) as service:
        if state == win32service.SERVICE_STOPPED:
            win32service.StartService(service, None)
        elif state == win32service.SERVICE_PAUSED:
            win32service.ControlService(service, win32service.SERVICE_CONTROL_CONTINUE)
    return _wait(win32service.SERVICE_RUNNING)


def stop(_config: Path) -> int:
    """Stop it and wait."""
    if _settled() != win32service.SERVICE_STOPPED:
        with opened(win32service.SERVICE_STOP) as service:
            win32service.ControlService(service, win32service.SERVICE_CONTROL_STOP)
    return _wait(win32service.SERVICE_STOPPED)


def status(_config: Path) -> int:
    """Say its state."""
    state = _state()
    print(f"service {NAME}: {_STATES.get(state, state)}")
    return 0 if state == win32service.SERVICE_RUNNING else 3


def _state() -> int:
    with opened(win32service.SERVICE_QUERY_STATUS) as service:
        return int(win32service.QueryServiceStatus(service)[1])


def _settled() -> int:
    """Its state, once it is on its way to none; after WAIT_SECONDS whatever it is."""
    end = time.monotonic() + WAIT_SECONDS
    while (state := _state()) in _PASSING and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    return state


def _wait(wanted: int) -> int:
    """Until it is in this state, or has stopped instead."""
    end = time.monotonic() + WAIT_SECONDS
    while (state := _state()) != wanted:
        has_failed = state == win32service.SERVICE_STOPPED
        if has_failed or time.monotonic() > end:
            what = "did not start" if has_failed else f"still {_STATES.get(state, state)} after {WAIT_SECONDS} s"
            print(f"service {NAME}: {what}; Event Viewer (Application, source ndagent) says why", file=sys.stderr)
            return 1
        time.sleep(_LOOK_SECONDS)
    print(f"service {NAME}: {_STATES[wanted]}")
    return 0
