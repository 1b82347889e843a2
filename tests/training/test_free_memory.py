"""What Linux says of memory, from files as kernels write them (otter_gguf/training/free_memory.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from otter_gguf.training.free_memory import _PROC, _address_space, free_memory, free_system_memory, resident_memory

GIB = 1 << 30
needs_linux = pytest.mark.skipif(not (_PROC / "self/status").exists(), reason="needs Linux")


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 10 GiB left, and a process without limits of its own."""
    write(tmp_path / "proc", {"meminfo": f"MemTotal: 99 kB\nMemAvailable:   {10 * GIB >> 10} kB\n"})
    return tmp_path / "proc"


def test_without_a_control_group_it_is_what_the_machine_has_left(proc: Path, tmp_path: Path) -> None:
    assert free_system_memory(proc, tmp_path / "cgroup") == 10 * GIB


@pytest.mark.parametrize("path", ["/pod/box", "/", "/pod/box/nowhere", "/outside/of/the/container"])
def test_a_control_group_of_version_2_limits_it(proc: Path, tmp_path: Path, path: str) -> None:
    """In a container the group's path is often one of the host's, and the limit stands at the root."""
    write(proc, {"self/cgroup": f"0::{path}\n"})
    usage = {"memory.current": str(3 * GIB), "memory.stat": f"anon 1\ninactive_file {GIB}\n"}
    place = {"/pod/box": "pod/box", "/pod/box/nowhere": "pod"}.get(path, ".")
    write(tmp_path / "cgroup" / place, {"memory.max": str(6 * GIB), **usage})
    assert free_system_memory(proc, tmp_path / "cgroup") == 4 * GIB
    write(tmp_path / "cgroup" / place, {"memory.max": "max\n"})
    assert free_system_memory(proc, tmp_path / "cgroup") == 10 * GIB


def test_a_control_group_of_version_1_limits_it(proc: Path, tmp_path: Path) -> None:
    write(proc, {"self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n"})
    group = {"memory.limit_in_bytes": str(2 * GIB), "memory.usage_in_bytes": str(GIB)}
    write(tmp_path / "cgroup/memory/box", group)
    assert free_system_memory(proc, tmp_path / "cgroup") == GIB
    write(tmp_path / "cgroup/memory/box", {"memory.stat": f"total_inactive_file {GIB >> 1}\n"})
    assert free_system_memory(proc, tmp_path / "cgroup") == 3 * GIB // 2


def test_a_group_that_is_over_its_limit_leaves_nothing(proc: Path, tmp_path: Path) -> None:
    write(proc, {"self/cgroup": "0::/box\n"})
    write(tmp_path / "cgroup/box", {"memory.max": str(GIB), "memory.current": str(2 * GIB)})
    assert free_system_memory(proc, tmp_path / "cgroup") == 0


@needs_linux
def test_the_limit_on_address_space_counts() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    if before[1] != resource.RLIM_INFINITY:
        pytest.skip("the limit cannot be set")
    assert before[0] != resource.RLIM_INFINITY or not list(_address_space(_PROC))
    resource.setrlimit(resource.RLIMIT_AS, (GIB << 16, before[1]))
    try:
        (left,) = _address_space(_PROC)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert 0 < left < GIB << 16


@needs_linux
def test_of_this_process() -> None:
    free, before = free_memory(torch.device("cpu")), resident_memory()
    assert free is not None
    assert before is not None
    assert free > 0
    block = torch.ones(1 << 26)
    after = resident_memory()
    assert after is not None
    assert 0.9 * block.nbytes < after - before < 1.5 * block.nbytes


def test_what_nobody_says_is_none(tmp_path: Path) -> None:
    assert resident_memory(tmp_path) is None
    assert free_memory(torch.device("meta")) is None
