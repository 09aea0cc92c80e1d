"""The bytes of a segment: what was packed is parsed, anything else is None."""


from hypothesis import given
from hypothesis import strategies as st

from ndagent.core.spool.files import OsFiles
from ndagent.core.spool.scan import Damage, Found, Span, Window, scan, with_body
from ndagent.core.spool.segment import (
    RecordHeader,
    SegmentHeader,
    crc32,
    pack_record_header,
    pack_segment_header,
    parse_record_header,
    parse_segment_header,
    parse_segment_name,
    repair_record_header,
    segment_name,
    spool_id_text,
)

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
HEADERS = st.builds(RecordHeader, U32, U32, U64, U32, U64)


@given(header=HEADERS, salt=U32, bit=st.integers(0, 319))
def test_a_record_header_reads_back_and_survives_no_flipped_bit_but_can_be_repaired(header, salt, bit):
    """Its CRC finds every single flipped bit, and so can name it."""
    data = bytearray(pack_record_header(header, salt))
    assert parse_record_header(bytes(data), salt) == header
    assert parse_record_header(bytes(data), salt ^ 1) is None
    data[bit >> 3] ^= 1 << (bit & 7)
    assert parse_record_header(bytes(data), salt) is None
    assert repair_record_header(bytes(data), salt) == header


@given(spool_id=st.binary(min_size=10, max_size=10), base=U64, created=U64, bit=st.integers(0, 351))
def test_a_segment_header_reads_back_and_survives_no_flipped_bit(spool_id, base, created, bit):
    """The same for a segment's."""
    header = SegmentHeader(1, 0, spool_id, base, created)
    data = bytearray(pack_segment_header(header))
    assert parse_segment_header(bytes(data)) == header
    data[bit >> 3] ^= 1 << (bit & 7)
    assert parse_segment_header(bytes(data)) is None


def test_segment_names_sort_as_their_sequences_and_other_files_are_not_segments():
    """`ls` shows them in order, and a lock or a copy beside them is left alone."""
    names = [segment_name(base, attempt) for base, attempt in [(0, 0), (9, 0), (9, 1), (10, 0), (2**63, 0)]]
    assert names == sorted(names)
    assert parse_segment_name(names[2]) == (9, 1)
    assert parse_segment_name("lock") is None
    assert parse_segment_name(names[0] + ".bak") is None


@given(st.binary(min_size=10, max_size=10))
def test_a_spool_id_is_sixteen_base_36_digits(spool_id):
    """It stands in every event.id."""
    assert int(spool_id_text(spool_id), 36) == int.from_bytes(spool_id, "big")
    assert len(spool_id_text(spool_id)) == 16


class MemoryFiles(OsFiles):
    """One file, in memory; counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read_bytes = 0

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self.read_bytes += length
        return self.data[offset : offset + length]


def scan_all(data: bytes, chunk_bytes: int) -> tuple[list[Found | Damage], MemoryFiles]:
    files = MemoryFiles(data)
    window = Window(files, 0, len(data), chunk_bytes)
    items = scan(window, Span(0, len(data), 0, 1 << 63, salt=7))
    return [with_body(window, item) if isinstance(item, Found) else item for item in items], files


def pack(*bodies: bytes) -> bytes:
    records = [
        pack_record_header(RecordHeader(len(body), crc32(body), index, 1, 1), 7) + body
        for index, body in enumerate(bodies)
    ]
    return b"".join(records)


@given(bodies=st.lists(st.binary(max_size=300), max_size=8), chunk=st.integers(1, 500), junk=st.binary(max_size=200))
def test_scanning_finds_every_record_whatever_the_window_and_the_junk_between(bodies, chunk, junk):
    """Damage costs what it covers, and nothing behind it."""
    data = pack(*bodies)
    found, _ = scan_all(data, chunk)
    assert [bytes(item.body) for item in found] == bodies
    found, _ = scan_all(data[: len(data) // 2] and junk + data, chunk)
    assert [bytes(item.body) for item in found if isinstance(item, Found)] == (bodies if data else [])


@given(st.binary(max_size=2000), st.integers(1, 300))
def test_scanning_garbage_ends_and_covers_it_all(data, chunk):
    """No input makes the scan loop, skip bytes or raise."""
    found, _ = scan_all(data, chunk)
    covered = sum(item.length if isinstance(item, Damage) else item.end_offset - item.offset for item in found)
    assert covered == len(data)


def test_searching_for_the_next_header_is_linear_however_often_the_magic_appears():
    """A body full of magics must not cost a read for each of them."""
    data = b"NDr\xb1" * 500_000
    found, files = scan_all(data, 4096)
    assert [item.length for item in found] == [len(data)]
    assert files.read_bytes < 4 * len(data)


def test_the_length_in_a_header_that_was_forged_or_cut_is_never_believed():
    """A record that would end behind the file is a torn tail."""
    huge = pack_record_header(RecordHeader(2**32 - 1, 0, 5, 1, 1), 7) + b"x"
    (item,), _ = scan_all(huge, 64)
    assert item.torn
