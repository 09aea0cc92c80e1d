"""The word that somebody may have meant."""

from collections.abc import Iterable


def near_miss(word: object, known: Iterable[str]) -> str | None:
    """The known word that is most like this one; None if none is."""
    import difflib  # late: only a mistake needs it, and it is 0.15 MB

    return next(iter(difflib.get_close_matches(str(word), list(known), n=1)), None)
