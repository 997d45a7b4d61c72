"""Checks a PNG and leaves of it what its pixels depend on."""

import io
import struct
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT")


def essence(file: BinaryIO, *, pixels: bool) -> io.BytesIO:
    """A PNG of the chunks that its pixels depend on; the checksums of all of them are tested.

    Pillow does not test those of the pixels and shows junk. For a text or a profile that is long or spoilt it gives up
    a good image; those stay behind. The EXIF moves before the pixels, where Pillow finds it without reading them.

    Args:
        file: stands behind the signature.
        pixels: False puts an empty chunk in the place of the pixels, which are then not read.

    Raises:
        ValueError: a chunk is damaged or cut off, or there are no pixels.
    """
    begin = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(begin)
    kept: dict[bytes, list[bytes]] = {kind: [] for kind in _NEEDED}
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        # What is no letter is rubbish behind the image, or in its place.
        if kind == b"IEND" or not kind.isalpha():
            break
        if whole := file.tell() + length + 4 <= end:
            if kind not in kept or (kind == b"IDAT" and not pixels):
                file.seek(length + 4, io.SEEK_CUR)
                kept.get(kind, []).append(b"")
                continue
            body = file.read(length + 4)
            whole = zlib.crc32(memoryview(body)[:-4], zlib.crc32(kind)) == int.from_bytes(body[-4:], "big")
        elif kind not in kept:
            break
        if not whole:
            raise ValueError(f"the PNG is damaged: its {kind.decode()} is cut off or has a wrong checksum")
        kept[kind] += head, body
    if not kept[b"IDAT"]:
        raise ValueError("the PNG is cut off before its pixels")
    if not pixels:
        kept[b"IDAT"] = [_chunk(b"IDAT")]
    return io.BytesIO(b"".join([SIGNATURE, *(part for parts in kept.values() for part in parts), _chunk(b"IEND")]))


def _chunk(kind: bytes) -> bytes:
    return struct.pack(">I4sI", 0, kind, zlib.crc32(kind))
