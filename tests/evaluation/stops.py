"""A stop text for what a random model wrote."""


def stop_within(text: str) -> str:
    """A character of ``text`` that first stands somewhere behind its beginning."""
    for place, char in enumerate(text):
        if place and text.index(char) == place and char != "\N{REPLACEMENT CHARACTER}":
            return char
    raise AssertionError(f"no stop text in {text!r}")
