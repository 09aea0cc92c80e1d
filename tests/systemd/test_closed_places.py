"""Places that a hardened unit closes: what would be lost there, or fail two weeks later, is said at the start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from collector_process import ROOT
from collector_site import Site

BOUND = 'mkdir -p "$1/systemd-private-7f-x.service-x/tmp" "$2" && mount --bind "$1"/systemd-private-*/tmp "$2"'
"""What PrivateTmp=yes does."""
in_a_namespace = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


def below(place: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run it where `place`/tmp is private to it."""
    script = f'{BOUND} && shift 2 && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", script, "sh", str(place), str(place / "tmp"), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=environment)


@in_a_namespace
def test_a_path_below_a_private_directory_is_known_and_one_beside_it_is_not(tmp_path: Path) -> None:
    """By what is mounted there, not by its name."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ndcollector.private_tmp import emptied_at_stop\n"
        "print([str(emptied_at_stop(Path(one))) for one in sys.argv[1:]])"
    )
    paths = [str(tmp_path / "tmp/{stream}.ndjson"), str(tmp_path / "other/tmp/x")]
    done = below(tmp_path, sys.executable, "-c", code, *paths)
    assert done.stdout == f"['{tmp_path / 'tmp'}', 'None']\n", done.stderr


@in_a_namespace
def test_a_spool_there_is_refused_and_an_output_there_is_an_error(tmp_path: Path) -> None:
    """What is acknowledged must outlive a stop; what is delivered is somebody else's, and said."""
    site = Site(tmp_path / "site", outputs={"archive": {"path": str(tmp_path / "tmp/{stream}.ndjson")}})
    run = (sys.executable, "-m", "ndcollector", "run", "-c", str(site.collector.config))
    site.change(lambda config: config.update(state_dir=str(tmp_path / "tmp/state")))
    refused = below(tmp_path, *run)
    assert refused.returncode == 1
    assert "cannot start: state_dir" in refused.stderr
    assert "is private to this service and emptied when it stops" in refused.stderr
    site.change(lambda config: config.update(state_dir=str(tmp_path / "state"), admin={"listen": "192.0.2.1:9"}))
    said = below(tmp_path, *run).stderr  # it ends by itself: the address is nobody's
    assert '"level":"ERROR","logger":"archive","message":"' in said
    assert "what was delivered there is lost then" in said


@in_a_namespace
def test_a_pki_that_may_not_be_written_is_said_before_its_list_is_due(tmp_path: Path) -> None:
    """The list lasts for weeks; with it every client is refused."""
    site = Site(tmp_path)
    code = (
        "import asyncio, logging, sys\n"
        "from pathlib import Path\n"
        "from ndcollector.pki.crl_keeper import keep_signed\n"
        "logging.basicConfig()\n"
        "async def look():\n"
        "    task = asyncio.create_task(keep_signed(lambda: Path(sys.argv[1])))\n"
        "    await asyncio.wait({task}, timeout=float(sys.argv[2]))\n"
        "asyncio.run(look())"
    )
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    look = [sys.executable, "-c", code, str(site.pki), "0.5"]
    closed = ["unshare", "-m", "sh", "-c", script, "sh", str(site.pki), *look]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run(one, capture_output=True, text=True, timeout=60, check=True, env=environment).stderr
        for one in (look, closed)
    ]
    assert said[0] == ""
    assert f"the revocation list in {site.pki} cannot be signed anew when it is due" in said[1]
    assert "needs ReadWritePaths=" in said[1]
