/* What wine 8 lacks and cryptography's Rust part asks for (wine 10 has it): random bytes, from wine's own source. */
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size)
{
    return RtlGenRandom(data, (ULONG)size);
}
