"""What docs/python-api.md says of llama-cpp-python's ``Llama``: of every name of it, and true of ``Otter``."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import pytest

from otter_gguf import Otter
from tests.documents import DOCS
from tests.synthetic_models import load

HEADING = "## Coming from llama-cpp-python"
LOADING, OBJECT = "`Llama(...)`", "`llm`"

_SAMPLING = """
    temperature top_p min_p typical_p top_k stream stop seed max_tokens presence_penalty frequency_penalty
    repeat_penalty tfs_z mirostat_mode mirostat_tau mirostat_eta model logits_processor grammar logit_bias logprobs
"""
LLAMA = {
    LOADING: """
        model_path n_gpu_layers split_mode main_gpu tensor_split vocab_only use_mmap use_mlock kv_overrides seed n_ctx
        n_batch n_ubatch n_threads n_threads_batch rope_scaling_type pooling_type attention_type rope_freq_base
        rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow yarn_orig_ctx logits_all
        embedding offload_kqv flash_attn op_offload swa_full no_perf last_n_tokens_size lora_base lora_scale lora_path
        numa chat_format chat_handler draft_model tokenizer type_k type_v spm_infill verbose
    """,
    OBJECT: """
        __call__ cache chat_format chat_handler close context_params create_chat_completion
        create_chat_completion_openai_v1 create_completion create_embedding ctx detokenize draft_model embed eval
        eval_logits eval_tokens from_pretrained generate input_ids kv_overrides last_n_tokens_size load_state
        logits_to_logprobs longest_token_prefix lora_base lora_path lora_scale metadata model model_params model_path
        n_batch n_ctx n_embd n_threads n_threads_batch n_tokens n_vocab numa pooling_type reset sample save_state scores
        set_cache set_seed spm_infill tensor_split token_bos token_eos token_nl tokenize tokenizer tokenizer_ verbose
    """,
    "`create_completion(...)`": f"prompt suffix echo stopping_criteria {_SAMPLING}",
    "`create_chat_completion(...)`": f"""
        messages functions function_call tools tool_choice response_format top_logprobs {_SAMPLING}
    """,
    "`generate(...)`": """
        tokens top_k top_p min_p typical_p temp repeat_penalty reset frequency_penalty presence_penalty tfs_z
        mirostat_mode mirostat_tau mirostat_eta penalize_nl logits_processor stopping_criteria grammar
    """,
    "`tokenize(...)`": "text add_bos special",
    "`detokenize(...)`": "tokens prev_tokens special",
}
"""Public names and arguments in llama-cpp-python 0.3.36: in its ``llama.py``, with what ``__init__`` assigns."""


class Row(NamedTuple):
    """Of the table."""

    where: str
    names: tuple[str, ...]
    here: str
    """``same``, ``none``, or names of ours in backquotes."""
    remark: str


def table() -> list[Row]:
    section = (DOCS / "python-api.md").read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [Row(where, tuple(code(names)), here, remark) for where, names, here, remark in cells]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with load(n_ctx=32) as llm:
        yield llm


def arguments(where: str) -> set[str]:
    function: Callable[..., Any] = Otter if where == LOADING else getattr(Otter, where.strip("`").removesuffix("(...)"))
    return set(inspect.signature(function).parameters)


def is_ours(llm: Otter, where: str, name: str) -> bool:
    """Whether ``Otter`` has what ``Llama`` has."""
    return hasattr(llm, name) if where == OBJECT else name in arguments(where)


def is_anywhere(llm: Otter, name: str) -> bool:
    """Whether ``Otter`` has an attribute of a name, which may have dots, or an argument somewhere."""
    try:
        attrgetter(name)(llm)
    except AttributeError:
        return any(name in arguments(where) for where in LLAMA if where != OBJECT)
    return True


def mistakes(llm: Otter, row: Row) -> list[str]:
    """The names of which a row says what is not so."""
    wrong = [name for name in row.names if is_ours(llm, row.where, name) != (row.here == "same")]
    return wrong + [name for name in code(row.here) if not is_anywhere(llm, name)]


def test_the_table_has_every_name_once() -> None:
    found = Counter((row.where, name) for row in table() for name in row.names)
    assert set(found) == {(where, name) for where, names in LLAMA.items() for name in names.split()}
    assert set(found.values()) == {1}


@pytest.mark.parametrize("row", table(), ids=lambda row: f"{row.where}-{row.names[0]}")
def test_a_row_says_what_is(llm: Otter, row: Row) -> None:
    assert row.here in ("same", "none") or code(row.here)
    assert row.remark or row.here != "none", "why not?"
    assert mistakes(llm, row) == []
    assert mistakes(llm, row._replace(here="none" if row.here == "same" else "same")) == list(row.names)
    assert mistakes(llm, row._replace(here="`nothing.of_ours`"))
