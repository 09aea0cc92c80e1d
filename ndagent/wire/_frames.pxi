# The compiled twin of event_frames.py: same calls, same bytes (tests/wire/test_event_frames.py runs both).
#
# Three passes. The first walks over each line with the GIL released and finds @timestamp and event.id; it takes a line
# only if it looks as ours (event_frames.py says what that is), all others are read by event_frames.read_fields. The
# second adds up the length, the third writes into bytes of exactly that length. The arrays of an EventBatch are checked
# against its bytes in the first: nothing is read outside them, whoever made them.

from ndagent.wire import event_frames as _frames

cdef extern from *:
    """
    /* The first '"' or backslash of [p, e), or e. */
    static const uint8_t *nd_string_stop(const uint8_t *p, const uint8_t *e) {
    #ifdef ND_SSE2
        for (; e - p >= 16; p += 16) {
            __m128i x = _mm_loadu_si128((const __m128i *)p);
            uint32_t hit = (uint32_t)_mm_movemask_epi8(
                _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8('"')), _mm_cmpeq_epi8(x, _mm_set1_epi8('\\\\'))));
            if (hit) return p + nd_first(hit);
        }
    #endif
        while (p < e && *p != '"' && *p != '\\\\') p++;
        return p;
    }
    """
    Bytes nd_string_stop(Bytes, Bytes) noexcept nogil

cdef enum:
    LITERAL = 0
    PART_LINE = 1
    PART_ID = 2
    PART_HOST = 3
    PART_EPOCH = 4
    PART_TIME = 5
    TIME_END = 19

cdef struct FramePiece:
    int kind
    Span text  # LITERAL
    Py_ssize_t start, stop  # PART_TIME

cdef struct FrameEvent:
    Span time  # at == NULL: odd
    Span identity
    Span host
    Span epoch_text  # of odd ones, else:
    int64_t epoch

cdef struct FrameWalk:
    Bytes p, e  # e: behind the closing brace
    Span time, identity


cdef inline Bytes string_end(Bytes p, Bytes e, bint *escaped) noexcept nogil:
    """p: behind the opening quote; the closing quote, or NULL."""
    while True:
        p = nd_string_stop(p, e)
        if p >= e:
            return NULL
        if p[0] == c'"':
            return p
        escaped[0] = True
        p += 2


cdef Bytes value_end(Bytes p, Bytes e) noexcept nogil:
    """Behind a value of any kind; NULL where it does not end."""
    cdef bint escaped = False
    cdef Py_ssize_t depth = 0
    while p < e:
        if p[0] == c'"':
            p = string_end(p + 1, e, &escaped)
            if p == NULL:
                return NULL
        elif p[0] == c'{' or p[0] == c'[':
            depth += 1
        elif p[0] == c'}' or p[0] == c']':
            if depth == 0:
                return p
            depth -= 1
        elif p[0] == c',' and depth == 0:
            return p
        p += 1
    return NULL


cdef inline bint take_text(FrameWalk *w, Span *found) noexcept nogil:
    """A string without escapes that is not empty and the first of its name; w.p moves behind it."""
    cdef bint escaped = False
    cdef Bytes start = w.p + 1, end
    if found.at != NULL or w.p >= w.e or w.p[0] != c'"':
        return False
    end = string_end(start, w.e, &escaped)
    if end == NULL or escaped or end == start:
        return False
    found[0] = span(start, end)
    w.p = end + 1
    return True


cdef inline bint is_name(Span key, const char *name, Py_ssize_t size) noexcept nogil:
    return key.size == size and memcmp(key.at, name, size) == 0


cdef bint walk_object(FrameWalk *w, bint inner) noexcept nogil:
    """From the opening brace to behind the closing one; False where the line is to be read with more care.

    `inner`: the object `event`.
    """
    cdef bint escaped = False, seen_event = False
    cdef Span key
    cdef Bytes end
    if w.p >= w.e or w.p[0] != c'{':
        return False
    w.p += 1
    if w.p < w.e and w.p[0] == c'}':
        w.p += 1
        return True
    while w.p < w.e and w.p[0] == c'"':
        end = string_end(w.p + 1, w.e, &escaped)
        if end == NULL or escaped or end + 1 >= w.e or end[1] != c':':
            return False
        key = span(w.p + 1, end)
        w.p = end + 2
        if is_name(key, "id", 2) if inner else is_name(key, "event.id", 8):
            if not take_text(w, &w.identity):
                return False
        elif not inner and is_name(key, "@timestamp", 10):
            if not take_text(w, &w.time):
                return False
        elif not inner and is_name(key, "event", 5):
            if seen_event or not walk_object(w, True):
                return False
            seen_event = True
        else:
            w.p = value_end(w.p, w.e)
            if w.p == NULL:
                return False
        if w.p >= w.e:
            return False
        w.p += 1
        if w.p[-1] == c'}':
            return True
        if w.p[-1] != c',':
            return False
    return False


