"""How the pre-tokenizers that a GGUF file names in ``tokenizer.ggml.pre`` cut a text, as llama.cpp does it.

A byte-level tokenizer merges bytes within words only. What a word is, regular expressions say: each in turn cuts what
the one before has left, where its matches begin and end. Those that models were published with can differ from
llama.cpp's, which knows letters but not their case beyond ASCII: here stand llama.cpp's (``src/llama-vocab.cpp`` and
``src/unicode.cpp`` of the pinned version), in the syntax of the tokenizers library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut a text into words, and what llama.cpp takes from its name besides."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """Whether a word that is a token as a whole becomes that token, whatever the merges make of it."""
    add_bos: bool = False
    """Whether a begin-of-text token is added where the file does not say."""


_CONTRACTION = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACE}"
_NOT_SMALL = r"(?:(?=\p{L})[^a-z])"
_NOT_CAPITAL = r"(?:(?=\p{L})[^A-Z])"
_SIGNS_OR_PATH = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
# Groups of three digits, counted from the right; what stands before a number is cut together with its first group.
_GROUPED = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_CHINESE = "[一-龥぀-ゟ゠-ヿ]+"
# llama.cpp takes spaces out of this class, as of every class that it does not read from a table of categories.
_ASIAN = r"(?:(?!\s)[一-龥ࠀ-一가-퟿])+"
_SENTENCE = r" ?[^(\s|.,!?…。，、।۔،)]+"
# Letters that have a case, in the planes and the Unicode version of DeepSeek's first tokenizer.
_CASED = (
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-"
    "Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ"
    "-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]"
)

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACE}"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_LINES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}|{_LINES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
# Words that end where a capital follows a small letter, each with what may stand behind it.
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_SMALL}*{_NOT_CAPITAL}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_SMALL}+{_NOT_CAPITAL}*"
_TEKKEN = rf"{_CAMEL[0]}|{_CAMEL[1]}|\p{{N}}|{_SIGNS_OR_PATH}"
_GPT4O = rf"{_CAMEL[0]}(?:{_CONTRACTION})?|{_CAMEL[1]}(?:{_CONTRACTION})?|\p{{N}}{{1,3}}|{_SIGNS_OR_PATH}"
_MARKED = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTION})?"
_DEEPSEEK3 = (
    rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}"
)
_SPARK = rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACE}"
_SPACES_OF_JAIS = "|".join([rf"\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1)] + [r"\s{1,2}(?!\S)", r"\s"])
_PHRASE = r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"

# Names as llama.cpp groups them.
_GROUPS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4": PreTokenizer((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": PreTokenizer((r"\p{N}", _GPT2)),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": PreTokenizer(
        (_LLAMA3,), ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "glm4 glm5": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "minicpm5": PreTokenizer(
        (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SIGNS}|{_LINES}"), ignore_merges=True
    ),
    "jais-2": PreTokenizer((rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|{_SPACES_OF_JAIS}",)),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer((_QWEN2,)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer((_QWEN2,)),
    "qwen35": PreTokenizer((_QWEN35,)),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_SIGNS}|{_LINES}",)),
    "laguna": PreTokenizer((r"[^\n]+|\n+", _QWEN2)),
    "seed-coder": PreTokenizer((rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}",)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_GPT4O,)),
    "tiny_aya cohere2moe": PreTokenizer((_GROUPED, rf"{_MARKED}|\p{{N}}{{1,3}}|{_SIGNS_OR_PATH}")),
    "youtu": PreTokenizer(
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            rf"{_MARKED}|\p{{N}}|{_SIGNS_OR_PATH}",
        ),
        ignore_merges=True,
    ),
    "deepseek-llm": PreTokenizer(
        (r"[\r\n]", rf"\s?{_CASED}+", r"\s?[!-/:-~！-／：-～‘-‟、。]+", r"\s+\z", _ASIAN, r"\p{N}+")
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _ASIAN, r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer((r"\p{N}{1,3}", _CHINESE, _DEEPSEEK3)),
    "spark2_5": PreTokenizer((r"\p{N}{1,3}", _CHINESE, _SPARK, r"\p{N}")),
    "afmoe": PreTokenizer((_GROUPED, "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+", _DEEPSEEK3)),
    "bloom poro-chat gpt3-finnish": PreTokenizer((_SENTENCE,)),
    "viking": PreTokenizer((_SENTENCE, r"\p{N}")),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=([0-9]{3})+(?![0-9]))")),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
}

PRE_TOKENIZERS = {name: kind for names, kind in _GROUPS.items() for name in names.split()}
"""By the value of ``tokenizer.ggml.pre``. Not here are those that cut no words out of bytes (gemma4, sarvam-moe,
whitespace, granite-embed-multi-311m), one that is no regular expression (kimi-k2), and those of encoders (jina-*,
roberta-bpe, modern-bert, granite-embed-multi-97m).
"""
