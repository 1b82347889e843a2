"""The native layer: GGUF validator, llama.cpp with inserted blocks, samplers. Shapes are (rows, columns), C order."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

LLAMA_CPP_COMMIT: str
LLAMA_CPP_VERSION: str

ERROR_CLASSES: tuple[str, ...]
ARCHITECTURE_FEATURES: dict[str, tuple[str, ...]]
"""Names of the classes of :mod:`otter_gguf.errors` that this module raises."""

# ---- files -----------------------------------------------------------------------------------------------------

@final
class TensorInfo:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str:
        """ggml's name in upper case: F32, F16, BF16, Q8_0, Q4_K ..."""
    @property
    def shape(self) -> tuple[int, ...]:
        """GGUF order: columns first."""
    @property
    def offset(self) -> int:
        """From the start of the file, in bytes."""
    @property
    def n_bytes(self) -> int: ...

@final
class GgufFile:
    """A GGUF file whose header has been read and checked. Raises ``FileError``. The file is memory-mapped, read only.

    Checked here: everything that lets a later reader trust the header (magic, version, counts, sizes with checked
    arithmetic, key and tensor names unique and in bounds, types, alignment, no overlap, data inside the file).
    """
    def __init__(self, path: str) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def kv_offset(self) -> int:
        """Offset of the first metadata entry (24 in version 3)."""
    @property
    def tensor_info_offset(self) -> int: ...
    @property
    def tensor_info_end(self) -> int: ...
    @property
    def data_offset(self) -> int: ...
    @property
    def keys(self) -> list[str]: ...
    @property
    def tensors(self) -> list[TensorInfo]: ...
    def key_type(self, key: str) -> str:
        """``u32``, ``str``, ``arr[str]`` ...; KeyError if absent."""
    def value(self, key: str) -> Any:
        """Python value; arrays as lists. KeyError if absent."""
    def raw_value(self, key: str) -> memoryview:
        """The bytes of the value as they stand in the file (after the type tag)."""
    def array_length(self, key: str) -> int: ...
    def tensor_data(self, name: str) -> memoryview: ...
    def non_finite(self, name: str) -> int:
        """Index of the first NaN or Inf among the tensor's values or block scales, or -1."""
    def close(self) -> None: ...
    def __enter__(self) -> GgufFile: ...
    def __exit__(self, *args: object) -> None: ...

def check_base(file: GgufFile) -> None:
    """Refuse a base model on which llama.cpp would abort (RELIABILITY B3's places): typed keys, layer bounds,
    norm epsilon, unique tokens, byte tokens, tensor types. Raises ``FileError``/``UnsupportedError``."""

def check_finite(file: GgufFile, names: Sequence[str]) -> None:
    """``FileError`` that names the first of these tensors with a NaN or an infinity."""

