# rfc5424.py and rfc3164.py in C: the same grammars, read from left to right with a pointer instead of a regex.
# Included by _decode.pxi. Longer than 400 lines because each form of date, host and tag has its function, as it has its
# line in the grammar of rfc3164.py.

# ---- RFC 5424: rfc5424.py ----

cdef bint parse_rfc5424(Work *w, Bytes p, Bytes e, ZoneTable *zone, Fields *f) noexcept nogil:
    """rfc5424.parse; p is at VERSION, which is there."""
    cdef Span header[5]
    cdef Bytes q, meraki = NULL
    cdef int i, fields = 0
    p += 1
    while fields < 5 and at_char(p, e, c' '):
        p = skip_spaces(p, e)
        q = find_space(w, p, e)
        if q == p:
            break
        header[fields] = span(p, q)
        fields += 1
        p = q
        if fields == 3:
            meraki = skip_spaces(p, e)
    p = skip_spaces(p, e)
    if fields >= 3 and header[0].size >= 9 and header[0].at[4] != c'-' and not (
        fields == 5 and (at_char(p, e, c'-') or at_char(p, e, c'['))
    ) and is_unix(header[0]):
        fields = 3
        p = meraki
    elif fields < 5:
        return False
    f.rfc5424 = True
    f.time_size = parse_timestamp(w, header[0], zone, f.time)
    if fields == 3:
        header[3].at = header[4].at = NULL
    if not is_nil(header[1]):
        f.host = header[1]
    if not is_nil(header[2]):
        f.app = header[2]
    if fields == 3:
        f.message = span(p, e)
        return True
    if not is_nil(header[3]):
        f.procid = header[3]
    if not is_nil(header[4]):
        f.msgid = header[4]
    f.message = split_structured_data(w, p, e, f)
    if starts(f.message.at, e, "\xef\xbb\xbf", 3):
        f.message = span(f.message.at + 3, e)
    return True


cdef int parse_timestamp(Work *w, Span s, ZoneTable *zone, char *o) noexcept nogil:
    """rfc5424.parse_timestamp: the length of the text at o, 0 for none."""
    cdef Bytes p = s.at, e = s.at + s.size
    cdef Wall t
    cdef int64_t wall, offset
    cdef int hours, minutes
    cdef uint8_t sign
    if s.size < 19 or p[4] != c'-' or p[7] != c'-' or (p[10] | 0x20) != c't' or p[13] != c':' or p[16] != c':':
        return parse_unix(w, s, o)
    t.year, t.month, t.day = number(p, 4), number(p + 5, 2), number(p + 8, 2)
    t.hour, t.minute, t.second = number(p + 11, 2), number(p + 14, 2), number(p + 17, 2)
    if (t.year | t.month | t.day | t.hour | t.minute | t.second) < 0:
        return 0
    p += 19
    t.fraction = span(p, p)
    if p < e and (p[0] == c'.' or p[0] == c','):
        t.fraction = span(p + 1, skip_digits(p + 1, e))
        if t.fraction.size == 0:
            return 0
        p += 1 + t.fraction.size
    if not wall_seconds(t.year, &t, &wall):
        return 0
    if p == e:
        return put_instant(w, o, to_utc(zone, wall, w.near), t.second, t.fraction)
    sign = p[0]
    p += 1
    if (sign | 0x20) == c'z':
        return put_instant(w, o, wall, t.second, t.fraction) if p == e else 0
    if (sign != c'+' and sign != c'-') or e - p < 2:
        return 0
    hours, minutes = number(p, 2), 0
    p += 2
    if p < e:
        p += p[0] == c':'
        if e - p != 2:
            return 0
        minutes = number(p, 2)
    if hours < 0 or minutes < 0 or not offset_seconds(sign, hours, minutes, &offset):
        return 0
    return put_instant(w, o, wall - offset, t.second, t.fraction)


cdef bint is_unix(Span s) noexcept nogil:
    """9 or 10 digits and perhaps a point with more."""
    cdef Bytes e = s.at + s.size, p = skip_digits(s.at, e)
    if p - s.at < 9 or p - s.at > 10:
        return False
    return p == e or (p[0] == c'.' and p + 1 < e and skip_digits(p + 1, e) == e)


