# By what a message's family of devices is told: the compiled twin of devices/signatures.py.
# Included by _decode.pxi. What the families then say is the same Python for both twins (devices/enrich.py).

cdef enum DevicePlace:
    AT_MESSAGE, AT_APP_AND_MESSAGE, AT_APP, AT_DATA  # in the order of Finder.find

PLACES = ("message", "app and message", "app", "data")  # DevicePlace
cdef Py_ssize_t MAX_DEVICE_BYTES = _signatures.MAX_MESSAGE_BYTES


cdef inline uint8_t folded(uint8_t app, uint8_t message) noexcept nogil:
    """Different pairs may give the same byte: rule_matches tells them apart."""
    return <uint8_t>(app * 7 + message)


cdef inline bint begins(Span s, Span with_) noexcept nogil:
    return s.size >= with_.size and memcmp(s.at, with_.at, with_.size) == 0


cdef bint rule_matches(DeviceRule *r, Fields *f, Data *d) noexcept nogil:
    """Signature.matches."""
    if r.app.size and (f.app.at == NULL or not same(f.app, r.app)):
        return False
    if r.app_starts.size and (f.app.at == NULL or not begins(f.app, r.app_starts)):
        return False
    if r.message.size and not begins(f.message, r.message):
        return False
    if r.ends.size and not (
        f.message.size >= r.ends.size
        and memcmp(f.message.at + f.message.size - r.ends.size, r.ends.at, r.ends.size) == 0
    ):
        return False
    if r.data.size and not (f.has_data and begins(d.identifiers[0], r.data)):
        return False
    return r.contains.size == 0 or find_text(
        f.message.at, f.message.at + f.message.size, <const char *>r.contains.at, r.contains.size
    ) != NULL


cdef inline int look(DeviceTable *t, DevicePlace place, uint8_t byte, Fields *f, Data *d) noexcept nogil:
    cdef int i = t.first[<int>place][byte]
    while i:
        if rule_matches(&t.rules[i - 1], f, d):
            return t.rules[i - 1].family
        i = t.rules[i - 1].next
    return -1


cdef int find_device(DeviceTable *t, Fields *f, Data *d) noexcept nogil:
    """Finder.find: the family's number, -1 for none."""
    cdef int found = -1
    if f.message.size > MAX_DEVICE_BYTES:
        return -1
    if f.message.size:
        found = look(t, AT_MESSAGE, f.message.at[0], f, d)
    if found < 0 and f.app.at != NULL and f.app.size:
        if f.message.size:
            found = look(t, AT_APP_AND_MESSAGE, folded(f.app.at[0], f.message.at[0]), f, d)
        if found < 0:
            found = look(t, AT_APP, f.app.at[0], f, d)
    if found < 0 and f.has_data:
        found = look(t, AT_DATA, d.identifiers[0].at[0], f, d)
    return found


cdef void note_device(Work *w, Fields *f, int forced) noexcept nogil:
    """Keep the message's place among the hits, where a family knows it or the origin is said to be one."""
    cdef int family
    if forced:
        family = forced - 1 if forced > 0 and f.message.size <= MAX_DEVICE_BYTES else -1
    else:
        family = find_device(w.devices, f, &w.data)
    if family >= 0:
        w.hits[w.hit_count] = <uint32_t>w.done
        w.hit_families[w.hit_count] = <uint8_t>family
        w.hit_count += 1


cdef class _DeviceTable:
    """The signatures of a devices.enrich.Devices as the functions above want them."""

    cdef DeviceTable table
    cdef list _parts  # keeps the rules' bytes alive

    def __cinit__(self, signatures):
        cdef DeviceRule *rule
        cdef int place, byte, i, last
        self._parts = [signature for _, signature in signatures]
        self.table.rules = <DeviceRule *>PyMem_Malloc((len(signatures) + 1) * sizeof(DeviceRule))
        if self.table.rules == NULL:
            raise MemoryError
        for i, (family, signature) in enumerate(signatures):
            rule = &self.table.rules[i]
            rule.app, rule.app_starts = view_of(signature.app), view_of(signature.app_starts)
            rule.message, rule.ends = view_of(signature.starts), view_of(signature.ends)
            rule.contains = view_of(signature.contains)
            rule.data, rule.family, rule.next = view_of(signature.data), family, 0
            place, first = PLACES.index(signature.place), signature.first
            byte = folded(first[0], first[1]) if place == AT_APP_AND_MESSAGE else first[0]
            last = self.table.first[place][byte]
            if last == 0:
                self.table.first[place][byte] = i + 1
                continue
            while self.table.rules[last - 1].next:
                last = self.table.rules[last - 1].next
            self.table.rules[last - 1].next = i + 1

    def __dealloc__(self):
        PyMem_Free(self.table.rules)
