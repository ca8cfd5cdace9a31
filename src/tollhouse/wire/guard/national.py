"""Numbers that states give to people, each with its own check.

Rule: a number without letters or separators that has a single check digit is one of ten at random, and therefore only
taken where a word beside it says what it is; everything else by its form and check.
"""

from tollhouse.wire.guard.checksums import alike, day, digits, iso7064_mod11_10, luhn, verhoeff, weighted
from tollhouse.wire.guard.rules import Accept, Rule, pattern

__all__ = ["national"]


def national() -> dict[str, tuple[Rule, ...]]:
    """The rules by the name of the number: country and what it is called there."""
    return {
        "us_ssn": (
            pattern("us_ssn", r"\b[0-9]{3}[- ][0-9]{2}[- ][0-9]{4}\b", accept=_us_ssn),
            _beside("us_ssn", "ssn|social security(?: number| no)?", r"[0-9]{9}\b", _us_ssn),
        ),
        "us_itin": (pattern("us_itin", r"\b9[0-9]{2}[- ][5-9][0-9][- ][0-9]{4}\b", accept=_us_itin),),
        "au_tfn": (
            _beside("au_tfn", "tfn|tax file (?:number|no)", r"[0-9]{3} ?[0-9]{3} ?[0-9]{3}\b", _au_tfn),
        ),
        "ca_sin": (
            pattern("ca_sin", r"\b[1-79][0-9]{2}[- ][0-9]{3}[- ][0-9]{3}\b", accept=_luhn),
            _beside("ca_sin", "sin|nas|social insurance(?: number)?", r"[1-79][0-9]{8}\b", _luhn),
        ),
        "uk_nino": (
            pattern(
                "uk_nino",
                r"(?i)\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]\b",
                accept=_uk_nino,
            ),
        ),
        "uk_nhs": (
            pattern("uk_nhs", r"\b[0-9]{3}[- ][0-9]{3}[- ][0-9]{4}\b", accept=_uk_nhs),
            _beside("uk_nhs", "nhs(?: number| no)?", r"[0-9]{10}\b", _uk_nhs),
        ),
        "de_tax_id": (pattern("de_tax_id", r"\b[1-9][0-9](?:[ /]?[0-9]{3}){3}\b", accept=_de_tax_id),),
        "de_pension": (pattern("de_pension", r"\b[0-9]{2} ?[0-9]{6} ?[A-Z] ?[0-9]{3}\b", accept=_de_pension),),
        "fr_nir": (
            pattern(
                "fr_nir",
                r"\b[1-478] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[ABab]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}\b",
                accept=_fr_nir,
            ),
        ),
        "es_dni": (pattern("es_dni", r"(?i)\b(?:[0-9]{8}|[XYZ][ -]?[0-9]{7})[ -]?[A-Z]\b", accept=_es_dni),),
        "it_fiscal_code": (
            pattern(
                "it_fiscal_code",
                r"(?i)\b[A-Z]{6}[0-9L-NP-V]{2}[A-EHLMPRST][0-9L-NP-V]{2}[A-Z][0-9L-NP-V]{3}[A-Z]\b",
                accept=_it_fiscal_code,
            ),
        ),
        "nl_bsn": (
            pattern("nl_bsn", r"\b[0-9]{4}\.[0-9]{2}\.[0-9]{3}\b", accept=_nl_bsn),
            _beside("nl_bsn", "bsn|burgerservicenummer|sofinummer", r"[0-9]{9}\b", _nl_bsn),
        ),
        "be_nrn": (
            pattern("be_nrn", r"\b[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}\b", accept=_be_nrn),
            _beside("be_nrn", "rijksregisternummer|numero national|insz|niss", r"[0-9]{11}\b", _be_nrn),
        ),
        "ch_ahv": (pattern("ch_ahv", r"\b756[. ]?[0-9]{4}[. ]?[0-9]{4}[. ]?[0-9]{2}\b", accept=_ch_ahv),),
        "pl_pesel": (pattern("pl_pesel", r"\b[0-9]{11}\b", accept=_pl_pesel),),
        "se_personnummer": (
            pattern("se_personnummer", r"\b(?:19|20)?[0-9]{6}[-+][0-9]{4}\b", accept=_se_personnummer),
        ),
        "no_fodselsnummer": (pattern("no_fodselsnummer", r"\b[0-9]{6} ?[0-9]{5}\b", accept=_no_fodselsnummer),),
        "fi_hetu": (pattern("fi_hetu", r"\b[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]\b", accept=_fi_hetu),),
        "dk_cpr": (pattern("dk_cpr", r"\b[0-3][0-9][01][0-9]{3}-[0-9]{4}\b", accept=_dk_cpr),),
        "br_cpf": (
            pattern("br_cpf", r"\b[0-9]{3}\.?[0-9]{3}\.?[0-9]{3}-?[0-9]{2}\b", accept=_br_cpf),
        ),
        "br_cnpj": (
            pattern("br_cnpj", r"\b[0-9]{2}\.?[0-9]{3}\.?[0-9]{3}/?[0-9]{4}-?[0-9]{2}\b", accept=_br_cnpj),
        ),
        "mx_curp": (
            pattern(
                "mx_curp",
                r"(?i)\b[A-Z][AEIOUX][A-Z]{2}[0-9]{6}[HMX][A-Z]{2}[B-DF-HJ-NP-TV-Z]{3}[0-9A-Z][0-9]\b",
                accept=_mx_curp,
            ),
        ),
        "in_aadhaar": (
            pattern("in_aadhaar", r"\b[2-9][0-9]{3}[- ][0-9]{4}[- ][0-9]{4}\b", accept=_in_aadhaar),
            _beside("in_aadhaar", "aadh?aa?r(?: number| no)?|uidai", r"[2-9][0-9]{11}\b", _in_aadhaar),
        ),
        "in_pan": (pattern("in_pan", r"\b[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z]\b"),),
        "cn_resident": (
            pattern("cn_resident", r"\b[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9Xx]\b", accept=_cn_resident),
        ),
        "kr_rrn": (pattern("kr_rrn", r"\b[0-9]{6}-[1-8][0-9]{6}\b", accept=_kr_rrn),),
        "sg_nric": (pattern("sg_nric", r"\b[STFG][0-9]{7}[A-Z]\b", accept=_sg_nric),),
        "za_id": (pattern("za_id", r"\b[0-9]{6} ?[0-9]{4} ?[01][0-9]{2}\b", accept=_za_id),),
        "tr_tckn": (pattern("tr_tckn", r"\b[1-9][0-9]{10}\b", accept=_tr_tckn),),
    }  # fmt: skip