cdef int parse_unix(Work *w, Span s, char *o) noexcept nogil:
    """9 or 10 digits of seconds and perhaps a fraction."""
    cdef Bytes e = s.at + s.size, p = skip_digits(s.at, e)
    cdef Py_ssize_t digits = p - s.at
    cdef int64_t utc
    cdef Span fraction = span(p, p)
    if not is_unix(s):
        return 0
    if p < e:
        fraction = span(p + 1, e)
    utc = number(s.at, 9)
    if digits == 10:
        utc = utc * 10 + (s.at[9] - c'0')
    return put_instant(w, o, utc, 0, fraction)


cdef Span split_structured_data(Work *w, Bytes p, Bytes e, Fields *f) noexcept nogil:
    """rfc5424.split_structured_data: MSG, and the data in w.data where f.has_data says so."""
    cdef Bytes start = p, end
    cdef Data *d = &w.data
    cdef bint many = False
    d.elements = d.count = 0
    if at_char(p, e, c'-') and (p + 1 == e or p[1] == c' '):
        return span(p + 2 if p + 1 < e else e, e)
    while at_char(p, e, c'['):
        end = read_element(d, p, e, &many)
        if end == NULL:
            break
        p = end
    if p == start or (p < e and p[0] != c' '):
        return span(start, e)
    f.has_data = True
    if many:
        ask_structured_data(w, start, e)
    return span(p + 1 if p < e else e, e)


cdef Bytes read_element(Data *d, Bytes p, Bytes e, bint *many) noexcept nogil:
    """One SD-ELEMENT at p into d: its end, NULL where it is none. Nothing is kept of one that is none."""
    cdef Bytes q = skip_class(p + 1, e, NAME_BYTE)
    cdef int element = d.elements, count = d.count, i
    cdef Span identifier
    cdef Param param
    identifier = span(p + 1, q)
    if identifier.size == 0:
        return NULL
    param.group = element
    for i in range(element if element < SD_ITEMS else SD_ITEMS):
        if same(d.identifiers[i], identifier):
            param.group = i
            break
    p = q
    while True:
        q = read_param(p, e, &param)
        if q == NULL:
            break
        p = q
        if count < SD_ITEMS:
            d.params[count] = param
        count += 1
    p = skip_spaces(p, e)
    if not at_char(p, e, c']'):
        return NULL
    if element < SD_ITEMS:
        d.identifiers[element] = identifier
        d.groups[element] = param.group
        d.elements += 1
    else:
        many[0] = True
    d.count = count if count < SD_ITEMS else SD_ITEMS
    if count > SD_ITEMS:
        many[0] = True
    return p + 1


cdef Bytes read_param(Bytes p, Bytes e, Param *param) noexcept nogil:
    """' name="value"' at p: its end, NULL where it is none."""
    cdef Bytes q
    if not at_char(p, e, c' '):
        return NULL
    p = skip_spaces(p, e)
    q = skip_class(p, e, NAME_BYTE)
    if q == p or e - q < 3 or q[0] != c'=' or q[1] != c'"':
        return NULL
    param.name = span(p, q)
    p = q + 2
    q = skip_class(p, e, PLAIN_BYTE)
    while q < e and q[0] == c'\\':
        q = skip_class(q + 2, e, PLAIN_BYTE)
    if q >= e:
        return NULL
    param.value = span(p, q)
    return q + 1


cdef void ask_structured_data(Work *w, Bytes p, Bytes e) noexcept with gil:
    """More items than the tables hold: rfc5424.py groups them (a hash table, so linear). Its MSG is ours."""
    try:
        text, _ = _rfc5424.split_structured_data(PyBytes_FromStringAndSize(<const char *>p, e - p))
        Py_INCREF(text)
        w.data.json = <PyObject *>text
    except MemoryError as error:
        Py_INCREF(error)
        Py_XDECREF(w.failure)
        w.failure = <PyObject *>error


cdef char *put_structured_data(Work *w, char *o, bint utf8) noexcept nogil:
    cdef Data *d = &w.data
    cdef int element, i, j
    cdef bint first_element = True, first_param
    if d.json != NULL:
        return put_asked_data(d, o)
    o[0] = c'{'
    o += 1
    for element in range(d.elements):
        if d.groups[element] != element:
            continue
        if not first_element:
            o[0] = c','
            o += 1
        first_element = False
        o[0] = c'"'
        o = nd_put(put_text(w, o + 1, d.identifiers[element]), "\":{")
        first_param = True
        for i in range(d.count):
            if d.params[i].group == element and find_param(d, i, 0, i) < 0:
                if not first_param:
                    o[0] = c','
                    o += 1
                first_param = False
                o = put_param(w, o, i, utf8)
        o[0] = c'}'
        o += 1
    o[0] = c'}'
    return o + 1


