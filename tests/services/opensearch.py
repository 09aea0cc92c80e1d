"""A real OpenSearch on loopback, one node, from the jars that Maven Central has.

    with OpenSearch(directory) as node:        # ready: it answers
        node.url                               # "http://127.0.0.1:21000"
        node.get("/_cat/indices?format=json")  # what it answers, parsed
        node.kill(); node.start()              # SIGKILL; the same port and data again

Promises: a process of its own with a small heap, started within seconds, ended by its process id. Its program is the
release's own start-up class over a home directory that is laid out here as the release's archive has it: the jars, and
netty as a module with the descriptor and rights that its archive would bring.
Refuses: security (a plug-in of its own, not in these jars), native memory locks (so that root may run it).
"""

import json
import shutil
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services import fetch
from services.process import ServiceProcess, free_port

_VERSION = "2.19.6"
_JVM = ("java", "-Xms192m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
        "-Djava.security.manager=allow", "-Djna.nosys=true", "-Djna.nounpack=true",
        "-Djna.boot.library.path=/nonexistent", "-Dopensearch.distribution.type=tar",
        "-Dopensearch.bundled_jdk=false")  # fmt: skip
_DESCRIPTOR = f"""description=HTTP and transport over netty
version={_VERSION}
opensearch.version={_VERSION}
name=transport-netty4
classname=org.opensearch.transport.Netty4Plugin
java.version=11
has.native.controller=false
extended.plugins=
"""
_RIGHTS = """grant {
  permission java.lang.RuntimePermission "accessDeclaredMembers";
  permission java.lang.RuntimePermission "getClassLoader";
  permission java.lang.RuntimePermission "setContextClassLoader";
  permission java.lang.reflect.ReflectPermission "suppressAccessChecks";
  permission java.net.SocketPermission "*", "accept,connect,listen,resolve";
  permission java.io.FilePermission "/proc/sys/net/core/somaxconn", "read";
};
"""
_SETTINGS = """cluster.name: test
node.name: one
discovery.type: single-node
network.host: 127.0.0.1
http.port: {http}
transport.port: {transport}
bootstrap.system_call_filter: false
cluster.routing.allocation.disk.threshold_enabled: false
"""
_LOGGING = """status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%-5p][%c{1.}] %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


class OpenSearch:
    """See the module."""

    def __init__(self, directory: Path) -> None:
        jars = fetch.ensure(fetch.OPENSEARCH)
        self._home = directory
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: ServiceProcess | None = None
        _lay_out(self._home, jars)
        settings = _SETTINGS.format(http=self._port, transport=free_port())
        (self._home / "config/opensearch.yml").write_text(settings)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()  # nobody will miss its data, and on SIGTERM it takes its time

    def start(self) -> None:
        """Start it and wait until it answers. AssertionError with the end of its log."""
        home = self._home
        paths = (f"-Djava.io.tmpdir={home}/tmp", f"-Dopensearch.path.home={home}")
        paths += (f"-Dopensearch.path.conf={home}/config",)
        command = [*_JVM, *paths, "-cp", f"{home}/lib/*", "org.opensearch.bootstrap.OpenSearch"]
        self._process = ServiceProcess("opensearch", command, directory=home)
        try:
            self._process.wait_until(self._answers, "answer", 60)
        except AssertionError:
            self._process.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, at whatever instruction it is."""
        if self._process:
            self._process.kill()

    def get(self, path: str) -> Any:
        """What it answers."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The same with a JSON body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/")["version"])
        except (OSError, ValueError):
            return False


def _lay_out(home: Path, jars: fetch.Jars) -> None:
    module = home / "modules/transport-netty4"
    for directory in (home / "config", home / "lib", home / "logs", home / "plugins", home / "tmp", module):
        directory.mkdir(parents=True)
    for jar in jars.prefix.glob("*.jar"):
        if jar.name.startswith(("netty-", "transport-")):
            shutil.copy(jar, module)  # its security manager follows no links out of here
        else:
            (home / "lib" / jar.name).symlink_to(jar)
    (module / "plugin-descriptor.properties").write_text(_DESCRIPTOR)
    (module / "plugin-security.policy").write_text(_RIGHTS)
    (home / "config/log4j2.properties").write_text(_LOGGING)
