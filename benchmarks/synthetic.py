"""Make a random base model and a random Otter sidecar of a real model's geometry, for speed and exactness.

    python benchmarks/synthetic.py --geometry 1b --type Q4_0 --width 64 --kv-heads 1 --inner 256 --output DIR

writes ``DIR/base.gguf`` and ``DIR/synthetic.otter.gguf``. Matrices are drawn from N(0, 1 / fan_in), so that states and
logits have sane sizes; nothing else about the weights is realistic. A small pool of blocks is quantized once and
every tensor is filled with random picks from it: memory stays bounded and 1b needs seconds in any weight type.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_gguf import _native
from otter_gguf.config import BaseGeometry, HeadConfig, InsertionConfig
from otter_gguf.errors import OtterError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import TENSOR_TYPES, KeyValue
from otter_gguf.gguf.fingerprint import fingerprint
from otter_gguf.gguf.metadata import Lineage, sidecar_metadata
from otter_gguf.gguf.recipes import expected_tensors
from otter_gguf.gguf.sidecar import mixture_type, stays_float32
from otter_gguf.gguf.writer import TensorPlan, write_gguf
from otter_gguf.heads import HeadInput
from otter_gguf.quantization import fitting_type

Float32 = npt.NDArray[np.float32]

POOL_VALUES = 1 << 20
CHUNK_BYTES = 16 << 20
FLOAT_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Geometry:
    """A base model: its sizes and what else its metadata says."""

    base: BaseGeometry
    tied: bool
    """Whether the output projection is the token embedding."""
    context_length: int
    rope_base: float
    rope_factor: float
    """Llama 3's long-context scaling of the rotary frequencies; 0 = none."""


