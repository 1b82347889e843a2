"""Whether a base's GGUF makes the tokens that an adapter was trained on: the tokenizer is found and compared."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from otter_gguf.errors import FileError, UnsupportedError
from otter_gguf.tokenizers.agreement import TOKENIZER_FILES, check_tokenizer, has_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADVICE = "convert with the base that was trained on, or skip this with --no-tokenizer-check"


def find_tokenizer(names: Iterable[tuple[str | Path, str]]) -> Path | None:
    """The first folder with a tokenizer; nothing is downloaded.

    Args:
        names: Folders or Hub names with the revision of each, "" = the newest; a Hub name is looked up in the cache
            of downloads.
    """
    for name, revision in names:
        folder = Path(name) if Path(name).is_dir() else _cached(str(name), revision)
        if folder is not None and has_tokenizer(folder):
            return folder
    return None


def _cached(name: str, revision: str) -> Path | None:
    """Where the Hub's cache holds a model's tokenizer."""
    if not name or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "tokenizer_config.json", revision=revision or None)
    except ValueError:  # no name that the Hub allows
        return None
    return Path(found).parent if isinstance(found, str) else None


def compare_with_training(base: str | Path, names: Iterable[tuple[str | Path, str]]) -> list[str]:
    """Compare a base GGUF with the tokenizer of an adapter, if one of ``names`` (see :func:`find_tokenizer`) has it.

    Returns:
        What there is to say, one line each: that nothing could be compared, or texts to be careful with.

    Raises:
        MismatchError: The tokenizers make other tokens of a text.
    """
    folder = find_tokenizer(names)
    if folder is None:
        return [f"{base}: tokenizer not compared, none is known of training: name its folder with --tokenizer"]
    try:
        tokenizer = load_tokenizer(folder)
    except (FileError, UnsupportedError) as error:
        return [f"{base}: tokenizer not compared: {error}"]
    return _compare(base, tokenizer)


def compare_with_folder(base: str | Path, folder: Path) -> list[str]:
    """Compare a base GGUF with the tokenizer of a Hugging Face folder; returns texts to be careful with.

    Raises:
        MismatchError: The tokenizers make other tokens of a text.
        FileError: The folder has no tokenizer, or one that cannot be loaded.
        UnsupportedError: transformers is not installed.
    """
    if not has_tokenizer(folder):
        raise FileError(f"{folder}: no tokenizer there, expected one of {', '.join(TOKENIZER_FILES)}")
    return _compare(base, load_tokenizer(folder))


def _compare(base: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [f"{base}: {note}" for note in check_tokenizer(base, tokenizer, advice=_ADVICE)]
