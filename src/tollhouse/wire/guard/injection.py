"""Texts that try to give a model other orders than its operator's: prompt injection and jailbreaks, by known forms.

Rule: a form is here if it is what attacks say and what people who only talk about a model, or about instructions of
other kinds, mostly do not. Somebody who wants to get around patterns will; they stop what is copied and pasted, which
is most of it, and what a classifier stops besides is that one's matter.
"""

from collections.abc import Iterable
from typing import Final

from tollhouse.wire.guard.rules import Rule, words

__all__ = ["NAMES", "injections"]

_WORDS = {
    "<orders>": (
        r"(?:instructions?|directions|prompts?|rules|guidelines|directives?|guardrails|restrictions|polic(?:y|ies)|"
        r"programming|training|constraints|safeguards|commands?|orders|context|filters)"
    ),
    "<before>": (
        r"(?:previous|prior|earlier|above|preceding|initial|original|former|foregoing|hidden|developer'?s?|"
        r"operator'?s?)"
    ),
    "<drop>": (
        r"(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|overrid(?:e|ing)|bypass(?:ing)?|discard(?:ing)?|drop|"
        r"neglect|set aside|pay no attention to|stop (?:following|obeying)|(?:do not|don'?t|no longer) (?:follow|obey)"
        r")"
    ),
    "<show>": (
        r"(?:reveal|show|print|output|repeat|display|tell me|give me|write out|disclose|leak|dump|recite|expose|"
        r"send me|share)"
    ),
}
"""What several patterns have in common."""

