"""The checkpoints of a training run: which are complete, which is the newest, which may go.

transformers writes a checkpoint in place, file by file. Its manifest is written last, with size and SHA-256 of every
other file; a folder without a matching manifest was cut off by a kill and is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

from ..errors import FileError
from ..gguf.atomic import atomic_path, sync_tree

logger = logging.getLogger(__name__)

MANIFEST_NAME = "otter_manifest.json"


def checkpoints(folder: Path) -> list[Path]:
    """The ``checkpoint-N`` folders of a run, complete or not, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def latest_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint; those that are skipped are named in the log.

    Raises:
        FileError: there is none.
    """
    skipped = []
    for checkpoint in reversed(checkpoints(folder)):
        problem = checkpoint_problem(checkpoint)
        if problem is None:
            return checkpoint
        skipped.append(f"{checkpoint.name}: {problem}")
        logger.warning("skipped incomplete checkpoint %s: %s", checkpoint, problem)
    raise FileError(f"{folder}: no complete checkpoint to resume from{': ' if skipped else ''}{'; '.join(skipped)}")


def write_manifest(checkpoint: Path) -> None:
    """Record size and SHA-256 of every file of a checkpoint, once they are on the disk: older checkpoints go then."""
    sync_tree(checkpoint)
    found = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    files = {path.relative_to(checkpoint).as_posix(): _size_and_hash(path) for path in found}
    files.pop(MANIFEST_NAME, None)
    with atomic_path(checkpoint / MANIFEST_NAME, force=True) as temporary:
        temporary.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def checkpoint_problem(checkpoint: Path) -> str | None:
    """Why a checkpoint is not complete, or ``None``."""
    try:
        files = json.loads((checkpoint / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
        for name, recorded in files.items():
            if _size_and_hash(checkpoint / name) != recorded:
                return f"{name} differs from the manifest"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"{MANIFEST_NAME} is damaged"
    return None


def _size_and_hash(path: Path) -> list[int | str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return [path.stat().st_size, digest.hexdigest()]


def rotate(newest: Path, limit: int | None, keep: set[Path]) -> None:
    """Remove the oldest checkpoints beyond ``limit``, but none of ``keep``.

    What stands after ``newest`` was torn when the run was resumed before it; it must not push out a complete one.
    """
    if limit is not None and limit > 0:
        found = checkpoints(newest.parent)
        for checkpoint in found[: found.index(newest) + 1][:-limit]:
            if checkpoint not in keep:
                shutil.rmtree(checkpoint, ignore_errors=True)
