/* A wevtapi.dll for wine, whose own has no event log: enough of the service for our reader and pywin32 to work on.
 *
 * There is one channel, "Canned". Its records stand in the file that WEVTAPI_RECORDS names, each a little-endian
 * 32-bit length in bytes and so much UTF-16; the n-th is record n. The file may grow: a thread sets the signal of
 * subscriptions when it does. Providers whose name begins with "Broken" have no metadata. Of XPath it knows "*" and
 * EventRecordID with =, >= and <=; a query by time finds nothing. It stands in for nothing else of Windows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>
#include <windows.h>

#define API __declspec(dllexport)
enum { SUBSCRIPTION = 1, QUERY, EVENT, BOOKMARK, METADATA };

typedef struct {
    int kind, is_reversed, was_empty;
    unsigned long long first, last, next; /* of a result set: the records it wants, and the one it is at */
    unsigned long long record;            /* of an event or a bookmark */
    HANDLE signal;
} Thing;

static BYTE *content;
static DWORD content_size;

static void load(void)
{
    char path[MAX_PATH];
    if (!GetEnvironmentVariableA("WEVTAPI_RECORDS", path, sizeof path))
        return;
    HANDLE file = CreateFileA(path, GENERIC_READ, 7, NULL, OPEN_EXISTING, 0, NULL);
    if (file == INVALID_HANDLE_VALUE)
        return;
    DWORD size = GetFileSize(file, NULL), got = 0;
    BYTE *fresh = malloc(size + 2);
    if (ReadFile(file, fresh, size, &got, NULL) && got >= content_size) {
        content = fresh; /* the old one may be in use; it is small and stays */
        content_size = got;
    } else
        free(fresh);
    CloseHandle(file);
}

/* The n-th record, and its length in characters; NULL if there is none (yet). */
static const WCHAR *record(unsigned long long wanted, DWORD *length)
{
    DWORD at = 0;
    for (unsigned long long number = 1; at + 4 <= content_size; number++) {
        DWORD size;
        memcpy(&size, content + at, 4);
        if (at + 4 + size > content_size)
            return NULL;
        if (number == wanted) {
            *length = size / 2;
            return (const WCHAR *)(content + at + 4);
        }
        at += 4 + size;
    }
    return NULL;
}

static unsigned long long newest(void)
{
    unsigned long long number = 0;
    DWORD length;
    while (record(number + 1, &length))
        number++;
    return number;
}

static HANDLE fail(DWORD error)
{
    SetLastError(error);
    return NULL;
}

static Thing *thing(int kind)
{
    Thing *made = calloc(1, sizeof(Thing));
    made->kind = kind;
    return made;
}

static Thing *results(int kind, const WCHAR *path, const WCHAR *query)
{
    if (wcscmp(path, L"Canned"))
        return fail(15007);
    Thing *made = thing(kind);
    const WCHAR *number = query ? wcsstr(query, L"EventRecordID") : NULL;
    made->first = 1, made->last = ~0ULL;
    if (number && number[13] == '=')
        made->first = made->last = wcstoull(number + 14, NULL, 10);
    else if (number) {
        made->first = wcstoull(number + 15, NULL, 10);
        made->last = wcstoull(wcsstr(number + 13, L"EventRecordID") + 15, NULL, 10);
    } else if (query && wcsstr(query, L"timediff"))
        made->last = 0;
    load();
    made->next = made->first;
    return made;
}

static DWORD WINAPI watch(void *context)
{
    Thing *subscription = context;
    DWORD before = content_size;
    while (SetEvent(subscription->signal) || before) { /* until the process ends */
        for (before = content_size; content_size == before; load())
            Sleep(50);
    }
    return 0;
}

API HANDLE WINAPI EvtSubscribe(HANDLE session, HANDLE signal, const WCHAR *path, const WCHAR *query, HANDLE bookmark,
                               void *context, void *callback, DWORD flags)
{
    Thing *made = results(SUBSCRIPTION, path, query);
    (void)session, (void)context, (void)callback;
    if (!made)
        return NULL;
    if ((flags & 3) == 3) {
        made->next = ((Thing *)bookmark)->record + 1;
        if ((flags & 0x10000) && made->next > newest() + 1)
            return fail(1168);
    }
    made->signal = signal;
    SetEvent(signal);
    CreateThread(NULL, 0, watch, made, 0, NULL);
    return made;
}

API HANDLE WINAPI EvtQuery(HANDLE session, const WCHAR *path, const WCHAR *query, DWORD flags)
{
    Thing *made = results(QUERY, path, query);
    (void)session;
    if (!made)
        return NULL;
    if (flags & 0x200) {
        made->is_reversed = 1;
        made->next = newest() < made->last ? newest() : made->last;
    }
    return made;
}

