"""Sizes, counts and offsets near the powers of two where 32 and 64 bits end, against Python's integers of any size.

``python -m tests.gguf.sizes --headers 1000000``
"""

from __future__ import annotations

import argparse
import math
import os
import random
import struct
import sys
import tempfile
import time

from otter_gguf import _native, errors
from tests.gguf.gguf_builder import TENSOR_TYPES, VALUE_FORMATS, VALUE_TYPES, text

NUMBERS = [0, 1, 2, 4, 31, 32, 33, 64, 255, 256, 1024]
NUMBERS += [2**bits + step for bits in (31, 32, 33, 60, 61, 62, 63) for step in (-32, -1, 0, 1, 32)]
NUMBERS += [2**64 - step for step in (1, 2, 4, 31, 32, 33, 64)]
ALIGNMENTS = [max(0, 2**bits + step) for bits in range(32) for step in (-1, 0, 0, 0, 1)]
_NUMBER_TYPES = [type for type in VALUE_FORMATS if type != "bool"]
SPARE = 1024
"""Bytes of tensor data in each file."""


class MemoryFile:
    """A file that is no burden on the disk, to be filled again and again."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("otter-gguf-test")
            self.path = f"/proc/self/fd/{self._fd}"
        else:
            self._fd, self.path = tempfile.mkstemp(prefix="otter-gguf-test-")

    def fill(self, raw: bytes, size: int | None = None) -> None:
        """The file holds these bytes now, and zeros behind them up to ``size``."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, raw, 0)
        self.cut(len(raw) if size is None else size)

    def cut(self, size: int) -> None:
        """The file ends here."""
        os.ftruncate(self._fd, size)

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *args: object) -> None:
        os.close(self._fd)
        if not self.path.startswith("/proc/"):
            os.unlink(self.path)


def expected_bytes(shape: list[int], type: str) -> int | None:
    """Bytes of a tensor in Python's integers; None if it must be refused."""
    _, block, size = TENSOR_TYPES[type]
    n_elements = math.prod(shape)
    n_bytes = n_elements // block * size
    fits = 0 < n_elements < 2**63 and n_bytes < 2**63 and shape[0] % block == 0
    return n_bytes if fits else None


def random_shape(rng: random.Random) -> list[int]:
    """One to four dimensions of any size; often a product that wraps to something small."""
    if rng.random() < 0.3:
        first = rng.randint(1, 63)
        return [2**first, 2 ** (64 - first)]
    return [rng.choice(NUMBERS) for _ in range(rng.randint(1, 4))]


def random_header(rng: random.Random) -> tuple[bytes, int, bool]:
    """A file of one array, an alignment and up to two tensors: its header, its size, and whether it is good.

    What it says of itself is a lie here and there; whether it is good is computed in Python's integers.
    """
    alignment = rng.choice(ALIGNMENTS) if rng.random() < 0.3 else rng.choice([8, 32, 64, 4096])
    known = alignment in (1 << bit for bit in range(3, 17))
    step = alignment if known else 32
    count = rng.choice(NUMBERS) if rng.random() < 0.1 else rng.choice([1, 2, 2])
    array, claimed, held = random_array(rng)
    infos, infos_good = random_infos(rng, step)

    n_keys = rng.choice(NUMBERS) if rng.random() < 0.05 else 2
    header = b"GGUF" + struct.pack("<IQQ", 3, count, n_keys)
    header += text("general.alignment") + struct.pack("<II", VALUE_TYPES["u32"], alignment)
    size_before = len(header)
    header += array + b"".join(infos[:count])
    size = -(-len(header) // step) * step + SPARE
    if count == 0:  # nothing follows the keys, so that what they claim need only lie inside the file
        fits = size_before + len(array) - held + claimed <= size
        good = n_keys == 0 or (known and (n_keys == 1 or (n_keys == 2 and fits)))
    else:
        good = known and n_keys == 2 and claimed == held and count <= 2 and all(infos_good[:count])
    return header, size, good


def random_array(rng: random.Random) -> tuple[bytes, int, int]:
    """A key with an array of numbers: its bytes, and how many bytes of numbers it claims and holds."""
    type = rng.choice(_NUMBER_TYPES) if rng.random() < 0.3 else "u32"
    n_bytes = struct.calcsize(VALUE_FORMATS[type])
    held = rng.choice([0, 1, 3, 8])
    claimed = rng.choice(NUMBERS) if rng.random() < 0.1 else held
    raw = text("k") + struct.pack("<IIQ", VALUE_TYPES["arr"], VALUE_TYPES[type], claimed)
    return raw + bytes(n_bytes * held), n_bytes * claimed, n_bytes * held


def random_infos(rng: random.Random, step: int) -> tuple[list[bytes], list[bool]]:
    """Entries of two tensors, and whether each of them is right where the first one is."""
    infos, good, place = [], [], 0
    for name in "ab":
        shape = random_shape(rng) if rng.random() < 0.25 else [rng.choice([32, 64])]
        type = rng.choice(["F32", "F16", "Q8_0", "Q4_0"])
        n_bytes = expected_bytes(shape, type)
        offset = rng.choice(NUMBERS) if rng.random() < 0.1 else place % 2**64
        infos.append(
            text(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", TENSOR_TYPES[type][0], offset)
        )
        good.append(n_bytes is not None and offset == place and place + n_bytes <= SPARE)
        place = -(-(place + (n_bytes or 0)) // step) * step
    return infos, good


def compare_headers(count: int, seed: int) -> int:
    """How many of so many random headers were accepted; all of them rightly, and the others refused rightly."""
    rng = random.Random(seed)
    accepted = 0
    with MemoryFile() as file:
        for _ in range(count):
            header, size, good = random_header(rng)
            file.fill(header, size)
            try:
                _native.GgufFile(file.path).close()
                found = True
            except errors.FileError:
                found = False
            assert found == good, f"{'accepted' if found else 'refused'}: {header.hex()} in {size} bytes"
            accepted += found
    return accepted


def main() -> int:
    """Print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", type=int, default=1_000_000, metavar="N", help="how many (default: 1000000)")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    begin = time.monotonic()
    accepted = compare_headers(args.headers, seed)
    print(
        f"{args.headers} headers (seed {seed}) in {time.monotonic() - begin:.0f} s: {accepted} accepted, "
        f"{args.headers - accepted} refused, all as Python's integers have it"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
