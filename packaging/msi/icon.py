"""The icon of the Add/Remove entry, drawn: a shield with a line of events, in the sizes that Windows asks for.

An .ico is a directory and one 32-bit bitmap per size, bottom row first, with an empty AND mask behind it.
"""

import struct

SIZES = (16, 32, 48)
_SHIELD, _LINE, _CLEAR = (0x7A, 0x4A, 0x12, 0xFF), (0xFF, 0xFF, 0xFF, 0xFF), (0, 0, 0, 0)  # blue, green, red, alpha
_BARS = ((0.28, 0.72), (0.46, 0.60), (0.64, 0.66))
"""Where each bar lies from the top, and how far to the right it reaches."""


def icon() -> bytes:
    """The whole file."""
    images = [_image(size) for size in SIZES]
    offset = 6 + 16 * len(SIZES)
    entries = b""
    for size, image in zip(SIZES, images, strict=True):
        entries += struct.pack("<BBBBHHII", size, size, 0, 0, 1, 32, len(image), offset)
        offset += len(image)
    return struct.pack("<HHH", 0, 1, len(SIZES)) + entries + b"".join(images)


def _image(size: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, size, size * 2, 1, 32, 0, 0, 0, 0, 0, 0)
    rows = [b"".join(bytes(_pixel((x + 0.5) / size, (y + 0.5) / size)) for x in range(size)) for y in range(size)]
    mask_row = bytes((size + 31) // 32 * 4)
    return header + b"".join(reversed(rows)) + mask_row * size


def _pixel(x: float, y: float) -> tuple[int, int, int, int]:
    half_width = 0.42 if y < 0.5 else 0.42 * (1 - ((y - 0.5) / 0.46) ** 2) if y < 0.96 else 0.0
    if y < 0.04 or abs(x - 0.5) > half_width:
        return _CLEAR
    on_bar = any(top <= y < top + 0.09 and 0.28 <= x < right for top, right in _BARS)
    return _LINE if on_bar else _SHIELD
