"""What is too much to be looked at: it is never cut and let through."""


class UnreadableText(ValueError):
    """A text that is too long, has too many readings, or has too many matches of an expression."""