_OVERRIDE = r"""
(?i)\b<drop>\s(?:\w{1,12}\s){0,3}(?:<before>)\s(?:\w{1,14}\s){0,3}<orders>\b

(?i)\b<drop>\s(?:all|any|every|each|everything|whatever)\s(?:of\s)?(?:the\s|your\s|these\s|
those\s)?(?:\w{1,14}\s)?<orders>\b

(?i)\b<drop>\s(?:all\s(?:of\s)?)?your\s(?:\w{1,14}\s){0,2}(?:<orders>|role|persona|identity)\b

(?i)\b<drop>\s(?:absolutely\s)?(?:everything|anything|all|whatever)\s(?:that\s)?(?:you\s|i\s|we\s|was\s|has\s|
came\s|is\s|were\s|they\s|stands\s|written\s|said\s){1,3}(?:\w{1,14}\s){0,3}(?:told|instructed|taught|said|
learned|know|above|before|given|asked|trained)\b

(?i)\b<drop>\swhat\syou\s(?:were|are|have been|'ve been)\s(?:told|instructed|taught|asked|given|trained)\b

(?i)\b<drop>\s(?:everything|anything|all(?: that)?|the text|what is)\s(?:above|before)\b

(?i)\b(?:instructions?|prompts?|rules|guidelines|restrictions|policies|directives?)
\s(?:\w{1,12}\s){0,3}(?:no longer (?:apply to|bind) you|do not (?:apply to|bind) you)\b

(?i)\b(?:your|(?:previous|prior|earlier|above|initial|system)\s(?:system\s)?(?:instructions?|prompts?|
directives?))\s(?:\w{1,12}\s){0,3}(?:no longer (?:apply|bind|count)|(?:are|is|were) (?:now )?(?:void|obsolete|
cancelled|canceled|revoked|lifted|superseded|suspended|disabled|null))

(?i)\b(?:(?:new|updated|revised)\s(?:system\s)?(?:instructions?|directives?|orders|prompt)|(?:real|true)
\s(?:task|objective|instructions?|prompt))\s?(?:[:=]|(?:supersede|override|replace|take precedence)\b)

(?i)\b(?:override|disable|turn off|deactivate|remove|lift|switch off|unlock)\s(?:all\s|any\s|your\s|every\s)
(?:of\s)?(?:your\s|the\s)?(?:\w{1,14}\s){0,2}(?:safety|content|ethical|moral|security)
\s(?:\w{1,12}\s)?(?:filters?|protocols?|guidelines?|restrictions?|guardrails?|measures|mechanisms?|checks?|
rules|settings?|policy|policies|features?)\b

(?i)\b(?:ignorier\w{0,3}|vergiss|vergesst|missachte\w{0,2}|uberspringe|beachte)\s(?:\w{1,14}\s){0,3}(?:bisherig|
vorherig|vorig|obig|fruher|ursprunglich|deine|systeman)\w{0,8}\s(?:\w{1,14}\s){0,2}(?:anweisung|instruktion|
regel|vorgabe|befehl|prompt|richtlinie)\w{0,3}

(?i)\b(?:ignore[sz]?|ignorez|oublie[sz]?|neglige[sz]?)\s(?:\w{1,14}\s){0,4}(?:instructions|consignes|regles|
directives|ordres)\s(?:\w{1,12}\s){0,2}(?:precedent|anterieur|initial|ci-dessus|recu|donne|systeme)\w{0,4}

(?i)\b(?:ignora|ignore|olvida|olvide|descarta|omite)\w{0,3}\s(?:\w{1,14}\s){0,4}(?:instruccion|regla|orden|
indicacion|directiv)\w{0,4}\s(?:\w{1,12}\s){0,2}(?:anterior|previa|inicial|original|del sistema|que te|
de arriba)\w{0,4}

(?i)\b(?:ignora|dimentica|scorda|trascura)\w{0,3}\s(?:\w{1,14}\s){0,4}(?:istruzion|regol|ordin|direttiv)
\w{0,3}\s(?:\w{1,12}\s){0,2}(?:precedent|anterior|inizial|original|di sistema|ricevut)\w{0,3}

(?i)\b(?:ignore|esqueca|desconsidere|descarte)\s(?:\w{1,14}\s){0,4}(?:instruc|regra|orden|diretriz)
\w{0,6}\s(?:\w{1,12}\s){0,2}(?:anterior|previa|inicia|origina|do sistema|acima)\w{0,4}

(?i)\b(?:negeer|vergeet)\s(?:\w{1,14}\s){0,4}(?:vorige|eerdere|voorgaande|bovenstaande|oorspronkelijke)
\s(?:\w{1,14}\s){0,2}(?:instructie|regel|opdracht|aanwijzing)\w{0,3}

(?:忽略|无视|忘记|無視|忽視)[^\n.]{0,6}(?:之前|以上|先前|上述|前面|所有)[^\n.]{0,6}(?:指令|指示|提示|规则|規則|命令)

(?:以前|前|上記|これまで|すべて|全て)の[^\n.]{0,6}(?:指示|命令|ルール|プロンプト|設定)を?[^\n.]{0,4}(?:無視|忘れ|破棄)

(?i)(?:игнорируи|забудь|отбрось)[^\n.;]{0,40}(?:предыдущи|прежни|все|выше|системн)[^\n.;]{0,30}(?:инструкци|
указани|правил|команд)
"""

