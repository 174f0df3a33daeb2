"""Colour profiles for tests, written from their specification (ICC.1:2001-04), and what they mean."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Columns are the primaries in XYZ, adapted to D50 as profiles have them (Bruce Lindbloom's tables; Apple's Display P3).
SRGB = np.array([
    [0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]
])  # fmt: skip
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE = np.array([
    [0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197], [0.0194811, 0.0608902, 0.7448387]
])  # fmt: skip


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(value) for value in values)


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def _profile(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": _xyz((0.9642, 1.0, 0.8249)),
        b"cprt": b"text\0\0\0\0none\0",
        **tags,
    }
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    header = struct.pack(">I", start + len(content)) + b"lcms" + b"\x02\x10\0\0" + kind + space + pcs
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz((0.9642, 1.0, 0.8249))[8:]
    return header.ljust(128, b"\0") + table + content


def rgb_profile(primaries: Matrix, gamma: float = 2.2) -> bytes:
    """A profile of a display or camera: primaries and a power law."""
    columns = {tag: _xyz(primaries[:, index]) for index, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    curves = {tag: _gamma(gamma) for tag in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"RGB ", b"mntr", b"XYZ ", {**columns, **curves})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk_profile() -> bytes:
    """A press with a cyan of its own: L* = 93, a* = b* = -40."""
    identity = bytes(range(256))
    table = bytearray()
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    table += bytes((round(255 * (1 - 0.2 * (c + m + y) / 3 - 0.7 * k)), 128 - 40 * c, 128 - 40 * c))
    matrix = b"".join(_fixed(float(row == column)) for row in range(3) for column in range(3))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + identity * 4 + bytes(table) + identity * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": lut})


def in_srgb(colours: NDArray[np.uint8], primaries: Matrix, gamma: float = 2.2) -> NDArray[np.float64]:
    """Compute the sRGB values 0..255 of colours (n, 3) of a profile, cut off at sRGB's gamut."""
    return _encoded(primaries @ (colours.astype(float).T / 255) ** gamma)


def cyan_in_srgb() -> NDArray[np.float64]:
    """Compute the sRGB values of the full cyan of :func:`cmyk_profile`."""
    lightness, a, b = 100 * 238 / 255, -40.0, -40.0
    y = (lightness + 16) / 116
    return _encoded(np.array([0.9642, 1.0, 0.8249]) * np.array([y + a / 500, y, y - b / 200]) ** 3)


def _encoded(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    light = np.linalg.solve(SRGB, xyz).T.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