def tensor_nbytes(type: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor; ``FileError`` on an unknown type, a row that is no multiple of the block, an overflow."""

def quantize(values: Float32, type: str) -> bytes:
    """ggml's reference quantizer for rows (rows, columns) -> bytes in the type's layout. GIL released."""

def dequantize(data: memoryview | bytes, type: str, n_columns: int) -> Float32:
    """(rows, n_columns) from a tensor's bytes. GIL released."""

# ---- model -----------------------------------------------------------------------------------------------------

@final
class HeadSpec:
    """``kind`` is a row of ``csrc/head_kinds.h``; ``ConfigError`` names them for another one. A vocabulary head has one
    label and a ``rank`` of at least 1. Activations: none, sigmoid, tanh, softmax."""
    def __init__(
        self,
        *,
        name: str,
        kind: str,
        input: str,
        activation: str,
        scale: Sequence[float],
        shift: Sequence[float],
        rank: int = 0,
    ) -> None: ...

@final
class InsertionSpec:
    """What the native blocks need of an InsertionConfig; sizes are checked against the base at load."""
    def __init__(
        self,
        *,
        width: int,
        n_head_kv: Sequence[int],
        n_ff: Sequence[int],
        state_source: str,
        state_offset: int,
        heads: Sequence[HeadSpec],
    ) -> None: ...

@final
class Model:
    """Weights. With ``insertion=None`` it is llama.cpp's own model class, loaded by llama.cpp's own function.

    ``sidecar=""`` with an insertion means a merged file. Raises ``EngineError`` with llama.cpp's log lines.
    """
    def __init__(
        self,
        path: str | bytes,
        *,
        sidecar: str | bytes = "",
        insertion: InsertionSpec | None = None,
        n_gpu_layers: int = -1,
        split_mode: str = "layer",
        main_gpu: int = 0,
        tensor_split: Sequence[float] = (),
        use_mmap: bool = True,
        use_mlock: bool = False,
        check_tensors: bool = False,
        vocab_only: bool = False,
        hidden_states: bool = False,
        progress: Callable[[float], bool] | None = None,
    ) -> None: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def n_ctx_train(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_rewards(self) -> int:
        """Rewards of a token: the labels of all value heads."""
    @property
    def n_params(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def description(self) -> str: ...
    @property
    def bos_token(self) -> int: ...
    @property
    def eos_token(self) -> int: ...
    @property
    def add_bos(self) -> bool: ...
    def is_eog(self, token: int) -> bool: ...
    def chat_template(self) -> str | None: ...
    def tokenize(self, text: bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of a text. A signal ends it: Ctrl-C raises within a tenth of a second, as a rule. ``ConfigError`` on a
        character above U+10FFFF; on more than 131,072 characters without a space between them, or spaces, where
        llama.cpp's pre-tokenizer calls itself for each (4,096 spaces or digits, where it takes the square of that in
        time); and on a text that takes more than 2 seconds of processor time and 4 microseconds for each byte."""
    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes: ...
    def token_bytes(self, token: int, special: bool = False) -> bytes: ...
    def close(self) -> None:
        """Free the weights (after the contexts made from it are closed). Idempotent."""

@final
class Context:
    """One KV cache and its compute buffers. Not for two threads at once (``EngineError``).

    ``n_outputs_max``: how many tokens of one batch may be marked as outputs (logits memory is reserved for them);
    0 = 64, or n_seq_max if that is more. ``ConfigError`` beyond.
    """
    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = ...,
        n_batch: int = ...,
        n_ubatch: int = ...,
        n_seq_max: int = ...,
        n_outputs_max: int = ...,
        n_threads: int = ...,
        n_threads_batch: int = ...,
        type_k: str = ...,
        type_v: str = ...,
        flash_attn: str = ...,
        offload_kqv: bool = ...,
        rewards: bool = ...,
    ) -> None: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_ubatch(self) -> int: ...
    @property
    def n_seq_max(self) -> int: ...
    def decode(self, tokens: Int32, positions: Int32, sequences: Int32, outputs: Bool, *, rewards: bool = True) -> None:
        """Run one batch (1-D arrays of equal length, at most n_batch). Logits and rewards of the tokens marked in
        ``outputs`` are kept until the next call. ``rewards=False`` leaves the inserted blocks' heads unread but still
        fills their KV cache. GIL released; Ctrl-C aborts with KeyboardInterrupt and the cache rolled back.
        ``ContextFullError`` when no KV slot is found."""
    def decode_rewards(self, tokens: Int32, positions: Int32, sequences: Int32) -> Float32:
        """As :meth:`decode`, without the output projection: (n, n_rewards) of every token, and no logits. At most
        n_ubatch tokens. For a reward model, whose logits nobody reads: at a vocabulary of 128k they are half of a
        small batch's work."""
    def logits(self) -> Float32:
        """(outputs, n_vocab): a read-only view. The next decode may write its own numbers there: copy to keep."""
    def rewards(self) -> Float32:
        """(outputs, n_rewards): calibrated rewards of the last decode, of the value heads."""
    def queries(self, head: int) -> Float32:
        """(outputs, rank + 1): what a vocabulary head made of each state of the last decode, raw. ``head`` counts
        vocabulary heads alone. ``ConfigError`` if there is no such head, or the last decode gave no rewards."""
    def vocabulary_scores(self, head: int, row: int, candidates: Int32 | None = None) -> Float32:
        """Scores of next tokens after the token of an output row: (k,) of the candidates, or (n_vocab,) of all.

        ``score(v) = scale * activation(<query[:rank], table[v]> + query[rank]) + shift``, the reward that the value
        head of the same label is expected to give after v. Table rows are dequantized to float32. GIL released.
        ``ConfigError`` also if there is no such row, or a candidate is outside the vocabulary."""
    def hidden_states(self) -> tuple[Float32, Float32]:
        """(outputs, d) final normed h and (outputs, e) final normed h'; model opened with hidden_states=True."""
    def score(self, tokens: Int32, *, sequence: int = 0, position: int = 0) -> Float32:
        """Rewards (n, n_rewards) of every token, without the output projection; KV cache filled. Any length: fed in
        chunks of n_ubatch. ``position``: the sequence's next one, any where it is empty. A refused call
        (``ConfigError``, ``ContextFullError``) leaves the cache as it was; a failure midway takes all its tokens out.
        A cache without room is found midway."""
    def log_probabilities(self, tokens: Int32, *, sequence: int = 0, position: int = 0) -> Float32:
        """(n - 1,): ln p(tokens[i + 1] | what the sequence holds, tokens[..i]) under the base, in nats; (0,) of no or
        one token. The text is fed in chunks, at most n_outputs_max tokens each, and stays in the KV cache. Position,
        errors and roll-back as :meth:`score`; no rewards are computed."""
    def sequence_copy(self, source: int, target: int, begin: int = -1, end: int = -1) -> None: ...
    def sequence_remove(self, sequence: int, begin: int = -1, end: int = -1) -> bool:
        """Forget positions [begin, end), negative: from the first, to the last. False, and nothing is removed, where
        llama.cpp cannot do it, or where the sequence could not go on at ``begin``: layers that attend within a window
        have lost keys that it would need (after :meth:`load_state`, or when cells were written over)."""
    def sequence_keep(self, sequence: int) -> None: ...
    def sequence_max_position(self, sequence: int) -> int:
        """-1 when empty."""
    @property
    def can_shift(self) -> bool:
        """Whether positions in the KV cache can be moved: not with every architecture, nor with a quantized ``type_k``
        where the head size is no multiple of 64 or where every layer attends within a window (llama.cpp's own shift
        crashes there)."""
    def sequence_shift(self, sequence: int, begin: int, end: int, delta: int) -> None:
        """Add ``delta`` to the positions in [begin, end) of a sequence, ``end`` negative: to its end; their keys are
        rotated at once. What stands where they go must have been removed. Logits and rewards of the last decode are
        gone then. ``ConfigError`` where :attr:`can_shift` is false, where a position would leave the context, and
        where the sequence shares tokens with another (``sequence_keep`` first)."""
    def state(self, sequence: int = 0) -> bytes:
        """What the KV cache holds of a sequence, the inserted part's included, for :meth:`load_state`; no logits. Never
        empty: a sequence without tokens has a state too."""
    def load_state(self, data: bytes, sequence: int = 0) -> int:
        """Replace a sequence by a saved one; returns the bytes read. To go on bit for bit, load into a context of the
        same files and options. ``ConfigError`` on data that is cut, damaged, or of another model size, insertion or
        cache type, and ``ContextFullError`` without room: the sequence is then empty."""
    def clear(self) -> None: ...
    def top_k(self, row: int, k: int) -> tuple[Int32, Float32]:
        """The k highest logits of an output row, best first: token ids and logits. Native partial sort."""
    def timing(self) -> dict[str, float]:
        """Since the context was made: ``seconds`` inside llama_decode, its ``calls``, and the ``tokens`` fed."""
    def close(self) -> None: ...

@final
class SamplerState:
    """What a sampler's history chain remembers. Opaque; made by :meth:`Sampler.save`."""

@final
class Sampler:
    """Two chains of llama.cpp's samplers.

    History: logit bias, penalties and the grammar, which depend on the text so far and on the caller's wishes.
    Choice: top-k, top-p, min-p, temperature and the draw (temperature 0: the best, by the lower token among equals).

    ``logits`` is (n_vocab,), read without a copy; a row of ``Context.logits()`` is such a view. ``ConfigError`` on
    another size, on a bias for an unknown token, of NaN or of plus infinity, and on a grammar (llama.cpp's GBNF, rule
    ``root``) that llama.cpp cannot work with, or that reads a text in so many ways that one token would take more than
    5 seconds of processor time; grammars need tokens of at most 512 characters. A signal ends what a grammar takes long
    for, and leaves it undone. ``seed=-1``: another one each time. Not for two threads at once.
    """
    def __init__(
        self,
        model: Model,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        repeat_last_n: int,
        frequency_penalty: float,
        presence_penalty: float,
        seed: int,
        logit_bias: Sequence[tuple[int, float]],
        grammar: str,
    ) -> None: ...
    @property
    def has_history(self) -> bool:
        """Whether anything changes logits before the choice."""
    def sample(self, logits: Float32) -> int:
        """Both chains over the vocabulary; the token is accepted. GIL released.

        ``ConfigError`` if no token is left: a grammar that no token continues, or every logit minus infinity."""
    def candidates(self, logits: Float32, k: int, bonus: Float32 | None = None) -> tuple[Int32, Float32]:
        """The k best tokens after the history chain, best first (equal ones: lower token first), and their logits.

        With ``bonus`` (n_vocab,), order and cut go by logit + bonus, and the logits returned are without it. Tokens of
        minus infinity, and what the grammar forbids, are left out, so there may be fewer than k; none at all is a
        ``ConfigError``. GIL released."""
    def choose(self, tokens: Int32, scores: Float32) -> int:
        """The choice chain alone on (k,) scores: index of the chosen one in ``tokens``. Nothing is accepted."""
    def accept(self, token: int, *, prompt: bool = False) -> None:
        """Into the history chain. ``prompt``: penalties count the token, and the grammar, which begins behind the
        prompt, does not see it. ``ConfigError`` if the grammar forbids the token; nothing is changed then."""
    def save(self) -> SamplerState:
        """The history as it stands. Draws are no part of it."""
    def restore(self, state: SamplerState) -> None:
        """Back to a saved history, any number of times; of this sampler or of one that is its clone."""
    def clone(self, seed: int) -> Sampler:
        """The same settings and history, and draws from another seed."""
    def reset(self) -> None:
        """As it was made: no history, and draws from the beginning."""

def log_sum_exp(logits: Float32) -> float:
    """ln of the sum of exp(logits), (n,) of at least one, accumulated in double. Minus infinity if all of them are.
    ``ConfigError`` on NaN or plus infinity."""

def entropy(logits: Float32) -> float:
    """Entropy of softmax(logits), (n,), in nats: ln Z - sum p*logit. Logits of minus infinity count nothing.
    ``ConfigError`` on NaN, plus infinity, or if all are minus infinity. GIL released."""

def top_k(logits: Float32, k: int, bonus: Float32 | None = None) -> tuple[Int32, Float32]:
    """As :meth:`Sampler.candidates` without a history: (n,) logits, 1 <= k <= n. GIL released."""

def json_schema_to_grammar(schema: str) -> str:
    """A grammar for :class:`Sampler` from a JSON schema, by llama.cpp's own code. GIL released. ``ConfigError`` on text
    that is no JSON or no schema that it can express, and beyond these limits: 1 MiB, 64 levels, 1,024 values of
    ``$ref``, 16,384 nodes, 256 optional properties of an object and 4,096 of all, 1,024 names of properties in which
    the same letters a-z and digits stand, counts below 2^31, bounds of 64 bits."""

def set_log_callback(callback: Callable[[str, str], None] | None) -> None:
    """(level, line) of llama.cpp's log; ``None`` = quiet. Lines are kept for error messages either way."""

def devices() -> list[dict[str, Any]]:
    """Every ggml device: name, description, type, memory_free, memory_total."""

def live_objects() -> dict[str, int]:
    """How many native objects are alive: files, models, contexts, samplers. What is closed is not, unless something
    made from it is still there: a context keeps its model, a view of logits its context."""

QUANTIZE_TYPES: tuple[str, ...]
"""Types of :func:`model_quantize`, under llama-quantize's names; ``COPY`` leaves every tensor as it is."""

@final
class QuantizeReport:
    @property
    def types(self) -> dict[str, str]:
        """The type of each tensor of the target."""
    @property
    def fallbacks(self) -> list[str]:
        """Tensors whose rows do not fit the blocks of the type meant for them, and got another."""
    @property
    def needs_importance(self) -> bool:
        """Found in a dry run: some types are made from importance values, and there are none."""

def model_quantize(
    source: str | bytes,
    target: str | bytes,
    type: str,
    n_threads: int = 0,
    *,
    pure: bool = False,
    keep_split: bool = False,
    dry_run: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    importance: Mapping[str, Float32] = ...,
    metadata: Mapping[str, int | str] = ...,
    progress: Callable[[str, str], object] | None = None,
) -> QuantizeReport:
    """llama.cpp's quantizer on a base (the caller gives a temporary target and renames). GIL released.

    ``keep_split`` writes as many files as the source has, ``target`` is their common prefix. Tensors that are
    quantized already are quantized again. ``importance``: by tensor, one value a column. ``progress`` is called with
    each finished tensor and its new type; what it raises, and Ctrl-C, ends the run after that tensor.

    Raises ``FileError`` on a damaged source, ``ConfigError`` on types that do not fit its rows or lack importance
    values, ``EngineError`` with llama.cpp's words.
    """
