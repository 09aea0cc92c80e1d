"""The `s3` output against a real S3 server (moto), with a door between them that answers for what moto never does."""

import asyncio
import json
import logging
import random
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError
from s3_site import KEYS, Door, Moto, Store, moto, refusal

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import LONGEST_RETRY_AFTER_SECONDS, Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.wire.record import EventBatch
from ndcollector.outputs import OutputContext, s3
from tests.events import SwiftTime, event_batch

AT_NS = 1_764_000_000 * 10**9  # 2025-11-24T16:00:00Z


def batch(first: int, end: int, **changes: Any) -> EventBatch:
    return replace(event_batch(range(first, end)), received_at_ns=AT_NS, **changes)


@pytest.fixture
def store() -> Store:
    return Store(moto())


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    made = Door(moto())
    await made.start()
    yield made
    await made.stop()


def config(store: Store, url: str, **settings: Any) -> s3.Config:
    keys = {"access_key_id": KEYS["aws_access_key_id"], "secret_access_key": KEYS["aws_secret_access_key"]}
    return s3.Config(**{"bucket": store.bucket, "endpoint": url, **keys, **settings})


@asynccontextmanager
async def output(store: Store, url: str, **settings: Any) -> AsyncIterator[s3.S3Output]:
    context = OutputContext(Path("/nowhere"), Metrics(), clock=lambda: 0.0, node_name="collector-1")
    made = s3.build("lake", config(store, url, **settings), context)
    yield made
    await made.aclose()


@asynccontextmanager
async def delivery(
    directory: Path, store: Store, url: str, **settings: Any
) -> AsyncIterator[tuple[Delivery, SwiftTime]]:
    """As the machine has it: retry, breaker, dead letters, on a clock of its own."""
    time = SwiftTime()
    plumbing: dict[str, Any] = {"clock": time.clock, "sleep": time.sleep, "random": lambda: 0.5}
    async with output(store, url, **settings) as plug:
        wanted = config(store, url, **settings)
        letters = DeadLetters(directory, output="lake", max_bytes=2**20, clock=lambda: 0.0)
        chain = wrap(plug, name="lake", config=wanted, metrics=Metrics(), **plumbing)
        yield Delivery(chain, name="lake", config=wanted, dead_letters=letters, **plumbing), time


async def test_a_batch_is_an_object_with_its_metadata(store: Store, door: Door) -> None:
    """What is inside can be told without reading it."""
    async with output(store, door.url, storage_class="STANDARD_IA", encryption={"algorithm": "AES256"}) as plug:
        await plug.send(batch(5, 8))
    (key,) = store.keys()
    assert key == "security_events/2025/11/24/collector-1-s-00000000000000000005.ndjson.zst"
    assert store.lines(key) == batch(5, 8).ndjson
    found = store.client.head_object(Bucket=store.bucket, Key=key)
    assert (found["ContentType"], found["StorageClass"]) == ("application/zstd", "STANDARD_IA")
    assert found["ServerSideEncryption"] == "AES256"
    assert (found["Metadata"]["nd-first"], found["Metadata"]["nd-last"]) == ("5", "7")


async def test_every_create_is_conditional_and_has_its_checksum(store: Store, door: Door) -> None:
    """What makes the difference between this output and one that overwrites."""
    seen = []

    async def script(request: web.Request) -> None:
        seen.append((request.method, request.headers.get("If-None-Match"), "x-amz-checksum-sha256" in request.headers))

    door.script = script
    async with output(store, door.url) as plug:
        await plug.send(batch(0, 3))
        await plug.send(batch(3, 6))
    assert seen == [("PUT", "*", True)] * 3  # the first object twice: does the store refuse the second?


async def test_text_formats_are_written_as_they_are(store: Store) -> None:
    """Lines are lines."""
    async with output(store, moto().url) as plug:
        await plug.send(batch(0, 2, format="cef"))
    (key,) = store.keys()
    assert key.endswith(".log.zst")
    assert store.lines(key) == batch(0, 2).ndjson


async def test_the_same_batch_again_makes_no_second_object(store: Store) -> None:
    """A new process that knows nothing, a saved cursor that is a second old."""
    for _ in range(3):
        async with output(store, moto().url) as plug:
            await plug.send(batch(0, 100))
    assert store.sequences() == list(range(100))


