# The compiled twin of framing.py: the same class, the same chunks for the same feeds (tests/wire/test_framing.py).
# What the states mean and why is said there; here stands only what differs: messages are never objects. A feed collects
# (source, offset, length) runs over two buffers, the kept tail and the caller's data, and copies them once per chunk.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

from ndagent.wire.framing import COUNT_DIGITS, DETECT_DIGITS, MAX_FRAME_BYTES, Chunk
from ndagent.wire.record import Flags, Framing

cdef enum FramerStep:
    STEP_DETECT
    STEP_LINES
    STEP_SKIP_LINE
    STEP_FRAMES
    STEP_SKIP_BYTES
    STEP_GARBAGE

cdef struct FramerRun:
    bint in_tail
    Py_ssize_t offset
    Py_ssize_t length

cdef Py_ssize_t _count_digits = COUNT_DIGITS
cdef Py_ssize_t _detect_digits = DETECT_DIGITS
cdef Py_ssize_t _max_frame_bytes = MAX_FRAME_BYTES
cdef Py_ssize_t _sync_bytes = COUNT_DIGITS + 2
cdef object _new_tuple = tuple.__new__  # what Chunk(...) ends in, without the call of a Python function
cdef object _lf = Framing.LF, _octet_counted = Framing.OCTET_COUNTED, _whole = Framing.WHOLE
cdef object _flags_none = Flags.NONE, _flags_truncated = Flags.TRUNCATED, _flags_error = Flags.FRAMING_ERROR


cdef inline bint _is_digit(unsigned char byte) noexcept:
    return c"0" <= byte <= c"9"


cdef inline bint _is_blank(const unsigned char* text, Py_ssize_t length) noexcept:
    """Nothing but CR, LF and NUL: no message."""
    cdef Py_ssize_t i
    for i in range(length):
        if text[i] != c"\r" and text[i] != c"\n" and text[i] != 0:
            return False
    return True


