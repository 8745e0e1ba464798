"""In which script a language is written, as far as one script is enough to tell."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

_LANGUAGES: Mapping[str, str] = {
    "LATIN": "english french german spanish italian portuguese dutch polish czech slovak swedish "
    "danish norwegian finnish estonian hungarian romanian turkish vietnamese indonesian malay "
    "swahili yoruba hausa somali catalan croatian slovenian latvian lithuanian icelandic tagalog",
    "CYRILLIC": "russian ukrainian bulgarian belarusian macedonian",
    "ARABIC": "arabic persian farsi urdu pashto",
    "DEVANAGARI": "hindi marathi nepali",
    "CJK": "chinese",
    "CJK HIRAGANA KATAKANA": "japanese",
    "HANGUL": "korean",
    "ETHIOPIC": "amharic tigrinya",
    "MYANMAR": "burmese",
    "SINHALA": "sinhala sinhalese",
}
"""Scripts, as Unicode names its letters, and languages that are written in nothing else."""

_OWN = (
    "greek hebrew armenian georgian bengali tamil telugu kannada malayalam gujarati thai lao khmer"
)
"""Languages whose script has their name."""

_SCRIPTS = {name: {name.upper()} for name in _OWN.split()} | {
    name: {*scripts.split()} for scripts, names in _LANGUAGES.items() for name in names.split()
}


def in_script_of(language: str, text: str) -> bool:
    """Whether a letter of the text is of the script that a language, by its English name, has.

    Names and formulas may stand in another one, so a single letter is enough. True where the script
    of the language is not known, or the text has no letter at all.
    """
    # Such as "Chinese (traditional)" and "Brazilian Portuguese".
    words = "".join(char if char.isalpha() else " " for char in language.casefold()).split()
    scripts = {script for word in words for script in _SCRIPTS.get(word, ())}
    letters = [char for char in text if char.isalpha()]
    if not scripts or not letters:
        return True
    return any(not scripts.isdisjoint(unicodedata.name(char, "").split()) for char in letters)
