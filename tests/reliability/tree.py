"""A copy of the work tree, in which tests may be run that must not touch the tree itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CONVERTER = "otter_gguf/converters/llama_cpp"  # built, large and only read: linked


def copy_tree(target: Path) -> None:
    """Copy what git knows of the work tree; of what is built, only llama.cpp's converter."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    )
    for name in os.fsdecode(listed.stdout).split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    if (ROOT / _CONVERTER).is_dir():
        (target / _CONVERTER).symlink_to(ROOT / _CONVERTER)


def copy_module(source: Path, target: Path) -> None:
    """Copy the native module that stands in the folder ``source`` into the package of a copied tree."""
    modules = list(source.glob("_native*.so"))
    if len(modules) != 1:
        raise FileNotFoundError(f"{source} holds {len(modules)} native modules, expected one: run make native")
    shutil.copy2(modules[0], target / "otter_gguf" / modules[0].name)