GEOMETRIES = {
    "tiny": Geometry(BaseGeometry("llama", 3, 128, 4, 2, 32, 256, 320), False, 4096, 10000.0, 0.0),
    "1b": Geometry(BaseGeometry("llama", 16, 2048, 32, 8, 64, 8192, 128256), True, 131072, 500000.0, 32.0),
    "8b": Geometry(BaseGeometry("llama", 32, 4096, 32, 8, 128, 14336, 128256), False, 131072, 500000.0, 8.0),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor to be written: GGUF shape (columns first), weight type, and how its values are drawn."""

    name: str
    shape: tuple[int, ...]
    type: str
    mean: float = 0.0
    std: float = 0.0
    values: Float32 | None = None
    """Instead of drawing: the values themselves."""

    @property
    def n_values(self) -> int:
        """How many."""
        return int(np.prod(self.shape, dtype=np.int64))


def block_values(type: str) -> int:
    """Values of one block of a type."""
    return 256 if type.endswith("_K") or type == "IQ4_XS" else 32


class Pools:
    """Random values, quantized once for each (type, mean, standard deviation), and picked from by the block."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pools: dict[tuple[str, float, float], npt.NDArray[np.uint8]] = {}

    def chunks(self, tensor: Tensor) -> Iterator[bytes | memoryview]:
        """The tensor's bytes, some megabytes at a time."""
        if tensor.values is not None:
            yield tensor.values.tobytes()
            return
        pool = self._pool(tensor)
        n_blocks, n_bytes = pool.shape
        left = -(-tensor.n_values // block_values(tensor.type))
        # Norms and heads may end within a block.
        end = tensor.n_values * n_bytes // block_values(tensor.type)
        while left:
            count = min(left, CHUNK_BYTES // n_bytes)
            chunk = pool[self.rng.integers(0, n_blocks, count)].reshape(-1)[:end]
            yield chunk.data
            left -= count
            end -= len(chunk)

    def _pool(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        key = (tensor.type, tensor.mean, tensor.std)
        if key not in self.pools:
            shape = (POOL_VALUES // block_values(tensor.type), block_values(tensor.type))
            values = self.rng.normal(tensor.mean, tensor.std, shape).astype(np.float32)
            self.pools[key] = np.frombuffer(_native.quantize(values, tensor.type), np.uint8).reshape(shape[0], -1)
        return self.pools[key]


def output_type(type: str) -> str:
    """Type of the output projection, or of the embedding that is it: at least Q6_K, as llama-quantize has it."""
    return type if type in FLOAT_TYPES or type == "Q8_0" else "Q6_K"


def matrix(name: str, columns: int, rows: int, type: str) -> Tensor:
    """N(0, 1 / fan_in)."""
    return Tensor(name, (columns, rows), fitting_type(type, columns), std=columns**-0.5)


def norm(name: str, size: int) -> Tensor:
    """Around 1."""
    return Tensor(name, (size,), "F32", mean=1.0, std=0.1)


def rope_freqs(geometry: Geometry) -> Float32:
    """Divisors of the rotary frequencies as Llama 3.1 scales them (low factor 1, high factor 4, 8192 positions)."""
    n = geometry.base.head_dim
    wavelength = 2 * np.pi * geometry.rope_base ** (np.arange(0, n, 2) / n)
    smooth = np.clip((8192 / wavelength - 1.0) / 3.0, 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / geometry.rope_factor + smooth), np.float32)


def base_tensors(geometry: Geometry, type: str) -> list[Tensor]:
    """Every tensor of the base, under llama.cpp's names."""
    base = geometry.base
    d = base.n_embd
    out = output_type(type)
    tensors = [
        matrix("token_embd.weight", d, base.n_vocab, out if geometry.tied else type),
        norm("output_norm.weight", d),
    ]
    if not geometry.tied:
        tensors.append(matrix("output.weight", d, base.n_vocab, out))
    if geometry.rope_factor:
        freqs = rope_freqs(geometry)
        tensors.append(Tensor("rope_freqs.weight", freqs.shape, "F32", values=freqs))
    for layer in range(base.n_layer):
        tensors += layer_tensors(base, f"blk.{layer}.", type)
    return tensors


def layer_tensors(base: BaseGeometry, prefix: str, type: str) -> list[Tensor]:
    """One layer of the base."""
    d, f, n = base.n_embd, base.n_ff, base.head_dim
    return [
        norm(prefix + "attn_norm.weight", d),
        matrix(prefix + "attn_q.weight", d, n * base.n_head, type),
        matrix(prefix + "attn_k.weight", d, n * base.n_head_kv, type),
        matrix(prefix + "attn_v.weight", d, n * base.n_head_kv, type),
        matrix(prefix + "attn_output.weight", n * base.n_head, d, type),
        norm(prefix + "ffn_norm.weight", d),
        matrix(prefix + "ffn_gate.weight", d, f, type),
        matrix(prefix + "ffn_up.weight", d, f, type),
        matrix(prefix + "ffn_down.weight", f, d, type),
    ]


def sidecar_tensors(config: InsertionConfig, type: str) -> list[Tensor]:
    """Every inserted tensor, in the types of the mixture ``type``."""
    tensors = []
    for name, shape in expected_tensors(config).items():
        if "norm." in name:
            tensors.append(norm(name, shape[0]))
        elif stays_float32(name):
            tensors.append(Tensor(name, shape, "F32", std=shape[0] ** -0.5 if len(shape) > 1 else 0.1))
        else:
            columns, rows = shape
            tensors.append(matrix(name, columns, rows, mixture_type(name, type)))
    return tensors


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in a byte-level BPE vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def tokenizer_metadata(n_vocab: int) -> list[KeyValue]:
    """Byte-level BPE that takes any text: bytes, some merges, fillers up to the vocabulary's size, two specials."""
    symbols = byte_symbols()
    pairs = [f"{a} {b}" for a in "etaoinsr" + symbols[32] for b in "etaoinsrhldu" if a != b]
    merges = pairs[: n_vocab - 258]
    tokens = symbols + [pair.replace(" ", "") for pair in merges]
    tokens += [f"<|extra_{i}|>" for i in range(n_vocab - 2 - len(tokens))]
    return [
        KeyValue("tokenizer.ggml.model", "str", "gpt2"),
        KeyValue("tokenizer.ggml.pre", "str", "gpt-2"),
        KeyValue("tokenizer.ggml.tokens", "arr[str]", [*tokens, "<|begin|>", "<|end|>"]),
        KeyValue("tokenizer.ggml.token_type", "arr[i32]", [1] * (n_vocab - 2) + [3, 3]),
        KeyValue("tokenizer.ggml.merges", "arr[str]", merges),
        KeyValue("tokenizer.ggml.bos_token_id", "u32", n_vocab - 2),
        KeyValue("tokenizer.ggml.eos_token_id", "u32", n_vocab - 1),
        KeyValue("tokenizer.ggml.add_bos_token", "bool", True),
    ]


def base_metadata(geometry: Geometry) -> list[KeyValue]:
    """What llama.cpp wants to know of a Llama."""
    base = geometry.base
    return [
        KeyValue("general.architecture", "str", base.architecture),
        KeyValue("general.type", "str", "model"),
        KeyValue("general.name", "str", f"Synthetic {base.n_layer}x{base.n_embd}"),
        KeyValue("general.quantization_version", "u32", 2),
        KeyValue("llama.block_count", "u32", base.n_layer),
        KeyValue("llama.context_length", "u32", geometry.context_length),
        KeyValue("llama.embedding_length", "u32", base.n_embd),
        KeyValue("llama.feed_forward_length", "u32", base.n_ff),
        KeyValue("llama.attention.head_count", "u32", base.n_head),
        KeyValue("llama.attention.head_count_kv", "u32", base.n_head_kv),
        KeyValue("llama.attention.key_length", "u32", base.head_dim),
        KeyValue("llama.attention.value_length", "u32", base.head_dim),
        KeyValue("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        KeyValue("llama.rope.dimension_count", "u32", base.head_dim),
        KeyValue("llama.rope.freq_base", "f32", geometry.rope_base),
        KeyValue("llama.vocab_size", "u32", base.n_vocab),
        *tokenizer_metadata(base.n_vocab),
    ]


def write(path: Path, metadata: list[KeyValue], tensors: list[Tensor], seed: int) -> None:
    """Write one file, replacing an old one."""
    pools = Pools(seed)
    plans = [TensorPlan(t.name, t.type, t.shape, partial(pools.chunks, t)) for t in tensors]
    write_gguf(path, metadata, plans, force=True)


def write_base(path: Path, geometry: Geometry, type: str, seed: int) -> None:
    """The base; random weights depend on geometry, type and seed alone."""
    write(path, base_metadata(geometry), base_tensors(geometry, type), seed)


def write_sidecar(path: Path, base_path: Path, config: InsertionConfig, type: str, seed: int) -> None:
    """A sidecar that is bound to a base."""
    tensors = sidecar_tensors(config, type)
    with BaseFiles.open(base_path) as base:
        metadata = sidecar_metadata(
            config,
            fingerprint(base),
            lineage=Lineage(name="Synthetic Otter"),
            quantized=any(tensor.type not in FLOAT_TYPES for tensor in tensors),
        )
    write(path, metadata, tensors, seed + 1)


def insertion(geometry: Geometry, args: argparse.Namespace) -> InsertionConfig:
    """The same sizes in every layer, one value head, and a vocabulary head for its first reward if there is a rank."""
    head = HeadConfig(labels=tuple(args.labels.split(",")), input="inserted" if args.width else "base")
    config = InsertionConfig.uniform(
        geometry.base, args.width, args.kv_heads, args.inner, heads=(head,), state_source=args.state_source
    )
    if not args.vocabulary_rank:
        return config
    source: HeadInput = "both" if args.width else "base"
    reward = config.reward_labels[0]
    vocabulary_head = HeadConfig("next", (reward,), source, kind="vocabulary", rank=args.vocabulary_rank)
    return dataclasses.replace(config, heads=(head, vocabulary_head))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="tiny", help="(default: %(default)s)")
    weights: Any = {"type": str.upper, "choices": TENSOR_TYPES, "metavar": "TYPE"}
    parser.add_argument("--type", default="Q4_0", help="weights of the base (default: %(default)s)", **weights)
    parser.add_argument("--otter-type", default="Q8_0", help="of the sidecar (default: %(default)s)", **weights)
    parser.add_argument("--width", type=int, default=64, help="inserted residual channels e (default: %(default)s)")
    parser.add_argument("--kv-heads", type=int, default=1, help="inserted KV heads of a layer (default: %(default)s)")
    parser.add_argument("--inner", type=int, default=256, help="inserted FFN size of a layer (default: %(default)s)")
    parser.add_argument("--state-source", choices=("slice", "table"), default="slice", help="(default: %(default)s)")
    parser.add_argument("--labels", default="reward", help="labels of the head, comma-separated (default: %(default)s)")
    parser.add_argument(
        "--vocabulary-rank", type=int, default=0, help="columns of a vocabulary head's table; 0 = none (default)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    geometry = GEOMETRIES[args.geometry]
    base, sidecar = args.output / "base.gguf", args.output / "synthetic.otter.gguf"
    try:
        config = insertion(geometry, args)
        args.output.mkdir(parents=True, exist_ok=True)
        write_base(base, geometry, args.type, args.seed)
        write_sidecar(sidecar, base, config, args.otter_type, args.seed)
    except OtterError as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 2
    print(f"wrote {base} and {sidecar}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
