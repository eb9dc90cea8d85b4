import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.trimming import trim_to_words

texts = st.text(alphabet=st.sampled_from("ab é語\n\t "), max_size=60)
limits = st.integers(min_value=1, max_value=70)


@pytest.mark.parametrize(
    ("text", "max_chars", "kept"),
    [
        ("the quick brown fox", 100, "the quick brown fox"),
        ("the quick brown fox", 19, "the quick brown fox"),
        ("the quick brown fox", 18, "the quick brown"),
        ("the quick brown fox", 15, "the quick brown"),
        ("the quick brown fox", 16, "the quick brown"),
        ("the quick brown fox", 5, "the"),
        ("first line\nsecond line", 14, "first line"),
        ("antidisestablishmentarianism", 4, "anti"),
        ("  indented text", 5, "  ind"),
        ("   ", 2, "  "),
        ("", 3, ""),
    ],
)
def test_text_is_cut_where_a_word_ends(text, max_chars, kept):
    assert trim_to_words(text, max_chars) == kept


@given(texts, limits)
def test_what_is_kept_is_a_beginning_that_fits(text, max_chars):
    kept = trim_to_words(text, max_chars)
    assert text.startswith(kept)
    assert len(kept) <= max_chars


@given(texts, limits)
def test_no_word_is_broken_when_one_fits_whole(text, max_chars):
    kept = trim_to_words(text, max_chars)
    first_word_fits = bool(text[: max_chars + 1].split()) and any(
        text[index].isspace()
        for index in range(len(text[:max_chars]) - len(text[:max_chars].lstrip()), max_chars)
        if index < len(text)
    )
    if first_word_fits and len(kept) < len(text):
        assert text[len(kept)].isspace()


@given(texts, limits)
def test_trimming_twice_changes_nothing(text, max_chars):
    once = trim_to_words(text, max_chars)
    assert trim_to_words(once, max_chars) == once


@given(texts.filter(str.strip), limits)
def test_text_never_becomes_empty(text, max_chars):
    assert trim_to_words(text, max_chars)
