"""`ndcollector health`, which container runtimes ask."""

from pathlib import Path

from collector_site import Site


def test_it_says_whether_the_collector_answers_and_whether_it_takes_data(tmp_path: Path) -> None:
    """A spool without room is no reason to kill the process, only to send it nothing."""
    spool = {"max_bytes": "1MiB"}
    blocked = tmp_path / "blocked"
    blocked.write_text("no directory")
    outputs = {"archive": {"path": str(blocked / "{stream}.ndjson")}}
    site = Site(tmp_path, spool=spool, outputs=outputs)
    assert site.command("health").returncode == 1
    site.collector.start()
    try:
        well = site.command("health", "--ready")
        assert (well.returncode, well.stdout) == (0, "ready\n"), well.stderr
        with site.connect() as connection:
            connection.sendall((b"<34>1 2026-11-23T22:14:15.003Z host app 7 - - " + b"x" * 8000 + b"\n") * 200)
            site.wait_for_metric('nd_spool_full{stream="security_events"}', 1)
            full = site.command("health", "--ready")
            assert full.returncode == 1
            assert "spool security_events has no room" in full.stderr
            alive = site.command("health")
            assert (alive.returncode, alive.stdout) == (0, "alive\n")
    finally:
        site.collector.kill()  # a stop would wait for the room that there is not


def test_a_configuration_with_a_mistake_is_told(tmp_path: Path) -> None:
    """Not taken for a collector that is down."""
    site = Site(tmp_path)
    site.change(lambda config: config.update(nodename="x"))
    done = site.command("health")
    assert done.returncode == 1
    assert "ndcollector.yaml:" in done.stderr