async def test_a_batch_that_is_cut_elsewhere_after_a_restart_doubles_nothing(store: Store) -> None:
    """Objects of 0-9 and 10-29 are there; the new process reads from 0 and has 50 events."""
    async with output(store, moto().url) as plug:
        await plug.send(batch(0, 10))
        await plug.send(batch(10, 30))
    async with output(store, moto().url) as plug:
        await plug.send(batch(0, 50))
        await plug.send(batch(50, 60))
    assert store.sequences() == list(range(60))
    assert len(store.keys()) == 4


async def test_a_shorter_batch_after_a_restart_doubles_nothing(store: Store) -> None:
    """batch_bytes was lowered meanwhile: the stored object holds more, and what comes next stands amid it."""
    async with output(store, moto().url) as plug:
        await plug.send(batch(0, 100))
    async with output(store, moto().url) as plug:
        for first in range(0, 140, 35):
            await plug.send(batch(first, first + 35))
    assert store.sequences() == list(range(140))


async def test_the_cursor_is_not_saved_amid_an_object(store: Store) -> None:
    """A second crash would begin there, at a sequence that no key has, and store the rest of the object again."""
    async with output(store, store.server.url) as before:
        await before.send(batch(0, 10))
        await before.sync()
    async with output(store, store.server.url) as after_a_crash:
        await after_a_crash.send(batch(0, 4))
        with pytest.raises(Unavailable, match="only the beginning was sent again"):
            await after_a_crash.sync()
    async with output(store, store.server.url) as after_another:
        await after_another.send(batch(0, 4))  # its cursor had to stay there
        await after_another.send(batch(4, 8))
        await after_another.send(batch(8, 12))
        await after_another.sync()
    assert store.sequences() == list(range(12))


async def test_a_rest_of_an_object_that_never_comes_holds_the_cursor_for_a_while_only(store: Store) -> None:
    """What came behind the saved cursor may be gone, or filtered out now."""
    async with output(store, store.server.url) as before:
        await before.send(batch(0, 10))
    async with output(store, store.server.url) as after:
        await after.send(batch(0, 4))
        for _ in range(s3._SYNCS_REFUSED):
            with pytest.raises(Unavailable):
                await after.sync()
        await after.sync()
        await after.send(batch(0, 4))
        with pytest.raises(Unavailable):
            await after.sync()
        await after.send(batch(20, 24))
        await after.sync()


async def test_a_filtered_stream_is_told_by_its_bytes(store: Store) -> None:
    """Sequences with gaps; the cut moves."""
    some = batch(0, 100)
    async with output(store, moto().url) as plug:
        await plug.send(some.select(range(0, 40, 2)))
    async with output(store, moto().url) as plug:
        await plug.send(some.select(range(0, 100, 2)))
    assert store.sequences() == list(range(0, 100, 2))


async def test_a_shorter_batch_of_a_filtered_stream_doubles_nothing(store: Store) -> None:
    """The object has gaps, so that sequences amid it tell nothing; a send that failed is sent again meanwhile."""
    some = batch(0, 300)
    async with output(store, moto().url) as plug:
        await plug.send(some.select(range(0, 100, 2)))
        await plug.send(some.select(range(100, 120, 2)))
    async with output(store, moto().url) as plug:
        for first in (0, 30, 30, 60, 90, 150):
            await plug.send(some.select(range(first, first + (30 if first < 90 else 60), 2)))
            if first == 30:
                with pytest.raises(Unavailable, match="only the beginning was sent again"):
                    await plug.sync()
        await plug.sync()
    assert store.sequences() == list(range(0, 210, 2))
    assert len(store.keys()) == 4


async def test_what_a_larger_object_has_not_is_never_taken_for_stored(store: Store) -> None:
    """A filter that lets more through now: what stands behind the common front is stored, whatever its sequence is."""
    some = batch(0, 20)
    async with output(store, moto().url) as plug:
        await plug.send(some.select([0, 2, 4, 6, 8, 10]))
    async with output(store, moto().url) as plug:
        await plug.send(some.select([0, 2]))
        await plug.send(some.select([4, 5, 6]))
        await plug.send(some.select([7, 8, 12]))
    assert set(store.sequences()) == {0, 2, 4, 5, 6, 7, 8, 10, 12}


