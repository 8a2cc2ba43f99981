"""Mutated IDX files, image files, and the array file of an image folder."""

import binascii
import gzip
import io
import os
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

import modelzoo
from tests.fuzz.cases import Case, Files, Folder, Link
from tests.fuzz.files import joined_safetensors, mutated_tensors, split_safetensors
from tests.fuzz.inputs import CONTINUAL, TINY, YAML, idx_files, image, image_files, pixels
from tests.fuzz.values import damaged
from tests.test_bad_input import (
    FOLDER,
    idx,
)


def bomb(size: int) -> bytes:
    """Zeros, deflated, without an end."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packer.compress(bytes(1 << 20))
    packer.flush(zlib.Z_FULL_FLUSH)
    return (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * (size >> 20)


def idx_file(rng: random.Random) -> Case:
    files = {**TINY, "d.yaml": YAML["mnist"], **idx_files()}
    path = rng.choice([path for path in files if "ubyte" in path])
    zipped, content = path.endswith(".gz"), files[path]
    plain = gzip.decompress(content) if zipped else content
    how = rng.choice(["damage", "damage", "header", "header", "inside", "bomb", "labels", "link"])
    told = how
    if how == "header":
        sides = [0, 1, 7, 8, 28, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
        shape = [rng.choice(sides) for _ in range(rng.choice([1, 2, 3, 3, 4, 5, 255]))]
        plain = bytes([0, 0, rng.choice([8, 8, 8, 9, 11, 14]), len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        plain += bytes(rng.choice([0, 8, 8 * 784]))
        told = f"header {shape[:5]}"
    elif how == "inside":
        plain, told = damaged(plain, rng)
    elif how == "labels":
        plain = plain[:8] + rng.randbytes(len(plain) - 8)
    content = gzip.compress(plain, mtime=0) if zipped or how == "bomb" else plain
    if how == "damage":
        content, told = damaged(content, rng)
    if how == "bomb":
        head = idx(np.zeros((0, 28, 28), np.uint8))[:4] + struct.pack(">3I", rng.choice([8, 10**6, 5 * 10**6]), 28, 28)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        begin = gzip.compress(b"", mtime=0)[:10] + packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
        content = begin + bomb(rng.choice([64 << 20, 4 << 30]))
        files.pop(path)
        path = path.removesuffix(".gz") + ".gz"
    files[path] = (
        Link(rng.choice(["/dev/zero", "/dev/null", "missing", Path(path).name, "/"])) if how == "link" else content
    )
    return Case("", 0, [*CONTINUAL, "--samples", "1"], files, told=f"{Path(path).name}: {told}")


def png_claiming(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file whose header and data need not agree."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", binascii.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def large_image(rng: random.Random) -> tuple[bytes, str]:
    """A few bytes that ask for gigabytes."""
    width, height = rng.choice([(30000, 30000), (13000, 13000), (9000, 9000), (65535, 65535), (2**31 - 1, 1),
                                (1, 10**8), (10**6, 100), (0, 8), (1, 1), (8, 0), (300000, 1),
                                (1, 300000)])  # fmt: skip
    how = rng.choice(["png", "grey", "bmp", "ppm", "pgm", "gif", "tif", "jpg", "webp"])
    small = {"grey": "png", "pgm": "ppm"}.get(how, how)
    content = bytearray(image(small, mode="L" if small == "gif" else "RGB"))
    if how in ("png", "grey"):
        rows = min(height, 5000) * (1 + min(width, 30000) * (3 if how == "png" else 1) // (1 if how == "png" else 8))
        full = rng.random() < 0.5
        data = zlib.compress(bytes(min(rows, 200 << 20)) if full else b"")
        return png_claiming(width, height, data, *((8, 2) if how == "png" else (1, 0))), f"{how} {width}x{height}"
    if how in ("ppm", "pgm"):
        return b"P%d %d %d 255\n" % (6 if how == "ppm" else 5, width, height) + bytes(100), f"{how} {width}x{height}"
    places = {"bmp": (18, "<II"), "gif": (6, "<HH"), "tif": None, "jpg": None, "webp": (26, "<HH")}[how]
    if places:
        wide = 2**32 if places[1] == "<II" else 2**16
        content[places[0] : places[0] + struct.calcsize(places[1])] = struct.pack(
            places[1], width % wide, height % wide
        )
        return bytes(content), f"{how} {width}x{height}"
    if how == "jpg":
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", height % 2**16, width % 2**16)
        return bytes(content), f"{how} {width}x{height}"
    for tag, value in ((256, width), (257, height)):
        at = content.index(struct.pack("<H", tag))
        content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(content), f"{how} {width}x{height}"


def damaged_image(rng: random.Random) -> tuple[bytes, str]:
    suffix = rng.choice(["png", "png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
    content, told = damaged(image(suffix, rng.choice([1, 8, 64]), "L" if suffix == "gif" else "RGB"), rng)
    return content, f"{suffix} {told}"


def image_of_odd_mode(rng: random.Random) -> tuple[bytes, str]:
    """An image that is not plain colour, often damaged too."""
    mode, kind = rng.choice([("1", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("I;16", "PNG"),
                             ("CMYK", "TIFF"), ("F", "TIFF"), ("LAB", "TIFF"), ("YCbCr", "JPEG"),
                             ("I", "TIFF")])  # fmt: skip
    colours, file = Image.fromarray(pixels(9, 9, 3)), io.BytesIO()
    if mode == "I;16":
        made = Image.fromarray(pixels(9, 9).astype("<u2") * 200)
    elif mode == "LAB":
        made = Image.merge(mode, colours.split())
    else:
        made = colours.convert("L" if mode in ("F", "I") else mode).convert(mode)
    made.save(file, kind)
    if rng.random() < 0.3:
        return file.getvalue(), f"mode {mode}"
    content, told = damaged(file.getvalue(), rng)
    return content, f"mode {mode}, {told}"


def misnamed(files: Files, path: str, rng: random.Random) -> str:
    """Gives an image, or the folder of a class, an odd name; what was done."""
    odd = rng.choice([b"\xff.png", b"\xc3\xa9.png", b"a\nb.png", b"\x1b[31m.png", b"x" * 250 + b".png", b".png",
                      b"a.PNG", b"-.png"])  # fmt: skip
    del files[path]
    where = rng.choice([os.fsencode(Path(path).parent) + b"/" + odd, f"{FOLDER}/train/".encode() + odd + b"/1.png"])
    files[where] = rng.choice([image(), b"no image"])
    return f"name {odd!r:.30}"


def misplaced(files: Files, path: str, rng: random.Random) -> str:
    """Puts something else in the place of an image; what was done."""
    what = rng.choice(
        ["/dev/zero", "/dev/null", "missing", "/etc", "../../../../../d.yaml", Path(path).name, "folder", "cycle"]
    )
    if what == "cycle":
        files[f"{FOLDER}/train/loop"] = Link("..")
    else:
        files[path] = Folder() if what == "folder" else Link(what)
    return f"place {what}"


def image_file(rng: random.Random) -> Case:
    """One file of an image folder with other content, under another name, or something else in its place."""
    files = {**TINY, "d.yaml": YAML["images"], **image_files()}
    path = rng.choice([path for path in files if FOLDER in path])
    if rng.random() < 0.3:
        told = rng.choice([misnamed, misplaced, misplaced])(files, path, rng)
    else:
        files[path], told = rng.choice([*[damaged_image] * 4, *[large_image] * 2, image_of_odd_mode])(rng)
    return Case("", 0, [*CONTINUAL, "--samples", "1"], files, told=f"{path}: {told}")


CACHE = "cache"


def image_cache(rng: random.Random) -> Case:
    """The array file of an image folder, which is found to be fresh."""
    case = Case("", 0, [*CONTINUAL, "--samples", "1"], {**TINY, "d.yaml": YAML["images"], **image_files()})
    case.files[CACHE] = rng.randbytes(8)  # of what is to be done with it, once it is there
    return case


def damage_cache(case: Case) -> None:
    """A run fills it, and its tensors are changed while its fingerprint stays; or it is damaged altogether."""
    rng = random.Random(f"cache/{case.seed}/inside")
    modelzoo.main(case.arguments)
    shutil.rmtree("run")
    (path,) = Path("data/cache").iterdir()
    if rng.random() < 0.1:
        path.unlink()
        target = rng.choice(["/dev/zero", "../../outside", "missing", "folder"])
        if target == "folder":
            path.mkdir()
        else:
            path.symlink_to(target)
        case.told = target
        return
    content, case.told = mutated_tensors(path.read_bytes(), rng)
    if rng.random() < 0.5:
        header, data = split_safetensors(path.read_bytes())
        spans = {name: header[name]["data_offsets"] for name in header if name != "__metadata__"}
        parts = {name: data[a:b] for name, (a, b) in spans.items()}
        name = "pixels"
        entry = header[name]
        how = rng.choice(["dtype", "shape", "values", "gone", "text"])
        if how == "dtype":
            entry["dtype"] = rng.choice(["I8", "F32", "BOOL", "U16", "F64", "I64"])
            size = {"I8": 1, "F32": 4, "BOOL": 1, "U16": 2, "F64": 8, "I64": 8}[entry["dtype"]]
            parts[name] = bytes(size * int(np.prod(entry["shape"])))
        elif how == "shape":
            entry["shape"] = rng.choice(
                [[0], [1], [12], [12, 3, 8, 8, 1], [11, 3, 8, 8], [12, 1, 8, 8], [12, 3, 4, 16], [13]]
            )
            entry["dtype"] = "U8"
            parts[name] = bytes(int(np.prod(entry["shape"])))
        elif how == "values":
            parts[name] = rng.choice([b"\xff", b"\x7f", b"\x05"]) * len(parts[name])
        elif how == "gone":
            del header[name], parts[name]
        position, body = 0, b""
        for key, part in parts.items():
            header[key]["data_offsets"] = [position, position + len(part)]
            position, body = position + len(part), body + part
        content, case.told = joined_safetensors(header, body), f"{how} of {name}"
    path.write_bytes(content)
