"""Commands and queries that destroy, reach out or break in, for texts in which none is to be run unseen.

Rule: what is found does harm as it stands, in most places where it could be run. Programs are far too many to be told
from text by patterns; this finds the known forms and is no sandbox.
"""

from tollhouse.wire.guard.rules import Rule, pattern, words

__all__ = ["blocked_code", "dangers"]


def dangers() -> dict[str, tuple[Rule, ...]]:
    """The rules by the language of what is found: `sql`, `shell`, `code`, `markup`, `path`."""
    return {
        "sql": (
            words(
                "sql",
                (
                    r"(?i)\b(?:drop|truncate)\s{1,8}(?:table|database|schema|user|role|view|index)\b",
                    r"(?i)\bdelete\s{1,8}from\s{1,8}[\w.\"`\[\]]{1,80}\s{0,8}(?:;|\z)",
                    r"(?i)\bunion\s{1,8}(?:all\s{1,8}|distinct\s{1,8})?select\b",
                    r"(?i)['\")]\s{0,8}(?:or|and)\s{1,8}(?:['\"]?[0-9]{1,9}['\"]?\s{0,4}=\s{0,4}['\"]?[0-9]|true\b)",
                    r"(?i)['\")]\s{0,8}(?:or|and)\s{1,8}'[^']{0,20}'\s{0,4}=\s{0,4}'",
                    r"(?i)['\")]\s{0,8};\s{0,8}(?:drop|delete|insert|update|alter|create|exec|shutdown)\b",
                    r"(?i)\b(?:xp_cmdshell|sp_executesql|load_file\s{0,4}\(|into\s{1,8}(?:out|dump)file\b|pg_read_file\s{0,4}\()",
                    r"(?i)\b(?:waitfor\s{1,8}delay|benchmark\s{0,4}\(|pg_sleep\s{0,4}\(|sleep\s{0,4}\(\s{0,4}[0-9]{2,})",
                    r"(?i)\b(?:grant|revoke)\s{1,8}all\b",
                ),
            ),
        ),
        "shell": (
            words(
                "shell",
                (
                    r"\brm\s{1,8}(?:-[A-Za-z-]{1,24}\s{1,8}){1,4}[\"']?(?:/|~|\*|\$HOME|\.\.?/?)",
                    r"\b(?:curl|wget)\b[^\n|]{1,300}\|\s{0,8}(?:sudo\s{1,8})?(?:ba|z|da|k)?sh\b",
                    r"\b(?:bash|sh|zsh)\s{1,8}(?:-c\s{1,8})?[\"']?[<$]\(\s{0,4}(?:curl|wget)\b",
                    r"/dev/(?:tcp|udp)/[\w.-]{1,253}/[0-9]{1,5}",
                    r"\bn(?:c|cat|etcat)\b[^\n]{0,80}\s-[a-z]{0,4}[ec]\s",
                    r"\bmkfs(?:\.\w{2,8})?\s|\bdd\s{1,8}[^\n]{0,80}\bof=/dev/",
                    r">\s{0,4}/dev/(?:sd|nvme|hd|vd|mmcblk)\w",
                    r":\s?\(\)\s?\{\s?:\s?\|\s?:\s?&\s?\}\s?;\s?:",
                    r"\bchmod\s{1,8}(?:-R\s{1,8})?[0-7]?777\s{1,8}/",
                    r"\b(?:base64\s{1,8}(?:-d|--decode|-D)|xxd\s{1,8}-r)\b[^\n|]{0,80}\|\s{0,8}(?:ba|z|da)?sh\b",
                    r"(?i)\b(?:powershell|pwsh)(?:\.exe)?\b[^\n]{0,120}\s-(?:enc|encodedcommand|e)\s",
                    r"(?i)\b(?:iex|invoke-expression)\b[^\n]{0,80}(?:downloadstring|invoke-webrequest|iwr)\b",
                    r"(?i)\b(?:format|del|rd|rmdir)\s{1,4}(?:/[a-z]\s{1,4}){1,3}[a-z]:\\",
                    r"\bgit\s{1,4}push\s[^\n]{0,80}(?:--force\b|\s-f\b)",
                ),
            ),
        ),
        "code": (
            words(
                "code",
                (
                    r"\b(?:eval|exec)\s?\(\s{0,8}(?:compile|__import__|base64|codecs|bytes|request|input|open|atob|Buffer)\b",
                    r"\b__import__\s?\(\s{0,4}[\"'](?:os|subprocess|socket|ctypes|pty)[\"']",
                    r"\bos\.(?:system|popen|exec[lv]p?e?|spawn[lv]p?e?)\s?\(",
                    r"\bsubprocess\.(?:run|call|Popen|check_output|check_call|getoutput)\s?\([^\n]{0,160}shell\s?=\s?True",
                    r"\bpty\.spawn\s?\(",
                    r"\bpickle\.loads?\s?\(",
                    r"\bchild_process\b[^\n]{0,60}\b(?:exec|spawn|fork)",
                    r"\bRuntime\.getRuntime\s?\(\s?\)\s?\.exec\s?\(",
                    r"\bshutil\.rmtree\s?\(\s?[\"']/",
                    r"\b(?:__globals__|__subclasses__|__builtins__)\b",
                    r"\$\{(?:jndi|env|sys|lower|upper):",
                ),
            ),
        ),
        "markup": (
            words(
                "markup",
                (
                    r"(?i)<script\b",
                    r"(?i)\bjavascript\s?:",
                    r"(?i)<[a-z][^<>]{0,300}\son[a-z]{3,20}\s?=",
                    r"(?i)\bdata:text/html\b",
                    r"(?i)<(?:iframe|object|embed|applet|meta)\b",
                ),
            ),
        ),
        "path": (
            words(
                "path",
                (
                    r"(?:\.\.[/\\]){2}",
                    r"(?i)(?:\.\.|%2e%2e)(?:%2f|%5c)|%2e%2e[/\\]",
                    r"/etc/(?:passwd|shadow|sudoers)\b|/proc/self/|~/\.(?:ssh|aws|kube|docker|netrc)\b|\bid_(?:rsa|ed25519)\b",
                    r"\b169\.254\.169\.254\b|\bmetadata\.google\.internal\b",
                    r"(?i)\b(?:file|gopher|dict|ldap|jar|php)://",
                ),
            ),
        ),
    }  # fmt: skip


def blocked_code(languages: tuple[str, ...], name: str = "code_block") -> Rule:
    """Fenced code of these languages, whole: `bash`, `sql`."""
    wanted = "|".join(languages)
    return pattern(name, rf"(?i:```[ \t]{{0,4}}(?:{wanted}))[ \t]{{0,8}}\r?\n[^`]+(?:```)?")