async def test_batches_side_by_side_never_count_the_same_stored_lines_twice(store: Store) -> None:
    """Raw messages repeat; with several sends under way nobody knows which of them a larger object holds."""
    some = batch(0, 12)
    line = next(iter(some.lines()))
    equal = replace(some, ndjson=line * 12, lengths=array("I", [len(line)] * 12))
    async with output(store, moto().url, in_flight=4) as plug:
        await plug.send(equal.select(range(10)))
    async with output(store, moto().url, in_flight=4) as plug:
        await plug.send(equal.select(range(4)))
        await asyncio.gather(plug.send(equal.select(range(4, 8))), plug.send(equal.select(range(8, 12))))
        await plug.sync()
    lines = [store.lines(key).count(b"\n") for key in store.keys()]  # noqa: SIM118 - no dict
    assert sum(lines) >= 12


async def test_other_events_under_the_same_sequences_are_never_taken_for_stored(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A filter was changed between a kill and the start: some are stored, others not. Twice is better than never."""
    some = batch(0, 10)
    async with output(store, moto().url) as plug:
        await plug.send(some.select([0, 2, 4]))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # the object apart is found again, too
            async with output(store, moto().url) as plug:
                await plug.send(some.select([0, 1, 2, 3]))
    assert sorted(store.sequences()) == [0, 0, 1, 2, 2, 3, 4]
    assert len(store.keys()) == 2
    assert "a reader de-duplicates by event.id" in caplog.text


async def test_an_object_that_somebody_else_put_there_is_left_alone(store: Store) -> None:
    """Not ours to judge, and not ours to overwrite."""
    key = "security_events/2025/11/24/collector-1-s-00000000000000000000.ndjson.zst"
    store.client.put_object(Bucket=store.bucket, Key=key, Body=b"mine")
    async with output(store, moto().url) as plug:
        await plug.send(batch(0, 5))
    (apart,) = set(store.keys()) - {key}
    assert store.lines(apart) == batch(0, 5).ndjson
    assert store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read() == b"mine"


async def test_an_answer_that_never_comes_then_success_without_a_double(
    store: Store, door: Door, tmp_path: Path
) -> None:
    """The object was made; we cannot know."""
    fates = iter(["swallow"])

    async def script(request: web.Request) -> str | None:
        return next(fates, None) if request.method == "PUT" else None

    door.script = script
    async with delivery(tmp_path, store, door.url, timeout="1s") as (made, _):
        assert await made.deliver(batch(0, 50)) == []
        await made.deliver(batch(50, 60))
    assert store.sequences() == list(range(60))


async def test_a_connection_that_ends_without_an_answer(store: Store, door: Door, tmp_path: Path) -> None:
    """Before the object was made, and after."""
    fates = iter(["before", "after", "after", "before"])

    async def script(request: web.Request) -> str | None:
        fate = next(fates, None) if request.method == "PUT" else None
        if fate == "after":
            await door._passed_on(request)
        if fate is not None and request.transport is not None:
            request.transport.abort()
        return None

    door.script = script
    async with delivery(tmp_path, store, door.url) as (made, _):
        assert await made.deliver(batch(0, 50)) == []
        await made.deliver(batch(50, 60))
    assert store.sequences() == list(range(60))


async def test_a_store_that_overwrites_is_found_out_by_the_first_object(store: Store, door: Door) -> None:
    """Some call themselves S3 and ignore the condition."""

    async def script(request: web.Request) -> web.Response | None:
        return web.Response(headers={"ETag": "x"}) if request.method == "PUT" else None

    door.script = script
    async with output(store, door.url) as plug:
        with pytest.raises(Unavailable, match=r"ignores If-None-Match.*use a store that knows conditional create"):
            await plug.send(batch(0, 5))


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (404, "NoSuchBucket", "make the bucket"),
        (403, "AccessDenied", "allow s3:PutObject and s3:GetObject"),
        (403, "InvalidAccessKeyId", "check the credentials"),
        (403, "SignatureDoesNotMatch", "check the credentials"),
        (400, "ExpiredToken", "they have expired; check the credentials"),
        (403, "RequestTimeTooSkewed", "set this machine's clock"),
        (301, "PermanentRedirect", "the bucket is in another region"),
        (400, "AuthorizationHeaderMalformed", "correct `region`"),
        (501, "NotImplemented", "NotImplemented"),
        (400, "SomethingNew", "a person must look"),
    ],
)
async def test_what_a_person_must_mend_waits_and_says_how(
    store: Store, door: Door, status: int, code: str, remedy: str
) -> None:
    """Nothing is rejected for it: S3 judges no content."""

    async def script(_request: web.Request) -> web.Response:
        return refusal(status, code)

    door.script = script
    async with output(store, door.url) as plug:
        with pytest.raises(Unavailable, match=f"s3://{store.bucket}/.*{remedy}"):
            await plug.send(batch(0, 5))


@pytest.mark.parametrize("answer", [(503, "SlowDown"), (500, "InternalError"), (409, "ConditionalRequestConflict")])
async def test_a_store_that_is_busy_is_asked_later(
    store: Store, door: Door, tmp_path: Path, answer: tuple[int, str]
) -> None:
    """And no sooner than it wishes, within reason."""
    refusals = iter([refusal(*answer, **{"Retry-After": "99999999"})])

    async def script(_request: web.Request) -> web.Response | None:
        return next(refusals, None)

    door.script = script
    async with delivery(tmp_path, store, door.url) as (made, time):
        await made.deliver(batch(0, 5))
    assert store.sequences() == [0, 1, 2, 3, 4]
    assert max(time.slept) == LONGEST_RETRY_AFTER_SECONDS


async def test_a_200_that_no_store_gave_is_not_believed(store: Store, door: Door, tmp_path: Path) -> None:
    """A proxy that wants a login says 200 to everything; a store says with which tag it keeps the object."""
    pages = iter([web.Response(text="<html>please log in</html>", content_type="text/html")])

    async def script(_request: web.Request) -> web.Response | None:
        return next(pages, None)

    async with delivery(tmp_path, store, door.url) as (made, _):
        await made.deliver(batch(0, 5))
        door.script = script
        await made.deliver(batch(5, 9))
    assert next(pages, None) is None
    assert store.sequences() == list(range(9))


async def test_a_look_into_an_object_that_is_cut_off_is_taken_again(
    store: Store, door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As any broken connection: later, and no bug of ours."""
    async with output(store, moto().url) as plug:
        await plug.send(batch(0, 9))
    cuts = iter([web.Response(body=b"(", headers={"Content-Length": "500"})])

    async def script(request: web.Request) -> web.Response | None:
        found = next(cuts, None) if request.method == "GET" else None
        if found is not None:
            found.force_close()
        return found

    door.script = script
    async with delivery(tmp_path, store, door.url) as (made, _):
        await made.deliver(batch(0, 5))
    assert next(cuts, None) is None
    assert store.sequences() == list(range(9))
    assert "unexpected" not in caplog.text


async def test_a_poisonous_event_is_one_that_no_object_has_room_for(store: Store, door: Door, tmp_path: Path) -> None:
    """EntityTooLarge is halved; an event too large by itself is a dead letter, and only it."""

    async def script(request: web.Request) -> web.Response | None:
        if request.method == "PUT" and int(request.headers["Content-Length"]) > 3000:
            return refusal(400, "EntityTooLarge")
        return None

    noise = b'{"event":{"sequence":7,"id":"%b"}}\n' % random.Random(1).randbytes(5000).hex().encode()
    lines = batch(0, 20).lines()
    lines[7] = noise
    events = batch(0, 20, ndjson=b"".join(lines), lengths=array("I", map(len, lines)))
    door.script = script
    async with delivery(tmp_path, store, door.url) as (made, _):
        assert await made.deliver(events) == [7]
    assert sorted(store.sequences()) == [n for n in range(20) if n != 7]


async def test_a_refused_size_is_rejected_without_names(store: Store, door: Door) -> None:
    """So that the machine halves; a proxy's 413 has no error document."""

    async def script(_request: web.Request) -> web.Response:
        return web.Response(status=413)

    door.script = script
    async with output(store, door.url) as plug:
        with pytest.raises(Rejected, match="413") as refused:
            await plug.send(batch(0, 5))
    assert refused.value.indexes is None


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Store]:
    """A server of its own that checks keys, signatures and permissions."""
    server = Moto(tmp_path)
    made = Store(server)
    yield made
    server.stop()


