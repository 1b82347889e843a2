"""Changes of a tokenizer in a GGUF file: kinds, pre-tokenizers, tokens of any length, merges, types, ids, templates."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gguf.gguf_builder import Gguf, Value
from tests.gguf.mutants import Mutation, strings_of
from tests.tokenizer_toys import BOS, BPE_TOKENS, EOS, MERGES

from .inputs import odd_length, text

_VALIDATOR = Path(__file__).parents[2] / "csrc" / "gguf" / "check_vocab.cpp"
_TOKENS = "tokenizer.ggml.tokens"
_WORDS = 25
"""The toys' last tokens, which are words: their byte tokens are needed."""
_IDS = """bos eos eot eom unknown seperator padding cls mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep
prefix suffix middle""".split()
_BOOLS = """add_bos_token add_eos_token add_sep_token add_space_prefix remove_extra_whitespaces normalizer.lowercase
normalizer.strip_accents""".split()
_SPECIAL = """<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> <end_of_turn> <|endoftext|>
<|eom_id|> _<EOT> [EOT] [EOS] <eos> <turn|> <|tool_response> </s> <|fim_prefix|> <|fim_suffix|> <|fim_middle|>
<|fim_pad|> [PAD] <|fim_repo|> <|file_sep|> <|channel|> <|message|> <|start|> <|constrain|> <unused_1> <mask> [MASK]
<unk> <s>""".split()
"""Tokens that llama.cpp knows by their text, whatever the file says of them."""
_MODELS = ["Phi-3 mini", "my phi3", "modern-bert", "x" * 3000, "", "\0phi-3"]
"""Names of models, some of which give tokens properties."""


def pre_tokenizers() -> list[str]:
    """Every name that the validator accepts."""
    found = re.search(r"pre_tokenizers\[\] = \{(.*?)\};", _VALIDATOR.read_text(), re.DOTALL)
    assert found is not None
    return re.findall(r'"([^"]+)"', found[1])


PRE_TOKENIZERS = pre_tokenizers()
OTHERS = ["whitespace", "", " ", "nonsense", "DEFAULT", "llama-bpe\0x", "x" * 5000]


def byte_level(file: Gguf, pre: str | None) -> None:
    """Make it a tokenizer of GPT-2's kind, if it has as many tokens as that needs."""
    count = len(tokens_of(file))
    if count < len(BPE_TOKENS):
        return
    tokens = [*BPE_TOKENS, *(f"<more_{i}>" for i in range(count - len(BPE_TOKENS)))]
    types = [1] * (len(BPE_TOKENS) - 3) + [3] * (count - len(BPE_TOKENS) + 3)
    _set(file, "tokenizer.ggml.model", "str", "gpt2")
    _set(file, _TOKENS, "arr[str]", tokens)
    _set(file, "tokenizer.ggml.token_type", "arr[i32]", types)
    _set(file, "tokenizer.ggml.merges", "arr[str]", [" ".join(pair) for pair in MERGES])
    _set(file, "tokenizer.ggml.bos_token_id", "u32", BOS)
    _set(file, "tokenizer.ggml.eos_token_id", "u32", EOS)
    if pre is not None:
        _set(file, "tokenizer.ggml.pre", "str", pre)


def gemma4(file: Gguf) -> None:
    """Make it Gemma 4's tokenizer: merges of characters, not of bytes, which are tokens by name."""
    if (count := len(tokens_of(file))) < len(BPE_TOKENS):
        return
    plain = [token.replace("Ġ", "▁").replace("Ċ", "\n") for token in BPE_TOKENS[256:]]
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *plain, *(f"<more_{i}>" for i in range(count))][:count]
    _set(file, "tokenizer.ggml.model", "str", "gemma4")
    _set(file, _TOKENS, "arr[str]", tokens)
    merges = [" ".join(pair).replace("Ġ", "▁").replace("Ċ", "\n") for pair in MERGES]
    _set(file, "tokenizer.ggml.merges", "arr[str]", merges)
    _set(file, "tokenizer.ggml.token_type", "arr[i32]", [6] * 256 + [1] * (count - 256))
    _set(file, "tokenizer.ggml.bos_token_id", "u32", 257)
    _set(file, "tokenizer.ggml.eos_token_id", "u32", 258)


