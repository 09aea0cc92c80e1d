"""The agent as a Windows service: the service manager's controls in place of signals, its states in place of systemd's.

    start               RUNNING once inputs take data; ndagent.yaml is below %ProgramData%\\Neurodefender\\ndagent
    stop, preshutdown   as SIGTERM: no more is read, what is spooled is sent for `shutdown_timeout`, positions are saved
    pause, continue     inputs stop reading and begin again where they were; spool and connections go on
    paramchange         as SIGHUP: read the configuration again (`sc control ndagent paramchange`)

Promises: the directory below ProgramData is closed to other users before anything in it is read; an agent that ends
without having been told to stops with an error, which is what makes the service manager start it again, after 5 s,
30 s, then every 2 min; what setup was told (COLLECTOR_URL, ENROLL_TOKEN) is moved from the registry into the closed
directory at the first start, used to enrol, and deleted.
Refuses: being started by hand (`ndagent run` is for that). Pausing an input that others send to (netflow) loses what
they send meanwhile.

Hosted by python.exe itself: `python.exe -B -m ndagent.winservice`.
"""

# ruff: noqa: E402 - mypy is to read nothing below the assertion unless the platform is win32
import sys

assert sys.platform == "win32"  # noqa: S101 - as above

import argparse
import asyncio
import logging
import os
import winreg
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pywintypes
import servicemanager
import win32service
import win32serviceutil
import winerror

from ndagent import __version__
from ndagent.config import DEFAULT_PATH, HOME, AgentConfig, load
from ndagent.core.daemon import run_daemon
from ndagent.core.notify import Notifier
from ndagent.footprint import keep_small
from ndagent.run_command import run_on_loop
from ndagent.windows_log import EventLogHandler, LogFile
from ndagent.windows_security import Planted, protect

if TYPE_CHECKING:
    from ndagent.app import Agent

log = logging.getLogger("ndagent.winservice")  # __name__ is __main__ as a rule

NAME, DISPLAY_NAME = "ndagent", "Neurodefender agent"
DESCRIPTION = "Reads this host's logs and ships them to a Neurodefender collector."
SETUP_KEY = r"SOFTWARE\Neurodefender\ndagent"
"""Where the msi leaves what it was told, below HKEY_LOCAL_MACHINE."""
ENROL_FILE = "enroll.json"
_VARIABLES = {"CollectorUrl": "ND_COLLECTOR_URL", "EnrollToken": "ND_ENROLL_TOKEN"}
_RESTART = 1  # SC_ACTION_RESTART
RECOVERY = {
    "ResetPeriod": 86400,
    "RebootMsg": "",
    "Command": "",
    "Actions": [(_RESTART, 5_000), (_RESTART, 30_000), (_RESTART, 120_000)],
}
"""The last one counts for every later failure; a day without any begins anew."""
PRESHUTDOWN_MS = 60_000
_START_HINT_MS, _STOP_HINT_MS = 120_000, 30_000
_LOOK_SECONDS = 2.0
_PARAMCHANGE, _PRESHUTDOWN = 0x06, 0x0F  # SERVICE_CONTROL_…


class ServiceEnded(Exception):
    """The agent ended without having been told to; the service manager is to start it again."""


class _Told(Notifier):
    """What a daemon tells systemd, told to the service manager."""

    def __init__(self, service: "AgentService") -> None:
        super().__init__({})
        self._service = service

    def ready(self, status: str) -> None:  # noqa: ARG002 - the service manager takes no words
        self._service.say_ready()

    def reloading(self) -> None:
        """It has no state for that."""

    def stopping(self, *, at_most_seconds: float) -> None:
        hint = max(_STOP_HINT_MS, int(at_most_seconds * 1000))
        self._service.ReportServiceStatus(win32service.SERVICE_STOP_PENDING, hint)


