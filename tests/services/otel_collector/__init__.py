"""The OpenTelemetry Collector itself, built from its Go modules: OTLP over HTTP in, its reading of each record out.

Promises: built once below `.test-services/otelcol` (minutes, and a gigabyte of Go's caches: only long tests want it);
one process on loopback. Refuses to install Go.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path

from services.fetch import ROOT, ServiceMissingError
from services.process import ServiceProcess, free_port, listens

_SOURCE = Path(__file__).resolve().parent
_BUILD_SECONDS = 1500
_CONFIG = """
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{debug: {{verbosity: detailed}}}}
service: {{telemetry: {{metrics: {{level: none}}}}, pipelines: {{logs: {{receivers: [otlp], exporters: [debug]}}}}}}
"""


def program() -> Path:
    """The built collector; raises ServiceMissingError where it cannot be built."""
    text = b"".join((_SOURCE / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))
    built = ROOT / "otelcol" / hashlib.sha256(text).hexdigest()[:12]
    if built.exists():
        return built
    if shutil.which("go") is None:
        raise ServiceMissingError("otelcol: there is no Go here to build it with")
    built.parent.mkdir(parents=True, exist_ok=True)
    command = ["go", "build", "-trimpath", "-o", str(built), "."]
    made = subprocess.run(
        command, cwd=_SOURCE, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
    )
    if made.returncode:
        raise ServiceMissingError(f"otelcol: go build: {made.stderr.strip()[-300:]}")
    return built


class OtelCollector:
    """One running collector; `process` is a context that ends it, its log has every record."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = directory / "otelcol.yaml"
        config.write_text(_CONFIG.format(port=port))
        process = ServiceProcess("otelcol", [program(), "--config", str(config)], directory=directory)
        self.process = process.until_ready(listens(port), f"listener on {port}")
