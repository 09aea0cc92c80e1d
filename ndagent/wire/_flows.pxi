# The compiled twin of netflow/lines.py: the lines of a set of flow records by a plan (netflow/steps.py), byte for byte
# what its makers give out of columns.
#
# A buffer grows before each record by all that its steps of known size can take, and before each text by that text, so
# that no write needs a check of its own. A record is read only where the plan's columns are, which the plan's
# record_bytes hold. SHA-1 is of one block: Community ID hashes 16 octets, or 40.

from cpython.long cimport PyLong_FromLongLong, PyLong_FromUnsignedLongLong
from libc.stdint cimport int32_t
from libc.stdlib cimport free, realloc

cdef extern from *:
    """
    static inline uint32_t nd_roll(uint32_t value, int by) { return value << by | value >> (32 - by); }

    /* FIPS 180-4, 6.1.2, of a message that ends with a word and fits in one block with its padding: up to 52 octets. */
    static void nd_sha1_of_one(const uint8_t *message, int words, uint8_t *digest) {
        uint32_t h[5] = {0x67452301u, 0xEFCDAB89u, 0x98BADCFEu, 0x10325476u, 0xC3D2E1F0u};
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f, next;
        int t;
        memset(w, 0, 64);
        for (t = 0; t < words; t++)
            w[t] = (uint32_t)message[4 * t] << 24 | (uint32_t)message[4 * t + 1] << 16
                 | (uint32_t)message[4 * t + 2] << 8 | message[4 * t + 3];
        w[words] = 0x80000000u;
        w[15] = 32 * words;
        for (t = 16; t < 80; t++) w[t] = nd_roll(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
        for (t = 0; t < 80; t++) {
            if (t < 20) f = ((b & c) | (~b & d)) + 0x5A827999u;
            else if (t < 40) f = (b ^ c ^ d) + 0x6ED9EBA1u;
            else if (t < 60) f = ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDCu;
            else f = (b ^ c ^ d) + 0xCA62C1D6u;
            next = nd_roll(a, 5) + f + e + w[t];
            e = d; d = c; c = nd_roll(b, 30); b = a; a = next;
        }
        h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e;
        for (t = 0; t < 20; t++) digest[t] = (uint8_t)(h[t / 4] >> (24 - 8 * (t % 4)));
    }
    """
    void nd_sha1_of_one(const uint8_t *, int, uint8_t *) nogil

cdef int OP_HEAD, OP_OBSERVER, OP_ABOUT, OP_RATE, OP_NUMBER, OP_PRODUCT, OP_TEXT, OP_ADDRESS, OP_QUOTED_ADDRESS
cdef int OP_SPAN, OP_UPTIME_SPAN, OP_IDENTITY, OP_CONSTANT
cdef uint64_t LAST_MILLISECOND = 0  # 0: nobody has asked for flows yet
cdef uint64_t HUGE_DURATION = 18446744073709  # milliseconds that are more nanoseconds than 64 bits hold
cdef Py_ssize_t STEP_BYTES = 120  # what any step but a text takes at most: a span with its duration
cdef bint is_ported[256]


cdef int prepare_flows() except -1:
    """Once, and only where there are flows: the modules of netflow are a megabyte."""
    global OP_HEAD, OP_OBSERVER, OP_ABOUT, OP_RATE, OP_NUMBER, OP_PRODUCT, OP_TEXT, OP_ADDRESS, OP_QUOTED_ADDRESS
    global OP_SPAN, OP_UPTIME_SPAN, OP_IDENTITY, OP_CONSTANT, LAST_MILLISECOND
    from ndagent.wire.netflow.community_id import HAS_PORTS
    from ndagent.wire.netflow.steps import Op
    from ndagent.wire.netflow.times import LAST_MS

    OP_HEAD, OP_OBSERVER, OP_ABOUT, OP_RATE = Op.HEAD, Op.OBSERVER, Op.ABOUT, Op.RATE
    OP_NUMBER, OP_PRODUCT, OP_TEXT, OP_CONSTANT = Op.NUMBER, Op.PRODUCT, Op.TEXT, Op.CONSTANT
    OP_ADDRESS, OP_QUOTED_ADDRESS, OP_IDENTITY = Op.ADDRESS, Op.QUOTED_ADDRESS, Op.IDENTITY
    OP_SPAN, OP_UPTIME_SPAN = Op.SPAN, Op.UPTIME_SPAN
    for protocol in range(256):
        is_ported[protocol] = protocol in HAS_PORTS
    LAST_MILLISECOND = LAST_MS + 999
    return 0


