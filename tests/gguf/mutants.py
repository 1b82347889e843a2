"""Good files with something changed, most of them still well formed: what an attacker or a broken tool would write."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.gguf.gguf_builder import TENSOR_TYPES, UNUSABLE_TENSOR_TYPES, VALUE_FORMATS, VALUE_TYPES, Gguf, Tensor, Value

Mutation = Callable[[Gguf, random.Random], None]

INTEGERS = [0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 64, 127, 255, 256, 512, 513, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**64 - 1]
REALS = [0.0, -0.0, 1e-45, 1e-5, 1.0, -1.0, 3e38, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", "a", " ", "llama", "gpt2", "none", "bert", "linear", "yarn", "longrope", "model", "adapter", "otter", "\0",
         "a\0b", "<s>", "<0x41>", "value", "slice", "table", "sigmoid", "x" * 3000]  # fmt: skip
TOKENS = [b"", b"\0", b"a", b"\xff\xfe", b"<0x4", b"<0x41>", b"a b", b"[EMPTY_3]", b"</s>", b"<|eot_id|>", b"\n"]

# Keys that llama.cpp reads if they are there; {a} is the architecture.
KEYS = """
general.type general.name general.file_type general.alignment general.tensor_extra.name split.count split.no
{a}.vocab_size {a}.context_length {a}.embedding_length {a}.embedding_length_out {a}.block_count
{a}.feed_forward_length {a}.expert_feed_forward_length {a}.expert_count {a}.expert_used_count {a}.expert_group_count
{a}.nextn_predict_layers
{a}.pooling_type {a}.logit_scale {a}.attention.head_count {a}.attention.head_count_kv {a}.attention.causal
{a}.attention.key_length {a}.attention.value_length {a}.attention.key_length_swa {a}.attention.max_alibi_bias
{a}.attention.layer_norm_rms_epsilon {a}.attention.sliding_window {a}.attention.scale {a}.rope.dimension_count
{a}.rope.dimension_count_swa {a}.rope.freq_base {a}.rope.scale_linear {a}.rope.scaling.type {a}.rope.scaling.factor
{a}.rope.scaling.alpha {a}.rope.scaling.attn_factor {a}.rope.scaling.original_context_length
{a}.rope.scaling.finetuned {a}.rope.scaling.yarn_ext_factor {a}.classifier.output_labels tokenizer.ggml.model
tokenizer.ggml.pre tokenizer.ggml.tokens tokenizer.ggml.token_type tokenizer.ggml.scores tokenizer.ggml.merges
tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id tokenizer.ggml.unknown_token_id
tokenizer.ggml.padding_token_id tokenizer.ggml.add_bos_token tokenizer.ggml.add_eos_token
tokenizer.ggml.add_space_prefix tokenizer.ggml.suppress_tokens tokenizer.ggml.precompiled_charsmap
tokenizer.chat_template adapter.type otter.version otter.width otter.heads otter.state.offset otter.state.source
""".replace("{a}", "llama").split()

NAMES = """
token_embd.weight output.weight output_norm.weight rope_freqs.weight output.bias blk.0.attn_q.bias blk.0.attn_q.scale
blk.0.attn_qkv.weight blk.1.ffn_up.input_scale blk.0.ffn_gate_inp.weight blk.5.attn_q.weight x.weight
""".split()


def mutants(good: Gguf, seed: int) -> Iterator[bytes]:
    """An endless row of changed files."""
    rng = random.Random(seed)
    while True:
        yield mutated(good, rng)


def mutated(good: Gguf, rng: random.Random, mutations: Sequence[Mutation] = (), damage: float = 1.0) -> bytes:
    """One changed file.

    Args:
        good: The file, which stays as it is.
        rng: What draws.
        mutations: What to choose among, instead of all of this module.
        damage: How often the bytes of the whole are changed too, as a share of every seventh file.
    """
    file = copied(good)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(mutations or MUTATIONS)(file, rng)
    raw = bytearray(file.build())
    if rng.random() < 0.05 * damage:
        raw = raw[: rng.randrange(len(raw))]
    elif rng.random() < 0.1 * damage:
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(file.header()))] = rng.choice([0, 1, 4, 8, 9, 255])
    return bytes(raw)


def copied(good: Gguf) -> Gguf:
    """A file that can be changed without changing the other one."""
    return Gguf(kvs=list(good.kvs), tensors=list(good.tensors), alignment=good.alignment)


def architecture_of(file: Gguf) -> str:
    """What the file says; ``llama`` if it says nothing."""
    for key, value in file.kvs:
        if key == "general.architecture" and value.tag == VALUE_TYPES["str"]:
            return value.payload[8:].decode("utf-8", "replace")
    return "llama"


def known_key(file: Gguf, rng: random.Random) -> str:
    """A key that llama.cpp reads in a file of this architecture."""
    key = rng.choice(KEYS)
    return key if not key.startswith("llama.") else f"{architecture_of(file)}{key.removeprefix('llama')}"


# ---- keys ------------------------------------------------------------------------------------------------------


def random_type(rng: random.Random) -> str:
    type = rng.choice(["u32", "u32", "f32", "str", "bool", *VALUE_FORMATS])
    return f"arr[{type}]" if rng.random() < 0.3 else type


def random_value(type: str, rng: random.Random) -> Any:
    if type.startswith("arr["):
        return [random_value(type[4:-1], rng) for _ in range(rng.choice([0, 1, 2, 2, 3, 4, 512]))]
    if type == "str":
        return rng.choice(TEXTS)
    if type in ("f32", "f64"):
        return rng.choice(REALS)
    if type == "bool":
        return rng.choice([0, 1, 2])
    bits = struct.calcsize(VALUE_FORMATS[type]) * 8
    value = rng.choice(INTEGERS) % 2**bits
    return value - 2**bits if type[0] == "i" and value >> (bits - 1) else value


def retype_key(file: Gguf, rng: random.Random) -> None:
    type, index = random_type(rng), rng.randrange(len(file.kvs))
    file.kvs[index] = (file.kvs[index][0], Value.of(type, random_value(type, rng)))


def add_key(file: Gguf, rng: random.Random) -> None:
    type, key = random_type(rng), known_key(file, rng)
    file.kvs = file.set(key, type, random_value(type, rng)).kvs


def change_value(file: Gguf, rng: random.Random) -> None:
    """Another value of the same type, of a key that is no list."""
    plain = [i for i, (_, value) in enumerate(file.kvs) if value.tag != VALUE_TYPES["arr"]]
    if not plain:
        return
    index = rng.choice(plain)
    key, value = file.kvs[index]
    type = next((name for name, tag in VALUE_TYPES.items() if tag == value.tag), "u32")
    file.kvs[index] = (key, Value.of(type, random_value(type, rng)))


def change_bytes_of_value(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.kvs))
    key, value = file.kvs[index]
    payload = bytearray(value.payload)
    if payload:
        payload[rng.randrange(len(payload))] = rng.choice([0, 1, 127, 128, 255])
    file.kvs[index] = (key, Value(value.tag, bytes(payload)))


def drop_key(file: Gguf, rng: random.Random) -> None:
    if len(file.kvs) > 1:
        del file.kvs[rng.randrange(len(file.kvs))]


def rename_key(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.kvs))
    file.kvs[index] = (known_key(file, rng), file.kvs[index][1])


def change_tokens(file: Gguf, rng: random.Random) -> None:
    for index, (key, value) in enumerate(file.kvs):
        if key == "tokenizer.ggml.tokens" and value.payload[:4] == struct.pack("<I", 8):
            tokens = strings_of(value)
            for _ in range(rng.randint(1, 3)):
                tokens[rng.randrange(len(tokens))] = rng.choice(TOKENS)
            file.kvs[index] = (key, Value.of("arr[str]", tokens))


def strings_of(value: Value) -> list[bytes]:
    """The strings of a list, as far as it can be read."""
    position, out = 12, []
    while position + 8 <= len(value.payload):
        (size,) = struct.unpack_from("<Q", value.payload, position)
        out.append(value.payload[position + 8 : position + 8 + size])
        position += 8 + size
    return out


# ---- tensors ---------------------------------------------------------------------------------------------------


def reshape_tensor(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.tensors))
    name, old = file.tensors[index]
    shape = list(old.shape)
    shape[rng.randrange(len(shape))] = rng.choice([0, 1, 2, 16, 32, 33, 64, 96, 128, 259, 2**31, 2**63, 2**64 - 1])
    shape += [1] * rng.choice([0, 0, 0, 1, 3])
    small = 0 not in shape and max(shape) < 2**31
    file.tensors[index] = (name, Tensor(tuple(shape), "F32", None if small else old.bytes()))


def retype_tensor(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.tensors))
    name, old = file.tensors[index]
    changed = Tensor(old.shape, rng.choice([*TENSOR_TYPES, *UNUSABLE_TENSOR_TYPES]))
    size = len((changed if max(old.shape) < 2**31 else old).bytes())
    file.tensors[index] = (name, Tensor(old.shape, changed.type, rng.randbytes(size)))


def requantize_tensor(file: Gguf, rng: random.Random) -> None:
    """A matrix in another type that fits its rows, with any bytes."""
    index = rng.randrange(len(file.tensors))
    name, old = file.tensors[index]
    if len(old.shape) < 2:
        return
    type = rng.choice([name for name, (_, block, _) in TENSOR_TYPES.items() if old.shape[0] % block == 0])
    file.tensors[index] = (name, Tensor(old.shape, type, rng.randbytes(len(Tensor(old.shape, type).bytes()))))


def change_elements(file: Gguf, rng: random.Random) -> None:
    """Numbers of a tensor in F32: infinite, not a number, huge, zero."""
    index = rng.randrange(len(file.tensors))
    name, old = file.tensors[index]
    if old.type != "F32":
        return
    data = bytearray(old.bytes())
    value = struct.pack("<f", rng.choice([*REALS, 1e10, 3e-39]))
    for _ in range(rng.choice([1, 1, 10])):
        place = 4 * rng.randrange(len(data) // 4)
        data[place : place + 4] = value
    if rng.random() < 0.2:
        data = bytearray(value * (len(data) // 4))
    file.tensors[index] = (name, Tensor(old.shape, old.type, bytes(data)))


def randomize_tensor(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.tensors))
    name, old = file.tensors[index]
    file.tensors[index] = (name, Tensor(old.shape, old.type, rng.randbytes(len(old.bytes()))))


def move_tensor(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.tensors))
    name, old = file.tensors[index]
    file.tensors[index] = (name, Tensor(old.shape, old.type, old.data, offset=rng.choice(INTEGERS)))


def rename_tensor(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.tensors))
    name = rng.choice([*NAMES, *(str(name) for name, _ in file.tensors)])
    file.tensors[index] = (name, file.tensors[index][1])


def add_tensor(file: Gguf, rng: random.Random) -> None:
    shape = rng.choice([(1,), (8,), (64,), (64, 64), (64, 128), (1, 1, 1, 1)])
    file.tensors.insert(rng.randint(0, len(file.tensors)), (rng.choice(NAMES), Tensor(shape)))


def drop_tensor(file: Gguf, rng: random.Random) -> None:
    if len(file.tensors) > 1:
        del file.tensors[rng.randrange(len(file.tensors))]


def swap_tensors(file: Gguf, rng: random.Random) -> None:
    rng.shuffle(file.tensors)


def change_counts(file: Gguf, rng: random.Random) -> None:
    file.n_kv = rng.choice([None, len(file.kvs) - 1, len(file.kvs) + 1, rng.choice(INTEGERS)])
    file.n_tensors = rng.choice([None, len(file.tensors) - 1, len(file.tensors) + 1, rng.choice(INTEGERS)])


def change_alignment(file: Gguf, rng: random.Random) -> None:
    alignment = rng.choice([8, 16, 32, 64, 128, 4096])
    file.kvs = file.set("general.alignment", "u32", alignment).kvs
    file.alignment = rng.choice([alignment, 32])


MUTATIONS: list[Mutation] = [
    retype_key, retype_key, add_key, add_key, add_key, change_bytes_of_value, change_bytes_of_value, drop_key,
    rename_key, change_tokens, reshape_tensor, retype_tensor, retype_tensor, randomize_tensor, move_tensor,
    rename_tensor, add_tensor, drop_tensor, swap_tensors, change_counts, change_alignment,
]  # fmt: skip

GENTLE: list[Mutation] = [
    change_value, change_value, change_value, requantize_tensor, change_elements, change_elements, randomize_tensor,
    add_key, swap_tensors,
]  # fmt: skip
"""What leaves most files such as llama.cpp loads."""
