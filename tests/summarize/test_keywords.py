"""The grammar: what may be generated parses, what parses may be generated, and the token bound covers it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsrarec_ray.summarize.keywords import Grammar, Keywords, parse, render

GRAMMAR = Grammar(max_keywords=3, max_words=2, max_word_chars=8)


def matches(summary: str, has_image: bool = True, has_text: bool = True) -> bool:
    return re.fullmatch(GRAMMAR.regex(has_image, has_text), summary) is not None


@pytest.mark.parametrize(
    "summary",
    [
        "image: red, striped, mug; text: ceramic, office",
        "image: a; text: b",
        "image: très joli; text: 日本 語, naïve-x",
    ],
)
def test_what_is_allowed(summary: str) -> None:
    assert matches(summary)
    assert parse(summary, True, True)


@pytest.mark.parametrize(
    "summary",
    [
        "",
        "image: ; text: a",
        "image: a",
        "text: a; image: b",
        "image: a b c; text: d",
        "image: abcdefghi; text: d",
        "image: a, b, c, d; text: e",
        'image: "a"; text: b',
        "image: a; text: b; text: c",
        "image: a\n; text: b",
        "image: <b>; text: c",
        "image:  a; text: b",
    ],
)
def test_what_is_not_allowed(summary: str) -> None:
    assert not matches(summary)


def test_an_item_gets_the_half_it_can_have() -> None:
    assert matches("image: red", has_text=False)
    assert matches("text: red", has_image=False)
    assert not matches("image: red; text: a", has_text=False)
    assert parse("text: red", False, True) == Keywords((), ("red",))
    with pytest.raises(ValueError, match=r"halves \['text'\]"):
        parse("image: red", False, True)


def test_keywords_are_lower_case_and_come_once_in_order() -> None:
    assert parse("image: Red, mug, red; text: A", True, True) == Keywords(("red", "mug"), ("a",))


@pytest.mark.parametrize("summary", ["image: red", "image: ; text: a", "red, mug", "", "image: a; image: b"])
def test_a_summary_that_was_cut_off_does_not_parse(summary: str) -> None:
    with pytest.raises(ValueError, match="a summary must"):
        parse(summary, True, True)


words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=' ,;:."<>[]{}()\\|'), min_size=1, max_size=8
)
keyword = st.lists(words, min_size=1, max_size=2).map(" ".join)
half = st.lists(keyword, max_size=3)


@given(half, half)
def test_all_that_can_be_generated_parses_within_the_token_bound(image: list[str], text: list[str]) -> None:
    summary = render(image, text)
    if not summary:
        return
    assert matches(summary, bool(image), bool(text))
    keywords = parse(summary, bool(image), bool(text))
    assert set(keywords.image) == {word.casefold() for word in image}
    assert set(keywords.text) == {word.casefold() for word in text}
    assert len(summary.encode()) < GRAMMAR.max_tokens()  # a token is at least a byte


def test_the_engine_s_own_grammar_compiler_agrees() -> None:
    """xgrammar, which masks the tokens in vLLM, reads the expression as Python does."""
    import xgrammar

    compiled = xgrammar.Grammar.from_regex(GRAMMAR.regex(True, True))
    info = xgrammar.TokenizerInfo([chr(i) for i in range(32, 127)] + ["</s>"], stop_token_ids=[95])
    compiler = xgrammar.GrammarCompiler(info)
    for summary in (
        "image: red, mug; text: a b",
        "image: é; text: 日本",
        "image: a b c; text: d",
        "text: a",
        "image: ",
    ):
        matcher = xgrammar.GrammarMatcher(compiler.compile_grammar(compiled))
        accepted = matcher.accept_string(summary) and matcher.accept_token(95)
        assert accepted == matches(summary), summary