cdef struct FlowColumn:
    char code  # U, I, S
    Py_ssize_t offset
    int length

cdef struct FlowStep:
    int op
    int columns
    FlowColumn at[6]
    PyObject *how  # borrowed of the plan

cdef struct FlowOut:
    char *start
    char *o
    Py_ssize_t room


cdef int flow_room(FlowOut *out, Py_ssize_t more) except -1:
    cdef Py_ssize_t used = out.o - out.start, wanted
    cdef char *grown
    if used + more <= out.room:
        return 0
    wanted = 2 * (used + more)
    grown = <char *>realloc(out.start, wanted)
    if grown == NULL:
        raise MemoryError
    out.start, out.o, out.room = grown, grown + used, wanted
    return 0


cdef inline uint64_t flow_number(Bytes record, FlowColumn *column) noexcept nogil:
    """Big-endian, unsigned."""
    cdef uint64_t value = 0
    cdef int i
    for i in range(column.length):
        value = value << 8 | record[column.offset + i]
    return value


cdef inline int64_t flow_signed(Bytes record, FlowColumn *column) noexcept nogil:
    cdef int unused = 64 - 8 * column.length
    return <int64_t>(flow_number(record, column) << unused) >> unused


cdef object flow_value(Bytes record, FlowColumn *column):
    if column.code == c'S':
        return PyBytes_FromStringAndSize(<const char *>record + column.offset, column.length)
    if column.code == c'I':
        return PyLong_FromLongLong(flow_signed(record, column))
    return PyLong_FromUnsignedLongLong(flow_number(record, column))