cdef int find_param(Data *d, int like, int low, int high) noexcept nogil:
    """The first parameter in [low, high) with the same name and SD-ID, -1 for none."""
    cdef int i
    for i in range(low, high):
        if d.params[i].group == d.params[like].group and same(d.params[i].name, d.params[like].name):
            return i
    return -1


cdef char *put_param(Work *w, char *o, int i, bint utf8) noexcept nogil:
    """A name and its value, or all its values as an array."""
    cdef Data *d = &w.data
    cdef int again = find_param(d, i, i + 1, d.count)
    o[0] = c'"'
    o = nd_put(put_text(w, o + 1, d.params[i].name), "\":")
    if again < 0:
        return put_value(w, o, d.params[i].value, utf8)
    o[0] = c'['
    o = put_value(w, o + 1, d.params[i].value, utf8)
    while again >= 0:
        o[0] = c','
        o = put_value(w, o + 1, d.params[again].value, utf8)
        again = find_param(d, i, again + 1, d.count)
    o[0] = c']'
    return o + 1


cdef char *put_value(Work *w, char *o, Span s, bint utf8) noexcept nogil:
    """PARAM-VALUE with its escapes undone, as a JSON string."""
    cdef Bytes p = s.at, e = s.at + s.size, q
    o[0] = c'"'
    o += 1
    while True:
        q = <Bytes>memchr(p, c'\\', e - p) if e > p else NULL
        if q == NULL:
            break
        o = put_string(w, o, span(p, q), utf8)
        if q + 1 < e and (q[1] == c'"' or q[1] == c'\\' or q[1] == c']'):
            q += 1
        if q[0] == c']':
            o[0] = c']'
            o += 1
        else:
            o = put_escape(o, q[0])
        p = q + 1
    o = put_string(w, o, span(p, e), utf8)
    o[0] = c'"'
    return o + 1


cdef char *put_asked_data(Data *d, char *o) noexcept with gil:
    cdef object text = <object>d.json
    o = put_span(o, view_of(text))
    Py_XDECREF(d.json)
    d.json = NULL
    return o


# ---- RFC 3164: rfc3164.py ----

cdef struct Date:
    Bytes end
    bint by_space
    bint named  # a part of it that only a colon behind the date makes one
    Span host  # Cisco's origin-id


cdef inline uint32_t lower3(Bytes p) noexcept nogil:
    return (<uint32_t>p[0] << 16 | <uint32_t>p[1] << 8 | p[2]) | 0x202020


cdef int month_of(Bytes p, Bytes e) noexcept nogil:
    """1 to 12 for a month's first three letters in any case, else 0."""
    cdef const char *months = b"janfebmaraprmayjunjulaugsepoctnovdec"
    cdef uint32_t word
    cdef int i
    if e - p < 3:
        return 0
    word = lower3(p)
    for i in range(12):
        if word == lower3(<Bytes>months + 3 * i):
            return i + 1
    return 0


cdef bint at_month_day(Bytes p, Bytes e) noexcept nogil:
    """decoder._ONLY_VERSION behind the version."""
    cdef Bytes q
    if month_of(p, e) == 0 or not at_char(p + 3, e, c' '):
        return False
    q = skip_spaces(p + 3, e)
    return q < e and digit(q[0])


cdef bint is_weekday(Bytes p, Bytes e) noexcept nogil:
    cdef const char *days = b"montuewedthufrisatsun"
    cdef int i
    if e - p < 3:
        return False
    for i in range(7):
        if lower3(p) == lower3(<Bytes>days + 3 * i):
            return True
    return False


cdef Bytes skip_sequence(Bytes p, Bytes e) noexcept nogil:
    """Behind "number: " at p, or p."""
    cdef Bytes q = skip_digits(p, e)
    if q == p or not at_char(q, e, c':') or not at_char(q + 1, e, c' '):
        return p
    return skip_spaces(q + 1, e)


