"""The language of a text, by its letters and its smallest words.

Rule: a script that one language uses decides; among languages of one script their commonest words do, and where too few
of them are seen the answer is None: not known. Short texts, names and code have no language.
"""

import re
from collections import Counter

__all__ = ["LANGUAGES", "language"]

_LOOKED_AT = 20_000  # characters
_FEWEST = 3  # words that are known, among
_SHARE = 0.12  # of all the words

_SCRIPTS = (
    ("ja", "\u3041-\u309f\u30a0-\u30ff"),
    ("ko", "\u1100-\u11ff\uac00-\ud7af"),
    ("zh", "\u3400-\u4dbf\u4e00-\u9fff"),
    ("el", "\u0370-\u03ff"),
    ("he", "\u0590-\u05ff"),
    ("ar", "\u0600-\u06ff"),
    ("hi", "\u0900-\u097f"),
    ("bn", "\u0980-\u09ff"),
    ("ta", "\u0b80-\u0bff"),
    ("th", "\u0e00-\u0e7f"),
    ("ka", "\u10a0-\u10ff"),
    ("hy", "\u0530-\u058f"),
    ("cyrillic", "\u0400-\u04ff"),
    ("latin", "A-Za-z\u00c0-\u024f\u1e00-\u1eff"),
)
_LETTERS = re.compile("|".join(f"(?P<{name}>[{letters}]+)" for name, letters in _SCRIPTS))
_WEIGHT = {"zh": 3, "ja": 3, "ko": 3}  # a character of these is about a word of half a dozen letters

_COMMON = {
    "en": "the of and to in is that it for was on are with as be this have from or by not but what all were you your",
    "de": "der die und in den von zu das mit sich des auf ist im dem nicht ein eine als auch es an werden aus er hat",
    "fr": "le de et les des en un une du est que dans pour qui par sur pas plus au avec ce il la sont ou ne se nous",
    "es": "de la que el en los se del las un por con no una su para es al lo como más pero sus le ha este sí porque",
    "it": "di che la il un in per è una sono non con si da come del le dei nel alla più anche gli della lo ma ha",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu",
    "nl": "de van het een en in is dat op te zijn voor met die niet aan er om ook als dan maar bij uit nog naar heeft",
    "sv": "och i att det som en på är av för med till den har de inte om ett han men var jag från vi kan så när nu mig",
    "da": "og i at det er en til på de som med af for den har der ikke et han var fra jeg vi kan så men hun når eller",
    "pl": "i w na z się do nie że to jest o jak po co tak za od ale przez dla są był czy lub oraz tego tym być może",
    "tr": "ve bir bu da de için ile çok ne o daha gibi kadar olarak en olan var ama ya mi sonra değil ben her şey diye",
    "cs": "a se na je v že to s z do o i jako by ale pro si za k jsou po co tak od který nebo také jsem být bylo byl",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada juga ke karena ada oleh bisa saya mereka sudah",
    "vi": "và của là có trong được cho các không với một người này đã những để khi đó từ về như trên hay rất thì làm",
    "ru": "и в не на что я с он как это по но из у за к о от так же для мы вы бы его она было есть или если",
    "uk": "і в не на що я з як це до та але за у від ми ви він вона було є або якщо для його ці також який",
    "bg": "и на в не да се за от е с по си че как това ще са но са до или при като той тя има са беше може",
}  # fmt: skip

LANGUAGES = tuple(sorted((*_COMMON, *(name for name, _ in _SCRIPTS if len(name) == 2))))
"""What can be told, as ISO 639-1 codes."""

_WORD = re.compile(r"[^\W\d_]+")


def language(text: str) -> str | None:
    """The language that most of a text is in; None where that is not clear."""
    text = text[:_LOOKED_AT]
    scripts: Counter[str] = Counter()
    for match in _LETTERS.finditer(text):
        name = match.lastgroup or ""
        scripts[name] += (match.end() - match.start()) * _WEIGHT.get(name, 1)
    if not scripts:
        return None
    if scripts["ja"] * 4 > scripts["zh"]:  # kana stand among ideographs
        scripts["ja"] += scripts.pop("zh", 0)
    script, letters = scripts.most_common(1)[0]
    if letters * 2 < scripts.total():
        return None
    if script not in ("latin", "cyrillic"):
        return script
    return _by_words(text, script)


def _by_words(text: str, script: str) -> str | None:
    words = Counter(_WORD.findall(text.lower()))
    known = {
        name: sum(words[word] for word in set(common.split()))
        for name, common in _COMMON.items()
        if (script == "cyrillic") == (name in ("ru", "uk", "bg"))
    }
    (best, most), (_, second) = Counter(known).most_common(2)
    if most < _FEWEST or most < _SHARE * words.total() or most < 1.15 * second:
        return None
    return best
