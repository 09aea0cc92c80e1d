# What the compiled decoder stands on: its structs, bytes and their classes, JSON text, numbers, and time (times.py).
# Included by _decode.pxi, which says how the parts hang together. Longer than 400 lines because Cython wants declared
# before use what C wants declared before use, and the SSE2 forms bring their portable twins.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython cimport array as c_array
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

import struct as _struct
from array import array as _array

from ndagent.wire import ecs as _ecs
from ndagent.wire import rfc5424 as _rfc5424
from ndagent.wire import times as _times
from ndagent.wire.decoder import decode_ecs as _decode_ecs, make_devices as _make_devices, open_body as _open_body
from ndagent.wire.devices import signatures as _signatures
from ndagent.wire.record import CorruptBody as _CorruptBody
from ndagent.wire.record import EventBatch as _EventBatch

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    char *nd_bytes "PyBytes_AS_STRING" (PyObject *) nogil

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__) || defined(_M_X64)
    #include <emmintrin.h>
    #define ND_SSE2 1
    #endif
    #if defined(_MSC_VER)
    #include <intrin.h>
    static __inline int nd_first(uint32_t mask) { unsigned long i; _BitScanForward(&i, mask); return (int)i; }
    #else
    static inline int nd_first(uint32_t mask) { return __builtin_ctz(mask); }
    #endif

    /* A literal: the compiler folds the length and the copy. */
    static inline char *nd_put(char *o, const char *s) { size_t n = strlen(s); memcpy(o, s, n); return o + n; }

    /* Copies 16 bytes; bit i is set where byte i must be escaped in JSON: '"', '\\\\', below 0x20. */
    static inline uint32_t nd_copy16(char *o, const uint8_t *s) {
    #ifdef ND_SSE2
        __m128i x = _mm_loadu_si128((const __m128i *)s);
        __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(x, _mm_set1_epi8(0x1f)), x);
        __m128i hit = _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8('"')), _mm_cmpeq_epi8(x, _mm_set1_epi8('\\\\')));
        _mm_storeu_si128((__m128i *)o, x);
        return (uint32_t)_mm_movemask_epi8(_mm_or_si128(low, hit));
    #else
        uint32_t mask = 0;
        int i;
        for (i = 0; i < 16; i++) {
            uint8_t c = s[i];
            mask |= (uint32_t)(c < 0x20 || c == '"' || c == '\\\\') << i;
        }
        memcpy(o, s, 16);
        return mask;
    #endif
    }

    /* Bit i is set where byte i of 16 equals c. */
    static inline uint32_t nd_equal16(const uint8_t *s, uint8_t c) {
    #ifdef ND_SSE2
        __m128i x = _mm_loadu_si128((const __m128i *)s);
        return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_set1_epi8((char)c)));
    #else
        uint32_t mask = 0;
        int i;
        for (i = 0; i < 16; i++) mask |= (uint32_t)(s[i] == c) << i;
        return mask;
    #endif
    }

    static inline int nd_ascii(const uint8_t *s, Py_ssize_t n) {
        Py_ssize_t i = 0;
        uint64_t word, high = 0;
        for (; i + 8 <= n; i += 8) { memcpy(&word, s + i, 8); high |= word; }
        for (; i < n; i++) high |= (uint64_t)s[i] << 56 | s[i];
        return (high & 0x8080808080808080ULL) == 0;
    }
    """
    int nd_first(uint32_t) noexcept nogil
    char *nd_put(char *, const char *) noexcept nogil
    uint32_t nd_copy16(char *, const uint8_t *) noexcept nogil
    uint32_t nd_equal16(const uint8_t *, uint8_t) noexcept nogil
    bint nd_ascii(const uint8_t *, Py_ssize_t) noexcept nogil

ctypedef const uint8_t *Bytes

cdef enum:
    SD_ITEMS = 64  # elements and parameters told apart here; a message with more of either asks rfc5424.py
    TIME_BYTES = 40

cdef struct Span:
    Bytes at  # NULL: absent
    Py_ssize_t size

cdef struct Abbreviation:
    char name[8]  # NUL-padded
    int64_t offset  # seconds, or POSIX_ZONE + index

cdef int64_t POSIX_ZONE = 1 << 32

cdef struct ZoneTable:
    const int64_t *starts
    const int64_t *offsets
    Py_ssize_t changes
    const Abbreviation *names
    Py_ssize_t names_count

cdef struct OriginEntry:
    Span suffix
    uint32_t key
    ZoneTable *zone
    int device  # 0: by signature, negative: none, else the family's number from 1

cdef struct Param:
    Span name
    Span value
    int group  # the first element with the same SD-ID

cdef struct Data:
    Span identifiers[SD_ITEMS]
    int groups[SD_ITEMS]
    int elements
    Param params[SD_ITEMS]
    int count
    PyObject *json  # by rfc5424.py, where there were too many; owned

cdef struct Fields:
    Span message
    Span host
    Span app
    Span procid
    Span msgid
    bint has_data
    bint rfc5424
    const char *error  # NULL: none
    char time[TIME_BYTES]
    int time_size  # 0: the receive time

cdef struct DeviceRule:  # signatures.Signature; a part of size 0 is not asked for
    Span app
    Span app_starts
    Span message  # its first bytes
    Span ends
    Span contains
    Span data
    int family
    int next  # the next with the same place and first byte, numbered from 1; 0: none

cdef struct DeviceTable:
    DeviceRule *rules
    uint16_t first[4][256]  # by place and first byte (or two, folded into one): a rule, numbered from 1

cdef struct Work:
    PyObject *out
    Py_ssize_t capacity
    Py_ssize_t used
    Bytes readable_end  # 16 bytes may be read where they end before this
    int64_t near
    int this_year
    int64_t sequence
    bint keep_always
    bint keep_on_error
    Span received
    Span event_head
    Span event_tail
    ZoneTable *posix
    int64_t day  # memo of the calendar date last written
    char day_text[10]
    uint32_t *lengths
    uint8_t *priorities
    uint32_t *host_offsets
    uint16_t *host_lengths
    uint32_t *keys
    uint32_t *origins
    Py_ssize_t done
    DeviceTable *devices  # NULL: none is looked for
    uint32_t *hits  # places of the events that a family knows
    uint8_t *hit_families
    Py_ssize_t hit_count
    PyObject *failure  # what ask_structured_data met; raised behind the loop; owned
    Data data


# ---- bytes ----

cdef inline Span span(Bytes at, Bytes end) noexcept nogil:
    cdef Span result
    result.at = at
    result.size = end - at
    return result


cdef inline Span view_of(object data):
    return span(<Bytes>PyBytes_AS_STRING(data), <Bytes>PyBytes_AS_STRING(data) + PyBytes_GET_SIZE(data))


cdef inline bint same(Span a, Span b) noexcept nogil:
    return a.size == b.size and memcmp(a.at, b.at, a.size) == 0


cdef inline bint is_nil(Span s) noexcept nogil:
    return s.size == 1 and s.at[0] == c'-'


cdef inline bint digit(uint8_t c) noexcept nogil:
    return <uint8_t>(c - c'0') < 10


cdef inline bint at_char(Bytes p, Bytes e, uint8_t c) noexcept nogil:
    return p < e and p[0] == c


cdef inline bint starts(Bytes p, Bytes e, const char *text, Py_ssize_t n) noexcept nogil:
    return e - p >= n and memcmp(p, text, n) == 0


cdef inline Bytes skip_spaces(Bytes p, Bytes e) noexcept nogil:
    while p < e and p[0] == c' ':
        p += 1
    return p


cdef inline Bytes skip_digits(Bytes p, Bytes e) noexcept nogil:
    while p < e and digit(p[0]):
        p += 1
    return p


cdef inline bint all_digits(Span s) noexcept nogil:
    return s.size > 0 and skip_digits(s.at, s.at + s.size) == s.at + s.size


cdef enum:
    HOST_BYTE = 1
    TAG_BYTE = 2
    UPPER_OR_DIGIT = 4
    NAME_BYTE = 8  # RFC 5424 SD-NAME
    PLAIN_BYTE = 16  # neither ends a PARAM-VALUE nor escapes in it
    ALNUM_BYTE = 32
    TASK_BYTE = 64  # AireOS
    ZONE_BYTE = 128  # an administrator's own name for a zone

cdef uint8_t CLASSES[256]


def _fill_classes():
    for c in range(256):
        alnum = c < 0x80 and chr(c).isalnum()
        host = c >= 0x80 or alnum or chr(c) in "._:%/@-"
        tag = c > 0x20 and c != 0x7F and chr(c) not in ':[]"=,;<>{}|'
        upper = c < 0x80 and (chr(c).isupper() or chr(c).isdigit())
        name = 0x20 < c < 0x7F and chr(c) not in '"=]'
        plain = chr(c) not in '"\\'
        CLASSES[c] = host * HOST_BYTE | tag * TAG_BYTE | upper * UPPER_OR_DIGIT | name * NAME_BYTE | plain * PLAIN_BYTE
        CLASSES[c] |= alnum * ALNUM_BYTE | (alnum or chr(c) in "_.-") * TASK_BYTE
        CLASSES[c] |= (alnum or chr(c) in "_+-") * ZONE_BYTE


_fill_classes()


cdef inline Bytes skip_class(Bytes p, Bytes e, uint8_t kind) noexcept nogil:
    while p < e and CLASSES[p[0]] & kind:
        p += 1
    return p


cdef inline int number(Bytes p, int digits) noexcept nogil:
    """The value of up to 9 digits, -1 where one of them is none."""
    cdef int value = 0, i
    for i in range(digits):
        if not digit(p[i]):
            return -1
        value = value * 10 + (p[i] - c'0')
    return value


cdef inline Bytes find_space(Work *w, Bytes p, Bytes e) noexcept nogil:
    """The first space from p on, or e."""
    cdef uint32_t mask
    while p < e:
        if p + 16 <= w.readable_end:
            mask = nd_equal16(p, c' ')
            if mask:
                p += nd_first(mask)
                return p if p < e else e
            p += 16
        else:
            if p[0] == c' ':
                return p
            p += 1
    return e


cdef Bytes find_text(Bytes p, Bytes e, const char *text, Py_ssize_t n) noexcept nogil:
    """The first place of text, or NULL."""
    while e - p >= n:
        p = <Bytes>memchr(p, text[0], e - p - n + 1)
        if p == NULL:
            return NULL
        if memcmp(p, text, n) == 0:
            return p
        p += 1
    return NULL


# ---- text: ecs.quote ----

cdef inline char *put_span(char *o, Span s) noexcept nogil:
    memcpy(o, s.at, s.size)
    return o + s.size


cdef char *put_escape(char *o, uint8_t c) noexcept nogil:
    """One byte that JSON cannot hold as it is."""
    o[0] = c'\\'
    o += 1
    if c == c'"' or c == c'\\':
        o[0] = c
    elif c == 8:
        o[0] = c'b'
    elif c == 9:
        o[0] = c't'
    elif c == 10:
        o[0] = c'n'
    elif c == 12:
        o[0] = c'f'
    elif c == 13:
        o[0] = c'r'
    else:
        o = nd_put(o, "u00")
        o[0] = c'1' if c >= 16 else c'0'
        o[1] = b"0123456789abcdef"[c & 15]
        return o + 2
    return o + 1


cdef inline char *put_text(Work *w, char *o, Span s) noexcept nogil:
    """Valid UTF-8, escaped."""
    cdef Bytes p = s.at
    cdef Py_ssize_t n = s.size
    cdef uint32_t mask
    cdef int step
    while n > 0:
        if p + 16 <= w.readable_end:
            mask = nd_copy16(o, p)
            if n < 16:
                mask &= (<uint32_t>1 << n) - 1
            if mask == 0:
                step = 16 if n > 16 else <int>n
                o += step
                p += step
                n -= step
                continue
            step = nd_first(mask)
            o += step
            p += step
            n -= step
        elif p[0] >= 0x20 and p[0] != c'"' and p[0] != c'\\':
            o[0] = p[0]
            o += 1
            p += 1
            n -= 1
            continue
        o = put_escape(o, p[0])
        p += 1
        n -= 1
    return o


cdef int utf8_length(Bytes p, Py_ssize_t n) noexcept nogil:
    """Bytes of the character at p; where it is none, minus those that one U+FFFD stands for (Unicode, table 3-8)."""
    cdef uint8_t c = p[0], low = 0x80, high = 0xBF
    cdef int need, i
    if c < 0x80:
        return 1
    if c < 0xC2 or c > 0xF4:
        return -1
    need = 2 if c < 0xE0 else 3 if c < 0xF0 else 4
    if c == 0xE0:
        low = 0xA0
    elif c == 0xED:
        high = 0x9F
    elif c == 0xF0:
        low = 0x90
    elif c == 0xF4:
        high = 0x8F
    for i in range(1, need):
        if i >= n or p[i] < low or p[i] > high:
            return -i
        low, high = 0x80, 0xBF
    return need


cdef bint is_utf8(Span s) noexcept nogil:
    cdef Bytes p = s.at, e = s.at + s.size
    cdef int length
    if nd_ascii(p, s.size):
        return True
    while p < e:
        length = utf8_length(p, e - p)
        if length < 0:
            return False
        p += length
    return True


cdef char *put_broken_text(char *o, Span s) noexcept nogil:
    """Bytes that need not be UTF-8, escaped and with U+FFFD as Python's "replace" has it."""
    cdef Bytes p = s.at, e = s.at + s.size
    cdef int length
    while p < e:
        length = utf8_length(p, e - p)
        if length < 0:
            o = nd_put(o, "\xef\xbf\xbd")
            p -= length
        elif p[0] < 0x20 or p[0] == c'"' or p[0] == c'\\':
            o = put_escape(o, p[0])
            p += 1
        else:
            memcpy(o, p, length)
            o += length
            p += length
    return o