cdef bint at_iso_time(Bytes p, Bytes e) noexcept nogil:
    """yyyy-mm-ddT: ASA writes "2024-03-15T12:00:00Z: %ASA-…", which looks like an origin-id."""
    if e - p < 11 or (p[4] != c'-' and p[4] != c'/') or (p[7] != c'-' and p[7] != c'/') or (p[10] | 0x20) != c't':
        return False
    return number(p, 4) >= 0 and number(p + 5, 2) >= 0 and number(p + 8, 2) >= 0


cdef Bytes read_uptime(Bytes p, Bytes e) noexcept nogil:
    """Behind "1w2d:" or "00:00:46:" with its mark, NULL where there is none; a space follows."""
    cdef Bytes q, r
    cdef int units = 0
    if at_char(p, e, c'*') or at_char(p, e, c'.'):
        p += 1
    q = p
    while True:
        r = skip_digits(q, e)
        if r == q or r == e or memchr(b"ywdhms", r[0], 6) == NULL:
            break
        q = r + 1
        units += 1
        if units == 2:
            break
    if units < 2:
        q = skip_digits(p, e)
        if q == p or e - q < 6 or q[0] != c':' or q[3] != c':' or number(q + 1, 2) < 0 or number(q + 4, 2) < 0:
            return NULL
        q += 6
        if at_char(q, e, c'.'):
            r = skip_digits(q + 1, e)
            q = r if r > q + 1 else q
    return q + 1 if at_char(q, e, c':') and at_char(q + 1, e, c' ') else NULL


cdef Bytes read_node(Bytes p, Bytes e) noexcept nogil:
    """Behind "RP/0/RSP0/CPU0:", NULL where there is none."""
    cdef Bytes q = skip_class(p, e, ALNUM_BYTE), r
    cdef int slashes = 0
    if q == p:
        return NULL
    while at_char(q, e, c'/'):
        r = skip_class(q + 1, e, ALNUM_BYTE)
        if r == q + 1:
            break
        q = r
        slashes += 1
    if slashes < 2 or not at_char(q, e, c':') or q + 1 == e:
        return NULL
    q += 1
    return q if CLASSES[q[0]] & ALNUM_BYTE or q[0] == c'*' or q[0] == c'.' else NULL


cdef Bytes read_lead(Bytes p, Bytes e, Date *d) noexcept nogil:
    """What Cisco writes first, up to what must be a date, an uptime or a mnemonic."""
    cdef Bytes q
    p = skip_spaces(p, e)
    if at_char(p, e, c':') and not at_char(p + 1, e, c':'):
        p = skip_spaces(p + 1, e)
    p = skip_sequence(p, e)
    q = skip_digits(p, e)
    if not (at_char(q, e, c':') and at_char(q + 1, e, c' ')) and not at_iso_time(p, e) and read_uptime(p, e) == NULL:
        q = skip_class(p, e, HOST_BYTE)
        if q - p >= 2 and (q - 1)[0] == c':' and (q - 2)[0] != c':' and at_char(q, e, c' '):
            d.named = True
            if q - 1 - p > 1 or p[0] != c'-':
                d.host = span(p, q - 1)
            p = skip_spaces(q, e)
    return skip_sequence(p, e)


cdef Bytes read_place(Bytes p, Bytes e, Date *d) noexcept nogil:
    """AireOS's task or IOS-XR's node with the host before it, and the mark; ends where the date must start."""
    cdef Bytes q, r
    if at_char(p, e, c'*'):
        q = skip_class(p + 1, e, TASK_BYTE)
        if q > p + 1 and at_char(q, e, c':') and at_char(q + 1, e, c' '):
            d.named = True
            p = skip_spaces(q + 1, e)
    q = skip_class(p, e, HOST_BYTE)
    r = read_node(skip_spaces(q, e), e) if q > p and at_char(q, e, c' ') else NULL
    if r != NULL:
        d.host = span(p, q)
    else:
        r = read_node(p, e)
    if r != NULL:
        d.named = True
        p = r
    if at_char(p, e, c'*') or at_char(p, e, c'.'):
        p += 1
    return p


cdef inline Bytes skip_comma(Bytes p, Bytes e) noexcept nogil:
    return p + 1 if at_char(p, e, c',') else p