class AgentService(win32serviceutil.ServiceFramework):
    """One per process; pywin32 names its methods."""

    _svc_name_, _svc_display_name_, _svc_description_ = NAME, DISPLAY_NAME, DESCRIPTION
    config_path = DEFAULT_PATH
    refusal = ""
    """Why it must not run, found before the service manager was told anything."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args)
        self._agent: Agent | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_ready = False
        self._is_paused = False
        self._is_stopping = False

    # ---- what the service manager says, in a thread of its own

    def GetAcceptedControls(self) -> int:  # noqa: N802 - pywin32's name
        """Stop, pause and continue (they have methods), and those that SvcOtherEx knows."""
        accepted = int(super().GetAcceptedControls())  # type: ignore[no-untyped-call]  # pywin32's
        return accepted | win32service.SERVICE_ACCEPT_PRESHUTDOWN | win32service.SERVICE_ACCEPT_PARAMCHANGE

    def SvcStop(self) -> None:  # noqa: N802 - pywin32's name
        self._is_stopping = True  # a pause or a reload under way says nothing else any more
        self.ReportServiceStatus(win32service.SERVICE_STOP_PENDING, _STOP_HINT_MS)
        self._tell("stop")

    def SvcPause(self) -> None:  # noqa: N802 - pywin32's name
        self.ReportServiceStatus(win32service.SERVICE_PAUSE_PENDING, _STOP_HINT_MS)
        self._set_paused(True)

    def SvcContinue(self) -> None:  # noqa: N802 - pywin32's name
        self.ReportServiceStatus(win32service.SERVICE_CONTINUE_PENDING, _STOP_HINT_MS)
        self._set_paused(False)

    def SvcOtherEx(self, control: int, event_type: int, data: Any) -> None:  # noqa: ARG002, N802 - pywin32's name
        if control == _PRESHUTDOWN:
            self.SvcStop()
        elif control == _PARAMCHANGE:
            self._tell("reload")

    def _tell(self, what: str) -> None:
        if self._loop is not None and self._agent is not None:
            self._loop.call_soon_threadsafe(getattr(self._agent, what))

    def _set_paused(self, is_paused: bool) -> None:
        if self._loop is not None and self._agent is not None:
            asyncio.run_coroutine_threadsafe(self._change_pause(is_paused), self._loop)

    async def _change_pause(self, is_paused: bool) -> None:
        assert self._agent is not None  # noqa: S101 - _set_paused looked
        try:
            await (self._agent.pause() if is_paused else self._agent.resume())
            self._is_paused = is_paused
        except Exception:
            log.exception("inputs could not be %s", "paused" if is_paused else "started again")
        self.say_ready()

    def say_ready(self) -> None:
        """Running, or paused."""
        self._is_ready = True
        if self._is_stopping:
            return
        state = win32service.SERVICE_PAUSED if self._is_paused else win32service.SERVICE_RUNNING
        self.ReportServiceStatus(state)

    # ---- the agent, in the service's own thread

    def SvcRun(self) -> None:  # noqa: N802 - pywin32's name
        """Run until told to stop; raises ServiceEnded, which pywin32 makes the service's error."""
        self.ReportServiceStatus(win32service.SERVICE_START_PENDING, _START_HINT_MS)
        if self.refusal:
            keep_service_as_it_should_be()
            raise ServiceEnded(self.refusal)
        if run_daemon(NAME, self._load, serve=self._serve):
            raise ServiceEnded("the agent ended with an error; the events before this one say why")

    def _load(self) -> AgentConfig:
        attach_event_log()
        keep_service_as_it_should_be()  # first of all: also what ends here is to be started again
        return load(self.config_path)

    def _serve(self, config: AgentConfig) -> None:
        attach_event_log()  # run_daemon may have made the log anew
        log.info("ndagent %s starts as a service", __version__, extra={"config": str(self.config_path)})
        run_on_loop(self._run(config))

    async def _run(self, config: AgentConfig) -> None:
        from ndagent.app import Agent  # after the configuration: a mistake in it is told at once

        self._loop = asyncio.get_running_loop()
        setup = Setup(self.config_path.parent, identity=config.state_dir / "identity" / "identity.json")
        os.environ.update(setup.take_up())  # the child that enrols gets the token by its environment
        self._agent = Agent(config, path=self.config_path, notifier=_Told(self))
        forgetting = asyncio.create_task(setup.forget())
        try:
            await self._agent.run()
        finally:
            forgetting.cancel()
        if not self._is_ready:
            raise ServiceEnded("stopped before it was ready")


class Setup:
    """What setup was told: from the registry, which everybody reads, into a file that nobody else does, until used."""

    def __init__(self, directory: Path, *, identity: Path) -> None:
        self._file = directory / ENROL_FILE
        self._identity = identity

    def take_up(self) -> dict[str, str]:
        """Environment variables for an agent that is not enrolled; empty if it is, or nothing is known."""
        found = _from_registry()
        if found and self._identity.exists():
            log.info("this agent is enrolled already: what setup was told is not used")
        elif found:
            from ndagent.identity import write_private

            write_private(self._file, orjson.dumps(self._told() | found))  # a new token may come without the URL
        _clear_registry()
        return {} if self._identity.exists() else self._told()

    def _told(self) -> dict[str, str]:
        with suppress(FileNotFoundError, ValueError):
            plain = orjson.loads(self._file.read_bytes())
            return {name: str(plain[name]) for name in _VARIABLES.values() if name in plain}
        return {}

    async def forget(self) -> None:
        """Delete it as soon as there is an identity, until cancelled."""
        while not self._identity.exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(_LOOK_SECONDS)
        self._file.unlink(missing_ok=True)
        os.environ.pop(_VARIABLES["EnrollToken"], None)


