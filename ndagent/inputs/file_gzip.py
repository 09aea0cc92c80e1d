"""Rotated files that were compressed: read once, from the beginning, as the text that they hold.

Promises: memory is bounded whatever the ratio; members that follow each other are one text; damaged or cut data ends
the text with a reason and what came before it counts. Positions are in the decompressed text, and going on at one costs
decompressing what stands before it. Refuses: more than `max_bytes` of text from one file.
"""

import zlib

from ndagent.core.system_files import pread

_READ_BYTES = 64 * 1024
_STEP_BYTES = 256 * 1024


class GzipText:
    """The text of one file, from the front; `problem` says why it ended before its end.

    `fd` must still be open, for the same file, whenever it is called.
    """

    def __init__(self, fd: int, *, max_bytes: int) -> None:
        self.fd = fd
        self._max_bytes = max_bytes
        self._file_offset = 0
        self._unzip = zlib.decompressobj(wbits=31)
        self._input = b""
        self._held = b""
        self._started = False
        self._text_bytes = 0
        self.position = 0
        """Where in the text `_held` begins."""
        self.at_end = False
        self.problem = ""

    def at(self, position: int, length: int) -> bytes:
        """Up to `length` bytes of the text from `position`, which must not lie before the last one asked for."""
        while self.position < position:
            if not self._held and not self._more():
                return b""
            step = min(position - self.position, len(self._held))
            self._held = self._held[step:]
            self.position += step
        pieces, have = [self._held], len(self._held)
        while have < length and self._more():
            pieces.append(self._held)
            have += len(self._held)
        self._held = b"".join(pieces)
        return self._held[:length]

    def _more(self) -> bool:
        """Replace `_held` by the next step of text; False at the end."""
        while not self.at_end:
            self._input = self._input or self._read()
            if not self._input:
                self._end("" if self._unzip.eof or not self._started else "the compressed data is cut short")
                break
            try:
                text = self._step()
            except zlib.error as error:
                self._end(f"the compressed data is damaged ({error})")
                break
            if text:
                self._held = text
                self._text_bytes += len(text)
                if self._text_bytes > self._max_bytes:
                    self._end("it holds more than gzip_max_bytes")
                return True
        return False

    def _step(self) -> bytes:
        if self._unzip.eof:  # RFC 1952 §2.2: members simply follow each other
            if not self._input.lstrip(b"\0"):  # padding, as tapes and some tools leave it
                self._input = b""
                return b""
            self._unzip = zlib.decompressobj(wbits=31)
        self._started = True
        text = self._unzip.decompress(self._input, _STEP_BYTES)
        self._input = self._unzip.unused_data if self._unzip.eof else self._unzip.unconsumed_tail
        return text

    def _read(self) -> bytes:
        data = pread(self.fd, _READ_BYTES, self._file_offset)
        self._file_offset += len(data)
        return data

    def _end(self, problem: str) -> None:
        self.at_end, self.problem = True, problem