cdef Bytes read_month_day(Bytes p, Bytes e, Wall *t) noexcept nogil:
    """[weekday] [year] Mmm d [year] with the space before the time: its end, NULL for none."""
    cdef Bytes q
    if is_weekday(p, e):
        q = skip_comma(p + 3, e)
        if at_char(q, e, c' '):
            p = skip_spaces(q, e)
    t.year = 0
    if e - p > 4 and p[4] == c' ' and number(p, 4) >= 0:
        t.year = number(p, 4)
        if t.year == 0:
            t.year = -1  # year 0 is a year that cannot be, not a year left out
        p = skip_spaces(p + 4, e)
    t.month = month_of(p, e)
    if t.month == 0 or not at_char(p + 3, e, c' '):
        return NULL
    p = skip_spaces(p + 3, e)
    q = skip_digits(p, p + 2 if e - p > 2 else e)
    if q == p:
        return NULL
    t.day = number(p, <int>(q - p))
    p = skip_comma(q, e)
    if not at_char(p, e, c' '):
        return NULL
    p = skip_spaces(p, e)
    if e - p > 4 and number(p, 4) >= 0 and (p[4] == c' ' or (p[4] == c',' and at_char(p + 5, e, c' '))):
        if t.year == 0:
            t.year = number(p, 4)
            if t.year == 0:
                t.year = -1
        p = skip_spaces(skip_comma(p + 4, e), e)
    return p


cdef Bytes read_iso_day(Bytes p, Bytes e, Wall *t) noexcept nogil:
    """yyyy-mm-dd or yyyy/mm/dd and the T or the spaces before the time: its end, NULL for none."""
    if e - p < 11 or (p[4] != c'-' and p[4] != c'/') or p[7] != p[4]:
        return NULL
    t.year, t.month, t.day = number(p, 4), number(p + 5, 2), number(p + 8, 2)
    if (t.year | t.month | t.day) < 0:
        return NULL
    if t.year == 0:
        t.year = -1
    if (p[10] | 0x20) == c't':
        return p + 11
    return skip_spaces(p + 10, e) if p[10] == c' ' else NULL


cdef Bytes read_clock(Bytes p, Bytes e, Wall *t) noexcept nogil:
    """h:mm:ss and its fraction: its end, NULL for none."""
    cdef Bytes q = skip_digits(p, p + 2 if e - p > 2 else e)
    if q == p or e - q < 6 or q[0] != c':' or q[3] != c':':
        return NULL
    t.hour, t.minute, t.second = number(p, <int>(q - p)), number(q + 1, 2), number(q + 4, 2)
    if t.minute < 0 or t.second < 0:
        return NULL
    p = q + 6
    t.fraction = span(p, p)
    if at_char(p, e, c'.') or at_char(p, e, c','):
        q = skip_digits(p + 1, e)
        if q > p + 1:
            t.fraction = span(p + 1, q)
            p = q
    return read_half(p, e, t)


cdef Bytes read_half(Bytes p, Bytes e, Wall *t) noexcept nogil:
    """AM or PM at p, and the hour by it: its end, or p where there is none."""
    cdef Bytes q = p + 1 if at_char(p, e, c' ') else p
    if e - q < 2 or q[1] != c'M' or (q[0] != c'A' and q[0] != c'P') or not ends_word(q + 2, e):
        return p
    if 1 <= t.hour <= 12:
        t.hour = t.hour % 12 + (12 if q[0] == c'P' else 0)
    return q + 2


cdef enum ZoneKind:
    ORIGIN_ZONE, OFFSET_ZONE, POSIX_ZONE_KIND, IMPOSSIBLE_ZONE

cdef struct Clock:
    ZoneKind kind
    int64_t offset  # seconds, or index of the POSIX zone


cdef inline bint ends_word(Bytes p, Bytes e) noexcept nogil:
    return p == e or p[0] == c' ' or p[0] == c':'


cdef inline bint ends_year(Bytes p, Bytes e) noexcept nogil:
    """As ends_word, but "2001:db8::1" is a host."""
    p += at_char(p, e, c':')
    return p == e or p[0] == c' '


