"""The spool against a simple model: random appends, reads, saves, replays, bit flips and power cuts.

The model knows which messages were acknowledged. Whatever happens, every acknowledged message is read again unless a
bit was flipped, no (spool id, sequence) ever names two messages, and every cursor's account adds up.
"""

import asyncio
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from spool_layers import CrashFiles, PowerCut, batch, messages

from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool, SpoolConfig, offline

CURSORS = ("slow", "fast")


class SpoolMachine(RuleBasedStateMachine):
    """Drives one spool directory through its life."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.root = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.directory = self.root / "test"
        self.files = CrashFiles()
        self.spool = None
        self.next_message = 0
        self.acknowledged = set()
        self.read = {name: set() for name in CURSORS}
        self.names = {}
        self.flipped = self.holes = False

    def teardown(self):
        if self.spool is not None:
            self.loop.run_until_complete(self.spool.aclose())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.root)

    @initialize(tip_bytes=st.sampled_from([0, 500, 1 << 20]))
    def first_open(self, tip_bytes):
        self.config = SpoolConfig(segment_bytes=8192, max_bytes=1 << 20, tip_bytes=tip_bytes)
        self.open()

    def open(self):
        self.spool = self.loop.run_until_complete(
            Spool.open(self.directory, stream="test", config=self.config, metrics=Metrics(), files=self.files)
        )
        self.cursors = {name: self.spool.cursor(name) for name in CURSORS}

    @rule(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6))
    def append(self, sizes):
        self.loop.run_until_complete(self.append_all(sizes))

    async def append_all(self, sizes):
        await asyncio.gather(*[self.append_one(size) for size in sizes])

    async def append_one(self, size, spool=None):
        texts = []
        for _ in range(1 + size % 3):
            texts.append(f"{self.next_message}:" + "x" * (size // 3))
            self.next_message += 1
        await (spool or self.spool).append(batch(*texts))
        self.acknowledged.update(int(text.partition(":")[0]) for text in texts)

    @rule(name=st.sampled_from(CURSORS), max_bytes=st.integers(1, 20_000))
    def read_some(self, name, max_bytes):
        self.loop.run_until_complete(self.read_once(name, max_bytes))

    async def read_once(self, name, max_bytes):
        cursor = self.cursors[name]
        task = asyncio.ensure_future(cursor.read(max_bytes))
        while not task.done() and cursor._next < self.spool.readable:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            return
        for record in await task:
            found = [int(text.partition(":")[0]) for text in messages(record)]
            assert len(found) == record.count
            for sequence, message in enumerate(found, record.sequence):
                assert self.names.setdefault((record.spool_id, sequence), message) == message
            self.read[name].update(found)

    @rule(name=st.sampled_from(CURSORS), part=st.floats(0, 1))
    def advance(self, name, part):
        cursor = self.cursors[name]
        cursor.advance(cursor.sequence + int((cursor._next - cursor.sequence) * part))

    @rule(name=st.sampled_from(CURSORS))
    def save(self, name):
        self.loop.run_until_complete(self.cursors[name].save())
        assert not self.cursors[name].unsaved

    @rule(name=st.sampled_from(CURSORS))
    def rewind(self, name):
        self.cursors[name].rewind()

    @rule(name=st.sampled_from(CURSORS), back=st.integers(0, 40), length=st.none() | st.integers(0, 20))
    def replay(self, name, back, length):
        first = max(self.cursors[name].sequence - back, 0)
        self.cursors[name].replay(first, None if length is None else first + length)

    @rule()
    def stop_and_start(self):
        self.loop.run_until_complete(self.spool.aclose())
        self.open()

    @rule(
        operations=st.integers(0, 12),
        seed=st.integers(0, 2**32),
        sizes=st.lists(st.integers(0, 3000), max_size=5),
        holes=st.booleans(),
    )
    def power_cut(self, operations, seed, sizes, holes):
        """The power goes at the n-th file operation of some appends and saves; a hole may look like damage."""
        self.loop.run_until_complete(self.work_until_power_cut(operations, sizes))
        self.files.crash(self.directory, random.Random(seed), holes=holes)
        self.holes |= holes
        if not self.flipped and not self.holes:
            assert offline.verify(self.directory) == []
        self.open()

    @rule(operations=st.integers(0, 12), sizes=st.lists(st.integers(0, 3000), max_size=5))
    def kill(self, operations, sizes):
        """The process ends at the n-th file operation; what it wrote is still in the page cache."""
        self.loop.run_until_complete(self.work_until_power_cut(operations, sizes))
        self.files.operations_left = None
        self.open()

    async def work_until_power_cut(self, operations, sizes):
        spool, self.spool = self.spool, None
        self.files.operations_left = operations
        runner = spool._tasks[0]
        appends = [asyncio.ensure_future(self.append_one(size, spool)) for size in sizes]
        saves = [asyncio.ensure_future(cursor.save()) for cursor in self.cursors.values()]
        await asyncio.wait(saves)
        while not runner.done() and not all(task.done() for task in appends):
            await asyncio.wait([runner, *appends], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.get_running_loop().run_in_executor(spool._thread, int)
        for task in [*appends, runner]:
            task.cancel()
        for result in await asyncio.gather(*appends, *saves, *spool._tasks, return_exceptions=True):
            assert result is None or isinstance(result, PowerCut | asyncio.CancelledError), result
        spool._thread.shutdown()
        for fd in list(self.files.paths):
            self.files.close(fd)

    @rule(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def flip_a_bit(self, where, bit):
        at = int(where * self.spool.total_bytes)
        for segment in self.spool._room.segments:
            if at < segment.size:
                data = bytearray(segment.path.read_bytes())
                data[at] ^= 1 << bit
                segment.path.write_bytes(data)
                self.flipped = True
                return
            at -= segment.size

    @rule()
    def drain_and_compare(self):
        for name, cursor in self.cursors.items():
            cursor.rewind()
            while cursor._next < self.spool.readable:
                self.loop.run_until_complete(self.read_once(name, 4096))
            cursor.advance(cursor._next)
            account = cursor.account()
            assert account.pending == 0
            missing = self.acknowledged - self.read[name]
            if not self.flipped:
                assert not missing
            assert len(missing) <= account.quarantined + account.evicted

    @invariant()
    def accounts_add_up(self):
        for cursor in self.cursors.values() if self.spool is not None else ():
            account = cursor.account()
            assert account.appended == sum(account) - account.appended
            assert min(account) >= 0


SpoolMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSpoolModel = SpoolMachine.TestCase
