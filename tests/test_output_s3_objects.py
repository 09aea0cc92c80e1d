"""Keys, bytes and metadata of objects: what makes a retry find what the try before it made."""

import json
import shutil
import subprocess
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from ndagent.wire.record import EventBatch
from ndcollector.outputs.s3 import Config
from ndcollector.outputs.s3_objects import Stored, begins_with, key_of, pack
from tests.events import event_batch

HOUR_NS = 3600 * 10**9
AT_NS = 1_764_000_000 * 10**9  # 2025-11-24T16:00:00Z


def batch(first: int, end: int) -> EventBatch:
    return replace(event_batch(range(first, end)), received_at_ns=AT_NS, spool_id="abc")


def test_a_key_says_when_from_where_and_which() -> None:
    """In an order that sorts."""
    key = key_of(batch(7, 9), prefix="logs/{stream}/{year}/{month}/{day}/{hour}/{node}", node="collector-1")
    assert key == "logs/security_events/2025/11/24/16/collector-1/collector-1-abc-00000000000000000007.ndjson.zst"


def test_a_key_does_not_depend_on_where_the_batch_ends() -> None:
    """After a restart it ends elsewhere."""
    keys = {key_of(batch(7, end), prefix="{day}", node="n") for end in (8, 9, 500)}
    assert len(keys) == 1


def test_text_formats_have_another_ending() -> None:
    """What is inside is no JSON."""
    assert key_of(replace(batch(0, 1), format="cef"), prefix="", node="n").endswith("-00000000000000000000.log.zst")
    assert key_of(replace(batch(0, 1), format="flat"), prefix="", node="n").endswith(".ndjson.zst")


def test_names_cannot_leave_their_place() -> None:
    """A stream's name comes from a configuration, not from a message; still."""
    key = key_of(replace(batch(0, 1), stream="../a b"), prefix="{stream}", node="n/ö")
    assert key == ".._a_b/n__-abc-00000000000000000000.ndjson.zst"


@pytest.mark.parametrize("prefix", ["{host}", "/a", "a//b", "{", "a\nb", "x" * 600, "{0}", "{stream.x}"])
def test_a_prefix_that_makes_bad_keys_is_refused(prefix: str) -> None:
    """At the start, not at the first event."""
    with pytest.raises(ValidationError, match="prefix"):
        Config(bucket="logs", prefix=prefix)


@pytest.mark.skipif(not (shutil.which("zstd") and shutil.which("jq")), reason="apt-get install zstd jq")
def test_the_object_can_be_read_with_the_usual_tools(tmp_path: Path) -> None:
    """zstd -dc | jq."""
    packed = pack(batch(3, 6), node="n")
    (tmp_path / "o.ndjson.zst").write_bytes(packed.body)
    command = "zstd -dc o.ndjson.zst | jq -c .event.sequence"
    found = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    assert found.stdout.split() == [b"3", b"4", b"5"]
    assert found.stderr == b""


def test_metadata_tells_what_is_inside() -> None:
    """And is plain ASCII: S3 takes nothing else in a header."""
    metadata = pack(batch(3, 6), node="kö").metadata
    assert json.dumps(dict(metadata)).isascii()
    assert {name: metadata[f"nd-{name}"] for name in ("first", "last", "count", "spool", "stream", "format")} == {
        "first": "3", "last": "5", "count": "3", "spool": "abc", "stream": "security_events", "format": "ecs",
    }  # fmt: skip


def stored(events: EventBatch) -> Stored:
    found = Stored.read(pack(events, node="n").metadata)
    assert found is not None
    return found


def test_a_stored_object_holds_the_first_events_of_a_longer_batch() -> None:
    """The rest begins behind them."""
    assert stored(batch(0, 10)).held(batch(0, 10)) == 10
    assert stored(batch(0, 10)).held(batch(0, 25)) == 10


def test_an_object_with_other_lines_holds_nothing_of_a_batch() -> None:
    """One byte is enough, and so is an event that is missing amid them: numbers alone prove nothing."""
    other = batch(0, 10)
    other = replace(other, ndjson=other.ndjson.replace(b"s-3", b"S-3"))
    assert stored(batch(0, 10)).held(other) == 0
    assert stored(batch(0, 10).select([0, 2, 3, 9])).held(batch(0, 10)) == 0


def test_an_object_that_is_longer_than_the_batch_is_looked_into() -> None:
    """Metadata cannot tell; its first bytes can."""
    longer = pack(batch(0, 1000), node="n")
    assert stored(batch(0, 1000)).held(batch(0, 10)) == 0
    assert begins_with(longer.body, batch(0, 10))
    assert not begins_with(longer.body, batch(0, 1001))
    assert not begins_with(longer.body, batch(1, 10))
    assert not begins_with(b"no zstd", batch(0, 10))


@pytest.mark.parametrize("metadata", [{}, {"nd-first": "x"}, {"nd-first": "1", "nd-last": "2", "nd-count": "2"}])
def test_an_object_of_somebody_else_is_none_of_ours(metadata: dict[str, str]) -> None:
    """Whatever it is called."""
    assert Stored.read(metadata) is None


def test_lengths_count_bytes_and_not_characters() -> None:
    """Where the front of a longer batch ends."""
    lines = ['{"message":"ä"}\n'.encode(), '{"message":"€"}\n'.encode(), b"{}\n"]
    made = replace(batch(0, 3), ndjson=b"".join(lines), lengths=array("I", map(len, lines)))
    assert stored(made.select([0, 1])).held(made) == 2