cdef inline char *put_string(Work *w, char *o, Span s, bint utf8) noexcept nogil:
    return put_text(w, o, s) if utf8 else put_broken_text(o, s)


cdef char *put_base64(char *o, Span s) noexcept nogil:
    cdef const char *digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    cdef Bytes p = s.at
    cdef Py_ssize_t n = s.size
    cdef uint32_t word
    while n > 0:
        word = <uint32_t>p[0] << 16
        if n > 1:
            word |= <uint32_t>p[1] << 8
        if n > 2:
            word |= p[2]
        o[0] = digits[word >> 18]
        o[1] = digits[word >> 12 & 63]
        o[2] = digits[word >> 6 & 63] if n > 1 else c'='
        o[3] = digits[word & 63] if n > 2 else c'='
        o += 4
        p += 3
        n -= 3
    return o


# ---- numbers ----

cdef char *put_number(char *o, uint64_t value, unsigned int radix) noexcept nogil:
    """Digits in radix 10 or 36 (ecs.base36)."""
    cdef char digits[24]
    cdef int i = 24
    cdef const char *alphabet = b"0123456789abcdefghijklmnopqrstuvwxyz"
    while True:
        i -= 1
        digits[i] = alphabet[value % 10 if radix == 10 else value % 36]
        value = value // 10 if radix == 10 else value // 36
        if value == 0:
            break
    memcpy(o, digits + i, 24 - i)
    return o + 24 - i


