"""Shows the characters in a text that would turn around what surrounds it: a name could make a page lie."""

from typing import Any

_TURNS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # Unicode's marks that embed, override or isolate a direction
_SHOWN = {code: f"\\u{code:04x}" for code in _TURNS}


def with_visible_turns(value: Any) -> Any:
    """Return a value of a template; in a text, the marks are escape sequences."""
    return value.translate(_SHOWN) if isinstance(value, str) else value
