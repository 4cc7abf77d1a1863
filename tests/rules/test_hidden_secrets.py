"""gate/hidesecrets.py: the forms in which a unique secret is hidden, and what of a log stays."""

import base64
import html
import json
import quopri
import re
import shlex
import sys
import textwrap
import time
import urllib.parse
from collections.abc import Callable

import pytest

from tests.support.pool import PROJECT

sys.path.append(str(PROJECT / "gate"))
import console
import hidesecrets
from hidesecrets import Hider, is_unique, values_given

PLAIN, MIXED, FOREIGN = "Tr0ub4dor3xKq9Zz", "s3cr3t'Pa\"ss<&>\\w0rd+/=%~é x", "パスワード99"
WRAPPED = ("x" * 50, "y" * 30)


def xml_numbers(text: str) -> str:
    return "".join(f"&#{ord(one)};" if one in "'\"<>&" else one for one in text)


def json_for_html(text: str) -> str:
    return json.dumps(text).replace("<", r"\u003c").replace(">", r"\u003E").replace("&", r"\u0026")


def in_base64(text: str, line: int) -> str:
    return base64.b64encode(text.join(WRAPPED).encode()).decode() if not line else \
        "\n  ".join(textwrap.wrap(base64.b64encode(text.join(WRAPPED).encode()).decode(), line))


FORMS: dict[str, Callable[[str], str]] = {
    "itself": str,
    "hexadecimal": lambda text: text.encode().hex(),
    "HEXADECIMAL": lambda text: text.encode().hex().upper(),
    "dump": lambda text: text.encode().hex(" "),
    "fingerprint": lambda text: text.encode().hex(":").upper(),
    "xxd": lambda text: f"a{text}".encode().hex(" ", -2),
    "C": lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode()),
    "list": lambda text: ", ".join(f"0x{byte:02x}" for byte in text.encode()),
    "list, decimal": lambda text: str(list(text.encode())),
    "XML, all of it": lambda text: "".join(f"&#{ord(one)};" for one in text),
    "wrapped hexadecimal": lambda text: "\n".join(textwrap.wrap(text.join(WRAPPED).encode().hex(), 60)),
    "repr": repr,
    "repr of bytes": lambda text: repr(text.encode()),
    "repr of repr": lambda text: repr(repr(text)),
    "ascii": ascii,
    "JSON": json.dumps,
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"p": text})),
    "JSON for HTML": json_for_html,
    "XML": html.escape,
    "XML, numbers": xml_numbers,
    "XML, ASCII": lambda text: html.escape(text).encode("ascii", "xmlcharrefreplace").decode(),
    "XML in XML": lambda text: html.escape(html.escape(text)),
    "URL": lambda text: urllib.parse.quote(text, safe=""),
    "URL, path": urllib.parse.quote,
    "URL, form": urllib.parse.quote_plus,
    "URL, lower case": lambda text: re.sub("%..", lambda one: one[0].lower(), urllib.parse.quote(text, safe="")),
    "URL in URL": lambda text: urllib.parse.quote(urllib.parse.quote(text, safe=""), safe=""),
    "URL, all of it": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "shell": shlex.quote,
    "shell, backslashes": lambda text: re.sub(r"([^\w])", r"\\\1", text),
    "SQL": lambda text: text.replace("'", "''"),
    "INI": lambda text: text.replace("%", "%%"),
    "octal": lambda text: "".join(chr(byte) if 32 < byte < 127 and byte != 92 else f"\\{byte:03o}"
                                  for byte in text.encode()),
    "quoted-printable": lambda text: quopri.encodestring(text.encode()).decode().replace("=\n", ""),
    "base64": lambda text: in_base64(text, 0),
    "base64 of MIME": lambda text: in_base64(text, 76),
    "base64 of PEM": lambda text: in_base64(text, 64),
    "base64 in JSON": lambda text: json.dumps(base64.encodebytes(text.join(WRAPPED).encode()).decode()),
}


def hider(*values: str) -> Hider:
    return Hider(values_given("".join(f"environment\0DB_PASSWORD\0{value}\0" for value in values).encode()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", [PLAIN, MIXED, FOREIGN])
def test_a_secret_is_hidden_however_it_is_written(secret: str, form: str) -> None:
    text = f"before\nit is {FORMS[form](secret)} there\nafter\n".encode()
    hide = hider("another-0ne", secret)
    for size in (len(text), 1):  # in one piece, or byte by byte
        shown = b"".join(hide.feed(text[at:at + size]) for at in range(0, len(text), size)) + hide.feed(b"", end=True)
        assert b"********" in shown, shown
        assert re.sub(rb"[\s*]", b"", shown).startswith(b"beforeitis")
        assert shown.endswith(b"after\n")
    assert hide.knows(text)
    assert len(hide.hide(text, same_length=True)) == len(text)


def test_a_log_without_secrets_stays_as_it_is() -> None:
    line = (b"2026-11-29 17:58 INFO 0x7f23 [req-7c1b6f8e-12ab-4fcd] {\"a\": \"b\\n\"} 73 65 63 &#39;x&#39; %2Fa "
            b"\\u0041 QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2\n")
    hide = hider(PLAIN, MIXED, FOREIGN)
    assert b"".join(hide.feed(line) for _ in range(300)) + hide.feed(b"", end=True) == line * 300


@pytest.mark.parametrize("text", [b"a='" * 60_000, b"curl " * 40_000, b"password=\"\\" * 20_000,
                                  b"a=$(cat <<A\n" * 15_000, b"-----BEGIN PRIVATE KEY-----" * 8_000])
def test_a_text_that_is_written_to_take_long_ends_and_hides_what_stands_in_lines(
    monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    monkeypatch.setattr(hidesecrets, "FIND_SECONDS", 0.3)
    monkeypatch.setattr(hidesecrets, "_spent", 0.0)
    settings = b"export DB_PASSWORD=\"Tr0ub4dor3xKq9Zz\"\nx: y\n" + text + b"\napi_key : hunter2-hunter3\n"
    began = time.process_time()
    found = hidesecrets.values_in(settings)
    assert time.process_time() - began < 20
    assert {b"Tr0ub4dor3xKq9Zz", b"hunter2-hunter3"} <= set(found)


@pytest.mark.parametrize("text", ["\r" * 300_000, "\x1b]" + "0" * 300_000, "\x1b[" * 100_000, "\r\r\nx\r"])
def test_what_a_terminal_would_obey_is_taken_out_in_no_time(text: str) -> None:
    began = time.process_time()
    shown = console.printable(text)
    assert time.process_time() - began < 20
    assert "\r" not in shown and "\x1b" not in shown


@pytest.mark.parametrize(("value", "unique"), [
    ("パスワード99", True), ("!@#$%^&*()", True), ("пароль", True), ("----------------", False), ("password!!", False),
    ("openstack", False), ("admin-1", False), ("2026-11", False)])
def test_what_is_like_nothing_else_is_so_in_any_script(value: str, unique: bool) -> None:
    assert is_unique(value.encode()) == unique
