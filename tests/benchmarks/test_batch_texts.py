"""benchmarks/batch_texts.py on a few prompts."""

from __future__ import annotations

from benchmarks.batch_texts import WAYS, texts
from otter_gguf import Otter
from otter_gguf.demo import demo_files
from tests.demo_f32 import load_demo_f32

GREEDY = WAYS["temperature 0"][1]


def test_exact_texts_do_not_depend_on_the_batch() -> None:
    prompts = demo_files().load_prompts()[:3]
    with load_demo_f32(n_seq_max=20) as llm:
        alone = texts(llm, prompts, 1, GREEDY)
        assert texts(llm, prompts, 2, GREEDY) == alone
        assert texts(llm, prompts[::-1], 2, GREEDY) == alone[::-1]
    assert len(set(alone)) == 3


def test_texts_depend_on_how_they_are_chosen() -> None:
    files = demo_files()
    with Otter(files.base, otter=files.sidecar, n_ctx=512, n_threads=1) as llm:
        prompts = files.load_prompts()[:2]
        assert texts(llm, prompts, 1, GREEDY) != texts(llm, prompts, 1, {"temperature": 1.5})
