"""Numbers in an adapter's configuration that no float holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otter_gguf.adapter_format import CONFIG_NAME, AdapterRecord
from otter_gguf.demo import demo_files
from otter_gguf.errors import FileError
from tests.refusals import refused


@pytest.mark.parametrize("field", ["scale", "shift"])
@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "1e400", "NaN", "1e39"])
def test_a_calibration_that_is_no_float_is_refused(field: str, number: str, tmp_path: Path) -> None:
    path = tmp_path / CONFIG_NAME
    record = json.loads((demo_files().adapter / CONFIG_NAME).read_text("utf-8"))
    for value in ("NUMBER", 3.0e38):
        for head in record["insertion"]["heads"]:
            head[field] = [value] * len(head["labels"])
        path.write_text(json.dumps(record).replace('"NUMBER"', number))
        if value == "NUMBER":
            with refused(FileError, path):
                AdapterRecord.read(tmp_path)
    assert getattr(AdapterRecord.read(tmp_path).insertion.heads[0], field)[0] == 3.0e38