_ROLE = r"""
(?i)\b(?:you are|you're|act as|become|pretend to be|roleplay as|role-play as|behave as|respond as|simulate)
\s(?:now\s|in\s|an?\s|the\s|going to be\s){0,3}(?:\w{1,14}\s){0,2}(?:DAN|jailbroken|unrestricted|unfiltered|
uncensored|evil|amoral|rogue|developer mode|god mode|debug mode|admin(?:istrator)? mode|sudo mode|root mode|
maintenance mode|STAN|AIM|DUDE|opposite mode|no-limits mode)\b

(?i)\b(?:do anything now|developer mode (?:enabled|output|activated)|jailbreak(?:ed)? mode|DAN mode|
god mode enabled|sudo mode)\b

(?i)\b(?:an? )?(?:ai|model|assistant|chatbot|bot|language model|character|persona)
\s(?:\w{1,12}\s){0,3}(?:without|with no|free of|free from|not bound by|that has no|who has no|unbound by|
that ignores|who ignores)\s(?:\w{1,12}\s){0,2}(?:restrictions?|limits?|limitations?|filters?|rules|guidelines|
ethics|morals?|moral compass|censorship|safety|safeguards|ethical)\b

(?i)\b(?:you (?:have|are under) no|you (?:have been|are|were) (?:now )?(?:freed|liberated|released|
unchained) (?:of|from)|free yourself (?:of|from)|broken free (?:of|from))
\s(?:\w{1,14}(?:'s)?\s){0,2}(?:\w{1,14}\s){0,2}(?:restrictions|limitations|confines of ai|ethical guidelines|
content polic\w{1,3}|filters|censorship|moral constraints)\b

(?i)\b(?:you (?:will|must|can|should|shall)|always|now)\s(?:never|not)\s(?:refuse|say (?:no|you can'?t|
that you can'?t|sorry)|decline|reject|apologi[sz]e|deny)\b

(?i)\b(?:answer|respond|reply|comply|write|help|say|tell me)
\s(?:\w{1,14}\s){0,6}(?:without (?:any )?(?:restrictions?|filters?|filtering|censorship|moral(?:i[sz]ing)?|
ethical|warnings?|disclaimers?|refus\w{1,4}|safety)|regardless of (?:ethics|the rules|legality|your rules|
polic\w{1,3}|safety|your guidelines))\b

(?i)\b(?:from now on|henceforth|from this (?:point|moment) (?:on|forward))\b[^.;\n]{0,40}\b(?:you (?:will|must|
are|shall|should|do not|don't)|ignore|act as|obey|answer as|respond as)\b[^.;\n]{0,60}\b(?:no (?:restrictions|
rules|limits|filters)|unrestricted|any request|every request|without question|only (?:to )?me|anything i|DAN|
evil|hacker|obey|instructions (?:in|from) this)

(?i)\bstay in character\b[^\n]{0,80}\b(?:no matter|whatever|never break|even if|refus)

(?i)\b(?:my|your) (?:late |dead |deceased )?grand(?:ma|mother|pa|father)\b[^\n]{0,120}\b(?:napalm|bomb|
explosives?|windows keys?|activation keys?|product keys?|serial|meth|poison|ransomware|malware)

(?i)\b(?:two|2|both|dual)\s(?:responses?|answers?|outputs?|ways)\b[^\n]{0,120}\b(?:jailbr\w{2,6}|unfiltered|DAN|
evil|uncensored)\b

(?i)\b(?:hypothetical|fictional|imaginary|alternate)\b[^.\n]{0,60}\b(?:no (?:laws|rules|ethics|restrictions|
morals)|everything is (?:legal|allowed)|rules (?:don'?t|do not) apply)
"""

_LEAK = r"""
(?i)\b(?:<show>|translate|encode|summari[sz]e|quote|paste|copy)
\s(?:\w{1,14}\s){0,5}your\s(?:\w{1,14}\s){0,3}(?:system|initial|hidden|secret|original|developer|internal|pre-?)
\s?(?:\w{1,10}\s){0,2}(?:prompt|instructions?|message|directives?|rules|configuration|guidelines)\b

(?i)\b<show>\s(?:\w{1,14}\s){0,3}(?:the|its|this)\s(?:system|hidden|secret|developer)\s(?:prompt|instructions?)
\b

(?i)\b<show>\s(?:\w{1,14}\s){0,4}(?:everything|all(?: of)? the (?:text|words|content)|the (?:text|words|content|
lines?|paragraph|sentences?))\s(?:\w{1,12}\s){0,3}(?:above|before (?:this|that|the)|preceding)\b

(?i)\b(?:what|which)\s(?:is|are|was|were)\s(?:in\s)?your\s(?:\w{1,12}\s){0,3}(?:system|initial|hidden|secret|
original|developer)\s(?:prompt|instructions?|message|rules)\b

(?i)\bwhat (?:were you|have you been|did they|did the developers?) (?:told|instructed|tell you|instruct you|
given)\b[^.\n]{0,40}\b(?:before|at the (?:start|beginning)|in your prompt|first message)

(?i)\b(?:verbatim|word for word|exactly as (?:written|given))\b[^.\n]{0,60}\b(?:system prompt|your (?:prompt|
instructions)|instructions you (?:were|have been|got|received)|initial (?:prompt|instructions))\b

(?i)\b(?:your (?:prompt|instructions)|instructions you (?:were|have been|got|received)|system prompt|
initial (?:prompt|instructions))\b[^.\n]{0,60}\b(?:verbatim|word for word|in a code ?block|as (?:base64|json|
a poem)|in (?:base64|rot13|reverse|leetspeak))\b

(?i)\bstart(?:ing)? with (?:the words? )?[\"'`]{0,2}you are\b

(?i)\b(?:gib|zeig|verrate|nenn|druck|wiederhol)\w{0,3}\s(?:\w{1,12}\s){0,3}(?:dein|den|deine)
\w{0,2}\s(?:\w{1,14}\s){0,2}(?:system-?\s?(?:prompt|anweisung|nachricht)|ursprunglich\w{0,2} anweisung|
geheim\w{0,2} anweisung)\w{0,3}

(?i)\b(?:muestra|revela|dime|imprime|repite|montre|revele|affiche|donne|repete|mostra|rivela|stampa)
\w{0,4}\s(?:\w{1,12}\s){0,3}(?:prompt|instruc\w{2,6}|consignes|istruzioni|message)
\s(?:\w{1,10}\s){0,2}(?:del sistema|systeme|de sistema|oculta\w{0,2}|secret\w{0,2}|initia\w{1,5})\b
"""

