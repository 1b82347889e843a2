"""A kind of heads is one file: toy kinds go from insertion to sidecar and back, and without their files are refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import _native, heads
from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.errors import ConfigError, FileError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.sidecar import to_native_spec, validate_insertion
from tests.gguf.toy_files import insertion, rewrite, write_adapter
from tests.native.helpers import feed_chunks, open_otter, random_tokens
from tests.refusals import refused

TOYS = Path(__file__).with_name("toy_heads") / "kinds"


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Toy kinds as if their files stood in ``otter_gguf/heads``."""
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(TOYS)])
    yield
    for name in ("bins", "graded"):
        sys.modules.pop(f"{heads.__name__}.{name}", None)


def bins(**changes: Any) -> HeadConfig:
    return HeadConfig("worth", **{"input": "both", "kind": "bins", "settings": {"n_bins": 8, "first": 0}, **changes})


def validated(sidecar: Path) -> InsertionConfig:
    with _native.GgufFile(str(sidecar)) as file:
        return validate_insertion(file)


def make(folder: Path, *others: HeadConfig) -> tuple[Any, Path, Path]:
    """The torch model with a value head and others, the base and the sidecar."""
    from tests.native import test_torch_parity

    return test_torch_parity.make(folder, insertion(heads=(HeadConfig(), *others)))


# ---- the kinds that are shipped ----------------------------------------------------------------------------------


def test_each_kind_has_a_row_in_the_native_layer() -> None:
    natives = {heads.find(kind).native for kind in heads.kinds()}
    with refused(ConfigError, "head x", "'bins'", *natives):
        _native.HeadSpec(name="x", kind="bins", input="base", activation="none", scale=[1.0], shift=[0.0])


def test_descriptions_and_files_of_heads_need_no_torch() -> None:
    code = (
        "import sys; from otter_gguf import heads; from otter_gguf.gguf import sidecar;"
        "[heads.find(kind) for kind in heads.kinds()]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- a new one ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toys")
def test_a_toy_kind_goes_from_insertion_to_sidecar_and_back(tmp_path: Path) -> None:
    import torch
    from otter_gguf.converters.sidecar import convert_sidecar

    from otter_gguf.training import OtterModel
    from tests.native.test_torch_parity import torch_base

    model, _, sidecar = make(tmp_path, bins())
    names = [name for name in model.inserted_parameters() if ".worth." in name]
    assert names == [f"heads.worth.{part}" for part in ("otter.weight", "otter.bias", "centres.otter.weight")]
    config = validated(sidecar)
    assert config == model.insertion
    assert config.reward_labels == ("reward",)
    with _native.GgufFile(str(sidecar)) as file:
        found = {name: (file.key_type(name), file.value(name)) for name in file.keys if name.startswith("otter.head.w")}
        assert [found[f"otter.head.worth.{name}"] for name in ("kind", "n_bins", "first")] == [
            ("str", "bins"),
            ("u32", 8),
            ("u32", 0),
        ]
        shapes = {tensor.name: list(tensor.shape) for tensor in file.tensors if ".worth." in tensor.name}
    assert shapes["cls.output.worth.otter.weight"] == [96, 8]
    assert shapes["cls.output.worth.otter.bias"] == [8]
    assert shapes["cls.centres.worth.otter.weight"][0] == 8

    convert_sidecar(sidecar, tmp_path / "back")
    back = OtterModel.from_pretrained(torch_base(), tmp_path / "back")
    tensors = back.inserted_parameters()
    assert all(bool((tensors[name] == value).all()) for name, value in model.inserted_parameters().items())

    tokens = torch.arange(3, 20)[None]
    probabilities = back(tokens).queries["worth"]
    assert probabilities.shape == (1, 17, 8)
    torch.testing.assert_close(probabilities, model(tokens).queries["worth"])
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 17))


@pytest.mark.usefixtures("toys")
def test_first_values_are_the_modules_own_and_leave_the_others_alone() -> None:
    from tests.training.toy import toy_otter

    plain, both = toy_otter(heads=(HeadConfig(),)), toy_otter(heads=(bins(), HeadConfig()))
    assert both.get_parameter("heads.worth.centres.otter.weight")[0, [0, -1]].tolist() == [-1, 1]
    for name, tensor in plain.inserted_parameters().items():
        assert bool((tensor == both.inserted_parameters()[name]).all()), name


