"""Figures of texts: repetition, diversity, distinct n-grams, coherence, perplexity.

Pure functions over text and arrays. Repetition and diversity are those of ARGS (arXiv 2402.01694), distinct-n that of
DExperts (arXiv 2105.03023); where the tokenization differs from theirs, the function says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_DIVERSITY_GRAMS = (2, 3, 4)


def words(text: str) -> list[str]:
    """Words and punctuation marks of a text, in order, case kept.

    A word is a run of letters, digits and underscores, with apostrophes inside (``don't`` is one word); every other
    character that is no white space is a token of its own. ARGS uses NLTK's ``word_tokenize``, which parts contractions
    (``do n't``) and keeps ``...`` together; on plain prose both give nearly the same diversity.
    """
    return _WORD.findall(text)


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none where there are fewer than n tokens."""
    return [tuple(tokens[begin : begin + n]) for begin in range(len(tokens) - n + 1)]


def rep_n(text: str, n: int) -> float:
    """Repeated n-grams in percent: ``100 * (1 - |set(G)| / (|G| + 1))``, where G are the text's n-grams (ARGS).

    The 1 in the denominator is ARGS's: a text without repetition is a little above 0, one shorter than n words is 100.
    """
    grams = ngrams(words(text), n)
    return 100 * (1 - len(set(grams)) / (len(grams) + 1))


def diversity(text: str) -> float:
    """Product over n = 2, 3, 4 of ``1 - rep_n / 100`` (ARGS).

    0 for a text shorter than four words, below 1 for any. It depends on the length: L different words give the product
    of ``(L - n + 1) / (L - n + 2)``, so only texts of about the same length can be compared.
    """
    shares = [1 - rep_n(text, n) / 100 for n in _DIVERSITY_GRAMS]
    return float(np.prod(shares))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of several continuations of one prompt, divided by their tokens (DExperts).

    Tokens are split at white space, n-grams stay within a text. 0 where there is no token.
    """
    split = [text.split() for text in texts]
    n_tokens = sum(map(len, split))
    grams = {gram for tokens in split for gram in ngrams(tokens, n)}
    return len(grams) / n_tokens if n_tokens else 0.0


def coherence(prompts: Array, responses: Array) -> Float64:
    """Cosine of every prompt with its own response.

    Args:
        prompts: (n, d) embeddings.
        responses: (n, d), row i continues prompt i.

    Returns:
        (n,) from -1 to 1; 0 where one of the two is a zero vector. ARGS reports the mean.
    """
    if prompts.shape != responses.shape or prompts.ndim != 2:
        raise ValueError(f"embeddings of shapes {prompts.shape} and {responses.shape}, expected two equal (n, d)")
    left, right = prompts.astype(np.float64), responses.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = (left * right).sum(axis=1)
    cosines: Float64 = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return cosines


def cross_entropy(log_probabilities: Array) -> float:
    """Mean of ``-ln p`` in nats over the tokens of one text; NaN for a text without tokens."""
    return -float(np.mean(log_probabilities, dtype=np.float64)) if len(log_probabilities) else float("nan")


def perplexity(cross_entropy: float) -> float:
    """``exp`` of a mean cross-entropy in nats a token.

    Of the mean over several texts it is the geometric mean of their perplexities. DExperts takes the arithmetic mean
    and leaves out texts above 10,000; the geometric mean needs no such limit.
    """
    return math.exp(cross_entropy)