cdef int put_flow_text(FlowOut *out, bytes text, Py_ssize_t behind) except -1:
    """`behind` bytes of room are left for what follows."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    flow_room(out, size + behind)
    memcpy(out.o, PyBytes_AS_STRING(text), size)
    out.o += size
    return 0


cdef char *put_flow_number(char *o, Bytes record, FlowColumn *column) noexcept nogil:
    cdef int64_t value
    if column.code == c'U':
        return put_number(o, flow_number(record, column), 10)
    value = flow_signed(record, column)
    if value < 0:
        o[0] = c'-'
        return put_number(o + 1, 0 - <uint64_t>value, 10)
    return put_number(o, value, 10)


cdef char *put_quad(char *o, uint64_t address) noexcept nogil:
    cdef int i
    for i in range(3):
        o = put_number(o, address >> (24 - 8 * i) & 255, 10)
        o[0] = c'.'
        o += 1
    return put_number(o, address & 255, 10)


cdef char *put_flow_time(char *o, uint64_t at) noexcept nogil:
    """times._SPAN's texts: RFC 3339 in UTC with milliseconds, in quotes."""
    cdef uint64_t seconds = at // 1000
    cdef int of_day = <int>(seconds % 86400), fraction = <int>(at % 1000)
    o[0] = c'"'
    put_date(o + 1, <int64_t>(seconds // 86400))
    o[11] = c'T'
    put_two(o + 12, of_day // 3600)
    o[14] = c':'
    put_two(o + 15, of_day // 60 % 60)
    o[17] = c':'
    put_two(o + 18, of_day % 60)
    o[20] = c'.'
    o[21] = c'0' + fraction // 100
    put_two(o + 22, fraction % 100)
    memcpy(o + 24, b'Z"', 2)
    return o + 26


cdef char *put_flow_span(char *o, uint64_t start, uint64_t end) noexcept nogil:
    """times._span: an instant that no calendar has is left out."""
    cdef bint has_start = start <= LAST_MILLISECOND, has_end = end <= LAST_MILLISECOND
    if has_start:
        memcpy(o, b',"start":', 9)
        o = put_flow_time(o + 9, start)
    if has_end:
        memcpy(o, b',"end":', 7)
        o = put_flow_time(o + 7, end)
    if has_start and has_end and start <= end:
        memcpy(o, b',"duration":', 12)
        o += 12
        if end - start < HUGE_DURATION:
            return put_number(o, (end - start) * 1_000_000, 10)
        o = put_number(o, end - start, 10)
        memcpy(o, b"000000", 6)
        o += 6
    return o


cdef uint64_t since_boot(uint32_t value, int64_t export_ms, uint32_t uptime_ms) noexcept nogil:
    """times._since_boot, of one value; before 1970 it is beyond any calendar, as an unsigned number."""
    return <uint64_t>(export_ms - <int32_t>(uptime_ms - value))


cdef char *put_identity(char *o, Bytes near, Bytes far, int size, int protocol, int near_port, int far_port) noexcept nogil:
    """community_id.community_id, of addresses of 4 or 16 octets and a protocol with ports."""
    cdef uint8_t message[40]
    cdef uint8_t digest[20]
    cdef uint8_t *p = message + 2
    cdef Span whole
    cdef int order = memcmp(near, far, size)
    if order > 0 or (order == 0 and near_port > far_port):
        near, far, near_port, far_port = far, near, far_port, near_port
    message[0] = message[1] = 0
    memcpy(p, near, size)
    memcpy(p + size, far, size)
    p += 2 * size
    p[0], p[1] = <uint8_t>protocol, 0
    p[2], p[3] = <uint8_t>(near_port >> 8), <uint8_t>near_port
    p[4], p[5] = <uint8_t>(far_port >> 8), <uint8_t>far_port
    nd_sha1_of_one(message, 2 + size // 2, digest)
    memcpy(o, b"1:", 2)
    whole.at, whole.size = digest, 20
    return put_base64(o + 2, whole)


cdef class FlowWriter:
    """See codec.FlowWriter; of a steps.Plan."""

    cdef object _plan
    cdef FlowStep *_steps
    cdef Py_ssize_t _count, _record_bytes, _line_bytes
    cdef Span *_pieces

    def __cinit__(self, plan):
        cdef Py_ssize_t i
        cdef list pieces = plan.pieces
        if LAST_MILLISECOND == 0:
            prepare_flows()
        self._plan = plan
        self._count = len(plan.steps)
        assert len(pieces) == self._count + 1 and pieces[0] == b"" and plan.steps[0].op == OP_HEAD
        self._record_bytes = plan.record_bytes
        self._line_bytes = sum(map(len, pieces)) + STEP_BYTES * self._count
        self._steps = <FlowStep *>PyMem_Malloc(self._count * sizeof(FlowStep))
        self._pieces = <Span *>PyMem_Malloc((self._count + 1) * sizeof(Span))
        if self._steps == NULL or self._pieces == NULL:
            raise MemoryError
        for i in range(self._count):
            self._prepare(self._steps + i, plan.steps[i], plan.columns)
        for i in range(self._count + 1):
            self._pieces[i] = view_of(pieces[i])

    cdef int _prepare(self, FlowStep *step, object said, list columns) except -1:
        cdef int i
        step.op = said.op
        step.how = <PyObject *>said.how
        step.columns = len(said.at)
        assert step.columns <= 6
        for i in range(step.columns):
            code, offset, length = columns[said.at[i]]
            assert offset >= 0 and offset + length <= self._record_bytes and (code == "S" or length <= 8)
            step.at[i].code, step.at[i].offset, step.at[i].length = ord(code), offset, length
        return 0

    def __dealloc__(self):
        PyMem_Free(self._steps)
        PyMem_Free(self._pieces)

    def write(
        self, const unsigned char[::1] content, *, bytes head, bytes observer, bytes about, uint64_t rate,
        int64_t export_ms, uint32_t uptime_ms
    ):
        """A line for each whole record."""
        cdef FlowOut out
        cdef Py_ssize_t i, j, total = content.shape[0] // self._record_bytes
        cdef Py_ssize_t room = self._line_bytes + len(head) + len(observer) + len(about)
        cdef Bytes record
        if total == 0:
            return b""
        out.start = out.o = NULL
        out.room = 0
        try:
            for i in range(total):
                record = &content[i * self._record_bytes]
                flow_room(&out, room)
                put_flow_text(&out, head, room)
                for j in range(1, self._count):
                    out.o = put_span(out.o, self._pieces[j])
                    self._put(&out, self._steps + j, record, room, observer, about, rate, export_ms, uptime_ms)
                out.o = put_span(out.o, self._pieces[self._count])
            return PyBytes_FromStringAndSize(out.start, out.o - out.start)
        finally:
            free(out.start)

    cdef int _put(
        self, FlowOut *out, FlowStep *step, Bytes record, Py_ssize_t room, bytes observer, bytes about, uint64_t rate,
        int64_t export_ms, uint32_t uptime_ms
    ) except -1:
        cdef FlowColumn *at = step.at
        cdef int op = step.op
        if op == OP_NUMBER:
            out.o = put_flow_number(out.o, record, at)
        elif op == OP_TEXT:
            put_flow_text(out, (<object>step.how)(flow_value(record, at)), room)
        elif op == OP_ADDRESS:
            out.o = put_quad(out.o, flow_number(record, at))
        elif op == OP_QUOTED_ADDRESS:
            out.o[0] = c'"'
            out.o = put_quad(out.o + 1, flow_number(record, at))
            out.o[0] = c'"'
            out.o += 1
        elif op == OP_SPAN:
            out.o = put_flow_span(out.o, flow_number(record, at), flow_number(record, at + 1))
        elif op == OP_UPTIME_SPAN:
            out.o = put_flow_span(
                out.o, since_boot(<uint32_t>flow_number(record, at), export_ms, uptime_ms),
                since_boot(<uint32_t>flow_number(record, at + 1), export_ms, uptime_ms)
            )
        elif op == OP_IDENTITY:
            self._put_identity(out, step, record, room)
        elif op == OP_PRODUCT:
            self._put_product(out, flow_number(record, at), rate, room)
        elif op == OP_RATE:
            out.o = put_number(out.o, rate, 10)
        elif op == OP_CONSTANT:
            put_flow_text(out, <bytes>step.how, room)
        elif op == OP_OBSERVER:
            put_flow_text(out, observer, room)
        elif op == OP_ABOUT:
            put_flow_text(out, about, room)
        else:
            raise AssertionError(op)
        return 0

    cdef int _put_product(self, FlowOut *out, uint64_t value, uint64_t rate, Py_ssize_t room) except -1:
        if value <= 0xFFFFFFFF and rate <= 0xFFFFFFFF:
            out.o = put_number(out.o, value * rate, 10)
            return 0
        return put_flow_text(out, b"%d" % (<object>value * <object>rate), room)

    cdef int _put_identity(self, FlowOut *out, FlowStep *step, Bytes record, Py_ssize_t room) except -1:
        cdef FlowColumn *at = step.at
        cdef uint64_t protocol = flow_number(record, at + 2)
        cdef uint64_t near = flow_number(record, at + 3), far = flow_number(record, at + 4)
        if protocol < 256 and is_ported[protocol] and near <= 0xFFFF and far <= 0xFFFF:
            out.o = put_identity(
                out.o, record + at[0].offset, record + at[1].offset, at[0].length, protocol, near, far
            )
            return 0
        return put_flow_text(out, (<object>step.how)(*[flow_value(record, at + i) for i in range(6)]), room)
