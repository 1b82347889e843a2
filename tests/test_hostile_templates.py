"""Chat templates that attack: published payloads never run, and what eats time or memory ends with its process."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from otter_gguf import ConfigError, FileError
from otter_gguf.chat import MAX_OUTPUT, MAX_TEMPLATE, ChatTemplate
from otter_gguf.chat import template as chat
from tests.refusals import assert_names, names, refused

MESSAGES = [{"role": "user", "content": "Where do otters live?"}]
GOOD = "{{ messages[0]['content'] }}"
POPEN = ".__globals__['os'].popen('touch MARK').read()"
SECRETS = ("<class", "subclasses", "__globals__", "builtins", "popen", "root:", "<module", "<function")

# Published: CVE-2024-34359 (llama-cpp-python), CVE-2026-5760 (SGLang), CVE-2016-10745, CVE-2019-10906, CVE-2024-56326
# and CVE-2025-27516 (jinja2's sandbox), the collections PayloadsAllTheThings and HackTricks.
PAYLOADS = {
    "warnings module": "{% for x in ().__class__.__base__.__subclasses__() %}{% if 'warning' in x.__name__ %}"
    "{{ x()._module.__builtins__['__import__']('os').popen('touch MARK').read() }}{% endif %}{% endfor %}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "base": "{{ ().__class__.__base__ }}",
    "mro of dict": "{{ dict.mro()[-1].__subclasses__() }}",
    "subclass by number": "{{ ''.__class__.__mro__[1].__subclasses__()[100].__init__" + POPEN + " }}",
    "cycler": "{{ cycler.__init__" + POPEN + " }}",
    "joiner": "{{ joiner.__init__" + POPEN + " }}",
    "namespace": "{{ namespace.__init__" + POPEN + " }}",
    "lipsum": "{{ lipsum" + POPEN + " }}",
    "lipsum by attr": "{{ lipsum|attr('__globals__')|attr('__getitem__')('os')|attr('popen')('touch MARK') }}",
    "context": "{{ self._TemplateReference__context.cycler.__init__" + POPEN + " }}",
    "self": "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch MARK') }}",
    "flask config": "{{ config.__class__.from_envvar.__globals__.import_string('os').popen('touch MARK').read() }}",
    "flask request": "{{ request.application.__globals__.__builtins__.__import__('os').system('touch MARK') }}",
    "flask messages": "{{ get_flashed_messages" + POPEN + " }}",
    "own function": "{{ raise_exception.__globals__['sys'].modules['os'].system('touch MARK') }}",
    "own clock": "{{ strftime_now" + POPEN + " }}",
    "own filter": "{{ messages|map('tojson').__globals__ }}",
    "hexadecimal names": r"{{ ''['\x5f\x5fclass\x5f\x5f']['\x5f\x5fmro\x5f\x5f'][1]['\x5f\x5fsubclasses\x5f\x5f']() }}",
    "joined names": "{{ ''[['__cla', 'ss__']|join] }}{{ lipsum|attr('__glo' ~ 'bals__') }}",
    "names of a message": "{{ ''|attr(messages[0].role.replace('user', '__class__')) }}",
    "attr": "{{ ''|attr('__class__')|attr('__mro__')|last|attr('__subclasses__')() }}",
    "format": "{{ '{0.__class__.__mro__[1].__subclasses__}'.format('') }}",
    "format_map": "{{ '{a.__class__.__base__}'.format_map({'a': ''}) }}",
    "format by attr": "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(cycler) }}",
    "format by map": "{{ ['{0.__call__.__globals__[sys]}']|map('attr', 'format')|map('string')|first|length > 999 }}",
    "format as a filter": "{{ '{0.__class__}'|string|attr('format_map')({'0': ''}) }}",
    "map attribute": "{{ [1]|map(attribute='__class__.__base__')|list }}",
    "sort attribute": "{{ [1, 2]|sort(attribute='__class__.__base__.__subclasses__')|first|attr('__class__') }}",
    "groupby attribute": "{{ ['a']|groupby('__class__')|first }}",
    "generator frame": "{{ (messages|map('upper')).gi_frame.f_back.f_globals }}",
    "generator code": "{{ (messages|map('upper')).gi_code.co_filename }}",
    "method of a list": "{% set x = messages.append({'role': 'system', 'content': 'obey'}) %}",
    "method of a dict": "{% set x = messages[0].update({'content': 'obey'}) %}",
    "import": "{% import 'os' as os %}{{ os.system('touch MARK') }}",
    "from import": "{% from '/etc/passwd' import x %}",
    "include": "{% include '/etc/passwd' %}",
    "include above": "{% include '../../../../etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "debug": "{% debug %}",
    "do": "{% do messages.clear() %}",
    "macro": "{% macro m() %}{% endmacro %}{{ m.__globals__ }}{{ m._environment.loader }}{{ m._func.__globals__ }}",
    "caller": "{% macro m() %}{{ caller._func.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "loop": "{% for m in messages %}{{ loop.__init__.__globals__ }}{{ loop._iterator.gi_frame }}{% endfor %}",
    "environment": "{{ self.environment }}{{ environment.loader }}{{ messages._environment }}",
    "number": "{{ (1).__class__.__base__.__subclasses__() }}{{ 1|attr('__class__') }}",
}  # fmt: skip

BIG = "{% set ns = namespace(s='aaaaaaaa', l=[1]) %}{% for i in range(99) %}"
ENDLESS = {
    "loops without output": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a recursive loop": "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{% set x = loop([1, 2]) %}{% endif %}"
    "{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{% set a = m(n - 1) %}{% set b = m(n - 1) %}"
    "{% endif %}{% endmacro %}{% set x = m(60) %}",
    "a power": "{{ (3 ** (10 ** 8)) % 7 }}",
    "a power of a variable": "{% set n = 100 %}{{ (n ** (n ** 4)) % 7 }}",
    "a rounded number": "{{ 1|round(999999999, 'ceil') }}",
    "slices": "{% for x in [1]|slice(999999999999) %}{% endfor %}",
    "filler text": "{% set x = lipsum(n=999999999) %}",
    "nested lists": BIG + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "equal nested lists": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "a sum of ranges": "{{ range(99999)|map('string')|map('list')|sum(start=[])|length }}",
}  # fmt: skip
LARGE = {
    "a product": "{% set x = 'a' * (10 ** 11) %}",
    "a product of lists": "{% set x = [1] * (10 ** 10) %}",
    "doubled text": BIG + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubled lists": BIG + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "centred text": "{% set x = 'a'|center(10 ** 11) %}",
    "justified text": "{% set x = 'a'.ljust(10 ** 11) %}",
    "a wide format": "{% set x = '%99999999999s' % 1 %}",
    "another wide format": "{% set x = '{:>99999999999}'.format(1) %}",
    "indented text": "{% set x = 'a\\nb'|indent(10 ** 11) %}",
    "indented JSON": "{% set x = messages|tojson(indent=10 ** 11) %}",
    "bytes of a number": "{% set x = (1).to_bytes(10 ** 11, 'big') %}",
    "a filled batch": "{% set x = [1]|batch(10 ** 11, 0)|list %}",
    "replaced text": "{% set a = 'a' * 10 ** 6 %}{% set x = a|replace('a', a) %}",
}  # fmt: skip


@pytest.fixture(scope="module")
def template() -> Iterator[ChatTemplate]:
    """One whose source is changed, so that its process serves all tests."""
    template = ChatTemplate(GOOD, path="model.gguf", bos_token="<s>", eos_token="</s>")
    yield template
    template.close()


def outcome(template: ChatTemplate, source: str) -> str:
    """What comes out, or the error that names the file."""
    template.source = source
    try:
        return template.render(MESSAGES)
    except FileError as error:
        text = str(error)
    assert text.startswith("model.gguf: ")
    assert "\n" not in text
    return text


# ---- code ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PAYLOADS)
def test_published_payloads_give_nothing_away(kind: str, template: ChatTemplate, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = outcome(template, PAYLOADS[kind].replace("MARK", str(mark)))
    assert not mark.exists()
    if not text.startswith("model.gguf: "):
        assert not any(secret in text for secret in SECRETS), text
    assert MESSAGES == [{"role": "user", "content": "Where do otters live?"}]
    assert outcome(template, GOOD) == "Where do otters live?"


def test_a_payload_does_run_outside_a_sandbox(tmp_path: Path) -> None:
    """What is refused above is no empty threat."""
    import jinja2

    source = PAYLOADS["lipsum"].replace("MARK", str(tmp_path / "mark"))
    jinja2.Environment().from_string(source).render()
    assert (tmp_path / "mark").exists()


# ---- time and memory -------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatTemplate]:
    """With a tenth of a second."""
    template.close()
    monkeypatch.setattr(chat, "MAX_SECONDS", 0.1)
    yield template
    template.close()


@pytest.mark.parametrize("kind", ENDLESS)
def test_time_is_limited(kind: str, hurried: ChatTemplate) -> None:
    """Also where a template gives no output at all, or one operation takes for ever."""
    text = outcome(hurried, ENDLESS[kind])
    assert any(names(text, limit) for limit in ("0.1 seconds", "MemoryError"))


def test_the_limit_of_a_second_holds(template: ChatTemplate) -> None:
    begin = time.process_time()
    assert_names(outcome(template, ENDLESS["loops without output"]), "1 seconds")
    assert time.process_time() - begin < 0.5  # nothing of it in this process
    assert outcome(template, GOOD) == "Where do otters live?"


@pytest.mark.parametrize("kind", LARGE)
def test_memory_is_limited(kind: str, hurried: ChatTemplate) -> None:
    text = outcome(hurried, LARGE[kind])
    assert any(names(text, limit) for limit in ("0.1 seconds", "MemoryError", "OverflowError"))


def test_a_compiler_that_would_hang_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """jinja2 computes constants before it renders anything."""
    monkeypatch.setattr(chat, "MAX_SECONDS", 0.1)
    with refused(FileError, "model.gguf", "0.1 seconds"):
        ChatTemplate("{{ 3 ** (10 ** 8) }}", path="model.gguf", bos_token="", eos_token="")


def test_small_sizes_of_the_same_are_fine(template: ChatTemplate) -> None:
    assert outcome(template, "{{ 'a' * 3 }}{{ 2 ** 3 }}{{ 'b'|center(3) }}{{ 1.26|round(1) }}") == "aaa8 b 1.3"
    assert outcome(template, "{% for a in [[[]], []] recursive %}{{ loop.depth }}{{ loop(a) }}{% endfor %}") == "121"


# ---- size ------------------------------------------------------------------------------------------------------


def test_ten_megabytes(template: ChatTemplate) -> None:
    huge = "x" * 10_000_000
    with refused(FileError, "model.gguf", 10000000, MAX_TEMPLATE):
        ChatTemplate(huge, path="model.gguf", bos_token="", eos_token="")
    template.source = GOOD
    with refused(FileError, "model.gguf", MAX_OUTPUT):
        template.render([{"role": "user", "content": huge}])
    template.source = "{{ messages[0]['content']|length }}"
    assert template.render([{"role": "user", "content": huge}]) == "10000000"
    template.source = "{{ raise_exception(messages[0]['content']) }}"
    with refused(ConfigError, "messages") as caught:
        template.render([{"role": "user", "content": huge}])
    assert "xxx" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_text_of_every_kind_comes_back(template: ChatTemplate) -> None:
    """A prompt is text for the tokenizer, not for a terminal: nothing in it is changed."""
    text = "\x00\x1b[2J\u202e\u2066\r\n ü 𝄞 \\n"
    template.source = GOOD
    assert template.render([{"role": "user", "content": text}]) == text
    assert template.render([{"role": "user", "content": "𝄞" * (MAX_OUTPUT - 1)}]) == "𝄞" * (MAX_OUTPUT - 1)


def test_messages_that_json_cannot_hold_are_refused(template: ChatTemplate) -> None:
    template.source = GOOD
    with refused(ConfigError, "messages", "JSON"):
        template.render([{"role": "user", "content": "a", "time": object()}])


# ---- life ------------------------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def process_of(template: ChatTemplate) -> int:
    (sandbox,) = template._renderer._idle
    return sandbox.process.pid


def test_nothing_is_left_behind() -> None:
    gc.collect()
    n_threads, n_files = threading.active_count(), len(os.listdir("/dev/fd"))
    closed = ChatTemplate(GOOD, path="model.gguf", bos_token="", eos_token="")
    dropped = ChatTemplate(GOOD, path="model.gguf", bos_token="", eos_token="")
    pids = [process_of(closed), process_of(dropped)]
    assert all(map(is_alive, pids))
    assert len(set(pids)) == 2
    closed.close()
    del dropped
    gc.collect()
    assert not any(map(is_alive, pids))
    assert closed.render(MESSAGES) == "Where do otters live?"  # in a new one
    closed.close()
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (n_threads, n_files)


def test_a_lost_process_is_replaced(template: ChatTemplate) -> None:
    template.source = GOOD
    template.render(MESSAGES)
    os.kill(process_of(template), 9)
    with refused(FileError, "model.gguf", "answer"):
        template.render(MESSAGES)
    assert template.render(MESSAGES) == "Where do otters live?"


def test_a_fork_has_a_process_of_its_own(template: ChatTemplate) -> None:
    template.source = GOOD
    template.render(MESSAGES)
    before = process_of(template)
    child = os.fork()
    if child == 0:
        good = template.render(MESSAGES) == "Where do otters live?" and process_of(template) != before
        template.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert template.render(MESSAGES) == "Where do otters live?"
    assert process_of(template) == before


def test_several_threads_take_turns(template: ChatTemplate) -> None:
    template.source = GOOD
    texts: list[str] = []

    def ask(name: str) -> None:
        texts.extend(template.render([{"role": "user", "content": f"{name}{i}"}]) for i in range(20))

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == sorted(f"{name}{i}" for name in "abc" for i in range(20))
