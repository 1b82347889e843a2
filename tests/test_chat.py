"""Chat templates: rendered like everywhere else, in a sandbox."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import synthetic
from otter_gguf import ConfigError, FileError, Otter
from otter_gguf.chat import MAX_OUTPUT, MAX_TEMPLATE, ChatTemplate
from otter_gguf.gguf.encoding import KeyValue
from tests.completions import choice_of
from tests.refusals import refused
from tests.synthetic_models import pair

CHATML = """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}{{ '<|begin|>' }}{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' -}}
{% endif %}"""

MESSAGES = [{"role": "user", "content": "Where do otters live?"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, path="model.gguf", bos_token="<s>", eos_token="</s>")


def test_renders_messages_and_the_generation_prompt() -> None:
    text = template(CHATML).render(MESSAGES)
    assert text == "<|begin|><|im_start|>user\nWhere do otters live?<|im_end|>\n<|im_start|>assistant\n"
    assert not template(CHATML).render(MESSAGES, add_generation_prompt=False).endswith("assistant\n")


def test_what_templates_use() -> None:
    source = "{{ bos_token }}{{ messages | tojson }}{% for m in messages %}{% break %}{% endfor %}"
    assert template(source).render(MESSAGES).startswith('<s>[{"role": "user", "content": "Where')


def test_a_template_can_refuse() -> None:
    with refused(ConfigError, "messages", "alternate"):
        template("{{ raise_exception('roles must alternate') }}").render(MESSAGES)


@pytest.mark.parametrize(
    "messages",
    [[], ["text"], [{"role": "user"}], [{"content": "a"}], [{"role": "user", "content": ["part"]}], [{"role": 1}]],
)
def test_malformed_messages_are_refused(messages: Any) -> None:
    with refused(ConfigError, "messages"):
        template(CHATML).render(messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('touch /tmp/pwned').read() }}",
        "{{ self._TemplateReference__context }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% set x = messages.append('a') %}",
        "{{ ().__class__.__base__ }}",
        "{% import 'os' as os %}",
        "{% include '/etc/passwd' %}",
        "{{ lipsum.__globals__['os'].system('id') }}",
        "{{ namespace.__init__ }}{{ ''|attr('__class__') }}",
        "{{ range(10**9)|list }}",
        "{{ undefined.field }}",
        "{{ 1 / 0 }}",
    ],
)
def test_hostile_and_broken_templates_are_harmless(source: str) -> None:
    """They fail with one line that names the file, or give nothing away."""
    outcome = ""
    with contextlib.suppress(FileError):
        outcome = template(source).render(MESSAGES)
    assert outcome.strip() == ""


def test_a_failing_template_is_one_line_that_names_the_file() -> None:
    with refused(FileError, "model.gguf", "ZeroDivisionError"):
        template("{{ 1 / 0 }}").render(MESSAGES)


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{% endif %}", "x" * (MAX_TEMPLATE + 1)])
def test_templates_that_are_none_are_refused(source: str) -> None:
    with refused(FileError, "model.gguf", "chat template"):
        template(source)


def test_output_is_limited() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages }}{% endfor %}{% endfor %}"
    with refused(FileError, "model.gguf", MAX_OUTPUT):
        template(endless).render(MESSAGES)


# ---- through a model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Otter:
    """A model file with a template, and a sidecar for it."""
    folder: Path = tmp_path_factory.mktemp("chat")
    geometry = synthetic.GEOMETRIES["tiny"]
    metadata = [*synthetic.base_metadata(geometry), KeyValue("tokenizer.chat_template", "str", CHATML)]
    synthetic.write(folder / "base.gguf", metadata, synthetic.base_tensors(geometry, "F32"), 0)
    return Otter(folder / "base.gguf", otter=pair().otter, n_ctx=512, n_threads=1)


def test_chat_completion(llm: Otter) -> None:
    out = llm.create_chat_completion(MESSAGES, max_tokens=12, temperature=0)
    choice = out["choices"][0]
    assert out["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert choice["rewards"] is not None
    assert len(choice["rewards"]["token_rewards"]) == 12
    prompt = template(CHATML).render(MESSAGES)
    same = llm.create_completion(llm.tokenize(prompt, add_bos=False, special=True), max_tokens=12, temperature=0)
    assert same["choices"][0]["text"] == choice["message"]["content"]


def test_begin_of_text_stands_once(llm: Otter) -> None:
    tokens = llm.tokenize_chat(MESSAGES)
    assert tokens.count(llm.model.bos_token) == 1
    with_system = llm.tokenize_chat([{"role": "system", "content": "Be brief."}, *MESSAGES])
    assert with_system.count(llm.model.bos_token) == 1


def test_chat_streams(llm: Otter) -> None:
    whole = llm.create_chat_completion(MESSAGES, max_tokens=12, temperature=0)["choices"][0]
    chunks = list(llm.create_chat_completion(MESSAGES, max_tokens=12, temperature=0, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}  # as OpenAI's: clients look for a role or else for text
    assert all(set(delta) == {"content"} for delta in deltas[1:])
    assert chunks[0]["choices"][0]["finish_reason"] is None
    assert chunks[0]["choices"][0]["rewards"]["tokens"] == []  # type: ignore[index]
    assert "".join(delta["content"] for delta in deltas) == whole["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"][0]["rewards"]["reward"] == whole["rewards"]["reward"]  # type: ignore[index]


def test_a_template_that_is_no_text_is_refused_when_it_is_used(tmp_path: Path) -> None:
    geometry = synthetic.GEOMETRIES["tiny"]
    metadata = [*synthetic.base_metadata(geometry), KeyValue("tokenizer.chat_template", "str", CHATML + "\udced")]
    base = tmp_path / "base.gguf"
    synthetic.write(base, metadata, synthetic.base_tensors(geometry, "F32"), 0)
    with Otter(base, n_ctx=64, n_threads=1) as llm:
        assert llm.has_chat_template
        with refused(FileError, base, "chat template", "U+DCED"):
            llm.create_chat_completion(MESSAGES)
        assert choice_of(llm.create_completion("a", max_tokens=1, temperature=0))


def test_without_a_template_chat_is_refused() -> None:
    with (
        Otter(pair().base, n_ctx=64, n_threads=1) as plain,
        refused(ConfigError, pair().base, "create_completion"),
    ):
        plain.create_chat_completion(MESSAGES)
