"""Proof of non-disruption: a base with its insertion gives the very logits that llama.cpp gives for the base alone.

Both are loaded in one process, the base by llama.cpp's own class and function, and fed the same real text, as prompts
in batches and token by token, without and with flash attention. Logits are compared bit by bit.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _native
from .errors import ConfigError
from .gguf.merge import split
from .loading import ModelFiles, check_files, load_model, make_context
from .options import FlashAttention, LoadOptions

Float32 = npt.NDArray[np.float32]
Mode = Literal["prompt", "decode"]

MODES: tuple[Mode, ...] = ("prompt", "decode")
MAX_LOGITS_IN_MEMORY = 1 << 24
"""Logits of one batch; with a large vocabulary prompts are fed in smaller batches."""
MIN_TOKENS = 64
"""Of each setting, however large the vocabulary."""
DEFAULT_CONTEXT = 1024


@dataclass
class Comparison:
    """What was compared in one setting."""

    mode: Mode
    """``prompt``: batches; ``decode``: token by token."""
    flash_attn: FlashAttention
    logits: int = 0
    differing: int = 0
    max_abs_diff: float = 0.0

    def add(self, ours: Float32, stock: Float32) -> None:
        """Compare two arrays bit by bit."""
        self.logits += ours.size
        differs = ours.view(np.uint32) != stock.view(np.uint32)
        if differs.any():
            self.differing += int(differs.sum())
            distance = np.abs(ours[differs].astype(np.float64) - stock[differs])
            self.max_abs_diff = max(self.max_abs_diff, float(np.nan_to_num(distance, nan=np.inf).max()))


@dataclass(frozen=True)
class Verification:
    """The result of :func:`verify`."""

    comparisons: tuple[Comparison, ...]
    rewards: int
    """Rewards that were read meanwhile: the insertion was at work."""

    @property
    def identical(self) -> bool:
        """Whether not one bit differs."""
        return all(comparison.differing == 0 for comparison in self.comparisons)

    @property
    def logits_compared(self) -> int:
        """How many logits were compared."""
        return sum(comparison.logits for comparison in self.comparisons)

    @property
    def max_abs_diff(self) -> float:
        """The largest difference; 0 if identical."""
        return max(comparison.max_abs_diff for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "identical": self.identical,
            "logits_compared": self.logits_compared,
            "max_abs_diff": self.max_abs_diff,
            "rewards_read": self.rewards,
            "settings": [dataclasses.asdict(comparison) for comparison in self.comparisons],
        }


def verify(
    model_path: str | Path,
    otter: str | Path | None = None,
    *,
    text: str | None = None,
    min_logits: int = 1_000_000,
    options: LoadOptions | None = None,
    progress: Callable[[int], object] = lambda n_logits: None,
) -> Verification:
    """Compare the logits of a base with its insertion against stock llama.cpp on the base alone.

    Args:
        model_path: The base, or a merged file (its base is split off to a temporary file first).
        otter: The sidecar, unless the file is merged.
        text: What is fed; default: chapters of Python's own manual.
        min_logits: Compare at least this many, shared evenly by the four settings.
        options: How both are loaded; flash attention and the number of sequences are set here.
        progress: Called with the number of logits just compared.

    Raises:
        ConfigError: There is no insertion, or the text is empty.
    """
    files = check_files(model_path, otter)
    if files.insertion is None:
        raise ConfigError(f"{model_path}: nothing is inserted, so there is nothing to verify; give a sidecar (--otter)")
    options = options or LoadOptions()
    options = dataclasses.replace(options, n_seq_max=1, n_ctx=options.n_ctx or DEFAULT_CONTEXT)
    comparisons: list[Comparison] = []
    n_rewards = 0
    attention: tuple[FlashAttention, ...] = ("off", "on") if _plain_cache(options) else ("on",)
    with stock_files(files) as stock, ExitStack() as stack:
        ours = stack.enter_context(closing(load_model(files, options)))
        base = stack.enter_context(closing(load_model(stock, options)))
        tokens = ours.tokenize((manual_text() if text is None else text).encode(), add_special=False)
        if not tokens:
            raise ConfigError("verify: the text is empty")
        for flash_attn in attention:
            with _Pair(ours, base, options, flash_attn) as pair:
                share = min_logits / (2 * len(attention))
                comparisons += [pair.compare(mode, tokens, share, progress) for mode in MODES]
                n_rewards += pair.n_rewards
    return Verification(tuple(comparisons), n_rewards)


def _plain_cache(options: LoadOptions) -> bool:
    """Whether attention works without flash attention: quantized values need it."""
    return options.type_v in ("f32", "f16", "bf16")


def manual_text() -> str:
    """Real English text that every Python ships: chapters of the language reference."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ConfigError("verify: this Python ships no manual; give a text with --file") from None
    return "\n\n".join(topics[name] for name in sorted(topics))


