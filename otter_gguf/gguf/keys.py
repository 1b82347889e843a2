"""Every GGUF key and every tensor name that otter-gguf writes or reads, defined once.

Converters, runtime, ``info`` and ``docs/format.md`` all take them from here. The tensor names follow llama.cpp's
names for the same place in the network, with ``otter`` before the final ``weight`` or ``bias``: what carries
``.otter.`` is inserted, everything else is the base's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import heads

FORMAT_VERSION = 1

GENERAL_TYPE = "general.type"  # "adapter" in a sidecar, the base's own value in a merged file
GENERAL_ARCHITECTURE = "general.architecture"  # the base's
ADAPTER_TYPE = "adapter.type"
ADAPTER_TYPE_OTTER = "otter"


@dataclass(frozen=True)
class Key:
    """One metadata key: its name, its GGUF type (``u32``, ``str``, ``arr[u32]`` ...) and what it says."""

    name: str
    type: str
    doc: str
    required: bool = True

    @property
    def field(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]


VERSION = Key("otter.version", "u32", "format version of the inserted part")
WIDTH = Key("otter.width", "u32", "inserted residual channels e; 0 = nothing inserted, heads on the base's state only")
HEAD_COUNT_KV = Key("otter.attention.head_count_kv", "arr[u32]", "inserted KV heads k' of each layer; 0 = none")
FEED_FORWARD_LENGTH = Key("otter.feed_forward_length", "arr[u32]", "inserted FFN inner size f' of each layer; 0 = none")
STATE_SOURCE = Key("otter.state.source", "str", "h'_0: `slice` of the base's embedded state, or trained `table`")
STATE_OFFSET = Key("otter.state.offset", "u32", "first channel of the slice (ignored for `table`)")
HEADS = Key("otter.heads", "arr[str]", "names of the heads, in output order")
BASE_FINGERPRINT = Key("otter.base.fingerprint", "str", "sha256 over what quantization leaves alone in the base")
BASE_BLOCK_COUNT = Key("otter.base.block_count", "u32", "layers L of the base")
BASE_EMBEDDING_LENGTH = Key("otter.base.embedding_length", "u32", "width d of the base")
BASE_HEAD_COUNT = Key("otter.base.attention.head_count", "u32", "query heads H of the base")
BASE_HEAD_COUNT_KV = Key("otter.base.attention.head_count_kv", "u32", "KV heads H_kv of the base")
BASE_KEY_LENGTH = Key("otter.base.attention.key_length", "u32", "head size n of the base")
BASE_FEED_FORWARD_LENGTH = Key("otter.base.feed_forward_length", "u32", "FFN inner size f of the base")
BASE_VOCAB_SIZE = Key("otter.base.vocab_size", "u32", "vocabulary size V of the base")
BASE_EXPERT_COUNT = Key(
    "otter.base.expert_count", "u32", "experts of each FFN of the base; only if it has them", required=False
)

SIDECAR_KEYS: tuple[Key, ...] = (
    VERSION,
    WIDTH,
    HEAD_COUNT_KV,
    FEED_FORWARD_LENGTH,
    STATE_SOURCE,
    STATE_OFFSET,
    HEADS,
    BASE_FINGERPRINT,
    BASE_BLOCK_COUNT,
    BASE_EMBEDDING_LENGTH,
    BASE_HEAD_COUNT,
    BASE_HEAD_COUNT_KV,
    BASE_KEY_LENGTH,
    BASE_FEED_FORWARD_LENGTH,
    BASE_VOCAB_SIZE,
)

# There where they are not 0.
OPTIONAL_SIDECAR_KEYS: tuple[Key, ...] = (BASE_EXPERT_COUNT,)

# Per head, with the head's name in the place of {name}.
HEAD_KIND = Key(
    "otter.head.{name}.kind", "str", "`value`: rewards of the prefix; `vocabulary`: scores of every next token"
)
HEAD_LABELS = Key(
    "otter.head.{name}.labels", "arr[str]", "one label a scalar; of a vocabulary head the reward that it predicts"
)
HEAD_INPUT = Key("otter.head.{name}.input", "str", "`inserted` (normed h'), `base` (normed h) or `both` ([h, h'])")
HEAD_ACTIVATION = Key("otter.head.{name}.activation", "str", "`none`, `sigmoid`, `tanh`, or `softmax` over the labels")
HEAD_SCALE = Key("otter.head.{name}.scale", "arr[f32]", "calibration: reward = scale * activation(raw) + shift")
HEAD_SHIFT = Key("otter.head.{name}.shift", "arr[f32]", "calibration, see scale")

HEAD_KEYS: tuple[Key, ...] = (HEAD_KIND, HEAD_LABELS, HEAD_INPUT, HEAD_ACTIVATION, HEAD_SCALE, HEAD_SHIFT)


def head_keys(kind: str | None) -> tuple[Key, ...]:
    """The keys of a head of this kind, with ``{name}`` in them; of an unknown kind those that all heads have."""
    fields = heads.find(kind).fields if kind in heads.kinds() else ()
    own = (Key(f"otter.head.{{name}}.{field.name}", "u32", field.doc, required=False) for field in fields)
    return (*HEAD_KEYS, *own)


# Only in merged files: what `split` needs to give both parts back byte for byte.
MERGED_BASE_SIZE = Key("otter.merged.base_size", "u64", "size of the base file in bytes")
MERGED_BASE_SHA256 = Key("otter.merged.base_sha256", "str", "sha256 of the base file")
MERGED_SIDECAR_HEADER = Key("otter.merged.sidecar_header", "arr[u8]", "the sidecar's bytes before its tensor data")

MERGED_SIDECAR_SIZE = Key("otter.merged.sidecar_size", "u64", "size of the sidecar file in bytes")
MERGED_SIDECAR_SHA256 = Key("otter.merged.sidecar_sha256", "str", "sha256 of the sidecar file")

MERGED_KEYS: tuple[Key, ...] = (
    MERGED_BASE_SIZE,
    MERGED_BASE_SHA256,
    MERGED_SIDECAR_HEADER,
    MERGED_SIDECAR_SIZE,
    MERGED_SIDECAR_SHA256,
)

# What the writer adds to a sidecar, so that `check` finds a flipped bit; a merged file has them too.
CHECKSUM_METADATA = Key(
    "otter.checksum.metadata", "str", "sha256 over keys and tensor list of the inserted part", required=False
)
CHECKSUM_TENSORS = Key(
    "otter.checksum.tensors", "arr[str]", "sha256 of the data of each inserted tensor, in file order", required=False
)

CHECKSUM_KEYS: tuple[Key, ...] = (CHECKSUM_METADATA, CHECKSUM_TENSORS)

PREFIX = "otter."  # of every key above
CHECKSUM_PREFIX = "otter.checksum."
MERGED_PREFIX = "otter.merged."
INSERTED_MARK = ".otter."  # in every tensor name below, in no name of a base

# Tensor names. Shapes are in GGUF order: [columns, rows].
TOKEN_EMBD = "token_embd.otter.weight"  # [e, V], only with state source `table`
ATTN_NORM = "blk.{layer}.attn_norm.otter.weight"  # [e]
ATTN_NORM_BIAS = "blk.{layer}.attn_norm.otter.bias"  # [e], only of LayerNorm
ATTN_QKV = "blk.{layer}.attn_qkv.otter.weight"  # [d+e, n*(g*k' + 2*k')], rows: queries, keys, values
ATTN_Q_NORM = "blk.{layer}.attn_q_norm.otter.weight"  # [n*g*k'], where one norm reads the queries of all heads
ATTN_K_NORM = "blk.{layer}.attn_k_norm.otter.weight"  # [n*k'], the same for keys
ATTN_OUTPUT = "blk.{layer}.attn_output.otter.weight"  # [n*(H + g*k'), e]
ATTN_OUTPUT_BIAS = "blk.{layer}.attn_output.otter.bias"  # [e], only where the base has one
ATTN_POST_NORM = "blk.{layer}.post_attention_norm.otter.weight"  # [e], where the output is normed before it is added
FFN_NORM = "blk.{layer}.ffn_norm.otter.weight"  # [e]
FFN_NORM_BIAS = "blk.{layer}.ffn_norm.otter.bias"  # [e], only of LayerNorm
FFN_UP = (
    "blk.{layer}.ffn_up.otter.weight"  # [d+e, 2*f'], rows: gate, up (as llama.cpp's Phi-3 stacks them); or up alone
)
FFN_DOWN = "blk.{layer}.ffn_down.otter.weight"  # [f + f', e]; beside experts [f', e]
FFN_DOWN_BIAS = "blk.{layer}.ffn_down.otter.bias"  # [e], only where the base has one
FFN_POST_NORM = "blk.{layer}.post_ffw_norm.otter.weight"  # [e], where the output is normed before it is added
OUTPUT_NORM = "output_norm.otter.weight"  # [e]
OUTPUT_NORM_BIAS = "output_norm.otter.bias"  # [e], only of LayerNorm
HEAD_WEIGHT = "cls.output.{name}.otter.weight"  # [e, d or d+e; labels, or r+1: W, then w]
HEAD_BIAS = "cls.output.{name}.otter.bias"  # [labels, or r+1: c, then b]


def head_table(table: str) -> str:
    """The name of one of ``HeadKind.tables``, with ``{name}`` for that of the head in it."""
    return f"cls.{table}.{{name}}.otter.weight"
