"""The cleaning of captions with which the released models were trained.

DeepFloyd IF wrote it, PixArt-α trained with it, and diffusers offers it as `clean_caption`. Here it
is theirs to the character; diffusers differs where it keeps spaces at the ends for some rules. It
drops web addresses, markup, brackets, signs, codes and Chinese characters: a training set's habit
and no improvement of a prompt. What the order of the rules makes of a text is part of it.
"""

from __future__ import annotations

import html
import re
import urllib.parse
import warnings
from collections.abc import Callable
from functools import lru_cache

MAX_CHARACTERS = 3000
"""What lies behind is put in lower case only: no model reads so far, and some of the rules look
ahead from every character."""
_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_SCHEME = r"(?:\/{1,3}|[a-zA-Z0-9%])"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_SUFFIXES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_JOINED = re.compile("[-_]")
_MOST_JOINED = 3
_FILE_END = re.compile(rf"(?<=.)\.(?:{_SUFFIXES})", re.DOTALL)

Replacements = tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]


def _without_file(match: re.Match[str]) -> str:
    """A run of characters without the file name that it begins with, if it does."""
    ends = [end.end() for end in _FILE_END.finditer(match[0])]
    return match[0][ends[-1] :] if ends else match[0]


def _rules(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> Replacements:
    return tuple((re.compile(pattern), put) for pattern, put in pairs)


_ADDRESSES = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:{_SCHEME}|{_DOMAIN})", ""),
    (rf"\b(?:www:{_SCHEME}|{_DOMAIN})", ""),
)
_SIGNS = _rules(
    (r"@\w+\b", ""),  # names of accounts
    ("[\u31c0-\u9fff]+", ""),  # Chinese characters, and what stands around them in Unicode
    (f"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # addresses of computers
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (r"\S+", _without_file),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_WORDS = _rules(
    # Codes of letters and digits.
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    # What shops and download pages write.
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_SUFFIXES})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # sizes; the second x is Cyrillic
    # Spaces around punctuation.
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # What is left at the ends.
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


@lru_cache(maxsize=256)
def clean(text: str) -> str:
    """`text` as the authors' code hands it to T5."""
    # Twice, as they do: what the first pass uncovers, the second one sees.
    cleaned = _once(_once(text[:MAX_CHARACTERS]))
    rest = text[MAX_CHARACTERS:]
    return f"{cleaned} {rest.lower()}".strip() if rest else cleaned


def _once(text: str) -> str:
    text = urllib.parse.unquote_plus(text).strip().lower()
    text = _applied(_SIGNS, _without_markup(_applied(_ADDRESSES, text)))
    if len(_JOINED.findall(text)) > _MOST_JOINED:
        text = _JOINED.sub(" ", text)
    return _applied(_WORDS, _repaired(text)).strip()


def _applied(rules: Replacements, text: str) -> str:
    for pattern, put in rules:
        text = pattern.sub(put, text)
    return text


def _without_markup(text: str) -> str:
    # Here and not above, as ftfy: nothing that does not clean pays for loading them.
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, ParserRejectedMarkup

    # A prompt may look like a file name; that is no mistake of the program.
    warnings.filterwarnings("ignore", category=MarkupResemblesLocatorWarning)
    try:
        return str(BeautifulSoup(text, features="html.parser").text)
    except (ParserRejectedMarkup, RecursionError):
        # The authors' code ends there; a prompt is painted as it is.
        return text


def _repaired(text: str) -> str:
    """Characters that a wrong encoding broke, and what HTML writes instead of characters."""
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()