@contextmanager
def stock_files(files: ModelFiles) -> Iterator[ModelFiles]:
    """The base alone; of a merged file a temporary copy, for stock llama.cpp refuses merged files."""
    if files.sidecar:
        yield dataclasses.replace(files, sidecar="", insertion=None, places=(files.places[0], ""))
        return
    with tempfile.TemporaryDirectory(prefix="otter-gguf-") as folder:
        path = Path(folder) / "base.gguf"
        split(files.path, path, None)
        yield dataclasses.replace(files, path=str(path), insertion=None, places=("", ""), states=())


class _Pair:
    """Two contexts that are fed the same."""

    def __init__(
        self, ours: _native.Model, stock: _native.Model, options: LoadOptions, flash_attn: FlashAttention
    ) -> None:
        options = dataclasses.replace(options, flash_attn=flash_attn)
        self.flash_attn = flash_attn
        self.n_vocab = ours.n_vocab
        # llama.cpp caps the batch at the context.
        self.n_batch = max(1, min(options.n_batch, options.n_ctx, MAX_LOGITS_IN_MEMORY // self.n_vocab))
        self.contexts = [make_context(model, options, n_outputs_max=self.n_batch) for model in (ours, stock)]
        self.n_ctx = self.contexts[0].n_ctx - options.n_seq_max
        self.n_rewards = 0

    def __enter__(self) -> _Pair:
        return self

    def __exit__(self, *args: object) -> None:
        for context in self.contexts:
            context.close()

    def compare(
        self, mode: Mode, tokens: list[int], min_logits: float, progress: Callable[[int], object]
    ) -> Comparison:
        """Feed windows of the text until enough logits are compared."""
        result = Comparison(mode, self.flash_attn)
        n_batch = self.n_batch if mode == "prompt" else 1
        self._clear()
        position = 0
        stream = cycle(tokens)
        while result.logits < max(min_logits, MIN_TOKENS * self.n_vocab):
            if position + n_batch > self.n_ctx:
                self._clear()
                position = 0
            part = np.fromiter(stream, np.int32, n_batch)
            result.add(*self._feed(part, position))
            progress(n_batch * self.n_vocab)
            position += n_batch
        return result

    def _clear(self) -> None:
        for context in self.contexts:
            context.clear()

    def _feed(self, tokens: npt.NDArray[np.int32], position: int) -> tuple[Float32, Float32]:
        """Logits of every token, ours and stock's: two (n, n_vocab) views."""
        positions = np.arange(position, position + len(tokens), dtype=np.int32)
        sequences, outputs = np.zeros_like(tokens), np.ones(len(tokens), np.bool_)
        ours, stock = self.contexts
        ours.decode(tokens, positions, sequences, outputs, rewards=True)
        stock.decode(tokens, positions, sequences, outputs, rewards=False)
        self.n_rewards += ours.rewards().size
        return ours.logits(), stock.logits()