cdef inline void put_two(char *o, int value) noexcept nogil:
    o[0] = c'0' + value // 10
    o[1] = c'0' + value % 10


cdef uint32_t partition_key(Span s) noexcept nogil:
    """ecs.partition_key."""
    cdef uint32_t multiplier = 0x5BD1E995, value = 0x9747B28CU ^ <uint32_t>s.size, word
    cdef Bytes p = s.at
    cdef Py_ssize_t n = s.size
    while n >= 4:
        word = p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24
        word *= multiplier
        word ^= word >> 24
        value = (value * multiplier) ^ (word * multiplier)
        p += 4
        n -= 4
    if n > 0:
        word = p[0]
        if n > 1:
            word |= <uint32_t>p[1] << 8
        if n > 2:
            word |= <uint32_t>p[2] << 16
        value = (value ^ word) * multiplier
    value = (value ^ value >> 13) * multiplier
    return (value ^ value >> 15) & 0x7FFFFFFF


# ---- time: times.py ----

cdef struct Wall:
    int year  # 0: the message has none
    int month
    int day
    int hour
    int minute
    int second
    Span fraction


cdef int64_t DAY = 86400
cdef int64_t SLACK = _times.SLACK_SECONDS


cdef inline int64_t days_of(int year, int month, int day) noexcept nogil:
    """Days since 1970-01-01 of a proleptic Gregorian date (Howard Hinnant's days_from_civil)."""
    cdef int y = year - (month <= 2)
    cdef int era = y // 400
    cdef int of_era = y - era * 400
    cdef int of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return <int64_t>era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


