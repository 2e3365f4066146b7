"""The bytes of one entry of a zip, read and checked by one rule for every size.

The entry's area holds exactly one stream, the stream unpacks to exactly the size that the directory gives, and its
checksum is the directory's. Anything else could hide a second file from this reader or from another one.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator

from occ_app.workspaces.archive_names import shown

_PIECE = 1 << 18
_FIRST = 1 << 16  # a file of up to so many bytes is read at once

# A local file header up to the lengths of its name and of its extra field; 4.3.7 of PKWARE's APPNOTE.TXT.
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def content(descriptor: int, info: zipfile.ZipInfo, end: int) -> Iterator[bytes]:
    """Yield an entry's content in pieces of at most 256 KiB.

    `end` is where the next entry may begin. Raises BadZipFile or zlib.error, at the latest after the last piece.
    """
    room = end - info.header_offset
    block = os.pread(descriptor, min(room, _FIRST), info.header_offset)
    begin = _content_begin(block, info)
    if begin + info.compress_size > room:
        raise zipfile.BadZipFile(f"{shown(info.orig_filename)} reaches into the next entry")
    stream = _compressed(descriptor, info, block[begin : begin + info.compress_size], begin)
    size = checksum = 0
    for piece in stream if info.compress_type == zipfile.ZIP_STORED else _inflated(stream, info):
        size += len(piece)
        checksum = zlib.crc32(piece, checksum)
        if size > info.file_size:
            break
        yield piece
    if size != info.file_size:
        raise zipfile.BadZipFile(f"{shown(info.orig_filename)} is not as long as the zip says")
    if checksum != info.CRC:
        raise zipfile.BadZipFile(f"{shown(info.orig_filename)} has a wrong checksum")


def _content_begin(block: bytes, info: zipfile.ZipInfo) -> int:
    """Return where the content begins, counted from the entry's local header."""
    signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(block)
    name = block[30 : 30 + name_length].decode("utf-8" if info.flag_bits & 0x800 else "cp437")
    if signature != b"PK\x03\x04" or name != info.orig_filename:
        raise zipfile.BadZipFile(f"{shown(info.orig_filename)} and the zip's directory do not agree")
    return int(30 + name_length + extra_length)


def _compressed(descriptor: int, info: zipfile.ZipInfo, first: bytes, begin: int) -> Iterator[bytes]:
    """Yield the stored bytes of an entry; `first` are those already read."""
    yield first
    done = len(first)
    while done < info.compress_size:
        wanted = min(_PIECE, info.compress_size - done)
        piece = os.pread(descriptor, wanted, info.header_offset + begin + done)
        if not piece:
            raise zipfile.BadZipFile(f"{shown(info.orig_filename)} is cut")
        done += len(piece)
        yield piece


def _inflated(stream: Iterator[bytes], info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the unpacked bytes of one deflate stream that must end with its entry."""
    if info.compress_size == info.file_size == 0:
        return  # some writers name a method for nothing at all
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for piece in stream:
        if inflater.eof and piece:
            raise zipfile.BadZipFile(f"{shown(info.orig_filename)} holds more than one file")
        rest = piece
        while rest and not inflater.eof:
            unpacked = inflater.decompress(rest, _PIECE)
            rest = inflater.unconsumed_tail
            if unpacked:
                yield unpacked
    while not inflater.eof:
        # The end of the input may expand to more than one piece of output.
        unpacked = inflater.decompress(b"", _PIECE)
        if not unpacked:
            raise zipfile.BadZipFile(f"{shown(info.orig_filename)} is cut")
        yield unpacked
    if inflater.unused_data:
        raise zipfile.BadZipFile(f"{shown(info.orig_filename)} holds more than one file")