API BOOL WINAPI EvtNext(HANDLE set, DWORD size, HANDLE *events, DWORD timeout, DWORD flags, DWORD *returned)
{
    Thing *from = set;
    DWORD length;
    (void)timeout, (void)flags;
    DWORD found = 0;
    while (found < size && from->next >= from->first && from->next <= from->last && record(from->next, &length)) {
        Thing *event = thing(EVENT);
        event->record = from->next;
        from->next += from->is_reversed ? -1 : 1;
        events[found++] = event;
    }
    if (found) {
        *returned = found; /* left alone where there are none: pywin32 has not set it, and looks at it all the same */
        from->was_empty = 0;
        return TRUE;
    }
    fail(from->was_empty ? ERROR_INVALID_OPERATION : ERROR_NO_MORE_ITEMS);
    from->was_empty = from->kind == SUBSCRIPTION; /* what Windows says to who asks again without news */
    return FALSE;
}

API BOOL WINAPI EvtSeek(HANDLE set, LONGLONG position, HANDLE bookmark, DWORD timeout, DWORD flags)
{
    Thing *results = set;
    DWORD length;
    (void)timeout;
    if ((flags & 7) != 4 || !record(((Thing *)bookmark)->record, &length)) {
        fail(1168);
        return FALSE;
    }
    results->next = ((Thing *)bookmark)->record + position;
    return TRUE;
}

static BOOL give(const void *text, DWORD bytes, DWORD room, void *buffer, DWORD *used, DWORD unit)
{
    *used = bytes / unit;
    if (!buffer || room < bytes / unit) {
        fail(ERROR_INSUFFICIENT_BUFFER);
        return FALSE;
    }
    memcpy(buffer, text, bytes);
    return TRUE;
}

API BOOL WINAPI EvtRender(HANDLE context, HANDLE fragment, DWORD flags, DWORD size, void *buffer, DWORD *used,
                          DWORD *properties)
{
    Thing *what = fragment;
    WCHAR text[256];
    DWORD length;
    (void)context;
    *properties = 0;
    if (flags == 2) {
        int count = swprintf(text, 256,
                             L"<BookmarkList>\r\n  <Bookmark Channel='Canned' RecordId='%I64u' IsCurrent='true'/>\r\n"
                             L"</BookmarkList>", what->record);
        return give(text, (count + 1) * 2, size, buffer, used, 1);
    }
    const WCHAR *xml = record(what->record, &length);
    WCHAR *ended = malloc((length + 1) * 2);
    memcpy(ended, xml, length * 2);
    ended[length] = 0;
    BOOL is_given = give(ended, (length + 1) * 2, size, buffer, used, 1);
    DWORD error = GetLastError();
    free(ended);
    SetLastError(error);
    return is_given;
}

API HANDLE WINAPI EvtOpenPublisherMetadata(HANDLE session, const WCHAR *provider, const WCHAR *file, LCID locale,
                                           DWORD flags)
{
    (void)session, (void)file, (void)locale, (void)flags;
    return wcsncmp(provider, L"Broken", 6) ? thing(METADATA) : fail(15002);
}

API BOOL WINAPI EvtFormatMessage(HANDLE metadata, HANDLE event, DWORD id, DWORD count, void *values, DWORD flags,
                                 DWORD size, WCHAR *buffer, DWORD *used)
{
    static const WCHAR words[] =
        L"<RenderingInfo Culture='en-US'><Message>Words of a provider.</Message></RenderingInfo></Event>";
    DWORD length;
    (void)metadata, (void)id, (void)count, (void)values;
    const WCHAR *xml = record(((Thing *)event)->record, &length);
    if (flags != 9) {
        fail(ERROR_INVALID_PARAMETER);
        return FALSE;
    }
    length -= 8; /* </Event> */
    WCHAR *text = malloc(length * 2 + sizeof words);
    memcpy(text, xml, length * 2);
    memcpy(text + length, words, sizeof words);
    BOOL is_given = give(text, length * 2 + sizeof words, size, buffer, used, 2);
    DWORD error = GetLastError();
    free(text);
    SetLastError(error);
    return is_given;
}

API HANDLE WINAPI EvtCreateBookmark(const WCHAR *xml)
{
    Thing *made = thing(BOOKMARK);
    const WCHAR *number = xml ? wcsstr(xml, L"RecordId='") : NULL;
    made->record = number ? wcstoull(number + 10, NULL, 10) : 0;
    return made;
}

API BOOL WINAPI EvtUpdateBookmark(HANDLE bookmark, HANDLE event)
{
    ((Thing *)bookmark)->record = ((Thing *)event)->record;
    return TRUE;
}

API BOOL WINAPI EvtClose(HANDLE handle)
{
    (void)handle; /* a watcher may still look at it; a test is short */
    return TRUE;
}