_MARKUP = r"""
<\|(?i:im_start|im_end|system|user|assistant|endoftext|start_header_id|end_header_id|eot_id|begin_of_text)\|>

\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>

(?i)</?(?:system|system[-_ ]prompt|system[-_ ]message|developer|assistant[-_ ]instructions?|admin|override|
instructions?_override|hidden_instructions?|function_results?|function_calls?|system-reminder)\s?>

(?i)(?:^|\n)\s{0,4}(?:#{1,4}\s?)?(?:\[|\*\*)?(?:system|developer|admin(?:istrator)?|root)(?:\s(?:message|prompt|
override|note|instruction|update|command|notice|alert))?(?:\]|
\*\*)?\s?:\s{0,4}(?:\w{1,14}[ ,]{1,2}){0,6}(?:you (?:are|must|will|should|can|may)|ignore|disregard|forget|new|
override|the (?:user|previous|following)|from now|enable|disable|send|reveal|all|approve|grant|do not|unlock)\b

(?i)[-=#*_]{3,20}\s{0,4}(?:end|begin|start)\s(?:of\s)?(?:the\s)?(?:system|user|prompt|instructions?|context|
conversation|input|document|data|untrusted|new instructions)\s?(?:prompt|message|input|instructions?|content|
data|text)?\s{0,4}[-=#*_]{3,20}
"""