cdef void put_date(char *o, int64_t days) noexcept nogil:
    """yyyy-mm-dd (civil_from_days); years 1 to 9999."""
    cdef int64_t z = days + 719468
    cdef int64_t era = z // 146097
    cdef int of_era = <int>(z - era * 146097)
    cdef int year_of_era = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    cdef int of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    cdef int shifted = (5 * of_year + 2) // 153
    cdef int month = shifted + 3 if shifted < 10 else shifted - 9
    cdef int year = <int>(year_of_era + era * 400) + (month <= 2)
    put_two(o, year // 100)
    put_two(o + 2, year % 100)
    o[4] = c'-'
    put_two(o + 5, month)
    o[7] = c'-'
    put_two(o + 8, of_year - (153 * shifted + 2) // 5 + 1)


cdef bint wall_seconds(int year, Wall *t, int64_t *out) noexcept nogil:
    """times.wall_seconds."""
    cdef int last
    if t.hour > 23 or t.minute > 59 or t.second > 60 or year < 1 or t.month < 1 or t.month > 12 or t.day < 1:
        return False
    last = 31
    if t.month == 4 or t.month == 6 or t.month == 9 or t.month == 11:
        last = 30
    elif t.month == 2:
        last = 29 if (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)) else 28
    if t.day > last:
        return False
    out[0] = days_of(year, t.month, t.day) * DAY + t.hour * 3600 + t.minute * 60 + (59 if t.second == 60 else t.second)
    return True


cdef int64_t offset_at(ZoneTable *zone, int64_t utc) noexcept nogil:
    cdef Py_ssize_t low = 0, high = zone.changes, middle
    while high - low > 1:
        middle = (low + high) // 2
        if zone.starts[middle] <= utc:
            low = middle
        else:
            high = middle
    return zone.offsets[low]


cdef int64_t to_utc(ZoneTable *zone, int64_t wall, int64_t near) noexcept nogil:
    """times.Zone.to_utc."""
    cdef int64_t before, after, first, second, to_first, to_second
    cdef bint first_exists, second_exists
    if zone.changes == 1:
        return wall - zone.offsets[0]
    before, after = offset_at(zone, wall - DAY), offset_at(zone, wall + DAY)
    first, second = wall - before, wall - after
    if before == after:
        return first
    first_exists, second_exists = offset_at(zone, first) == before, offset_at(zone, second) == after
    if first_exists and second_exists:
        to_first = first - near if first > near else near - first
        to_second = second - near if second > near else near - second
        return second if to_second < to_first else first
    return second if second_exists else first


cdef bint instant(Work *w, Wall *t, ZoneTable *zone, int64_t *out) noexcept nogil:
    """rfc3164._instant up to its text; times.infer_year where the year is missing."""
    cdef int64_t wall
    cdef int year
    if t.year:
        if not wall_seconds(t.year, t, &wall):
            return False
        out[0] = to_utc(zone, wall, w.near)
        return True
    for year in range(w.this_year + 1, w.this_year - 2, -1):
        if wall_seconds(year, t, &wall):
            out[0] = to_utc(zone, wall, w.near)
            if out[0] <= w.near + SLACK:
                return True
    return False


cdef int put_instant(Work *w, char *o, int64_t utc, int second, Span fraction) noexcept nogil:
    """times.instant_text: its length, 0 for none."""
    cdef int64_t days
    cdef int of_day
    cdef Py_ssize_t digits
    if utc < -62135596800LL or utc >= 253402300800LL:
        return 0
    days = (utc + 62135596800LL) // DAY - 719162
    of_day = <int>(utc - days * DAY)
    if days != w.day:
        put_date(w.day_text, days)
        w.day = days
    memcpy(o, w.day_text, 10)
    o[10] = c'T'
    put_two(o + 11, of_day // 3600)
    o[13] = c':'
    put_two(o + 14, of_day // 60 % 60)
    o[16] = c':'
    put_two(o + 17, of_day % 60)
    if second == 60:
        nd_put(o + 19, ".999999Z")
        return 27
    digits = fraction.size if fraction.size < 9 else 9
    if digits == 0:
        o[19] = c'Z'
        return 20
    o[19] = c'.'
    memcpy(o + 20, fraction.at, digits)
    o[20 + digits] = c'Z'
    return <int>(21 + digits)


cdef inline bint offset_seconds(uint8_t sign, int hours, int minutes, int64_t *out) noexcept nogil:
    """rfc5424.offset_seconds."""
    if hours > 23 or minutes > 59:
        return False
    out[0] = hours * 3600 + minutes * 60
    if sign == c'-':
        out[0] = -out[0]
    return True
