"""Texts that tell the model to drop its instructions or to keep something from the user, in languages other than
English: German, French, Spanish, Portuguese, Italian, Dutch, Polish, Russian, Chinese, Japanese, Korean.

Rule: the plainest forms only, each with its object ("the previous instructions", "the user"), so that descriptions in
these languages pass. Gaps are bounded and end with a sentence, so that no text takes more than linear time.
"""

import re
from collections.abc import Iterator

__all__ = ["told"]

_GAP = r"[^.;\n]{0,40}?"
_NEAR = r"[^。；;！？\n]{0,12}?"


def _any(*parts: str) -> re.Pattern[str]:
    return re.compile("|".join(parts))


_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "override",
        _any(
            rf"\b(?:ignorier(?:e|en|t)?|missachte[nt]?|vergiss|vergesst|vergessen sie|umgeh(?:e|en|t))\b{_GAP}"
            r"\b(?:alle[nr]?|vor(?:her)?ige[nr]?|bisherige[nr]?|frühere[nr]?|obige[nr]?|andere[nr]?|deine|ihre|system)"
            rf"{_GAP}(?:anweisungen|instruktionen|vorgaben|richtlinien|prompts?)\b",
            rf"\b(?:ignore[rz]?|oublie[rz]?|contourne[rz]?|(?:tiens|tenez) pas compte)\b{_GAP}"
            rf"\b(?:instructions|consignes|directives|règles)\b{_GAP}"
            r"\b(?:précédentes|antérieures|ci-dessus|du système|système)",
            rf"\b(?:ignor[ae]n?|olvid[ae]n?|descart[ae]n?|no sigas)\b{_GAP}"
            rf"\b(?:instrucciones|indicaciones|directrices|reglas){_GAP}\b(?:anteriores|previas|del sistema)\b",
            rf"\b(?:ignor[ae]m?|esqueç[ao]m?|desconsider[ae]m?)\b{_GAP}"
            rf"\b(?:instruções|diretrizes|regras)\b{_GAP}\b(?:anteriores|prévias|do sistema|acima)\b",
            rf"\b(?:ignora(?:te|re)?|dimentica(?:te|re)?)\b{_GAP}"
            rf"\b(?:istruzioni|direttive|regole)\b{_GAP}\b(?:precedenti|del sistema|di sistema)\b",
            rf"\b(?:negeer|vergeet|omzeil)\b{_GAP}\b(?:alle|vorige|eerdere|bovenstaande|andere)\b{_GAP}"
            r"\b(?:instructies|aanwijzingen|richtlijnen|regels)\b",
            rf"\b(?:z?ignoruj(?:cie)?|zapomnij(?:cie)?|pomiń(?:cie)?)\b{_GAP}"
            rf"\b(?:wszystkie|poprzednie|wcześniejsze|powyższe|inne)\b{_GAP}\b(?:instrukcje|polecenia|wytyczne|zasady)\b",
            rf"\b(?:про)?игнорируй(?:те)?\b{_GAP}\b(?:инструкци|указани|правил|команд)",
            rf"\bзабудь(?:те)?\b{_GAP}\b(?:все|предыдущ|прежн|прошл|системн|друг){_GAP}\b(?:инструкци|указани|правил|команд)",
            rf"(?:忽略|无视|無視|忽视|忽視|忘记|忘記|不要理会|不要遵循|不要遵守){_NEAR}"
            r"(?:之前|以前|先前|此前|上述|上面|前面|以上|所有|一切|系统|系統|其他|其它)"
            rf"{_NEAR}(?:指令|指示|提示词|提示詞|规则|規則|命令|设定|設定)",
            r"(?:これまで|以前|上記|前述|今まで|すべて|全て|他|システム)の"
            rf"{_NEAR}(?:指示|命令|ルール|プロンプト|指令){_NEAR}(?:無視|忘れ|従わ)",
            rf"(?:이전|앞선|위의|모든|다른|시스템){_NEAR}(?:지시|명령|규칙|프롬프트|지침){_NEAR}(?:무시|잊)",
        ),
    ),
    (
        "secrecy",
        _any(
            r"\b(?:sage?n?|sagt|erzähle?[nt]?|verrate?n?|teilen?|erwähne?n?|informiere?n?|zeige?n?)\b"
            rf"{_GAP}\b(?:benutzer|nutzer|anwender)(?:n|in|innen|s)?\b{_GAP}\b(?:nicht|nichts|nie|niemals)\b",
            r"\b(?:verheimlich|verschweig|verbirg|verberge?)[a-z]{0,3}\b"
            rf"{_GAP}\b(?:benutzer|nutzer|anwender)",
            rf"\b(?:benutzer|nutzer|anwender)(?:in)? (?:darf|soll) {_GAP}\b(?:nicht|nichts|nie) "
            r"(?:davon )?(?:wissen|erfahren|sehen|bemerken)\b",
            r"\bne (?:le |lui |l')?(?:dis|dites|dire|révèle[rz]?|mentionne[rz]?|informe[rz]?|préviens|prévenez)"
            rf"\b{_GAP}\butilisateurs?\b",
            r"\bà l'insu de l'utilisateur\b",
            r"\b(?:no|nunca|sin) (?:(?:le|lo|se lo) )?(?:digas?|decir(?:le|lo)?|cuentes?|menciones?|mencionar(?:lo)?"
            rf"|informes?|informar|reveles?|revelar(?:lo)?|avises?|avisar|muestres?)\b{_GAP}\busuari[oa]s?\b",
            r"\b(?:não|nunca|sem) (?:o |a |lhe )?(?:digas?|dizer|contes?|contar|menciones?|mencionar|informes?|informar"
            rf"|reveles?|revelar|avises?|avisar|mostres?)\b{_GAP}\b(?:usuári[oa]s?|utilizador(?:es)?)\b",
            r"\b(?:non|mai|senza) (?:lo |la )?(?:dir(?:e|lo|glielo)|menzionar(?:e|lo)|informar(?:e|lo)|rivelar(?:e|lo)"
            rf"|avvisar(?:e|lo)|mostrar(?:e|lo))\b{_GAP}\butent[ei]\b",
            rf"\b(?:vertel|zeg|toon|meld)\b{_GAP}\bgebruikers?\b{_GAP}\b(?:niet|niets|nooit)\b",
            rf"\bnie (?:mów|informuj|ujawniaj|wspominaj|pokazuj)(?:cie)?\b{_GAP}\bużytkownik",
            rf"\bне (?:говори|сообщай|рассказывай|упоминай|показывай|раскрывай)(?:те)?\b{_GAP}\bпользовател",
            r"\bбез ведома пользовател",
            r"(?:不要|别|別|切勿|请勿|請勿|不得|禁止|不能)(?:告诉|告訴|告知|通知|提醒|透露|让|讓|向)"
            rf"{_NEAR}(?:用户|用戶|使用者)",
            rf"(?:ユーザー?|利用者|使用者)に{_NEAR}(?:知らせ|伝え|言わ|言う|教え|明か|見せ){_NEAR}(?:ない|な(?![い])|ず|べから)",
            rf"(?:사용자|이용자)(?:에게|한테|가){_NEAR}(?:말하|알리|알려|밝히|보여){_NEAR}(?:마|말|않)",
        ),
    ),
)
_TELLING = re.compile(
    r"ignor|missacht|vergiss|vergess|umgeh|oubli|contourn|pas compte|olvid|descart|no sigas|esque|desconsider|dimentic"
    r"|negeer|vergeet|omzeil|zapomnij|pomiń|игнорир|забудь|忽|无视|無視|忘|不要|지시|명령|규칙|프롬프트|지침"
    r"|benutzer|nutzer|anwender|utilisateur|usuari|usuári|utilizador|utent|gebruiker|użytkownik|пользовател"
    r"|用户|用戶|使用者|ユーザ|利用者|사용자|이용자"
)
"""A word without which no pattern fits."""


def told(text: str) -> Iterator[tuple[str, str]]:
    """(rule of `scan`, what breaks it), each rule once. text: as `letters.spelled` gives it."""
    if _TELLING.search(text) is None:
        return
    for rule, pattern in _RULES:
        match = pattern.search(text)
        if match is not None:
            yield rule, match[0]
