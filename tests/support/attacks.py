"""Hostile files, a few megabytes at most: in a trusting reader each would execute, or take memory or time."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as to_safetensors

WITNESS = "witness"  # the file that an attack makes if any of it is executed
ZEROS = gzip.compress(bytes(2**24))  # members of a gzip file may follow one another: a bomb of any size at once


class Attack(NamedTuple):
    """A file and the reader that it is meant for (see attack_runner.py)."""

    reader: str
    name: str  # unique; its suffix is that of the file
    content: bytes
    harmless: bool = False  # it may also be read, within the limits


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def named(module: str, name: str) -> bytes:
    """An opcode that names an object."""
    return f"c{module}\n{name}\n".encode()


def doubled(start: bytes, times: int = 60) -> bytes:
    """Tuples of twice the same tuple: 2^times leaves in a few bytes."""
    return start + b"2\x86" * times


def text(value: str) -> bytes:
    """An opcode that pushes text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def pickles() -> dict[str, bytes]:
    """Pickles that call what they should not, and pickles that need no call to do harm."""
    touch = f"touch {WITNESS}"
    calls = {
        "system": (os.system, touch),
        "popen": (subprocess.getoutput, touch),
        "eval": (eval, f"open('{WITNESS}','w')"),
        "exec": (exec, f"open('{WITNESS}','w')"),
        "open": (open, WITNESS, "w"),
        "import": (__import__, "antigravity"),
        "mkdir": (os.mkdir, WITNESS),
        "loads": (pickle.loads, pickle.dumps(Calls(os.system, touch))),
        "torch.load": (torch.load, WITNESS),
        "torch.save": (torch.save, {}, WITNESS),
        "np.load": (np.load, WITNESS),
        "write": (Path.touch, Path(WITNESS)),
        "getattr": (getattr, "x", "upper"),
        "exit": (os._exit, 0),
    }
    found = {
        f"{name} {protocol}": pickle.dumps(wrap(Calls(*call)), protocol)
        for name, call in calls.items()
        for protocol, wrap in ((0, lambda x: x), (2, lambda x: {"ema": [x]}), (4, lambda x: ({"mu": x},)))
    }
    collide = b"".join(b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(1, 200_000))
    many = b"(" + b"N" * 200_000
    repeat = b"h\x00h\x01R0" * 30_000
    storage = io.BytesIO()
    torch.save(torch.zeros(2**18)._typed_storage(), storage, _use_new_zipfile_serialization=False)
    stored = b"B" + struct.pack("<I", len(storage.getvalue())) + storage.getvalue()
    bytes_to_storage = named("torch.storage", "_load_from_bytes")
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    view = b"K\x00J" + struct.pack("<i", 2**18) + b"\x85K\x01\x85\x89N"
    own = (
        named("torch.nn.modules.linear", "Linear") + b")\x81q\x00}" + text("_modules") + b"}" + text("x") + b"h\x00ssb"
    )
    return found | {
        "instance": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "object": b"(" + named("os", "system") + f"S'{touch}'\no.".encode(),
        "dotted": named("torch._utils", "_rebuild_tensor_v2.__globals__") + b".",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"P1\n.",
        "deep list": b"]" * 200_000 + b"a" * 199_999 + b".",
        "deep tuple": b")" + b"\x85" * 200_000 + b".",
        "deep dict": b"}" + b"N}" * 100_000 + b"s" * 100_000 + b".",
        "doubled tuple": doubled(b")") + b".",
        "doubled list": b"]" + b"".join(b"q\x00]h\x00ah\x00a" for _ in range(60)) + b".",
        "doubled tuple of tensor names": b"}" + text("w") + doubled(b"N\x85") + b"s.",
        "key": b"}" + doubled(b"N\x85") + b"Ns.",
        "keys": b"}(" + doubled(b"N\x85") + b"Nu.",
        "dict key": b"(" + doubled(b"N\x85") + b"Nd.",
        "set element": b"\x8f(" + doubled(b"N\x85") + b"\x90.",
        "frozen element": b"(" + doubled(b"N\x85") + b"\x91.",
        "set call": named("builtins", "set") + b"](" + doubled(b"N\x85") + b"e\x85R.",
        "ordered key": named("collections", "OrderedDict") + b"]" + doubled(b"N\x85") + b"N\x86a\x85R.",
        "colliding keys": b"}(" + collide + b"u.",
        "colliding elements": b"\x8f(" + collide + b"\x90.",
        "memo": b"Nr\xff\xff\xff\x7f.",
        "memo text": b"Np2000000000\n.",
        "bytearray": b"\x96" + struct.pack("<Q", 2**33) + b".",
        "bytearray largest": b"\x96" + struct.pack("<Q", 2**63 - 1) + b".",
        "bytes": b"\x8e" + struct.pack("<Q", 2**40) + b".",
        "unicode": b"\x8d" + struct.pack("<Q", 2**40) + b".",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "bytearray call": named("builtins", "bytearray") + b"\x8a\x05" + (2**35).to_bytes(5, "little") + b"\x85R.",
        "tuple copies": named("torch", "Size") + b"q\x000" + many + b"l\x85q\x010" + repeat + b"N.",
        "set copies": named("builtins", "set")
        + b"q\x000"
        + b"("
        + b"K\x01" * 200_000
        + b"l\x85q\x010"
        + repeat
        + b"N.",
        "text copies": named("_codecs", "encode") + b"q\x000" + text("a" * 10**6) + b"\x85q\x010" + repeat + b"N.",
        "tensor copies": b"("
        + rebuild
        + b"q\x000"
        + b"("
        + bytes_to_storage
        + stored
        + b"\x85R"
        + view
        + b"tq\x010"
        + b"h\x00h\x01R" * 20_000
        + b"l.",
        "storage copies": b"("
        + bytes_to_storage
        + b"q\x000"
        + stored
        + b"\x85q\x010"
        + b"h\x00h\x01R" * 20_000
        + b"l.",
        "device": named("torch", "device") + doubled(text("a")) + b"R.",
        "operations": b"N0" * 2_000_000 + b"N.",
        "sets": b"(" + b"\x8f" * 4_000_000 + b"l.",
        "lists": b"(" + b"]\x94" * 2_000_000 + b"l.",
        "int": b"I" + b"9" * 10**6 + b"\n.",
        "long": b"L" + b"9" * 10**6 + b"L\n.",
        "hexadecimal": b"I0x" + b"f" * 10**6 + b"\n.",
        "float": b"F" + b"9" * 10**6 + b"\n.",
        "long name": named("os" + "x" * 10**6, "system\x1b[2J") + b".",
        "classes": b"(" + b"".join(named("torch.nn.modules.x", f"C{k}") + b")\x81" for k in range(100_000)) + b"l.",
        "message": rebuild + b"(NK\x00" + doubled(b"N\x85") + b")\x89NtR.",
        "own list": b"]q\x00h\x00a.",
        "own dict": b"}q\x00" + text("x") + b"h\x00s.",
        "own tuple": b"]q\x00h\x00\x85a.",
        "own module": own + b".",
    }


