"""What travels: formats only; no I/O, clock, logging or asyncio."""
