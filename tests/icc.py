"""Colour profiles, built byte by byte (ICC.1:2001-04, profiles of version 2)."""

import struct
from collections.abc import Mapping, Sequence

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# Columns of the matrix of sRGB, adapted to D50 (Bradford): red, green and blue.
SRGB = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7141)}
RED_LAB = (54.3, 80.8, 69.9)


def rgb_profile(matrix: Mapping[str, Sequence[float]] = SRGB, curve: bytes = b"") -> bytes:
    """A profile of RGB. matrix: XYZ of each primary; the default curve is that of sRGB."""
    curve = curve or sampled_curve()
    tags = {f"{name}XYZ": xyz(*values) for name, values in matrix.items()}
    return profile("RGB ", "XYZ ", tags | dict.fromkeys(("rTRC", "gTRC", "bTRC"), curve))


def grey_profile() -> bytes:
    """A profile of grey values that are proportional to light: 128 appears as 188 in sRGB."""
    return profile("GRAY", "XYZ ", {"kTRC": b"curv" + bytes(8)})


def cmyk_profile() -> bytes:
    """A profile of four inks on white paper, of which the first is red; the others are black."""
    labs = []
    for corner in range(16):  # the first ink changes slowest
        inks = [corner >> shift & 1 for shift in (3, 2, 1, 0)]
        labs.append((0, 0, 0) if any(inks[1:]) else RED_LAB if inks[0] else (100, 0, 0))
    cells = bytes(round(v) for L, a, b in labs for v in (L * 2.55, a + 128, b + 128))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + cells + 3 * ramp
    return profile("CMYK", "Lab ", {"A2B0": table}, kind="prtr")


def sampled_curve(n: int = 1024) -> bytes:
    """sRGB's curve at n points, as profiles of version 2 hold it."""
    v = np.linspace(0, 1, n)
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return b"curv" + struct.pack(">II", 0, n) + (light * 65535).round().astype(">u2").tobytes()


def xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ " + struct.pack(">I3i", 0, *(round(value * 65536) for value in (x, y, z)))


def profile(space: str, connection: str, tags: Mapping[str, bytes], kind: str = "mntr") -> bytes:
    text = b"text" + bytes(4) + b"test\0"
    description = b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(78)
    tags = {**tags, "wtpt": xyz(*D50), "cprt": text, "desc": description}
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name.encode() + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI", start + len(body), b"", 0x02400000)
    header += f"{kind}{space}{connection}".encode() + bytes(12) + b"acsp" + bytes(28)
    header += xyz(*D50)[8:]
    return header.ljust(128, b"\0") + table + body