def _beside(name: str, named: str, number: str, accept: Accept) -> Rule:
    """A number that a word before it names."""
    after = rf"(?i:\b(?:{named})\b[\s.:#=\"']{{0,5}}(?:(?:is|ist|est|es|number|no|nr)\b[\s.:#=\"']{{1,4}}){{0,2}})"
    return pattern(name, number, after=after, accept=accept)


def _luhn(text: str) -> bool:
    number = digits(text)
    return luhn(number) and not alike(number)


def _us_ssn(text: str) -> bool:
    number = "".join(map(str, digits(text)))
    return number[:3] not in ("000", "666") and number[0] != "9" and number[3:5] != "00" and number[5:] != "0000"


def _us_itin(text: str) -> bool:
    group = int("".join(map(str, digits(text)))[3:5])
    return 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or group >= 94


def _uk_nino(text: str) -> bool:
    return text[:2].upper() not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _uk_nhs(text: str) -> bool:
    number = digits(text)
    return weighted(number, (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0 and not alike(number)


def _de_tax_id(text: str) -> bool:
    number = digits(text)
    counts = sorted(number[:10].count(digit) for digit in set(number[:10]))
    # One digit stands there twice or three times; the others once at most.
    return iso7064_mod11_10(number) and counts[-1] in (2, 3) and counts[-2:-1] == [1]


def _de_pension(text: str) -> bool:
    text = text.replace(" ", "")
    number = [*digits(text[:8]), *divmod(ord(text[8]) - 64, 10), *digits(text[9:])]
    if not 0 < number[2] * 10 + number[3] < 82 and not 1 <= int(text[2:4]) <= 31:
        return False
    products = [digit * weight for digit, weight in zip(number, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=False)]
    return 1 <= int(text[4:6]) <= 12 and sum(sum(divmod(one, 10)) for one in products) % 10 == number[12]


def _fr_nir(text: str) -> bool:
    text = text.replace(" ", "").upper()
    month = int(text[3:5])
    if not (1 <= month <= 12 or 20 <= month <= 42 or month >= 50):
        return False
    corsica = {"2A": 1_000_000, "2B": 2_000_000}.get(text[5:7], 0)
    number = int(text[:13].replace("A", "0").replace("B", "0")) - corsica
    return 97 - number % 97 == int(text[13:])


def _es_dni(text: str) -> bool:
    text = text.replace(" ", "").replace("-", "").upper()
    number = {"X": "0", "Y": "1", "Z": "2"}.get(text[0], text[0]) + text[1:-1]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16,
         10, 22, 25, 24, 23),
        strict=True,
    )
)  # fmt: skip