cdef Bytes read_offset(Bytes p, Bytes e, int least_digits, Clock *clock) noexcept nogil:
    """Sign, hours and perhaps minutes at p: its end, NULL for none. The hours have `least_digits` to two digits."""
    cdef Bytes q
    cdef int hours, minutes = 0
    if p == e or (p[0] != c'+' and p[0] != c'-'):
        return NULL
    q = skip_digits(p + 1, p + 3 if e - p > 3 else e)
    if q - p - 1 < least_digits:
        return NULL
    hours = number(p + 1, <int>(q - p - 1))
    if e - q >= 2 and number(q, 2) >= 0:
        minutes = number(q, 2)
        q += 2
    elif e - q >= 3 and q[0] == c':' and number(q + 1, 2) >= 0:
        minutes = number(q + 1, 2)
        q += 3
    clock.kind = OFFSET_ZONE if offset_seconds(p[0], hours, minutes, &clock.offset) else IMPOSSIBLE_ZONE
    return q


cdef Bytes read_zone(Bytes p, Bytes e, ZoneTable *zone, Clock *clock) noexcept nogil:
    """The zone behind a time, attached or as the next word: its end, or p where there is none."""
    cdef Bytes q, start
    cdef Clock found
    if at_char(p, e, c'Z') or at_char(p, e, c'z'):
        clock.kind, clock.offset = OFFSET_ZONE, 0
        return p + 1
    q = read_offset(p, e, 2, clock)
    if q != NULL:
        return q
    if not at_char(p, e, c' '):
        return p
    start = p + 1
    if start < e and c'A' <= start[0] <= c'Z':
        q = skip_class(start, start + 8 if e - start > 8 else e, UPPER_OR_DIGIT)
        if ends_word(q, e):
            return q if find_zone(span(start, q), zone, clock) else p
        if starts(start, e, "UTC", 3) or starts(start, e, "GMT", 3):
            start += 3
        elif starts(start, e, "TZ", 2):
            start += 2
    q = read_offset(start, e, 1, &found)
    if q == NULL or not ends_word(q, e):
        return p
    clock[0] = found
    return q


cdef bint find_zone(Span s, ZoneTable *zone, Clock *clock) noexcept nogil:
    cdef char name[8]
    cdef Py_ssize_t i
    memset(name, 0, 8)
    memcpy(name, s.at, s.size)
    for i in range(zone.names_count):
        if memcmp(zone.names[i].name, name, 8) == 0:
            clock.offset = zone.names[i].offset
            clock.kind = OFFSET_ZONE
            if clock.offset >= POSIX_ZONE:
                clock.kind = POSIX_ZONE_KIND
                clock.offset -= POSIX_ZONE
            return True
    return False


cdef inline Bytes skip_own_zone(Bytes p, Bytes e) noexcept nogil:
    """rfc3164._OWN_ZONE: behind " word" where a colon follows, or p."""
    cdef Bytes q
    if e - p < 3 or p[0] != c' ' or not (c'a' <= (p[1] | 0x20) <= c'z'):
        return p
    q = skip_class(p + 2, p + 11 if e - p > 11 else e, ZONE_BYTE)
    return q if at_char(q, e, c':') else p


cdef bint read_date(
    Work *w, Bytes text, Bytes p, Bytes e, ZoneTable *zone, Date *d, Fields *f
) noexcept nogil:
    """rfc3164._read_date: False where there is none; the time goes to f.time. p is where read_lead ended."""
    cdef Wall t
    cdef Clock clock
    cdef Bytes q
    cdef bint lead
    p = read_place(p, e, d)
    lead = p > skip_spaces(text, e)
    q = read_month_day(p, e, &t)
    if q == NULL:
        q = read_iso_day(p, e, &t)
    if q != NULL:
        q = read_clock(q, e, &t)
    if q == NULL:
        return False
    clock.kind = ORIGIN_ZONE
    p = read_zone(q, e, zone, &clock)
    if p == q and lead:
        p = skip_own_zone(p, e)
    if t.year == 0 and e - p >= 5 and p[0] == c' ' and ends_year(p + 5, e) and 1900 <= number(p + 1, 4) < 2100:
        t.year = number(p + 1, 4)
        p += 5
    q = skip_spaces(p, e)
    d.by_space = True
    if at_char(q, e, c':') and not at_char(q + 1, e, c':'):
        d.by_space = False
        q = skip_spaces(q + 1, e)
    elif q == p and p != e:
        return False
    if d.named and d.by_space:
        return False
    d.end = q
    f.time_size = put_clock(w, &t, zone, &clock, f.time)
    return True