def tokens_of(file: Gguf) -> list[bytes]:
    """The tokens; none if the file has no such list."""
    values = [
        value for key, value in file.kvs if key == _TOKENS and value.tag == 9 and value.payload[:4] == b"\x08\0\0\0"
    ]
    return strings_of(values[0]) if values else []


def set_template(file: Gguf, template: str) -> None:
    """Give the file a chat template."""
    _set(file, "tokenizer.chat_template", "str", template.encode("utf-8", "surrogatepass"))


def _set(file: Gguf, key: str, type: str, value: Any) -> None:
    file.kvs = file.set(key, type, value).kvs


# ---- mutations -------------------------------------------------------------------------------------------------


def change_kind(file: Gguf, rng: random.Random) -> None:
    byte_level(file, rng.choice([None, *PRE_TOKENIZERS]))
    if rng.random() < 0.1:
        gemma4(file)
    elif rng.random() < 0.1:
        _set(
            file, "tokenizer.ggml.model", "str", rng.choice(["gemma4", "bert", "t5", "rwkv", "plamo2", "none", "llama"])
        )


def change_pre(file: Gguf, rng: random.Random) -> None:
    if rng.random() < 0.7:
        byte_level(file, None)
    _set(file, "tokenizer.ggml.pre", "str", rng.choice(PRE_TOKENIZERS if rng.random() < 0.8 else OTHERS))


def change_token(file: Gguf, rng: random.Random) -> None:
    """Some tokens become texts of any kind and length."""
    if not (tokens := tokens_of(file)):
        return
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(len(tokens)) if rng.random() < 0.1 else -rng.randint(1, min(_WORDS, len(tokens)))
        tokens[place] = _token(rng)
    _set(file, _TOKENS, "arr[str]", tokens)