def torch_files() -> dict[str, bytes]:
    """Files of torch.save that claim what they do not hold."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def packed(changes: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind, compresslevel=1) as archive:
            for name, content in (members | changes).items():
                archive.writestr(name, content)
        return out.getvalue()

    data = members["archive/data.pkl"]
    count, size, stride = b"K\x06tq", b"K\x06\x85q", b"K\x01\x85q"
    assert all(data.count(part) == 1 for part in (count, size, stride))
    endless = b"J\xff\xff\xff\x7f"
    older = io.BytesIO()
    torch.save({"w": torch.arange(6.0)}, older, _use_new_zipfile_serialization=False)
    content = older.getvalue()
    claimed = content.replace((6).to_bytes(8, "little"), (2**61).to_bytes(8, "little"))
    system = pickle.dumps(Calls(os.system, f"touch {WITNESS}"), 2)
    return {
        "count": packed({"archive/data.pkl": data.replace(count, endless + count[2:])}),
        "size": packed({"archive/data.pkl": data.replace(size, endless + size[2:])}),
        "stride": packed(
            {"archive/data.pkl": data.replace(size, endless + size[2:]).replace(stride, b"K\0" + stride[2:])}
        ),
        "code": packed({"archive/data.pkl": system}),
        "compressed storage": packed({"archive/data/0": bytes(2**25)}, zipfile.ZIP_DEFLATED),
        "compressed pickle": packed({"archive/data.pkl": b"N0" * 2**24}, zipfile.ZIP_DEFLATED),
        "no storage": packed({"archive/data.pkl": data.replace(text("0"), text("9"))}),
        "key": packed({"archive/data.pkl": doubled_key(data)}),
        "big-endian": packed({"archive/byteorder": b"big"}),
        "older claim": claimed,
        "older cut": content[:-5],
        "older code": content[: content.index(b"}q\x00X\x01")] + system,
        "older storages": content[: content.rindex(b"\x80\x02]")] + b"\x80\x02](" + b"N" * 10**6 + b"e.",
        "members": b"".join([packed({})[:-22], directory(60_000), end(60_000, 60_000 * 46, len(packed({})) - 22)]),
        "cut": packed({})[: len(packed({})) // 2],
    }


def doubled_key(data: bytes) -> bytes:
    """The pickle with a key whose hash takes for ever."""
    return data[:-1] + b"(" + doubled(b"N\x85") + b"Nu."


def directory(count: int) -> bytes:
    """Entries of a zip's directory, all of the same nameless file."""
    return (b"PK\x01\x02" + bytes(42)) * count