_COVERT = r"""
(?i)\b(?:do not|don'?t|never|must not|without|avoid)\s(?:\w{1,12}\s){0,2}(?:tell(?:ing)?|mention(?:ing)?|
inform(?:ing)?|notify(?:ing)?|reveal(?:ing)?|alert(?:ing)?|warn(?:ing)?|disclos(?:e|ing))
\s(?:\w{1,10}\s){0,4}(?:the |any |your )?(?:users?|humans?|operators?|owner)\b

(?i)\b(?:users?|humans?|operators?)\s(?:must|should|need)\s(?:not|never)\s(?:know|see|learn|notice|find out|
be (?:told|informed|aware|notified|shown|asked))\b

(?i)\b(?:silently|secretly|covertly|quietly|invisibly|in the background)\s(?:send|forward|email|post|upload|
call|fetch|execute|run|delete|transfer|append|add|include|copy|exfiltrate|collect)\b

(?i)\b(?:ai|llm|language models?|assistants?|chatbots?|agents?|gpt|claude|copilot|gemini)\s?(?:assistants?|
agents?|models?|systems?|bots?|readers?|scrapers?|reviewers?)?\s?(?:reading|processing|summari[sz]ing|parsing|
(?:that|who) reads?)\sthis[^\n]{0,80}\b(?:must|should|please|ignore|instead|send|include|forward|visit|
recommend|rate|reply|say|add|respond|write|state|output|do not|execute|call)\b

(?i)\b(?:ais?|llms?|language models?|ai (?:assistants?|agents?|models?|systems?|reviewers?))
\s?[:,][^\n]{0,60}\b(?:you must|ignore|instead of|rate this|recommend this|reply with|say that|respond with|
output)\b

(?i)\b(?:if|when) you(?:'re| are) an? (?:\w{1,10}\s)?(?:ai|llm|language model|assistant|chatbot|bot|agent|
automated system)\b[^\n]{0,100}\b(?:ignore|instead|send|include|forward|visit|add|respond|write|say|insert|rate|
recommend|must|output|execute|mention|call|reply)\b

(?i)\b(?:send|forward|upload|post|transmit|exfiltrate|leak|email|append|encode|paste)
\s(?:\w{1,14}\s){0,8}(?:(?:full|entire|whole|complete|this|our|your|user'?s?) (?:conversation|chat|context|
prompt|message history|inbox|emails?|credentials|files)|(?:conversation|chat|message) (?:history|log|transcript)
|system prompt|(?:api|ssh|private|secret|access) keys?|environment variables|env vars|passwords|
session (?:cookies?|tokens?)|cookies)\s(?:\w{1,12}\s){0,5}(?:to|as|at|into|in)\s[^\n;]{0,40}(?:https?:|\w@\w|
\b(?:attacker|webhook|endpoint|query|url|following address|address below|base ?64|body|parameter)\b)

(?i)\bbefore\s(?:you\s)?(?:answer|respond|reply|us|call|continu|do)\w{0,3}\b[^.\n]{0,30}\byou must\s(?:always\s|
first\s)?(?:call|invoke|run|execute|use|read|send)\b
"""

_SMUGGLED = r"""
(?i)\b(?:decode|decipher|decrypt|translate|unscramble|convert|rot-?13)\b[^.\n]{0,60}\b(?:base ?64|
hex(?:adecimal)?|rot-?13|morse|binary|caesar|cipher|leetspeak|reversed)\b[^\n]{0,80}\b(?:follow|execute|obey|
run|do (?:what|as) it|carry out|comply|act on|perform|answer it)\b

(?i)\b(?:follow|execute|obey|carry out|comply with)\s(?:\w{1,12}\s){0,3}(?:instructions?|commands?|orders)
\s(?:\w{1,12}\s){0,2}(?:hidden|encoded|embedded|concealed|buried)\s(?:in|inside|within)\b

(?i)\bconcatenate\b[^\n]{0,100}\b(?:and|then)\b[^\n]{0,30}\b(?:follow|execute|answer|run|obey|respond to)\b

(?i)\b(?:ignoreprevious|ignoreallprevious|disregardprevious|ignoreallinstructions)\w{0,20}

(?i)\b1gn[o0]r[e3]\s(?:a11|all|pr[e3]v)\w{0,8}

(?i)\bi[ ._-]g[ ._-]n[ ._-]o[ ._-]r[ ._-]e[ ._-]{1,3}(?:a[ ._-]l[ ._-]l|p[ ._-]r[ ._-]e[ ._-]v|
y[ ._-]o[ ._-]u[ ._-]r|t[ ._-]h[ ._-]e)
"""


_FORMS = {
    "override": _OVERRIDE,
    "role": _ROLE,
    "leak": _LEAK,
    "markup": _MARKUP,
    "covert": _COVERT,
    "smuggled": _SMUGGLED,
}

NAMES: Final = tuple(_FORMS)
"""What the rules try: other orders (`override`), another `role`, to have the orders told (`leak`), to look like a
system's own text (`markup`), what the user is not to know (`covert`), orders in disguise (`smuggled`)."""


def injections(names: Iterable[str] = NAMES) -> dict[str, tuple[Rule, ...]]:
    """The rules of these names. Raises KeyError."""
    return {name: (words(name, _patterns(_FORMS[name])),) for name in names}


def _patterns(text: str) -> list[str]:
    """Patterns with an empty line between them; each may go on over several lines, whose ends are no part of it."""
    for name, meant in _WORDS.items():
        text = text.replace(name, meant)
    return [pattern.replace("\n", "") for pattern in text.strip("\n").split("\n\n")]