cdef inline int two_digits(Bytes p) noexcept nogil:
    """-1 where they are none."""
    cdef int tens = p[0] - c'0', ones = p[1] - c'0'
    return tens * 10 + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else -1


cdef bint read_epoch(Span time, int64_t *epoch) noexcept nogil:
    """Whether it has the form of event_frames.TIME and is a time since 1970; days as in Howard Hinnant's calendars."""
    cdef Bytes p = time.at
    cdef int century, year, month, day, hour, minute, second, month_days
    cdef int64_t y, era_day
    cdef Py_ssize_t i
    if time.size < TIME_END + 1 or time.size > TIME_END + 11 or time.size == TIME_END + 2:
        return False
    if p[4] != c'-' or p[7] != c'-' or p[10] != c'T' or p[13] != c':' or p[16] != c':' or p[time.size - 1] != c'Z':
        return False
    if time.size > TIME_END + 1:
        if p[TIME_END] != c'.':
            return False
        for i in range(TIME_END + 1, time.size - 1):
            if not c'0' <= p[i] <= c'9':
                return False
    century, year = two_digits(p), two_digits(p + 2)
    month, day = two_digits(p + 5), two_digits(p + 8)
    hour, minute, second = two_digits(p + 11), two_digits(p + 14), two_digits(p + 17)
    if century < 0 or year < 0 or not 1 <= month <= 12 or not 0 <= hour < 24:
        return False
    if not 0 <= minute < 60 or not 0 <= second < 60:
        return False
    y = century * 100 + year
    if y < 1970:
        return False
    month_days = 30 + (month + (month > 7)) % 2
    if month == 2:
        month_days = 29 if y % 4 == 0 and (y % 100 != 0 or y % 400 == 0) else 28
    if not 1 <= day <= month_days:
        return False
    if month <= 2:
        y -= 1
    era_day = y * 365 + y / 4 - y / 100 + y / 400 + (153 * (month + (-3 if month > 2 else 9)) + 2) / 5 + day - 1
    epoch[0] = (era_day - 719468) * 86400 + hour * 3600 + minute * 60 + second
    return True


cdef bint read_line(Bytes line, Py_ssize_t size, FrameEvent *f) noexcept nogil:
    cdef FrameWalk w
    memset(&w, 0, sizeof(w))
    w.p, w.e = line, line + size - 1
    if line[size - 1] != c'\n' or not walk_object(&w, False) or w.p != w.e:
        return False
    if w.time.at == NULL or w.identity.at == NULL or not read_epoch(w.time, &f.epoch):
        return False
    f.time, f.identity = w.time, w.identity
    return True


cdef inline Py_ssize_t digits_of(int64_t value) noexcept nogil:
    cdef Py_ssize_t size = 1
    while value > 9:
        value /= 10
        size += 1
    return size


cdef inline Py_ssize_t epoch_size(FrameEvent *f) noexcept nogil:
    return f.epoch_text.size if f.epoch_text.at != NULL else digits_of(f.epoch) + f.time.size - TIME_END - 1


cdef inline char *put_epoch(char *o, FrameEvent *f) noexcept nogil:
    if f.epoch_text.at != NULL:
        return put_span(o, f.epoch_text)
    o = put_number(o, <uint64_t>f.epoch, 10)
    return put_span(o, span(f.time.at + TIME_END, f.time.at + f.time.size - 1))


cdef Py_ssize_t framed_size(FramePiece *pieces, Py_ssize_t count, FrameEvent *f, Py_ssize_t line) noexcept nogil:
    cdef Py_ssize_t i, size = 0
    for i in range(count):
        if pieces[i].kind == LITERAL:
            size += pieces[i].text.size
        elif pieces[i].kind == PART_LINE:
            size += line - 1
        elif pieces[i].kind == PART_ID:
            size += f.identity.size
        elif pieces[i].kind == PART_HOST:
            size += f.host.size
        elif pieces[i].kind == PART_EPOCH:
            size += epoch_size(f)
        else:
            size += pieces[i].stop - pieces[i].start
    return size