def user(store: Store, name: str, actions: list[str]) -> dict[str, str]:
    """Keys of somebody who may do this much."""
    iam = store.server.client("iam")
    iam.create_user(UserName=name)
    resources = [f"arn:aws:s3:::{store.bucket}", f"arn:aws:s3:::{store.bucket}/*"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resources}]}
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}


async def test_credentials_refused_then_mended(strict: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong keys in the shared file, then right ones: read anew without a restart."""
    keys = user(strict, "writer", ["s3:PutObject", "s3:GetObject"])
    reader = strict.server.client(
        aws_access_key_id=keys["access_key_id"], aws_secret_access_key=keys["secret_access_key"]
    )
    shared = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    shared.write_text("[default]\naws_access_key_id = AKIAWRONG\naws_secret_access_key = wrong\n")
    strict.server.refuse_strangers()
    async with output(strict, strict.server.url, access_key_id=None, secret_access_key=None) as plug:
        with pytest.raises(Unavailable, match=r"InvalidAccessKeyId.*check the credentials"):
            await plug.send(batch(0, 5))
        secret = keys["secret_access_key"]
        shared.write_text(
            f"[default]\naws_access_key_id = {keys['access_key_id']}\naws_secret_access_key = {secret}\n"
        )
        await plug.send(batch(0, 5))
    key = "security_events/2025/11/24/collector-1-s-00000000000000000000.ndjson.zst"
    assert reader.head_object(Bucket=strict.bucket, Key=key)["Metadata"]["nd-count"] == "5"


async def test_without_permission_the_remedy_names_it(strict: Store) -> None:
    """AccessDenied of a server that really checks."""
    keys = user(strict, "looker", ["s3:GetObject"])
    strict.server.refuse_strangers()
    async with output(strict, strict.server.url, **keys) as plug:
        with pytest.raises(Unavailable, match=r"AccessDenied.*allow s3:PutObject and s3:GetObject"):
            await plug.send(batch(0, 5))


async def test_who_may_only_write_never_takes_a_stranger_for_his_own(store: Store, door: Door) -> None:
    """HEAD is refused: what stands there is unknown, so the events go to an object of their own. Twice, never not."""

    async def script(request: web.Request) -> web.Response | None:
        return web.Response(status=403) if request.method == "HEAD" else None

    async with output(store, door.url) as plug:
        await plug.send(batch(0, 3))
    door.script = script
    for _ in range(2):
        async with output(store, door.url) as plug:
            await plug.send(batch(0, 9))
    assert set(store.sequences()) == set(range(9))
    assert len(store.keys()) == 2


async def test_no_credentials_at_all(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in words, and waited for."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    async with output(store, moto().url, access_key_id=None, secret_access_key=None) as plug:
        with pytest.raises(Unavailable, match="check the credentials"):
            await plug.send(batch(0, 5))


async def test_a_cancelled_upload_leaves_a_client_that_works(store: Store, door: Door) -> None:
    """A reload, a timeout: amid connecting, amid the body, amid the answer."""
    async with output(store, door.url) as plug:
        for wait in (0.0, 0.01, 0.03, 0.1):
            sending = asyncio.ensure_future(plug.send(batch(0, 2000)))
            await asyncio.sleep(wait)  # any moment will do
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await plug.send(batch(0, 2000))
    assert store.sequences() == list(range(2000))


async def test_a_stream_that_is_refused_disturbs_no_other(store: Store, door: Door) -> None:
    """Each refusal makes a new client; what the old one is doing for other streams goes on."""

    async def script(request: web.Request) -> web.Response | None:
        await asyncio.sleep(0.01)
        return refusal(403, "AccessDenied") if "/alerts/" in request.path else None

    door.script = script
    async with output(store, door.url) as plug:

        async def refused() -> None:
            for first in range(12):
                with pytest.raises(Unavailable, match="AccessDenied"):
                    await plug.send(batch(first, first + 1, stream="alerts"))

        async def taken() -> None:
            for first in range(12):
                await plug.send(batch(first, first + 1))

        await asyncio.gather(refused(), taken(), taken())
    assert store.sequences() == list(range(12))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"access_key_id": "a"}, "the two come together"),
        ({"session_token": "t"}, "needs access_key_id and secret_access_key"),
        ({"access_key_id": "a", "secret_access_key": "b", "profile": "p"}, "two ways to say who we are"),
        ({"encryption": {"algorithm": "AES256", "kms_key_id": "k"}}, "AES256 uses none"),
        ({"endpoint": "minio:9000"}, "endpoint"),
        ({"batch_bytes": "65MiB"}, "batch_bytes"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    """At the start, with the key."""
    with pytest.raises(ValidationError, match=message):
        s3.Config(bucket="logs", **settings)


def test_secrets_are_not_shown() -> None:
    """In no log line and no reference."""
    shown = repr(s3.Config(bucket="logs", access_key_id="a", secret_access_key="hidden", session_token="hidden"))
    assert "hidden" not in shown