cdef int put_clock(Work *w, Wall *t, ZoneTable *zone, Clock *clock, char *o) noexcept nogil:
    """rfc3164._instant."""
    cdef ZoneTable fixed
    cdef int64_t ever = 0, utc
    if clock.kind == IMPOSSIBLE_ZONE:
        return 0
    if clock.kind == POSIX_ZONE_KIND:
        zone = &w.posix[clock.offset]
    elif clock.kind == OFFSET_ZONE:
        fixed.starts, fixed.offsets, fixed.changes = &ever, &clock.offset, 1
        zone = &fixed
    return put_instant(w, o, utc, t.second, t.fraction) if instant(w, t, zone, &utc) else 0


cdef Bytes read_host(Bytes p, Bytes e, bint dated, Fields *f) noexcept nogil:
    """rfc3164._read_host: where the text goes on; `dated`: behind a date that a space ended."""
    cdef Bytes q, word_end
    cdef Span word
    cdef bint named, mnemonic
    if dated:
        q = read_forwarded(p, e, f)
        if q != NULL:
            return q
    word_end = skip_class(p, e, HOST_BYTE)
    if word_end == p or p[0] == c'%' or not at_char(word_end, e, c' '):
        return p
    word = span(p, word_end)
    q = skip_spaces(word_end, e)
    if at_char(q, e, c':') and at_char(q + 1, e, c' '):
        q = skip_spaces(q + 1, e)
    named = (word_end - 1)[0] == c':' and not (word.size > 1 and (word_end - 2)[0] == c':')
    mnemonic = e - q >= 2 and q[0] == c'%' and c'A' <= q[1] <= c'Z'
    if mnemonic:
        word.size -= named
        if not (named and all_digits(word)) and word.size > 0 and not is_nil(word):
            f.host = word
        return q
    if not dated or named or starts(p, e, "last message repeated ", 22):
        return p
    if not is_nil(word):
        f.host = word
    return word_end + 1


cdef Bytes read_forwarded(Bytes p, Bytes e, Fields *f) noexcept nogil:
    cdef Bytes q
    if starts(p, e, "Message forwarded from ", 23):
        p += 23
    elif starts(p, e, "Forwarded from ", 15):
        p += 15
    else:
        return NULL
    q = skip_class(p, e, HOST_BYTE)
    if q - p < 2 or p[0] == c':' or (q - 1)[0] != c':' or (q - 2)[0] == c':' or not at_char(q, e, c' '):
        return NULL
    f.host = span(p, q - 1)
    return q + 1


cdef Bytes read_tag(Bytes p, Bytes e, Fields *f) noexcept nogil:
    """rfc3164._TAG: where the message starts."""
    cdef Bytes start = p, q, r
    p = skip_spaces(p, e)
    q = skip_class(p, e, TAG_BYTE)
    if q == p or q == e or all_digits(span(p, q)):
        return start
    if q[0] == c'[':
        r = q + 1
        while r < e and r[0] > 0x20 and r[0] != c'[' and r[0] != c']':
            r += 1
        if not at_char(r, e, c']') or not at_char(r + 1, e, c':'):
            return start
        f.app = span(p, q)
        if r > q + 1:
            f.procid = span(q + 1, r)
        return r + 3 if at_char(r + 2, e, c' ') else r + 2
    if q[0] != c':' or not (q + 1 == e or q[1] == c' ' or q[1] == c'\t'):
        return start
    f.app = span(p, q)
    return q + 2 if at_char(q + 1, e, c' ') else q + 1


cdef Bytes skip_severity(Bytes p, Bytes e) noexcept nogil:
    """rfc3164._SEVERITY: behind F5's severity where "name[pid]:" follows, or p."""
    cdef const char *names = b" emerg alert crit err warning notice info debug "
    cdef Bytes start = skip_spaces(p, e), q = start, r
    while q < e and c'a' <= q[0] <= c'z':
        q += 1
    if q == start or q - start > 7 or not at_char(q, e, c' '):
        return p
    r = find_text(<Bytes>names + 1, <Bytes>names + 48, <const char *>start, q + 1 - start)
    if r == NULL or (r - 1)[0] != c' ':
        return p
    q = skip_spaces(q, e)
    r = skip_class(q, e, TAG_BYTE)
    if r == q or not at_char(r, e, c'['):
        return p
    r += 1
    while r < e and r[0] > 0x20 and r[0] != c'[' and r[0] != c']':
        r += 1
    return q if at_char(r, e, c']') and at_char(r + 1, e, c':') else p


