# The compiled twin of kafka_records.py: same calls, same bytes (tests/wire/test_kafka_records.py runs both).
#
# Two passes over the events with the GIL released. The first finds each event's batch and the length of its record, so
# that the second writes into buffers of exactly the right size. The arrays of an EventBatch are checked against its
# bytes in the first: nothing is read outside them, whoever made them. CRC-32C takes the processor's own instruction
# where it has it (SSE4.2, asked at run time), else eight tables.

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from libc.stdint cimport int32_t

from ndagent.wire import kafka_records as _kafka

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <nmmintrin.h>
    #define ND_CRC_INSTRUCTION 1
    __attribute__((target("sse4.2")))
    static uint32_t nd_crc_fast(uint32_t crc, const uint8_t *p, size_t n) {
        uint64_t wide = crc, word;
        for (; n >= 8; p += 8, n -= 8) { memcpy(&word, p, 8); wide = _mm_crc32_u64(wide, word); }
        crc = (uint32_t)wide;
        for (; n; p++, n--) crc = _mm_crc32_u8(crc, *p);
        return crc;
    }
    #endif

    static uint32_t nd_crc_tables[8][256];

    static void nd_crc_prepare(void) {
        uint32_t i, j, crc;
        for (i = 0; i < 256; i++) {
            for (crc = i, j = 0; j < 8; j++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
            nd_crc_tables[0][i] = crc;
        }
        for (i = 0; i < 256; i++)
            for (j = 1; j < 8; j++)
                nd_crc_tables[j][i] = nd_crc_tables[j - 1][i] >> 8 ^ nd_crc_tables[0][nd_crc_tables[j - 1][i] & 255];
    }

    static uint32_t nd_crc_plain(uint32_t crc, const uint8_t *p, size_t n) {
        for (; n >= 8; p += 8, n -= 8) {
            crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
            crc = nd_crc_tables[7][crc & 255] ^ nd_crc_tables[6][crc >> 8 & 255] ^ nd_crc_tables[5][crc >> 16 & 255]
                ^ nd_crc_tables[4][crc >> 24] ^ nd_crc_tables[3][p[4]] ^ nd_crc_tables[2][p[5]]
                ^ nd_crc_tables[1][p[6]] ^ nd_crc_tables[0][p[7]];
        }
        for (; n; p++, n--) crc = nd_crc_tables[0][(crc ^ *p) & 255] ^ crc >> 8;
        return crc;
    }

    static uint32_t nd_crc(uint32_t crc, const uint8_t *p, size_t n, int plain) {
    #ifdef ND_CRC_INSTRUCTION
        if (!plain && __builtin_cpu_supports("sse4.2")) return nd_crc_fast(crc, p, n);
    #endif
        return nd_crc_plain(crc, p, n);
    }
    """
    void nd_crc_prepare()
    uint32_t nd_crc(uint32_t, const uint8_t *, size_t, bint) nogil

nd_crc_prepare()

cdef struct KafkaBatch:
    uint32_t partition
    Py_ssize_t records
    int64_t first_ms, max_ms
    Py_ssize_t size  # header included
    char *o  # where the next record goes

cdef struct KafkaEvent:
    Bytes key
    Py_ssize_t key_size
    Py_ssize_t body  # bytes of the record behind its length
    Py_ssize_t batch  # -1: too large
    int32_t offset

cdef struct KafkaWork:
    Bytes ndjson
    Py_ssize_t size, count
    const uint32_t *lengths
    const uint32_t *host_offsets
    const uint16_t *host_lengths
    const uint32_t *hashes
    const int64_t *times
    bint one_time
    Span *ids  # NULL: no headers
    Py_ssize_t strays
    const uint32_t *stray_positions
    const uint32_t *stray_hashes
    Span *stray_keys
    uint32_t partitions
    Py_ssize_t batch_bytes, record_bytes, batch_records  # batch_records < 0: any number
    KafkaEvent *events
    Py_ssize_t *newest  # partition → its batch, or -1
    KafkaBatch *batches
    Py_ssize_t batches_used, batches_room


cdef inline uint64_t zigzag(int64_t value) noexcept nogil:
    return (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)


cdef inline Py_ssize_t varint_size(int64_t value) noexcept nogil:
    cdef uint64_t rest = zigzag(value)
    cdef Py_ssize_t size = 1
    while rest > 0x7F:
        rest >>= 7
        size += 1
    return size


cdef inline char *put_varint(char *o, int64_t value) noexcept nogil:
    cdef uint64_t rest = zigzag(value)
    while rest > 0x7F:
        o[0] = <char>(rest & 0x7F | 0x80)
        o += 1
        rest >>= 7
    o[0] = <char>rest
    return o + 1


cdef inline char *put_sized(char *o, Bytes at, Py_ssize_t size) noexcept nogil:
    o = put_varint(o, size)
    memcpy(o, at, size)
    return o + size


cdef inline Py_ssize_t sized_size(Py_ssize_t size) noexcept nogil:
    return varint_size(size) + size


cdef bytes _ID_HEADER = b"\2" + _kafka.sized(_kafka.ID_HEADER)  # one header, its key
cdef Span ID_HEADER = view_of(_ID_HEADER)
cdef Py_ssize_t BATCH_HEADER = _kafka.HEADER.size
cdef Py_ssize_t RECORD_OVERHEAD = _kafka.RECORD_OVERHEAD


cdef Py_ssize_t open_batch(KafkaWork *w, uint32_t partition, int64_t first_ms) except -1 nogil:
    cdef KafkaBatch *b
    cdef KafkaBatch *grown
    if w.batches_used == w.batches_room:
        grown = <KafkaBatch *>realloc(w.batches, 2 * (w.batches_room + 32) * sizeof(KafkaBatch))
        if grown == NULL:
            with gil:
                raise MemoryError
        w.batches, w.batches_room = grown, 2 * (w.batches_room + 32)
    b = &w.batches[w.batches_used]
    b.partition, b.records, b.size = partition, 0, BATCH_HEADER
    b.first_ms = b.max_ms = first_ms
    w.newest[partition] = w.batches_used
    w.batches_used += 1
    return w.batches_used - 1


cdef int place_records(KafkaWork *w) except -1 nogil:
    """The first pass; -2 where the arrays do not fit the bytes."""
    cdef Py_ssize_t i, at = 0, stray = 0, content, number, body, record
    cdef uint32_t length, partition
    cdef int64_t time_ms
    cdef KafkaEvent *e
    cdef KafkaBatch *b
    for i in range(w.count):
        e, length = &w.events[i], w.lengths[i]
        if length == 0 or length > w.size - at or <Py_ssize_t>w.host_offsets[i] + w.host_lengths[i] > length:
            return -2
        if stray < w.strays and w.stray_positions[stray] == i:
            e.key, e.key_size = w.stray_keys[stray].at, w.stray_keys[stray].size
            partition = w.stray_hashes[stray] % w.partitions
            stray += 1
        else:
            e.key, e.key_size = w.ndjson + at + w.host_offsets[i], w.host_lengths[i]
            partition = w.hashes[i] % w.partitions
        at += length
        content = sized_size(e.key_size) + sized_size(length - 1)
        content += 1 if w.ids == NULL else ID_HEADER.size + sized_size(w.ids[i].size)
        e.batch = -1
        if BATCH_HEADER + RECORD_OVERHEAD + content > w.record_bytes:
            continue
        time_ms = w.times[0 if w.one_time else i]
        number = w.newest[partition]
        while True:
            if number < 0:
                number = open_batch(w, partition, time_ms)
            b = &w.batches[number]
            body = 1 + varint_size(time_ms - b.first_ms) + varint_size(b.records) + content
            record = varint_size(body) + body
            if not b.records or (b.records != w.batch_records and b.size + record <= w.batch_bytes):
                break
            number = -1
        e.batch, e.body, e.offset = number, body, <int32_t>b.records
        b.size += record
        b.records += 1
        b.max_ms = max(b.max_ms, time_ms)
    return 0 if at == w.size and stray == w.strays else -2


cdef void write_records(KafkaWork *w) noexcept nogil:
    """The second pass."""
    cdef Py_ssize_t i
    cdef Bytes line = w.ndjson
    cdef KafkaEvent *e
    cdef KafkaBatch *b
    cdef char *o
    for i in range(w.count):
        e = &w.events[i]
        if e.batch >= 0:
            b = &w.batches[e.batch]
            o = put_varint(b.o, e.body)
            o[0] = 0
            o = put_varint(o + 1, w.times[0 if w.one_time else i] - b.first_ms)
            o = put_varint(o, e.offset)
            o = put_sized(o, e.key, e.key_size)
            o = put_sized(o, line, w.lengths[i] - 1)
            if w.ids == NULL:
                o[0] = 0
                b.o = o + 1
            else:
                b.o = put_sized(put_span(o, ID_HEADER), w.ids[i].at, w.ids[i].size)
        line += w.lengths[i]


cdef Span *_spans(list texts) except? NULL:
    """Views of these bytes, which must outlive them."""
    cdef Span *found = <Span *>PyMem_Malloc((len(texts) + 1) * sizeof(Span))
    cdef Py_ssize_t i
    if found == NULL:
        raise MemoryError
    for i in range(len(texts)):
        found[i] = view_of(texts[i])
    return found


def find_strays(events):
    """See kafka_records.find_strays."""
    cdef const uint32_t[::1] lengths = events.lengths, offsets = events.host_offsets
    cdef const uint16_t[::1] host_lengths = events.host_lengths
    cdef bytes ndjson = events.ndjson
    cdef Bytes line = <Bytes>PyBytes_AS_STRING(ndjson), name, q
    cdef Py_ssize_t i, found = 0, count = lengths.shape[0], left = PyBytes_GET_SIZE(ndjson)
    cdef c_array.array positions = _array_of(_U32, count)
    cdef bint is_stray
    if offsets.shape[0] != count or host_lengths.shape[0] != count:
        raise ValueError("arrays of different lengths")
    with nogil:
        for i in range(count):
            if lengths[i] > left or <Py_ssize_t>offsets[i] + host_lengths[i] > lengths[i]:
                break
            is_stray = offsets[i] == 0
            if not is_stray:
                name = line + offsets[i]
                is_stray = memchr(name, c'\\', host_lengths[i]) != NULL
                q = name
                while not is_stray:  # U+FFFD is EF BF BD
                    q = <Bytes>memchr(q, 0xEF, name + host_lengths[i] - q)
                    if q == NULL:
                        break
                    is_stray = name + host_lengths[i] - q >= 3 and q[1] == 0xBF and q[2] == 0xBD
                    q += 1
            if is_stray:
                positions.data.as_uints[found] = <uint32_t>i
                found += 1
            line += lengths[i]
            left -= lengths[i]
        else:
            i = count
    if i != count:
        raise ValueError("the arrays do not fit the events")
    c_array.resize(positions, found)
    return positions


def encode_records(events, *, partitions, strays, stamps, limits):
    """See kafka_records.encode_records."""
    cdef const uint32_t[::1] lengths = events.lengths, offsets = events.host_offsets, hashes = events.keys
    cdef const uint32_t[::1] stray_positions = strays.positions, stray_hashes = strays.hashes
    cdef const uint16_t[::1] host_lengths = events.host_lengths
    cdef const int64_t[::1] times = stamps.times_ms
    cdef bytes ndjson = events.ndjson
    cdef list stray_keys = strays.keys, ids = None if stamps.ids is None else list(stamps.ids)
    cdef KafkaWork w
    cdef Py_ssize_t i
    cdef int result
    memset(&w, 0, sizeof(w))
    w.count, w.strays = lengths.shape[0], stray_positions.shape[0]
    if not (offsets.shape[0] == host_lengths.shape[0] == hashes.shape[0] == w.count):
        raise ValueError("arrays of different lengths")
    if len(stray_keys) != w.strays or stray_hashes.shape[0] != w.strays:
        raise ValueError("strays of different lengths")
    if times.shape[0] not in (1, w.count):
        raise ValueError(f"{times.shape[0]} times for {w.count} events")
    if ids is not None and len(ids) != w.count:
        raise ValueError(f"{len(ids)} ids for {w.count} events")
    if not 0 < partitions < 1 << 31:
        raise ValueError(f"{partitions} partitions")
    if not w.count:
        return [], []
    w.ndjson, w.size = <Bytes>PyBytes_AS_STRING(ndjson), PyBytes_GET_SIZE(ndjson)
    w.lengths, w.host_offsets, w.host_lengths, w.hashes = &lengths[0], &offsets[0], &host_lengths[0], &hashes[0]
    w.times, w.one_time, w.partitions = &times[0], times.shape[0] != w.count, partitions
    if w.strays:
        w.stray_positions, w.stray_hashes = &stray_positions[0], &stray_hashes[0]
    w.batch_bytes, w.record_bytes = limits.batch_bytes, limits.record_bytes
    w.batch_records = -1 if limits.batch_records is None else limits.batch_records
    try:
        w.stray_keys = _spans(stray_keys)
        w.ids = NULL if ids is None else _spans(ids)
        w.events = <KafkaEvent *>PyMem_Malloc(w.count * sizeof(KafkaEvent))
        w.newest = <Py_ssize_t *>PyMem_Malloc(w.partitions * sizeof(Py_ssize_t))
        if w.events == NULL or w.newest == NULL:
            raise MemoryError
        for i in range(w.partitions):
            w.newest[i] = -1
        with nogil:
            result = place_records(&w)
        if result:
            raise ValueError("the arrays do not fit the events")
        batches = []
        for i in range(w.batches_used):
            batches.append(_open_batch(&w.batches[i]))
        with nogil:
            write_records(&w)
        return batches, [i for i in range(w.count) if w.events[i].batch < 0]
    finally:
        PyMem_Free(w.stray_keys)
        PyMem_Free(w.ids)
        PyMem_Free(w.events)
        PyMem_Free(w.newest)
        free(w.batches)


cdef _open_batch(KafkaBatch *b):
    data = PyByteArray_FromStringAndSize(NULL, b.size)
    b.o = PyByteArray_AS_STRING(data)
    memset(b.o, 0, BATCH_HEADER)
    b.o += BATCH_HEADER
    return _kafka.RecordBatch(b.partition, b.records, b.first_ms, b.max_ms, data)


def crc32c(const uint8_t[::1] data, *, bint plain=False):
    """See kafka_records.crc32c; `plain` does without the processor's instruction, for tests."""
    cdef uint32_t crc = 0xFFFFFFFF
    if data.shape[0]:
        with nogil:
            crc = nd_crc(crc, &data[0], data.shape[0], plain)
    return crc ^ <uint32_t>0xFFFFFFFF


cdef uint32_t crc_product(uint32_t a, uint32_t b) noexcept:
    cdef uint32_t found = 0
    while a:
        if a & <uint32_t>0x80000000:
            found ^= b
        a <<= 1
        b = b >> 1 ^ (<uint32_t>0x82F63B78 if b & 1 else 0)
    return found


def join_crc32c(uint32_t front, uint32_t back, Py_ssize_t back_bytes):
    """See kafka_records.join_crc32c."""
    cdef uint32_t factor = 0x80000000, power = 0x800000
    while back_bytes > 0:
        if back_bytes & 1:
            factor = crc_product(factor, power)
        power = crc_product(power, power)
        back_bytes >>= 1
    return crc_product(factor, front) ^ back
