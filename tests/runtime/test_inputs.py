"""What a caller may pass as texts."""

import numpy as np
import pytest

from bge_integrations.runtime.user import checked_texts, iter_texts


class Text(str):
    """A string of a class of its own, as numpy's and many parsers' are."""

    __slots__ = ()


@pytest.mark.parametrize("texts", [["a", ""], ("a", ""), (text for text in ["a", ""]), np.array(["a", ""])])
def test_any_iterable_of_strings(texts):
    assert checked_texts(texts) == ["a", ""]


def test_strings_of_other_classes():
    assert checked_texts([Text("a"), "b"]) == ["a", "b"]


@pytest.mark.parametrize("texts", ["bare", b"bytes", None, 7])
def test_what_is_no_list_of_strings(texts):
    with pytest.raises(TypeError, match="documents must be a list of strings, not"):
        checked_texts(texts, "documents")


@pytest.mark.parametrize("wrong", [None, 7, b"bytes", ["nested"], float("nan")])
def test_what_is_no_string_is_named_by_its_index(wrong):
    texts = [*"abc" * 34, wrong, "d", 5]
    with pytest.raises(TypeError, match=r"texts\[102\] is "):
        checked_texts(texts)
    with pytest.raises(TypeError, match=r"texts\[102\] is "):
        list(iter_texts(texts))
