# The compiled twin of event_names.name_lines: same call, same bytes.

from ndagent.wire.event_names import NO_KEY as _NO_KEY

cdef uint32_t NO_KEY = _NO_KEY


cdef struct Marks:
    Bytes event  # the brace that opens it
    Bytes source  # the text of its address


cdef bint find_marks(Bytes p, Bytes e, Marks *marks) noexcept nogil:
    """False: the line is not as we make them, or has what the arrays would be filled from. A look at each brace."""
    cdef Bytes q = p
    marks.event = marks.source = NULL
    while q < e:
        q = <Bytes>memchr(q, c'{', e - q)
        if q == NULL:
            break
        if q - p >= 8 and memcmp(q - 8, b'"event":', 8) == 0 and q + 1 < e and q[1] == c'"':
            if marks.event != NULL:
                return False
            marks.event = q
        elif q - p >= 9 and memcmp(q - 9, b'"source":', 9) == 0:
            if marks.source == NULL and e - q > 7 and memcmp(q + 1, b'"ip":"', 6) == 0:
                marks.source = q + 7
        elif (q - p >= 7 and memcmp(q - 7, b'"host":', 7) == 0) or (q - p >= 9 and memcmp(q - 9, b'"syslog":', 9) == 0):
            return False
        q += 1
    return marks.event != NULL and e[-1] != c'\r' and e[-1] != 0  # which would be trimmed


cdef uint32_t source_key(Bytes source, Bytes e) noexcept nogil:
    cdef Bytes end = NULL if source == NULL else <Bytes>memchr(source, c'"', e - source)
    return NO_KEY if end == NULL else partition_key(span(source, end))


def name_lines(bytes payload, Py_ssize_t count, bytes spool_id, uint64_t first):
    """See event_names.name_lines."""
    cdef Bytes p = <Bytes><char *>payload, e = p + len(payload), end
    cdef Marks marks
    cdef char name[24]
    cdef char *o
    cdef Py_ssize_t head, digits, prefix = len(spool_id), i
    cdef c_array.array keys = _array_of(_U32, count)
    cdef list lines = []
    cdef bytes line
    for i in range(count):
        end = <Bytes>memchr(p, c'\n', e - p) if p < e else NULL
        if end == NULL:
            return None
        if not find_marks(p, end, &marks):
            return None
        head = marks.event + 1 - p
        digits = put_number(name, first + i, 36) - name
        line = PyBytes_FromStringAndSize(NULL, end + 1 - p + 9 + prefix + digits)
        o = <char *>line
        memcpy(o, p, head)
        o += head
        memcpy(o, b'"id":"', 6)
        memcpy(o + 6, <char *>spool_id, prefix)
        o += 6 + prefix
        o[0] = c'-'
        memcpy(o + 1, name, digits)
        o += 1 + digits
        memcpy(o, b'",', 2)
        memcpy(o + 2, marks.event + 1, end - marks.event)
        keys.data.as_uints[i] = source_key(marks.source, end)
        lines.append(line)
        p = end + 1
    return (lines, keys) if p == e else None
