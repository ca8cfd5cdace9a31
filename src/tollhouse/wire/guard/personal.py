"""What identifies people and their accounts wherever they live: addresses of mail and network, telephones, cards,
IBANs.

Rule: a form alone is taken where nothing else looks like it; else a checksum, a list of what is in use, or a word
beside it decides. Numbers of several lengths are rules of their own, so that what follows a number (the date beside a
card) never spoils it.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from tollhouse.wire.guard.checksums import alike, day, digits, luhn, mod97
from tollhouse.wire.guard.rules import Rule, pattern

__all__ = ["personal"]


def personal() -> dict[str, tuple[Rule, ...]]:
    """The rules by name."""
    return {
        "email": (
            pattern(
                "email",
                r"\b[A-Za-z0-9_][A-Za-z0-9._%+'-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b",
                accept=_email,
            ),
        ),
        "card": (
            *(pattern("card", rf"\b[2-6](?:[ .-]?[0-9]){{{more}}}\b", accept=_card) for more in (15, 14, 13)),
            pattern("card", r"\b4[0-9]{12}\b", accept=_card),
            pattern("card", r"\b[46](?:[ .-]?[0-9]){18}\b", accept=_card),
        ),
        "iban": (pattern("iban", _iban(), accept=mod97),),
        "ip": (
            pattern(
                "ip",
                r"\b(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\b",
                accept=_ipv4,
            ),
            pattern(
                "ip",
                r"(?i)(?:\b[0-9a-f]{1,4}:|\B::)(?:[0-9a-f]{0,4}:){0,7}(?:(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9a-f]{1,4})\b)?",
                accept=_ipv6,
            ),
        ),
        "mac": (pattern("mac", r"\b(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}\b", accept=_mac),),
        "birth_date": (
            pattern(
                "birth_date",
                r"(?:[0-9]{1,2}[./-] ?[0-9]{1,2}[./-] ?(?:[0-9]{4}|[0-9]{2})|[0-9]{4}-[0-9]{2}-[0-9]{2})\b",
                after=r"(?i:\b(?:born(?: on)?|date of birth|birth ?da(?:te|y)|dob|geboren(?: am)?|geburtsdatum"
                r"|nee? le|fecha de nacimiento|data di nascita)\b[\s:=\"'.]{1,4}(?:is\s|the\s)?)",
                accept=_date,
            ),
        ),
        "phone": _phone(),  # last, since numbers with checks of their own may look like it
    }  # fmt: skip


_FILES = frozenset(("png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "ts", "py", "md", "json", "html"))


def _email(text: str) -> bool:
    local, _, domain = text.rpartition("@")
    labels = domain.split(".")
    if ".." in local or labels[-1].lower() in _FILES:  # icon@2x.png
        return False
    return not any(label.startswith("-") or label.endswith("-") for label in labels)


# ---- telephones

_CALLING = re.compile(
    r"1|7|2(?:0|7|1[12368]|[2-4][0-9]|5[0-8]|6[0-9]|9[0178])|3(?:[0-469]|5[0-9]|7[0-8]|8[0-35-79])"
    r"|4(?:[013-9]|2[013])|5(?:[1-8]|0[0-9]|9[0-9])|6(?:[0-6]|7[0-9]|8[0-35-9]|9[0-2])|8(?:[1246]|00|08|5[02356]|7[0-9]|8[0-368])"
    r"|9(?:[0-58]|6[0-8]|7[0-7]|9[2-68])"
)
"""The codes of countries and networks that are in use (ITU-T E.164)."""

_SPOKEN = "tel|telephone|telefono?|phone(?: number)?|mobile?|cell|handy|fax|whatsapp|portable|call|sms"


def _phone() -> tuple[Rule, ...]:
    return (
        pattern("phone", r"\B\+[1-9](?:[ .()/-]{0,3}[0-9]){6,14}\b", accept=_e164),
        pattern("phone", r"\b00[1-9](?:[ .()/-]{0,3}[0-9]){7,14}\b", accept=_dialled),
        # North America; without separators it is any number of ten digits.
        pattern("phone", r"\b(?:1[ .-])?[2-9][0-9]{2}([ .-])[2-9][0-9]{2}[ .-][0-9]{4}\b", accept=_nanp),
        pattern("phone", r"\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-]?[0-9]{4}\b"),
        # Elsewhere the long-distance 0, and some separator.
        pattern("phone", r"\b0[1-9](?:[ ./()-]{0,2}[0-9]){7,10}\b", accept=_trunk),
        pattern("phone", r"\(0[1-9][0-9]{0,4}\)(?:[ ./-]{0,2}[0-9]){5,9}\b"),
        pattern(
            "phone",
            r"\(?[0-9](?:[ ./()-]{0,2}[0-9]){5,14}\b",
            after=rf"(?i:\b(?:{_SPOKEN})\b[\s.:#=\"']{{1,4}}(?:(?:is|me|at|us|on|number|no|ist|unter)\b[\s.:#=\"']{{1,4}}){{0,3}})",
            accept=_spoken,
        ),
    )


def _e164(text: str) -> bool:
    return _CALLING.match("".join(map(str, digits(text)))) is not None


def _dialled(text: str) -> bool:
    return not text.isdigit() and _CALLING.match("".join(map(str, digits(text)))[2:]) is not None


def _nanp(text: str) -> bool:
    number = "".join(map(str, digits(text)))[-10:]
    return number[1:3] != "11" and number[4:6] != "11"


_DATE = re.compile(r"0?[0-9]{1,2}[./ -][0-9]{1,2}[./ -](?:19|20)[0-9]{2}")
_ZIP = re.compile("[0-9]{5}-[0-9]{4}")


def _trunk(text: str) -> bool:
    if text.isdigit() or alike(digits(text)) or text.count(".") == 3:
        return False
    return _DATE.match(text) is None and _ZIP.fullmatch(text) is None


def _spoken(text: str) -> bool:
    return _DATE.match(text) is None and re.match("(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}", text) is None


# ---- cards, accounts

_ISSUERS = re.compile(
    r"4|5[0-9]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3(?:[47]|0[0-59]|6|[89]|5(?:2[89]|[3-8]))|6(?:[0-9])"
)
_LENGTHS = {"4": (13, 16, 19), "5": (16,), "2": (16,), "6": (16, 19)}


def _card(text: str) -> bool:
    number = "".join(map(str, digits(text)))
    if _ISSUERS.match(number) is None or not luhn(digits(text)) or alike(digits(text)):
        return False
    if number[0] == "3":
        return len(number) == {"4": 15, "7": 15, "5": 16}.get(number[1], 14)
    return len(number) in _LENGTHS[number[0]]


_IBANS = {
    11: "NO", 12: "BE", 14: "DK FK FI FO GL NL SD", 15: "MK SI", 16: "AT BA EE KZ LT LU XK", 17: "CH CR HR LI LV",
    18: "BG BH DE GB GE IE ME RS VA", 19: "AE GI IL IQ OM SO TL", 20: "AD CZ ES MD PK RO SA SE SK TN VG",
    21: "LY PT ST", 22: "IS TR", 23: "BI DJ FR GR IT MC MR SM", 24: "AL AZ BY CY DO GT HU LB NI PL SV",
    25: "BR EG PS QA UA", 26: "JO KW MU YE", 27: "MT SC", 28: "LC", 29: "RU",
}  # fmt: skip
"""How many characters follow after the country and the two check digits (ISO 13616 registry)."""


def _iban() -> str:
    parts = [
        rf"(?:{'|'.join(countries.split())})[0-9]{{2}}(?:[ -]?[A-Z0-9]){{{more}}}" for more, countries in _IBANS.items()
    ]
    return rf"(?i)\b(?:{'|'.join(parts)})\b"


# ---- networks, dates


def _ipv4(text: str) -> bool:
    address = IPv4Address(text)
    return not (address.is_loopback or address.is_unspecified or address.is_multicast or text == "255.255.255.255")


def _ipv6(text: str) -> bool:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return False
    # `ab::cd` is a name in some programming languages.
    return text.count(":") > 2 or (len(text) > 6 and not address.is_loopback and any(char.isdigit() for char in text))


def _mac(text: str) -> bool:
    return len(set(text.replace("-", ":").split(":"))) > 1 and ("-" in text) != (":" in text)


def _date(text: str) -> bool:
    parts = [int(part) for part in re.split("[./ -]+", text)]
    if parts[0] > 31:
        return day(parts[0], parts[1], parts[2])
    return day(parts[2], parts[1], parts[0]) or day(parts[2], parts[0], parts[1])