def _it_fiscal_code(text: str) -> bool:
    text = text.upper()
    even = [int(char) if char.isdigit() else ord(char) - 65 for char in text[1:15:2]]
    return (sum(_ODD[char] for char in text[:15:2]) + sum(even)) % 26 == ord(text[15]) - 65


def _nl_bsn(text: str) -> bool:
    number = digits(text)
    return weighted(number, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 and not alike(number)


def _be_nrn(text: str) -> bool:
    number = "".join(map(str, digits(text)))
    check = int(number[9:])
    month, of = int(number[2:4]) % 20, int(number[4:6])
    if month > 12 or of > 31:
        return False
    return check in (97 - int(number[:9]) % 97, 97 - int("2" + number[:9]) % 97)


def _ch_ahv(text: str) -> bool:
    return weighted(digits(text), (1, 3) * 6 + (1,)) % 10 == 0


def _pl_pesel(text: str) -> bool:
    number = digits(text)
    year, month, of = int(text[:2]), int(text[2:4]), int(text[4:6])
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[month // 20]
    return weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0 and day(century + year, month % 20, of)


def _se_personnummer(text: str) -> bool:
    number = digits(text)[-10:]
    of = number[4] * 10 + number[5]
    # Numbers for coordination add 60 to the day.
    valid = day(number[0] * 10 + number[1], number[2] * 10 + number[3], of - 60 if of > 60 else of)
    return valid and luhn(number)


def _no_fodselsnummer(text: str) -> bool:
    number = digits(text)
    of = (number[0] - 4 if number[0] > 3 else number[0]) * 10 + number[1]
    month = (number[2] - 4 if number[2] > 3 else number[2]) * 10 + number[3]
    if not day(number[4] * 10 + number[5], month, of):
        return False
    first = weighted(number, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1))
    return first % 11 == 0 and weighted(number, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def _fi_hetu(text: str) -> bool:
    number = int(text[:6] + text[7:10])
    valid = day(int(text[4:6]), int(text[2:4]), int(text[:2]))
    return valid and "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == text[10]


def _dk_cpr(text: str) -> bool:
    # Its check digit has not been kept since 2007.
    return day(int(text[4:6]), int(text[2:4]), int(text[:2]))


def _twice(number: list[int], first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    for weights in (first, second):
        check = weighted(number, weights) * 10 % 11 % 10
        if check != number[len(weights)]:
            return False
    return not alike(number)


def _br_cpf(text: str) -> bool:
    return _twice(digits(text), (10, 9, 8, 7, 6, 5, 4, 3, 2), (11, 10, 9, 8, 7, 6, 5, 4, 3, 2))


def _br_cnpj(text: str) -> bool:
    first = (5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2)
    return _twice(digits(text), first, (6, *first))


def _mx_curp(text: str) -> bool:
    text = text.upper()
    values = ["0123456789ABCDEFGHIJKLMN\u00d1OPQRSTUVWXYZ".index(char) for char in text[:17]]
    check = -weighted(values, range(18, 1, -1)) % 10
    return check == int(text[17]) and day(int(text[4:6]), int(text[6:8]), int(text[8:10]))


def _in_aadhaar(text: str) -> bool:
    number = digits(text)
    return verhoeff(number) and not alike(number)


def _cn_resident(text: str) -> bool:
    number = digits(text[:17])
    check = "10X98765432"[weighted(number, (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)) % 11]
    return check == text[17].upper() and day(int(text[6:10]), int(text[10:12]), int(text[12:14]))


def _kr_rrn(text: str) -> bool:
    # Its check digit has not been kept since 2020.
    return day(int(text[:2]), int(text[2:4]), int(text[4:6]))


def _sg_nric(text: str) -> bool:
    total = weighted(digits(text), (2, 7, 6, 5, 4, 3, 2)) + 4 * (text[0] in "TG")
    return ("JZIHGFEDCBA" if text[0] in "ST" else "XWUTRQPNMLK")[total % 11] == text[8]


def _au_tfn(text: str) -> bool:
    return weighted(digits(text), (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _za_id(text: str) -> bool:
    number = digits(text)
    pairs = [number[at] * 10 + number[at + 1] for at in (0, 2, 4)]
    return luhn(number) and day(*pairs)


def _tr_tckn(text: str) -> bool:
    number = digits(text)
    tenth = (sum(number[0:9:2]) * 7 - sum(number[1:8:2])) % 10
    return tenth == number[9] and sum(number[:10]) % 10 == number[10]