@pytest.mark.usefixtures("toys")
def test_a_kind_that_is_computed_as_another_runs_natively(tmp_path: Path) -> None:
    from tests.native.test_torch_parity import torch_rewards

    graded = HeadConfig("graded", ("a", "b"), "both", "tanh", kind="graded", settings={"grades": 5})
    model, base, sidecar = make(tmp_path, graded)
    config = validated(sidecar)
    assert config.reward_labels == ("reward", "graded.a", "graded.b")
    tokens = random_tokens(40)
    _, rewards = feed_chunks(open_otter(base, sidecar, config), tokens, 40)
    assert np.abs(rewards - torch_rewards(model, tokens)[1]).max() <= 1e-4


@pytest.mark.usefixtures("toys")
def test_a_kind_without_a_row_is_not_run(tmp_path: Path) -> None:
    config = insertion(heads=(HeadConfig(), bins()))
    with refused(ConfigError, "head worth", "'bins'", "value", "vocabulary"):
        to_native_spec(config)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"settings": {}}, ("'worth'", "n_bins", 2, "first", 0)),
        ({"settings": {"n_bins": 1, "first": 0}}, ("'worth'", "n_bins", 1, 2)),
        ({"settings": {"n_bins": 8, "first": 9}}, ("'worth'", "first", 9, 8)),
        ({"settings": {"n_bins": 8, "first": 0, "depth": 1}}, ("'worth'", "bins", "'depth'")),
        ({"settings": {"n_bins": 8, "first": 0, "labels": 1}}, ("'worth'", "bins", "'labels'")),
        ({"settings": {"rank": 4}, "kind": "vocabulary", "labels": ("reward",)}, ("'worth'", "'rank'", "rank", 0, 1)),
        ({"settings": 3}, ("'worth'", "settings", 3)),
        ({"rank": 4}, ("'worth'", "rank", 4, 0, "bins")),
        ({"activation": "softmax"}, ("'worth'", "softmax")),
        ({"kind": "value"}, ("'worth'", "value", "'n_bins'", "'first'")),
    ],
)
def test_its_numbers_are_checked(changes: dict[str, Any], names: tuple[object, ...]) -> None:
    with refused(ConfigError, *names):
        bins(**changes)


@pytest.mark.usefixtures("toys")
def test_it_is_checked_beside_the_other_heads() -> None:
    with refused(ConfigError, "'worth'", "other"):
        insertion(heads=(HeadConfig(), bins(labels=("other",))))


@pytest.mark.usefixtures("toys")
def test_its_keys_and_tensors_are_needed(tmp_path: Path) -> None:
    _, _, sidecar = make(tmp_path, bins())
    key, tensor = "otter.head.worth.n_bins", "cls.centres.worth.otter.weight"
    with refused(FileError, key):
        validated(rewrite(sidecar, tmp_path / "no_key.gguf", metadata={key: None}))
    with refused(FileError, tensor):
        validated(rewrite(sidecar, tmp_path / "no_tensor.gguf", tensors={tensor: None}))
    more = KeyValue("otter.head.worth.rank", "u32", 1)
    with refused(UnsupportedError, more.key):
        validated(rewrite(sidecar, tmp_path / "more.gguf", metadata={more.key: more}))


# ---- the negative twin: no file of that kind ---------------------------------------------------------------------


def test_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    from otter_gguf.converters.adapter import convert_adapter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "__path__", [*heads.__path__, str(TOYS)])
        config = insertion(heads=(HeadConfig(), bins()))
        adapter = write_adapter(tmp_path / "adapter", config)
        _, base, sidecar = make(tmp_path, bins())
    with refused(UnsupportedError, sidecar, "'worth'", "'bins'", "value", "vocabulary"):
        validated(sidecar)
    with BaseFiles.open(base) as files, refused(FileError, adapter, "'worth'", "bins", "value", "vocabulary"):
        convert_adapter(adapter, tmp_path / "new.gguf", files)
    with refused(ConfigError, "'worth'", "bins", "value", "vocabulary"):
        bins()