cdef char *put_framed(
    char *o, FramePiece *pieces, Py_ssize_t count, FrameEvent *f, Bytes line, Py_ssize_t size
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        if pieces[i].kind == LITERAL:
            o = put_span(o, pieces[i].text)
        elif pieces[i].kind == PART_LINE:
            memcpy(o, line, size - 1)
            o += size - 1
        elif pieces[i].kind == PART_ID:
            o = put_span(o, f.identity)
        elif pieces[i].kind == PART_HOST:
            o = put_span(o, f.host)
        elif pieces[i].kind == PART_EPOCH:
            o = put_epoch(o, f)
        else:
            memcpy(o, f.time.at + pieces[i].start, pieces[i].stop - pieces[i].start)
            o += pieces[i].stop - pieces[i].start
    return o


cdef FramePiece *_pieces(list frame) except NULL:
    """Views of these pieces, which must outlive them."""
    cdef FramePiece *found = <FramePiece *>PyMem_Malloc((len(frame) + 1) * sizeof(FramePiece))
    cdef Py_ssize_t i
    if found == NULL:
        raise MemoryError
    memset(found, 0, (len(frame) + 1) * sizeof(FramePiece))
    for i in range(len(frame)):
        if isinstance(frame[i], bytes):
            found[i].text = view_of(frame[i])
        elif isinstance(frame[i], _frames.TimeSlice):
            found[i].kind, found[i].start, found[i].stop = PART_TIME, frame[i].start, frame[i].stop
        else:
            found[i].kind = frame[i]
    return found


cdef Py_ssize_t read_lines(
    Span ndjson, const uint32_t[::1] lengths, const uint32_t[::1] offsets, const uint16_t[::1] names,
    const uint32_t[::1] origins, Span *hosts, Py_ssize_t hosts_count, FrameEvent *found,
) except -1 nogil:
    """The first pass: how many lines are odd; -2 where the arrays do not fit the bytes."""
    cdef Py_ssize_t i, at = 0, odd = 0
    cdef Bytes line = ndjson.at
    for i in range(lengths.shape[0]):
        if lengths[i] == 0 or lengths[i] > ndjson.size - at or origins[i] >= hosts_count:
            return -2
        if <Py_ssize_t>offsets[i] + names[i] > lengths[i]:
            return -2
        memset(&found[i], 0, sizeof(FrameEvent))
        if not read_line(line, lengths[i], &found[i]):
            found[i].time.at = NULL
            odd += 1
        if offsets[i]:
            found[i].host.at, found[i].host.size = line + offsets[i], names[i]
        else:
            found[i].host = hosts[origins[i]]
        line += lengths[i]
        at += lengths[i]
    return odd if at == ndjson.size else -2


cdef list _read_odd(events, const uint32_t[::1] lengths, FrameEvent *found):
    """Python's reading of the odd ones; the list keeps alive what `found` then views."""
    cdef list kept = []
    cdef bytes ndjson = events.ndjson
    cdef Py_ssize_t i, at = 0
    for i in range(lengths.shape[0]):
        if found[i].time.at == NULL:
            fields = _frames.read_fields(ndjson[at : at + lengths[i]], events, i)
            kept.append(fields)
            found[i].time, found[i].identity = view_of(fields.time), view_of(fields.identity)
            found[i].epoch_text = view_of(fields.epoch)
        at += lengths[i]
    return kept


def frame_events(events, frame, *, hosts):
    """See event_frames.frame_events."""
    _frames.check_frame(frame)
    cdef const uint32_t[::1] lengths = events.lengths, offsets = events.host_offsets, origins = events.origins
    cdef const uint16_t[::1] names = events.host_lengths
    cdef bytes ndjson = events.ndjson, result
    cdef list pieces = list(frame), texts = list(hosts), kept
    cdef Py_ssize_t i, count = lengths.shape[0], odd, size = 0, width = len(pieces), known = len(texts)
    cdef FramePiece *ps = NULL
    cdef FrameEvent *found = NULL
    cdef Span *defaults = NULL
    cdef Span whole = view_of(ndjson)
    cdef Bytes line = whole.at
    cdef char *o
    if not (offsets.shape[0] == names.shape[0] == origins.shape[0] == len(events.sequences) == count):
        raise ValueError("arrays of different lengths")
    try:
        ps, defaults = _pieces(pieces), _spans(texts)
        found = <FrameEvent *>PyMem_Malloc((count + 1) * sizeof(FrameEvent))
        if found == NULL:
            raise MemoryError
        with nogil:
            odd = read_lines(whole, lengths, offsets, names, origins, defaults, known, found)
        if odd == -2:
            raise ValueError("the arrays do not fit the events")
        kept = _read_odd(events, lengths, found) if odd else None
        with nogil:
            for i in range(count):
                size += framed_size(ps, width, &found[i], lengths[i])
        result = PyBytes_FromStringAndSize(NULL, size)
        o = PyBytes_AS_STRING(result)
        with nogil:
            for i in range(count):
                o = put_framed(o, ps, width, &found[i], line, lengths[i])
                line += lengths[i]
        return result
    finally:
        PyMem_Free(ps)
        PyMem_Free(defaults)
        PyMem_Free(found)
