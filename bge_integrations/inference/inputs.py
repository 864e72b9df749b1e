"""What a caller may pass as texts."""

from collections.abc import Iterable


def iterable_of_texts(texts: Iterable[str], name: str = "texts") -> Iterable[str]:
    """The texts themselves, if they may be strings.

    Raises:
        TypeError: One bare string, or something that is no iterable.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a list of strings, not {type(texts).__name__}. For one text pass [text].")
    return texts


def checked_texts(texts: Iterable[str], name: str = "texts", start: int = 0) -> list[str]:
    """The texts as a list.

    Args:
        texts: Any iterable of strings.
        name: What the caller calls it.
        start: Index of the first text, for messages.

    Raises:
        TypeError: One bare string, something that is no iterable, or an element that is no string, with its index.
    """
    listed = list(iterable_of_texts(texts, name))
    if set(map(type, listed)) - {str}:
        for index, text in enumerate(listed, start):
            if not isinstance(text, str):
                raise TypeError(f"{name}[{index}] is {type(text).__name__}, not a string: {text!r:.60}.")
    return listed


def checked_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs as a list of tuples.

    Raises:
        TypeError: Something that is not a pair of strings, with its index.
    """
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be a list of (query, passage) pairs, not {type(pairs).__name__}.")
    checked = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pairs[{index}] must be two strings, (query, passage), not {pair!r:.60}.")
        checked.append((pair[0], pair[1]))
    return checked
