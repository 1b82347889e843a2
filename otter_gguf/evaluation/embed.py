"""Embeddings of texts, for coherence.

The states of a language model share a large common part, so cosines of raw states are high for any two texts. The
common part is taken off: from every embedding the mean over the run's prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import ConfigError, FileError
from ..gguf.base import BaseFiles
from ..plugins import load_function
from .metrics import Array, Float64, coherence

if TYPE_CHECKING:
    from ..model import Otter

Float32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Embedder:
    """Turns texts into vectors."""

    name: str
    """For the report."""
    embed: Callable[[Sequence[str]], Array]
    """n texts -> (n, d)."""
    centred: bool = False
    """Whether the mean over the prompts is taken off first."""


_CHUNK = 32  # texts embedded at once
_ROWS = 64  # outputs of one batch: as many rows of logits as a context reserves by default
_TABLE = "token_embd.weight"


def load_embedder(name: str) -> Embedder:
    """``MODULE:FUNCTION``: takes a list of texts and returns an array (texts, size). Its shape is checked."""
    function = load_function(name, "--embedder")

    def embed(texts: Sequence[str]) -> Array:
        answer = function(list(texts))
        try:
            rows = np.asarray(answer, np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"--embedder {name}: {error}") from None
        if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
            found = f"shape {rows.shape}" if np.isfinite(rows).all() else "NaN or infinity"
            raise ConfigError(
                f"--embedder {name}: returned {found}, expected finite numbers of shape ({len(texts)}, d)"
            )
        return rows

    return Embedder(name, embed)


def states_embedder(llm: Otter) -> Embedder:
    """Mean of the base's final normed states over a text's tokens, the begin-of-text token left out.

    ``llm`` must be opened with ``hidden_states=True`` and an insertion. A text longer than the context is cut.
    """

    def embed_one(text: str) -> Float32:
        tokens = llm.tokenize(text)[: llm.n_ctx]
        states = llm.engine.alone(lambda: final_states(llm.context, np.asarray(tokens, np.int32)))
        begin = _n_begin(llm, tokens)
        mean: Float32 = states[begin:].mean(axis=0) if len(states) > begin else np.zeros(llm.model.n_embd, np.float32)
        return mean

    return Embedder("final states", lambda texts: np.stack([embed_one(text) for text in texts]), centred=True)


def final_states(context: _native.Context, tokens: npt.NDArray[np.int32]) -> Float32:
    """(n, d) final normed h of every token of a text; what the context held is replaced."""
    context.clear()
    parts = []
    for begin in range(0, len(tokens), _ROWS):
        part = tokens[begin : begin + _ROWS]
        positions = np.arange(begin, begin + len(part), dtype=np.int32)
        context.decode(part, positions, np.zeros_like(part), np.ones(len(part), np.bool_))
        parts.append(context.hidden_states()[0].copy())
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def table_embedder(llm: Otter) -> Embedder:
    """Mean of the rows of the base's token table over a text's tokens: works without an insertion."""

    def embed(texts: Sequence[str]) -> Array:
        tokens = [llm.tokenize(text) for text in texts]
        used = np.unique(np.concatenate([np.asarray(row, np.int64) for row in tokens]))
        with BaseFiles.open(llm.model_path) as base:
            rows = table_rows(base, used)
        means = []
        for row in tokens:
            places = np.searchsorted(used, row[_n_begin(llm, row) :])
            means.append(rows[places].mean(axis=0) if len(places) else np.zeros(rows.shape[1], np.float32))
        return np.stack(means)

    return Embedder("token table", embed, centred=True)


def table_rows(base: BaseFiles, tokens: Int) -> Float32:
    """(k, d) rows of the base's token table, dequantized."""
    table = base.tensor(_TABLE)
    if table is None:
        raise FileError(f"{base.path}: there is no tensor {_TABLE}")
    n_columns = table.shape[0]
    size = _native.tensor_nbytes(table.type, [n_columns])
    data = base.tensor_data(_TABLE)
    chosen = b"".join(data[token * size : (token + 1) * size] for token in tokens.tolist())
    return _native.dequantize(chosen, table.type, n_columns)


def coherences(
    embedder: Embedder, prompts: Sequence[str], texts: Sequence[tuple[int, str]], progress: Callable[[], object]
) -> Float64:
    """Coherence of every response with its prompt; 0 for an empty one.

    Args:
        embedder: Of both.
        prompts: All of the run: their mean is what is taken off where the embedder wants that.
        texts: (index of the prompt, response).
        progress: Called after each text.
    """
    anchors = embedder.embed(prompts)
    mean = anchors.mean(axis=0) if embedder.centred else np.zeros(anchors.shape[1])
    parts = [np.empty(0)]
    for begin in range(0, len(texts), _CHUNK):
        chunk = texts[begin : begin + _CHUNK]
        responses = embedder.embed([response for _, response in chunk])
        near = coherence(anchors[[index for index, _ in chunk]] - mean, responses - mean)
        parts.append(np.where([bool(response.strip()) for _, response in chunk], near, 0.0))
        for _ in chunk:
            progress()
    return np.concatenate(parts)


def _n_begin(llm: Otter, tokens: Sequence[int]) -> int:
    return int(llm.model.add_bos and tokens[:1] == [llm.model.bos_token])