cdef class Framer:
    """See ndagent.wire.framing.Framer."""

    cdef readonly object framing
    cdef readonly Py_ssize_t framing_errors
    cdef FramerStep _step
    cdef Py_ssize_t _limit, _scanned, _skip
    cdef unsigned char* _tail  # NULL while nothing is kept: an idle connection costs no buffer
    cdef Py_ssize_t _tail_start, _tail_end, _tail_capacity
    # Of the feed under way:
    cdef const unsigned char* _text  # what the steps look at: the tail or the caller's data
    cdef Py_ssize_t _at, _end
    cdef bint _in_tail
    cdef const unsigned char* _data
    cdef FramerRun* _runs
    cdef Py_ssize_t _run_count, _run_capacity, _messages
    cdef list _done

    def __cinit__(self, Py_ssize_t max_message_bytes):
        if not 1 <= max_message_bytes <= _max_frame_bytes:
            raise ValueError(f"max_message_bytes is {max_message_bytes}, must be 1 to {MAX_FRAME_BYTES}")
        self._limit = max_message_bytes
        self._step = STEP_DETECT

    def __dealloc__(self):
        free(self._tail)
        free(self._runs)

    @property
    def pending_bytes(self):
        return self._tail_end - self._tail_start

    def feed(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self._feed(<const unsigned char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef list _feed(self, const unsigned char* data, Py_ssize_t length):
        cdef Py_ssize_t at = 0, take
        self._done = []
        self._data = data
        # First complete the message that an earlier feed began, copying no more than it needs.
        while at < length and self._tail_end > self._tail_start:
            take = self._wanted(data + at, length - at)
            self._keep(data + at, take)
            at += take
            self._look_at(self._tail, self._tail_start, self._tail_end, True)
            self._advance()
            self._tail_start = self._at
        if at < length:
            self._look_at(data, at, length, False)
            self._advance()
            at = self._at
        self._flush()
        self._tidy_tail()
        if at < length:
            self._keep(data + at, length - at)
        done, self._done = self._done, None
        return done

    def close(self):
        cdef const unsigned char* tail = self._tail + self._tail_start
        cdef Py_ssize_t length = self._tail_end - self._tail_start, digits = 0
        self._done = []
        self._look_at(self._tail, self._tail_start, self._tail_end, True)
        if self._step == STEP_GARBAGE:
            self._emit_garbage(self._tail_end)
        elif self._step == STEP_FRAMES:
            while digits < length and _is_digit(tail[digits]):
                digits += 1
            if length > digits + 1:
                self._emit(_flags_truncated, tail + digits + 1, length - digits - 1)
            elif length:
                self._emit(_flags_truncated, tail, length)
        elif length and not _is_blank(tail, length):
            self._emit(_flags_none, tail, length)
        self._tail_start = self._tail_end
        self._tidy_tail()
        done, self._done = self._done, None
        return done

    # ---- the kept tail ----

    cdef Py_ssize_t _wanted(self, const unsigned char* data, Py_ssize_t length) noexcept:
        """How much of the data the kept tail needs at most for its next step."""
        cdef Py_ssize_t kept = self._tail_end - self._tail_start, want = 1, digits = 0, count = 0
        cdef const unsigned char* tail = self._tail + self._tail_start
        cdef const void* hit
        if self._step == STEP_LINES:
            want = min(length, self._limit + 1 - kept)
            hit = memchr(data, c"\n", want)
            return want if hit == NULL else <const unsigned char*>hit - data + 1
        if self._step == STEP_GARBAGE:
            want = self._limit + _sync_bytes - kept
        elif self._step == STEP_FRAMES:
            while digits < kept and _is_digit(tail[digits]):
                count = count * 10 + (tail[digits] - c"0")
                digits += 1
            if digits < kept:  # the header is whole
                want = digits + 1 + min(count, self._limit) - kept
        return min(length, want)

    cdef int _keep(self, const unsigned char* data, Py_ssize_t length) except -1:
        cdef Py_ssize_t need = self._tail_end + length
        cdef void* grown
        if need > self._tail_capacity:
            need = max(need, 2 * self._tail_capacity)
            grown = realloc(self._tail, need)
            if grown == NULL:
                raise MemoryError
            self._tail = <unsigned char*>grown
            self._tail_capacity = need
        memcpy(self._tail + self._tail_end, data, length)
        self._tail_end += length
        return 0

    cdef void _tidy_tail(self) noexcept:
        """Free an empty tail, move a part message to the front; runs point into the tail, so only after a flush."""
        cdef Py_ssize_t kept = self._tail_end - self._tail_start
        if kept == 0:
            free(self._tail)
            self._tail = NULL
            self._tail_capacity = 0
        elif self._tail_start:
            memmove(self._tail, self._tail + self._tail_start, kept)
        self._tail_start, self._tail_end = 0, kept

    # ---- chunks ----

    cdef void _look_at(self, const unsigned char* text, Py_ssize_t at, Py_ssize_t end, bint in_tail) noexcept:
        self._text, self._at, self._end, self._in_tail = text, at, end, in_tail

    cdef int _run(self, Py_ssize_t start, Py_ssize_t end, Py_ssize_t messages) except -1:
        cdef void* grown
        if messages == 0:
            return 0
        if self._run_count == self._run_capacity:
            self._run_capacity = max(4, 2 * self._run_capacity)
            grown = realloc(self._runs, self._run_capacity * sizeof(FramerRun))
            if grown == NULL:
                raise MemoryError
            self._runs = <FramerRun*>grown
        self._runs[self._run_count] = FramerRun(self._in_tail, start, end - start)
        self._run_count += 1
        self._messages += messages
        return 0

    cdef int _flush(self) except -1:
        cdef Py_ssize_t total = 0, i
        cdef unsigned char* out
        cdef FramerRun run
        if self._messages == 0:
            return 0
        for i in range(self._run_count):
            total += self._runs[i].length
        payload = PyBytes_FromStringAndSize(NULL, total)
        out = <unsigned char*>PyBytes_AS_STRING(payload)
        for i in range(self._run_count):
            run = self._runs[i]
            memcpy(out, (self._tail if run.in_tail else self._data) + run.offset, run.length)
            out += run.length
        self._done.append(_new_tuple(Chunk, (self.framing, _flags_none, self._messages, payload)))
        self._messages = self._run_count = self._run_capacity = 0
        free(self._runs)
        self._runs = NULL
        return 0

    cdef int _emit(self, flags, const unsigned char* message, Py_ssize_t length) except -1:
        self._flush()
        payload = PyBytes_FromStringAndSize(<const char*>message, length)
        self._done.append(_new_tuple(Chunk, (_whole, flags, 1, payload)))
        return 0

    # ---- steps: each consumes from _at on and returns whether another step may go further ----

    cdef int _advance(self) except -1:
        cdef bint more = True
        while more:
            if self._step == STEP_LINES:
                more = self._lines()
            elif self._step == STEP_FRAMES:
                more = self._frames()
            elif self._step == STEP_DETECT:
                more = self._detect()
            elif self._step == STEP_SKIP_LINE:
                more = self._skip_line()
            elif self._step == STEP_SKIP_BYTES:
                more = self._skip_bytes()
            else:
                more = self._garbage()
        return 0

    cdef bint _detect(self) except -1:
        cdef Py_ssize_t at = self._at, last = min(self._end, at + _detect_digits)
        while at < last and _is_digit(self._text[at]):
            at += 1
        if at == self._end:
            return False
        if at > self._at and self._text[at] == c" ":
            if at + 1 == self._end:
                return False
            if self._text[at + 1] == c"<":
                self.framing, self._step = _octet_counted, STEP_FRAMES
                return True
        self.framing, self._step = _lf, STEP_LINES
        return True

    cdef bint _lines(self) except -1:
        cdef const unsigned char* text = self._text
        cdef Py_ssize_t run = self._at, start = self._at, search = self._at + self._scanned, count = 0, end
        cdef const void* hit
        while True:
            hit = memchr(text + search, c"\n", max(0, min(self._end, start + self._limit + 1) - search))
            if hit == NULL:
                break
            end = <const unsigned char*>hit - text
            if text[start] <= c"\r" and _is_blank(text + start, end - start):
                self._run(run, start, count)
                run, count = end + 1, 0
            else:
                count += 1
            search = start = end + 1
        self._run(run, start, count)
        self._at = start
        self._scanned = self._end - start
        if self._scanned <= self._limit:
            return False
        self._emit(_flags_truncated, text + start, self._limit)
        self._at += self._limit
        self._scanned = 0
        self._step = STEP_SKIP_LINE
        return True

    cdef bint _skip_line(self) except -1:
        cdef const void* hit = memchr(self._text + self._at, c"\n", self._end - self._at)
        if hit == NULL:
            self._at = self._end
            return False
        self._at = <const unsigned char*>hit - self._text + 1
        self._step = STEP_LINES
        return True

    cdef bint _frames(self) except -1:
        cdef const unsigned char* text = self._text
        cdef Py_ssize_t run = self._at, start = self._at, messages = 0, body, last, count
        cdef bint plausible
        while True:
            body, count, last = start, 0, min(self._end, start + _count_digits)
            while body < last and _is_digit(text[body]):
                count = count * 10 + (text[body] - c"0")
                body += 1
            plausible = body == self._end or (body > start and text[body] == c" " and count <= _max_frame_bytes)
            if not plausible or body == self._end:
                break
            body += 1
            if count > self._limit or body + count > self._end:
                break
            if count == 0 or (text[body] <= c"\r" and _is_blank(text + body, count)):
                self._run(run, start, messages)
                run, messages = body + count, 0
            else:
                messages += 1
            start = body + count
        self._run(run, start, messages)
        self._at = start
        if not plausible:
            self.framing_errors += 1
            self._step = STEP_GARBAGE
            self._scanned = 0
            return True
        if count <= self._limit or body + self._limit > self._end:
            return False
        self._emit(_flags_truncated, text + body, self._limit)
        self._at = body + self._limit
        self._skip = count - self._limit
        self._step = STEP_SKIP_BYTES
        return True

    cdef bint _skip_bytes(self) except -1:
        cdef Py_ssize_t skipped = min(self._skip, self._end - self._at)
        self._at += skipped
        self._skip -= skipped
        if self._skip:
            return False
        self._step = STEP_FRAMES
        return True

    cdef bint _garbage(self) except -1:
        cdef const unsigned char* text = self._text
        cdef Py_ssize_t at = self._at + self._scanned
        cdef Py_ssize_t window = self._at + self._limit + _sync_bytes, last = min(self._end, window), resume
        while at < last:
            resume = -1
            if text[at] == c"\n":
                self._emit_garbage(at)
                resume = at + 1
            elif text[at] == c"<":
                resume = self._count_before(at)
                if resume >= 0:
                    self._emit_garbage(resume)
            if resume >= 0:
                self._at = resume
                self._scanned = 0
                self._step = STEP_FRAMES
                return True
            at += 1
        self._scanned = last - self._at
        if last < window:
            return False
        self._emit_garbage(self._at + self._limit)
        self._at += self._limit
        self._scanned -= self._limit
        return True

    cdef Py_ssize_t _count_before(self, Py_ssize_t at) noexcept:
        """Where the count starts if a plausible "digits SP" stands right before `at`, else -1."""
        cdef const unsigned char* text = self._text
        cdef Py_ssize_t first = at - 1, count = 0, weight = 1
        if first <= self._at or text[first] != c" ":
            return -1
        while first > self._at and _is_digit(text[first - 1]):
            first -= 1
            if at - 1 - first > _count_digits:
                return -1
            count += (text[first] - c"0") * weight
            weight *= 10
        return first if 0 < count <= _max_frame_bytes else -1

    cdef int _emit_garbage(self, Py_ssize_t end) except -1:
        cdef Py_ssize_t start = self._at, length
        while start < end:
            length = min(self._limit, end - start)
            if not _is_blank(self._text + start, length):
                self._emit(_flags_error, self._text + start, length)
            start += length
        return 0