def _token(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.4:
        return text(rng, 100_000 if kind < 0.02 else 500).encode("utf-8", "surrogatepass")
    if kind < 0.6:
        return rng.choice([b"a", b"[", b'"', b"\xc3", b" ", b"\n", "▁".encode(), "Ġ".encode()]) * odd_length(rng, 600)
    return rng.choice(
        [
            b"",
            b"\0",
            b"\xff",
            b"<0x41>",
            b'{"',
            b'":',
            b'"}',
            b"[EMPTY_3]",
            b"<",
            b"<|im_end|>",
            b"</s>",
            b"  ",
            b"\\u00",
        ]
    )


def add_special(file: Gguf, rng: random.Random) -> None:
    """Tokens, and a name of the model, for which llama.cpp has rules of its own."""
    if len(tokens := tokens_of(file)) <= _WORDS:
        return
    names = rng.sample(_SPECIAL, rng.choice([1, 5, _WORDS - 1]))
    if rng.random() < 0.5:
        _set(file, "general.name", "str", rng.choice(_MODELS))
        names.append("<|endoftext|>")  # which Phi-3 must have
    for place, name in enumerate(names, 1):
        if name.encode() not in tokens:
            tokens[-place] = name.encode()
    _set(file, _TOKENS, "arr[str]", tokens)


def change_merges(file: Gguf, rng: random.Random) -> None:
    byte_level(file, rng.choice([None, *PRE_TOKENIZERS]) if rng.random() < 0.5 else "gpt-2")
    pieces = [*BPE_TOKENS[:300], "", " ", "ĠĠĠĠ", "x" * 300, "\u00fc", "Ġthe", "\U0001f9a6"]
    right = [piece for piece in pieces if piece or rng.random() < 0.02]
    merges = [f"{rng.choice(right)} {rng.choice(right)}" for _ in range(rng.choice([0, 1, 5, 50, 2000]))]
    _set(file, "tokenizer.ggml.merges", "arr[str]", merges)


def change_types(file: Gguf, rng: random.Random) -> None:
    count = len(tokens_of(file))
    kinds = rng.choice([[1], [3], [4], [1, 3], [1, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6], [7, -1, 2**31 - 1]])
    _set(file, "tokenizer.ggml.token_type", "arr[i32]", rng.choices(kinds, k=count))


def change_scores(file: Gguf, rng: random.Random) -> None:
    count = len(tokens_of(file))
    if rng.random() < 0.2:
        _set(file, "tokenizer.ggml.scores", "arr[i32]", rng.choices([0, -1, 2**31 - 1], k=count))
        return
    values = rng.choice([[0.0], [-1.0, 1.0], [1e38, -1e38], [float("nan"), 0.0], [float(i) for i in range(50)]])
    _set(file, "tokenizer.ggml.scores", "arr[f32]", rng.choices(values, k=count))


def change_ids(file: Gguf, rng: random.Random) -> None:
    count = len(tokens_of(file))
    for name in rng.sample(_IDS, rng.randint(1, 3)):
        value = rng.choice([0, 1, 2, count - 1, count, count // 2, 2**31 - 1, 2**32 - 1]) if count else 0
        _set(file, f"tokenizer.ggml.{name}_token_id", "u32", value)


def change_bools(file: Gguf, rng: random.Random) -> None:
    for name in rng.sample(_BOOLS, rng.randint(1, 3)):
        _set(file, f"tokenizer.ggml.{name}", "bool", rng.choice([0, 1]))


def change_template(file: Gguf, rng: random.Random) -> None:
    set_template(file, template(rng))


def cut_vocabulary(file: Gguf, rng: random.Random) -> None:
    """Tokens, scores and types of another number than the rows of the embedding."""
    count = rng.choice([1, 2, 3, 100, 287, 289])
    tokens = [*tokens_of(file), *(f"<new_{i}>".encode() for i in range(count))][:count]
    _set(file, _TOKENS, "arr[str]", tokens)
    for key, type, value in (("scores", "arr[f32]", 0.0), ("token_type", "arr[i32]", 1)):
        if rng.random() < 0.8:
            _set(file, f"tokenizer.ggml.{key}", type, [value] * count)


def add_lists(file: Gguf, rng: random.Random) -> None:
    if rng.random() < 0.5:
        ids = [rng.choice([0, 1, 5, 287, 288, -1, 2**31 - 1]) for _ in range(rng.choice([0, 1, 5, 5000]))]
        _set(file, "tokenizer.ggml.suppress_tokens", "arr[i32]", ids)
    else:
        payload = b"\0\0\0\0" + rng.randrange(50).to_bytes(8, "little")
        file.kvs = file.put("tokenizer.ggml.precompiled_charsmap", Value(9, payload + rng.randbytes(50))).kvs


_TEMPLATES: list[Callable[[random.Random], str]] = [
    lambda rng: "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    lambda rng: f"{{{{ {text(rng, 3)!r} * {odd_length(rng, 300_000)} }}}}",
    lambda rng: f"{{{{ '<s>' * {odd_length(rng, 50_000)} }}}}",
    lambda rng: text(rng, 3000),
    lambda rng: "{{ '\\ud800' }}",
    lambda rng: "{% for i in range(10 ** 9) %}{% endfor %}",
    lambda rng: "{{ raise_exception('no\n\x1b[31m' * 100) }}",
    lambda rng: "{{ messages[0].content * 1000 }}",
    lambda rng: "{{ [].__class__.__base__.__subclasses__() }}{{ cycler.__init__.__globals__ }}",
    lambda rng: "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    lambda rng: "(" * odd_length(rng, 5000) + "{{" + "(" * odd_length(rng, 2000) + "1",
    lambda rng: "{{ 2 ** 2 ** 40 }}",
    lambda rng: "{{ '%0999999999d' % 1 }}",
    lambda rng: "{% if messages %}{{ messages | tojson }}{% endif %}{{ strftime_now('%Y') }}{{ tools }}",
    lambda rng: "x" * odd_length(rng, 400_000),
]


def template(rng: random.Random) -> str:
    """A chat template, good or not."""
    return rng.choice(_TEMPLATES)(rng)


MUTATIONS: list[Mutation] = [
    change_kind, change_pre, change_pre, change_pre, change_token, change_token, change_token, change_merges,
    change_types, change_types, change_scores, change_ids, change_ids, change_bools, cut_vocabulary, add_lists,
    add_special, add_special,
]  # fmt: skip
TEMPLATE_MUTATIONS: list[Mutation] = [change_template]
"""A process renders templates: these mutants take longer."""