cdef Bytes skip_undated(Bytes p, Bytes e) noexcept nogil:
    """rfc3164._UNDATED behind its lead: where the mnemonic stands, NULL for none."""
    cdef Bytes q = read_uptime(p, e)
    if q != NULL:
        p = skip_spaces(q, e)
    return p if at_char(p, e, c'%') and p + 1 < e and c'A' <= p[1] <= c'Z' else NULL


cdef void parse_rfc3164(Work *w, Bytes p, Bytes e, ZoneTable *zone, Fields *f) noexcept nogil:
    """rfc3164.parse."""
    cdef Date d
    cdef Bytes lead, q
    cdef Span origin
    if parse_fortigate(w, p, e, zone, f):
        return
    d.named = False
    d.host = span(p, p)
    d.host.at = NULL
    lead = read_lead(p, e, &d)
    origin = d.host
    if read_date(w, p, lead, e, zone, &d, f):
        p = d.end
        f.host = d.host
        if f.host.at == NULL:
            p = read_host(p, e, d.by_space, f)
    else:
        f.time_size = 0
        q = skip_undated(lead, e)
        if q != NULL:
            p, f.host = q, origin
        else:
            p = read_host(p, e, False, f)
    if f.host.at != NULL:
        p = skip_severity(p, e)
    f.message = span(read_tag(p, e, f), e)


cdef bint parse_fortigate(Work *w, Bytes text, Bytes e, ZoneTable *zone, Fields *f) noexcept nogil:
    """rfc3164._parse_fortigate; False where this is none."""
    cdef Bytes p = skip_spaces(text, e), q
    cdef Wall t
    cdef Clock clock
    if starts(p, e, "logver=", 7):
        p = find_text(p, e, " date=", 6)
        if p == NULL:
            return False
        p += 1
    if e - p < 29 or not starts(p, e, "date=", 5) or memcmp(p + 15, b" time=", 6) != 0:
        return False
    if p[9] != c'-' or p[12] != c'-' or p[23] != c':' or p[26] != c':':
        return False
    t.fraction = span(p, p)
    q = p + 29
    if at_char(q, e, c'.'):
        t.fraction = span(q + 1, skip_digits(q + 1, e))
        q = t.fraction.at + t.fraction.size
    if (q < e and q[0] != c' ') or q == p + 30:
        return False
    t.year, t.month, t.day = number(p + 5, 4), number(p + 10, 2), number(p + 13, 2)
    t.hour, t.minute, t.second = number(p + 21, 2), number(p + 24, 2), number(p + 27, 2)
    if (t.year | t.month | t.day | t.hour | t.minute | t.second) < 0:
        return False
    if t.year == 0:
        t.year = -1
    clock.kind = ORIGIN_ZONE
    q = find_text(text, e, " tz=", 4)
    if q != NULL:
        read_fortigate_zone(q + 4, e, &clock)
    f.message = span(text, e)
    f.time_size = put_clock(w, &t, zone, &clock, f.time)
    q = find_text(text, e, " devname=", 9)
    if q != NULL:
        f.host = read_fortigate_name(q + 9, e)
    return True


cdef void read_fortigate_zone(Bytes p, Bytes e, Clock *clock) noexcept nogil:
    """Sign, two digits, perhaps a colon, two digits; an impossible one counts as none."""
    cdef Bytes q
    cdef int hours, minutes
    if at_char(p, e, c'"'):
        p += 1
    if e - p < 5 or (p[0] != c'+' and p[0] != c'-'):
        return
    q = p + 4 if p[3] == c':' else p + 3
    if e - q < 2:
        return
    hours, minutes = number(p + 1, 2), number(q, 2)
    if hours >= 0 and minutes >= 0 and offset_seconds(p[0], hours, minutes, &clock.offset):
        clock.kind = OFFSET_ZONE


cdef Span read_fortigate_name(Bytes p, Bytes e) noexcept nogil:
    cdef Bytes q = p
    cdef Span none = span(p, p)
    none.at = NULL
    if at_char(p, e, c'"'):
        q = <Bytes>memchr(p + 1, c'"', e - p - 1)
        return span(p + 1, q) if q != NULL and q > p + 1 else none
    while q < e and q[0] != c' ' and q[0] != c'"':
        q += 1
    return span(p, q) if q > p else none
