"""The layers of imports (``[tool.importlinter]`` in ``pyproject.toml``), checked on the package as it is installed.

In a work tree the converters stand beside the package, and an editable install shows both places at once. So both are
copied together, and the linter runs without the hooks of site-packages, by which an editable install is found.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LINT = (
    "import sys; sys.path[:0] = sys.argv.pop().split(); from importlinter.cli import lint_imports_command as run; run()"
)


def check(
    package: Path = ROOT / "otter_gguf", converters: Path = ROOT / "converters"
) -> subprocess.CompletedProcess[str]:
    """Run the linter. Its exit code is 1 if a contract is broken."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "otter_gguf")
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("llama_cpp", "*.so", "*.gguf", "__pycache__"))
        shutil.copytree(ROOT / "converters", copy / "converters", dirs_exist_ok=True)
        paths = f"{folder} {sysconfig.get_path('purelib')} {sysconfig.get_path('platlib')}"
        command = [sys.executable, "-S", "-c", _LINT, "--no-cache", str(ROOT / "pyproject.toml"), paths]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)


if __name__ == "__main__":
    done = check()
    print(done.stdout.partition("Contracts\n")[2] or done.stdout, done.stderr, sep="")
    sys.exit(done.returncode)
