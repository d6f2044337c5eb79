"""Loads the templates of pages and reports: everything in them is escaped."""

import re
import time
from contextlib import suppress
from functools import cache
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from distrain.service.web.visible_text import with_visible_turns
from distrain.system.display import duration


@cache
def environment() -> Environment:
    """Return the templates, which escape all values, and raise for a value that is missing."""
    found = Environment(
        loader=PackageLoader("distrain.service.web"),
        autoescape=True,
        finalize=with_visible_turns,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(duration=duration, moment=moment, sentence=sentence, urlencode=as_address)
    return found


def as_address(text: str) -> str:
    """Return a name as a part of an address; bytes that are not UTF-8 are replaced, as where the address is read."""
    return quote(text, errors="replace")


def moment(seconds: float) -> str:
    """Return a time, in seconds since the epoch, in the time zone of this machine."""
    with suppress(OverflowError, ValueError, OSError):
        return time.strftime("%F %T", time.localtime(seconds))
    return "at an unknown time"


def sentence(text: str) -> str:
    """Return a message as a sentence of a page; one that begins with a name or a key keeps it as it is."""
    first = text[:1].upper() if re.match(r"[a-z]+[ ,:]", text) else text[:1]
    return first + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")