def end(count: int, size: int, start: int) -> bytes:
    """The end of a zip's directory."""
    short = min(count, 0xFFFF)
    return b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, short, short, size, start, 0)


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, *chunks: tuple[bytes, bytes], rows: bytes = b""
) -> bytes:
    """A PNG of any claim, with hardly any pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunk(*one) for one in chunks) + chunk(b"IDAT", rows or zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def image(kind: str, mode: str = "RGB", size: tuple[int, int] = (9, 7), **options: object) -> bytes:
    """A sound image file."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def images() -> dict[str, bytes]:
    """Image files that claim much, hide much, or are deeper than 8 bits; and kinds that are never opened."""
    bomb = zlib.compress(bytes(2**26), 1)
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xfe\x3f\0\xfe\x3f\0"
    tiff16 = io.BytesIO()
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tiff16, "TIFF")
    shallow = zlib.compress(bytes(4 * (1 + 4 * 8)))
    loop = bytearray(image("TIFF"))
    loop[-4:] = struct.pack("<I", 8)
    found = {
        "huge.png": png(60_000, 60_000),
        "largest.png": png(2**31 - 1, 2**31 - 1),
        "wide.png": png(2**31 - 1, 1),
        "cut pixels.png": png(5700, 5800),
        "bomb.png": png(8192, 8192, rows=bomb),
        "clear.png": png(
            12_000, 12_000, 1, 3, (b"PLTE", bytes(6)), (b"tRNS", b"\0"), rows=zlib.compress(bytes(18_012_000))
        ),
        "text.png": png(9, 9, 8, 2, *[(b"zTXt", b"k\0\0" + bomb)] * 8),
        "profile.png": png(9, 9, 8, 2, (b"iCCP", b"k\0\0" + bomb)),
        "deep colour.png": png(4, 4, 16, 2, rows=shallow),
        "deep alpha.png": png(4, 4, 16, 6, rows=shallow),
        "deep grey.png": png(4, 4, 16, 0, rows=shallow),
        "deep grey alpha.png": png(4, 4, 16, 4, rows=shallow),
        "deep.tiff": tiff16.getvalue(),
        "deep.ppm": b"P6 4 4 65535\n" + bytes(96),
        "float.pfm": b"PF\n4 4\n-1.0\n" + bytes(192),
        "huge.ppm": b"P6 60000 60000 255\n",
        "plain.ppm": b"P3 5000 5000 255\n" + b"9" * 10**6,
        "digits.ppm": b"P6 " + b"9" * 10**5,
        "huge.gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\x00\x08\x01\x00\x3b",
        "huge.bmp": b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 1, 1, 0, 0),
        "huge.webp": webp,
        "loop.tiff": bytes(loop),
        "empty.png": b"",
        "junk.png": b"junk" * 1000,
        "newline\n.png": b"junk",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(witness) (w) file closefile\n",
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "icon.ico": image("ICO"),
        "page.pdf": image("PDF"),
        "picture.tga": image("TGA"),
        "picture.jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    }
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        sound = image(kind, size=(90, 70))
        found |= {f"cut at {part} of 4.{kind.lower()}": sound[: len(sound) * part // 4] for part in (1, 2, 3)}
    return found


def tar_header(name: bytes, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member that claims any size."""
    info = tarfile.TarInfo()
    info.name, info.type = name.decode("latin1"), kind
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def gz(*parts: bytes) -> bytes:
    """A gzip file of parts, of which each is a member of its own; `ZEROS` and `many` are members already."""
    return b"".join(part if part.startswith(b"\x1f\x8b") else gzip.compress(part, 1) for part in parts)


def many(part: bytes, times: int) -> bytes:
    """Members of a gzip file that repeat a part."""
    return gzip.compress(part * 100, 1) * (times // 100)


def with_dictionary(xz: bytes) -> bytes:
    """An xz file that claims to need the largest dictionary there is, 4 GiB."""
    size = 4 * (xz[12] + 1)
    head = bytearray(xz[12 : 12 + size - 4])
    head[head.index(b"\x21\x01") + 2] = 40
    return xz[:12] + bytes(head) + struct.pack("<I", zlib.crc32(head)) + xz[12 + size :]


def tars() -> dict[str, bytes]:
    """Tar files whose headers, names, sizes or numbers are hostile."""
    small, pad = tar_header(b"a.png", 1) + bytes(512), bytes(1024)
    record = b"path=" + b"x" * 2000
    pax = tar_header(b"p", 2**12, tarfile.XHDTYPE) + (b"%d " % (len(record) + 6) + record + b"\n").ljust(2**12, b"\0")
    huge = 2**30
    sparse = bytearray(tar_header(b"s.png", 0, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + 256 + sum(sparse[156:]))
    extended = (b"00000000000\0" * 42)[:504] + b"\1" + bytes(7)
    parts = "/".join("d" * 9 for _ in range(5000)).encode() + b"/a.png"
    key = b"comment=" + b"x" * 4000
    line = b"%d " % (len(key) + 6) + key + b"\n"
    shared = tar_header(b"g", len(line), tarfile.XGLTYPE) + line.ljust(-(-len(line) // 512) * 512, b"\0")
    long_name = tar_header(b"././@LongLink", len(parts) + 1, tarfile.GNUTYPE_LONGNAME)
    plain = {
        "pax bomb.tar.gz": gz(tar_header(b"p", huge, tarfile.XHDTYPE), *[ZEROS] * 64),
        "name bomb.tar.gz": gz(tar_header(b"././@LongLink", huge, tarfile.GNUTYPE_LONGNAME), *[ZEROS] * 64),
        "link bomb.tar.gz": gz(tar_header(b"././@LongLink", huge, tarfile.GNUTYPE_LONGLINK), *[ZEROS] * 64),
        "pax chain.tar.gz": gz(many(pax, 3000), small, pad),
        "shared headers.tar.gz": gz(many(shared, 60_000), small, pad),
        "sparse bomb.tar.gz": gz(bytes(sparse), many(extended, 400_000)),
        "large.tar.gz": gz(tar_header(b"a.png", 2**40), *[ZEROS] * 100),
        "empty members.tar.gz": gz(many(tar_header(b"a.png", 0), 200_000), pad),
        "small members.tar.gz": gz(many(small, 200_000), pad),
        "zeros.tar.gz": gz(*[tar_header(b"a.png", 2**24), ZEROS] * 100, pad),
        "tail.tar.gz": gz(small, pad, *[ZEROS] * 200),
        "deep name.tar.gz": gz(long_name + (parts + b"\0").ljust(-(-len(parts) // 512) * 512 + 512, b"\0"), small, pad),
        "negative.tar": tar_header(b"a.png", 0).replace(b"00000000000\0", b"\xff" * 12) + pad,
        "escape.tar": tar_header(b"../a.png", 1) + bytes(512) + pad,
        "absolute.tar": tar_header(b"/a.png", 1) + bytes(512) + pad,
        "device.tar": tar_header(b"a.png", 0, tarfile.CHRTYPE) + pad,
        "pipe.tar": tar_header(b"a.png", 0, tarfile.FIFOTYPE) + pad,
        "symlink.tar": tar_header(b"a.png", 0, tarfile.SYMTYPE) + pad,
        "hard link.tar": tar_header(b"a.png", 0, tarfile.LNKTYPE) + pad,
        "newline.tar": tar_header(b"a\n\x1b[31mb.png", 1) + bytes(512) + pad,
        "zeros.tar.bz2": bz2.compress(tar_header(b"a.png", 2**26))
        + bz2.compress(bytes(2**20)) * 64
        + bz2.compress(pad),
        "zeros.tar.xz": lzma.compress(tar_header(b"a.png", 2**26))
        + lzma.compress(bytes(2**20)) * 64
        + lzma.compress(pad),
        "dictionary.tar.xz": with_dictionary(lzma.compress(small + pad)),
        "junk.tar.gz": b"\x1f\x8b" + b"junk" * 100,
        "cut.tar.gz": gz(small, pad)[:-9],
    }
    return plain


def zips() -> dict[str, bytes]:
    """Zip files whose directories, sizes or names are hostile."""

    def packed(kind: int, *members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind, compresslevel=1) as archive:
            for name, content in members:
                archive.writestr(name, content)
        return out.getvalue()

    link = zipfile.ZipInfo("a.png")
    link.external_attr = 0o120777 << 16
    sound = packed(zipfile.ZIP_STORED, ("a.png", b"x" * 100))
    claim = bytearray(packed(zipfile.ZIP_DEFLATED, ("a.png", b"x" * 100)))
    at = claim.rindex(b"PK\x01\x02")
    claim[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    encrypted = bytearray(sound)
    encrypted[6] |= 1
    encrypted[sound.rindex(b"PK\x01\x02") + 8] |= 1
    local = sound[: sound.index(b"PK\x01\x02")]
    entry = sound[sound.index(b"PK\x01\x02") : sound.rindex(b"PK\x05\x06")]
    overlapping = local + entry * 60_000 + end(60_000, len(entry) * 60_000, len(local))
    eocd64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 2**40, 2**40, 2**40, 0)
    eocd64 += b"PK\x06\x07" + struct.pack("<IQI", 0, len(sound), 1)
    zeros = bytes(2**26)
    return {
        "directory.zip": b"PK\x03\x04" + directory(90_000) + end(90_000, 46 * 90_000, 4),
        "overlapping.zip": overlapping,
        "bomb.zip": packed(zipfile.ZIP_DEFLATED, *((f"{k}.png", zeros) for k in range(3))),
        "bzip2.zip": packed(zipfile.ZIP_BZIP2, ("a.png", zeros[: 2**24])),
        "lzma.zip": packed(zipfile.ZIP_LZMA, ("a.png", zeros[: 2**22])),
        "large.zip": packed(zipfile.ZIP_DEFLATED, ("a.png", bytes(2**27))),
        "claim.zip": bytes(claim),
        "encrypted.zip": bytes(encrypted),
        "sixty-four.zip": sound + eocd64 + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        "escape.zip": packed(zipfile.ZIP_STORED, ("../a.png", b"x")),
        "drive.zip": packed(zipfile.ZIP_STORED, ("C:\\a.png", b"x")),
        "newline.zip": packed(zipfile.ZIP_STORED, ("a\n\x1b[31mb.png", b"x")),
        "long name.zip": packed(zipfile.ZIP_STORED, ("d/" * 30_000 + "a.png", b"x")),
        "symlink.zip": packed(zipfile.ZIP_STORED, (link, b"/etc/hosts")),
        "twice.zip": local * 2 + entry * 2 + end(2, 2 * len(entry), 2 * len(local)),
        "deep labels.zip": packed(zipfile.ZIP_DEFLATED, ("a.png", b"x"), ("dataset.json", b"[" * 10**6)),
        "long labels.zip": packed(
            zipfile.ZIP_DEFLATED, ("a.png", b"x"), ("dataset.json", b"[" + b"[]," * 2**22 + b"[]]")
        ),
        "number.zip": packed(
            zipfile.ZIP_DEFLATED, ("a.png", b"x"), ("dataset.json", b'{"labels": ' + b"9" * 4000 + b"}")
        ),
        **{f"cut at {part} of 4.zip": sound[: len(sound) * part // 4] for part in (1, 2, 3)},
    }


def npy(header: bytes, version: int = 1, length: int | None = None, data: bytes = b"") -> bytes:
    """A .npy file with any header."""
    size = (len(header) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def arrays() -> dict[str, bytes]:
    """Arrays with hostile headers, alone and in archives."""

    def described(shape: str, kind: str = "'|u1'") -> bytes:
        return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()

    def packed(kind: int, **members: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind, compresslevel=1) as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)
        return out.getvalue()

    heads = {
        "objects": npy(described("(2,)", "'|O'"), data=pickle.dumps(Calls(os.system, f"touch {WITNESS}"))),
        "shape": npy(described("(1000000000, 1000000000, 3, 1)")),
        "overflow": npy(described(f"({10**30}, 4, 4)")),
        "negative": npy(described("(-1, 4, 4)")),
        "deep": npy(b"(" * 9000),
        "length": npy(b"{", 2, 2**32 - 1),
        "long": npy(described("(1, 4, 4)").ljust(2**20), 2),
        "digits": npy(described("(" + "9" * 9000 + ",)")),
        "code": npy(b"__import__('os').system('touch witness')"),
        "dimensions": npy(described("(" + "1," * 2000 + ")")),
        "fields": npy(described("(1,)", str([(f"f{k}", "<f8") for k in range(300)]))),
        "empty elements": npy(described(f"({2**60},)", "'|S0'")),
        "nothing": b"",
        "magic": b"\x93NUMPY",
    }
    zeros = npy(described("(10, 2500, 2500)"), data=bytes(62_500_000))
    return {
        **{f"{name}.npy": content for name, content in heads.items()},
        **{f"{name}.npz": packed(zipfile.ZIP_DEFLATED, images=content) for name, content in heads.items() if content},
        "bomb.npz": packed(zipfile.ZIP_DEFLATED, **{f"x{k}": zeros for k in range(2)}, images=zeros),
        "floats.npz": packed(
            zipfile.ZIP_DEFLATED, images=npy(described("(30000000,)", "'<f4'"), data=bytes(120_000_000))
        ),
        "members.npz": b"PK\x03\x04" + directory(90_000) + end(90_000, 46 * 90_000, 4),
        "junk.npz": b"PK\x03\x04junk",
    }


def safetensors() -> dict[str, bytes]:
    """Safetensors files with hostile headers."""

    def headed(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + data

    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    deep, digits = "[" * 100_000, "9" * 100_000
    shape = {"channels": 1, "classes": 0, "features": 4, "kind": "x", "resolution": 8, "width": 10**9}
    return {
        "length": headed(b"{}", 2**63),
        "gigabytes": headed(b"{}", 2**32),
        "zero": headed(b"", 0),
        "nothing": b"",
        "deep": headed(b'{"x":' * 100_000),
        "long": headed(b'{"x": [' + b"[]," * 2**20 + b"[]]}"),
        "number": headed(
            b'{"x": {"dtype": "F32", "shape": [' + digits.encode() + b'], "data_offsets": [0, 4]}}', data=bytes(4)
        ),
        "shape": headed(json.dumps({"x": tensor | {"shape": [2**62, 2**62]}}).encode(), data=bytes(4)),
        "negative": headed(json.dumps({"x": tensor | {"data_offsets": [-4, 0]}}).encode(), data=bytes(4)),
        "outside": headed(json.dumps({"x": tensor | {"data_offsets": [0, 2**40]}}).encode(), data=bytes(4)),
        "deep metadata": to_safetensors({"x": torch.zeros(1)}, {"extractor": deep, "meta": deep}),
        "number in metadata": to_safetensors({"x": torch.zeros(1)}, {"extractor": digits, "meta": digits}),
        "list in metadata": to_safetensors({"x": torch.zeros(1)}, {"extractor": "[]", "meta": "[]"}),
        "network": to_safetensors({"x": torch.zeros(1)}, {"extractor": json.dumps(shape)}),
        "levels": to_safetensors(
            {"x": torch.zeros(1)}, {"extractor": json.dumps(shape | {"width": 1, "resolution": 10**300})}
        ),
    }


def yamls() -> dict[str, bytes]:
    """Parameter files that are larger than they look."""
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]\n" for k in range(60))
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{k + 1}: &a{k + 1}\n  !!merge <<: [*a{k}, *a{k}]\n" for k in range(60))
    return {
        name: content.encode()
        for name, content in {
            "laughs": laughs,
            "mapping laughs": laughs.replace("[", "{p: ").replace(", ", ", q: ").replace("]", "}"),
            "merges": merges,
            "itself": "a: &a [*a]",
            "itself as a key": "? &a [*a]\n: 1",
            "deep list": "a: " + "[" * 60_000,
            "deep mapping": "{a: " * 20_000,
            "deep block": "\n".join(" " * k + "a:" for k in range(400)),
            "keys": "".join(f"k{k}: 1\n" for k in range(14_000)),
            "twice": "".join("k: 1\n" for _ in range(20_000)),
            "colliding keys": "".join(f"{k * (2**61 - 1)}: 1\n" for k in range(1, 5000)),
            "large": "a: " + "x" * 10**7,
            "digits": "a: " + "9" * 100_000,
            "sexagesimal": "a: !!float " + ":".join("1" for _ in range(60_000)),
            "python": f"a: !!python/object/apply:os.system ['touch {WITNESS}']",
            "python name": "a: !!python/name:os.system",
            "binary": "a: !!binary " + "A" * 100_000 + "!",
            "pairs": "a: !!omap [" + "{x: 1}, " * 10_000 + "]",
            "anchors": "".join(f"k{k}: &x{k} 1\n" for k in range(5000)) + "a: *y",
            "control": "a: \x1b[2J",
            "tabs": "\t" * 100_000,
            "documents": "---\n" * 30_000,
        }.items()
    }


LOOKED_AT = ("image", "archive")  # readers whose files `cmlab new` looks at, too


def attacks(*, quick: bool) -> list[Attack]:
    """All of them; quick ones without those that take seconds, and each pickle for one reader only."""
    readable = {"frame", "doubled tuple", "doubled list", "memo", "memo text", "hexadecimal", "float", "own dict"}
    readable |= {"doubled tuple of tensor names"}
    parts = {"text.png", "profile.png", "loop.tiff", "picture.tga"}
    large = {"keys", "colliding keys", "binary", "pairs"}
    called, files, held = pickles(), torch_files(), arrays()
    slow = {"small members.tar.gz", "empty members.tar.gz", "long.safetensors", "foreign lists.pkl"} if quick else set()
    found = [
        *(Attack("foreign", f"foreign {name}.pkl", content, name in readable) for name, content in called.items()),
        *(Attack("foreign", f"torch {name}.pt", content) for name, content in files.items()),
        *(Attack("image", n, content, n in parts or n.startswith("cut at")) for n, content in images().items()),
        *(Attack("archive", name, content) for name, content in (tars() | zips()).items()),
        *(Attack("array", name, content) for name, content in held.items()),
        *(Attack("extractor", f"{name}.safetensors", content) for name, content in safetensors().items()),
        *(Attack("yaml", f"{name}.yaml", content, name in large) for name, content in yamls().items()),
    ]
    if not quick:
        found += [
            *(Attack("cifar10", f"cifar10 {name}.pkl", content, name in readable) for name, content in called.items()),
            *(Attack("moments", f"moments {name}.pkl", content) for name, content in called.items()),
            *(Attack("moments", f"moments {name}.pt", content) for name, content in files.items()),
            *(Attack("moments", f"moments {name}", content) for name, content in held.items() if name.endswith("npz")),
            *(Attack("latents", f"latents {name}", content) for name, content in held.items() if name.endswith("npy")),
            *(one._replace(reader="survey", name=f"look {one.name}") for one in found if one.reader in LOOKED_AT),
            *mutations(),
        ]
    return [one for one in found if one.name not in slow]


def mutations(each: int = 60) -> list[Attack]:
    """Sound files of every kind with some bytes changed at random; they may be read."""
    rng, found = np.random.default_rng(0), []
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(60.0), "x": [1, (2.0, "y")]}, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", image("PNG"))
        archive.writestr("b/c.jpeg", image("JPEG"))
    array = io.BytesIO()
    np.savez_compressed(array, images=np.zeros((5, 4, 4), np.uint8), labels=np.arange(5))
    sound = {
        ("foreign", "m.pt"): buffer.getvalue(),
        ("foreign", "m.pkl"): pickle.dumps({"w": torch.ones(3), "z": {1: (2.0, "y")}}),
        ("archive", "m.zip"): out.getvalue(),
        ("archive", "m.tar.gz"): gz(tar_header(b"a.png", 512), image("PNG").ljust(512, b"\0"), bytes(1024)),
        ("array", "m.npz"): array.getvalue(),
        ("image", "m.png"): image("PNG"),
        ("image", "m.tiff"): image("TIFF"),
        ("image", "m.webp"): image("WEBP"),
        ("extractor", "m.safetensors"): to_safetensors({"x": torch.zeros(9)}, {"extractor": "{}"}),
        ("yaml", "m.yaml"): b"a: &x {b: [1, 2.5, text]}\nc: *x\nd: 'quoted'\n",
    }
    for (reader, name), content in sound.items():
        for k in range(each):
            changed = bytearray(content)
            for position in rng.integers(len(content), size=1 + k % 8):
                changed[position] = rng.integers(256)
            found.append(Attack(reader, f"{k} {name}", bytes(changed), harmless=True))
    return found