def _from_registry() -> dict[str, str]:
    found = {}
    with suppress(FileNotFoundError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, SETUP_KEY) as key:
        for value, variable in _VARIABLES.items():
            with suppress(FileNotFoundError):
                text, _ = winreg.QueryValueEx(key, value)
                if text:
                    found[variable] = str(text)
    return found


def _clear_registry() -> None:
    access = winreg.KEY_READ | winreg.KEY_SET_VALUE
    with suppress(FileNotFoundError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, SETUP_KEY, 0, access) as key:
        for value in _VARIABLES:
            with suppress(FileNotFoundError):
                winreg.DeleteValue(key, value)


def attach_event_log() -> None:
    """Let the root logger speak to the event log too; fine if it does."""
    root = logging.getLogger()
    if not any(isinstance(one, EventLogHandler) for one in root.handlers):
        root.addHandler(EventLogHandler())


@contextmanager
def opened(access: int) -> Iterator[Any]:
    """Our service, by its key: win32serviceutil would take another with that display name. Raises pywintypes.error."""
    manager = win32service.OpenSCManager(None, None, win32service.SC_MANAGER_CONNECT)
    try:
        service = win32service.OpenService(manager, NAME, access)
        try:
            yield service
        finally:
            win32service.CloseServiceHandle(service)
    finally:
        win32service.CloseServiceHandle(manager)


def keep_service_as_it_should_be() -> None:
    """What setup's tables cannot be trusted with, done at every start: recovery actions, a quoted program path."""
    access = win32service.SERVICE_CHANGE_CONFIG | win32service.SERVICE_QUERY_CONFIG | win32service.SERVICE_START
    try:
        with opened(access) as service:
            _quote_program(service)
            configure_recovery(service)
    except pywintypes.error as error:
        log.warning("recovery actions cannot be set: %s; after a crash nobody starts the service again", error.strerror)


def _quote_program(service: Any) -> None:
    """Left unquoted, C:\\Program Files\\… would first be tried as C:\\Program.exe."""
    same = win32service.SERVICE_NO_CHANGE
    command = win32service.QueryServiceConfig(service)[3]
    if command.startswith(sys.executable) and " " in sys.executable:
        quoted = f'"{sys.executable}"{command.removeprefix(sys.executable)}'
        win32service.ChangeServiceConfig(service, same, same, same, quoted, None, False, None, None, None, None)
        log.info("the service's program path is quoted now")


def configure_recovery(service: Any, change: Any = win32service.ChangeServiceConfig2) -> None:
    """Restart with a growing pause, also after a stop with an error; time to send before Windows shuts down."""
    change(service, win32service.SERVICE_CONFIG_FAILURE_ACTIONS, RECOVERY)
    change(service, win32service.SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, True)
    change(service, win32service.SERVICE_CONFIG_PRESHUTDOWN_INFO, PRESHUTDOWN_MS)


def close_home(config: Path) -> None:
    """Close our directory below ProgramData, if the configuration is there; another one is its owner's business.

    Raises Planted, OSError.
    """
    if config.parent == HOME:
        protect(HOME.parent)
        protect(HOME)


def main() -> int:
    """The service manager's way in; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ndagent.winservice")
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_PATH)
    AgentService.config_path = parser.parse_args().config
    directory = AgentService.config_path.parent
    try:
        close_home(AgentService.config_path)
        (directory / "logs").mkdir(exist_ok=True)
        sys.stderr = sys.stdout = LogFile(directory / "logs" / "ndagent.log")
    except (Planted, OSError) as error:
        AgentService.refusal = str(error)
        attach_event_log()
        log.error("cannot start: %s", error)
    servicemanager.Initialize(NAME, None)
    servicemanager.PrepareToHostSingle(AgentService)
    try:
        servicemanager.StartServiceCtrlDispatcher()  # type: ignore[no-untyped-call]  # pywin32's
    except pywintypes.error as error:
        if error.winerror != winerror.ERROR_FAILED_SERVICE_CONTROLLER_CONNECT:
            raise
        print("this is for the service manager: ndagent service start", file=sys.__stderr__)
        return 2
    return 0


if __name__ == "__main__":
    keep_small()
    sys.exit(main())
