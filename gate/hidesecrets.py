#!/usr/bin/env python3
"""What sounds secret in this project, and how it is kept out of texts: consoles, logs, reproduce.sh, messages.

    hidesecrets.py stream [FILE...]   copy stdin to stdout without the secrets that these settings files hold
    hidesecrets.py logins             copy stdin to stdout without logins in URLs

Two questions are answered here and nowhere else:

1. Where in a text of settings or of bash code does a secret stand? `find` returns these places: values of names that
   sound secret (SECRET_PARTS, LAST_PARTS), options that do, logins in URLs, headers, private keys.
2. What of a log is hidden? `Hider` knows values. One that is like nothing else (`is_unique`: made at random, or at
   least six characters with letters and digits, or longer and mixed) is hidden wherever it stands, also as URLs, JSON,
   XML, shells and Python write it, in hexadecimal and in base64. One that logs are full of (a password "openstack") is
   hidden only where it stands as the value of something that sounds secret.

Python 3.8 and its standard library: this runs on test nodes.
"""

from __future__ import annotations

import base64
import bisect
import contextlib
import functools
import os
import re
import select
import signal
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

MARK = b"********"
MAX_TEXT = 4 << 20  # bytes of a settings file that are searched
MIN_BASE64 = 8  # the least characters that a value has in base64
MIN_ANCHOR = 3  # the least characters of the part of a value that is looked for first
WRAPPED = re.compile(rb"(?:[^\n]*[^\nA-Za-z0-9+/=_-])?[A-Za-z0-9+/=_-]{40,200}\r?\n")  # may go on in the next line
WRAPPED_BYTES = 4096  # of such lines that are held back, at most
NAMED = {"&": ("amp",), "<": ("lt",), ">": ("gt",), '"': ("quot",), "'": ("apos",)}  # in XML
MAX_VALUES = 1000  # values that a Hider knows
FIND_SECONDS = 5.0  # for finding secrets in all texts of a process
_spent = 0.0  # of these, so far
MAX_LINE = 64 << 10  # bytes; a longer line is passed on in pieces
WINDOW = 200  # bytes before a common value in which its name must stand
IDLE_SECONDS = 0.5  # after which an unfinished line is shown

# A name with one of these in it sounds secret,
SECRET_PARTS = (
    rb"password|passwd|passphrase|secret|token|credential|fernet|swift_?hash|authorization|cookie"
    rb"|(?:api|private|access|secret|signing|encryption|auth|account|storage|shared)[_.-]?key"
)
# and one whose last part is one of these,
LAST_PARTS = (
    rb"pass|pwd|psw|pw|auth|key|cred|creds|sig|signature|pat|psk|pin|otp"
    rb"|(?:ssh|db|pg|my|sql|mysql|root|admin|user|ldap|smtp|http|proxy)(?:pass|pwd)"
)
# but not if one of these is its last part: then it tells something about the secret.
HARMLESS_ENDS = (
    rb"format|backend|type|types|url|uri|file|path|dir|folder|length|size|timeout|expiration|expiry|enabled"
    rb"|provider|driver|name|names|user|username|users|required|method|methods|strategy|ttl|port|host|version"
    rb"|count|lifetime|algorithm|ip|address|regex|project|domain|region|interval"
)
# Variables with people's words, which hold no secrets of the run except logins in URLs.
WORDS_OF_PEOPLE = re.compile(
    rb"(?:GERRIT|ZUUL|GIT_AUTHOR|GIT_COMMITTER)_.*|PS\d|.*_(?:SUBJECT|MESSAGE|DESCRIPTION|TITLE|CAUSE)", re.S
)
HARMLESS_NAMES = frozenset((b"pwd", b"oldpwd", b"public_key", b"ssh_auth_sock", b"xauthority", b"devstack_gate_pass"))
NAME_IN_LOGS = (
    rb"[\w.-]{0,60}(?:" + SECRET_PARTS + rb")[\w.-]{0,60}|(?:[\w.-]{0,60}[_.-])?(?:" + LAST_PARTS + rb")\d{0,9}"
)
SECRET_NAME = re.compile(SECRET_PARTS, re.I)
LAST_NAME = re.compile(rb"(?:.*[_.-])?(?:" + LAST_PARTS + rb")", re.I | re.S)
HARMLESS_NAME = re.compile(rb"(?:.*[_.-])?(?:" + HARMLESS_ENDS + rb")", re.I | re.S)

# Words that logs are full of: a value made of them alone is hidden only as the value of something secret.
COMMON = frozenset(
    b"openstack stack devstack gate nova glance keystone cinder neutron swift placement heat horizon ironic tempest"
    b" rabbit mysql mariadb postgres postgresql root admin administrator demo alt guest user users service services"
    b" password passwd pass secret secrets token test tests testing tester default changeme example sample"
    b" local localhost jenkins zuul"
    b" gerrit git ubuntu debian centos fedora cirros cloud nomoresecret supersecret verysecret secretservice my the"
    b" a super very no more".split()
)
SHORT_OPTIONS = frozenset((b"key", b"auth", b"sig", b"pin"))  # of sort, curl and others
NOT_SECRET = frozenset(
    b"true false yes no on off none null nil undefined enabled disabled 0 1 left-out ********".split()
)

NAME_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
WORD = rb"""(?:[^\s'"\\;&|<>()`$,]|\\.|'[^']*'|\$'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\$\{\w+\}|\$\w+)+"""
ASSIGNED = re.compile(
    rb"""(?<![\w$.-])(?P<name>[A-Za-z_][\w.-]*?)(?P<close>["']?\]?)(?P<blank>[ \t]*)"""
    rb"""(?P<sign>\+=|=>|=(?!=)|:=|:(?=[ \t'"]))(?P<blanks>[ \t]*)"""
    rb"""(?=(?P<value>""" + WORD + rb")?)",
    re.S,
)
DEFAULT = re.compile(rb"\$\{(\w+):?[-=+]([^{}$`\n]*)\}")
ARRAY = re.compile(rb"(?<![\w$.-])([A-Za-z_]\w*)\+?=\(([^()]*)\)", re.S)
ELEMENT = re.compile(rb"(?:\[[^\]\s]*\]=)?(" + WORD + rb")", re.S)
SUBSTITUTED = re.compile(
    rb"""(?<![\w$])([A-Za-z_]\w*)=\$\(\s*cat\s*<<-?\s*['"\\]?(\w+)['"]?[^\n]*\n(.*?)^[ \t]*\2[ \t]*$""", re.S | re.M
)
OPTION = re.compile(rb"(?<![\w-])--?([A-Za-z][\w-]*)(?:=|[ \t]+)(?!-)(" + WORD + rb")", re.S)
LINE_OF_TWO = re.compile(rb"^[ \t]*([A-Za-z_][\w.-]*)[ \t]+(" + WORD + rb")[ \t]*$", re.M)
HEADER = re.compile(rb"(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]+", re.I)
QUOTED = re.compile(rb"""'[^'\n]*'|"(?:[^"\\\n]|\\.)*\"""")
REST_OF_LINE = re.compile(rb"[^\n\"']*")
REST_OF_WORDS = re.compile(rb"[^\n\"';&|<>()`$]*")
HERE_DOCUMENT = re.compile(
    rb"""(?<!<)<<(?!<)-?[ \t]*(['"\\]?)([A-Za-z_]\w*)\1[^\n]*\n(?P<body>.*?)^[ \t]*\2[ \t]*$""", re.S | re.M
)
KEY_BLOCK = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(.{0,100000}?)(?:-----END|\Z)", re.S)
COMMANDS = [
    re.compile(pattern, re.I)
    for pattern in (
        rb"""\b(?:curl|wget|http|https|lftp|smbclient)[ \t][^\n|;&]*?"""
        rb"""(?<![\w-])(?:-u|-U|--user|--proxy-user)[ =]?["']?[^\s:'"@/]+:([^\s'";&|)]+)""",
        rb"""\b(?:mysql|mariadb)[\w-]*[^\n|;&]*?[ \t]-p([^\s;&|)]+)""",
        rb"""\bsshpass[ \t]+-p[ \t]*([^\s;&|)]+)""",
        rb"""\b(?:add_user|change_password)[ \t]+\S+[ \t]+([^\s;&|)]+)""",
        rb"""\bmysqladmin[^\n|;&]*?[ \t]password[ \t]+([^\s;&|)]+)""",
        rb"""\bidentified[ \t]+(?:with[ \t]+\S+[ \t]+)?by[ \t]+["']([^'"\n]+)""",
        rb"""\bpassword\(["']([^'"\n]+)""",
        rb"""\bpass:([^\s'"]+)""",
        rb"""\bopenssl[ \t][^\n|;&]*?[ \t]-[kK][ \t]+([^\s;&|)]+)""",
        rb"""\b(?:docker|podman|buildah|skopeo|helm|az|oc)[ \t][^\n|;&]*?"""
        rb"""\blogin[ \t][^\n|;&]*?(?<![\w-])-p[ =]?([^\s;&|)]+)""",
        rb"""\blogin[ \t]+\S+[ \t]+password[ \t]+([^\s;&|)"']+)""",
        rb"""\bhtpasswd[ \t]+-\w*b\w*[ \t]+\S+[ \t]+\S+[ \t]+([^\s;&|)]+)""",
        rb"""\b(?:bearer|basic)[ \t]+([\w.~+/=-]{6,})""",
    )
]
PASSWORD_OF_USER = re.compile(rb"^[^\s:/]+:(?!//)(\S+)\s*$", re.M)  # a line of them, as Jenkins joins the two
# scheme://login@, up to the last @ before the first /; or with a password that has a / in it and is no port.
LOGIN = re.compile(
    rb"""\b([a-z][a-z0-9+.-]{0,30})://((?:[^\s/'"<>\[\]{}|\\]{1,2000})@|[^\s/:@'"<>\[\]{}|\\]{1,200}:(?!\d{1,5}[/\s])[^\s@'"<>|\\]{1,2000}@)""",
    re.I,
)

LOGIN_IN_LOGS = re.compile(rb"""(://[^\s/@:'"<>\[\]]{0,200}:)(?!\*{8})([^\s/@'"<>]{1,500})(?=@)""")
HEADER_IN_LOGS = re.compile(
    rb"""(uthorization['"]?: ?['"]?(?:Bearer |Basic )?"""
    rb"""|X-(?:Auth|Subject|Service)-Token['"]?: ?['"]?)([\w.~+/=-]{6,})""",
    re.I,
)


class Place(NamedTuple):
    """Where a secret stands in a text, and the name that says that it is one."""

    start: int
    end: int
    name: bytes
    login: bool = False


def sounds_secret(name: bytes) -> bool:
    """Return whether the value of a variable, key, header or option of this name is a secret."""
    name = name.strip(b"_.-").rstrip(b"0123456789").rstrip(b"_.-").lower()
    if name in HARMLESS_NAMES or name.endswith(b"public_key") or HARMLESS_NAME.fullmatch(name):
        return False
    return bool(SECRET_NAME.search(name) or LAST_NAME.fullmatch(name))


@functools.lru_cache(maxsize=10000)
def _sounds_secret(name: bytes) -> bool:
    return sounds_secret(name)


def says_secret(line: bytes) -> bool:
    """Return whether a line that begins like this goes on with the value of something secret."""
    if line.endswith(b"-p"):
        return line[-3:-2].isspace()
    login = line.rpartition(b"://")[2] if line.endswith(b":") and b"://" in line else b"/"
    if not re.search(rb"[\s/@]", login):
        return True
    rest = line.rstrip(b" \t\"'([\\")
    if rest != line and re.search(rb"[=:, ][bu]\Z", rest):
        rest = rest[:-1].rstrip()
    sign = rest.rstrip(b"=>:,")
    before = sign.rstrip(b" \t\"'])\\") if sign != rest else sign
    outside = before.rstrip(NAME_BYTES)
    name = before[len(outside) :]
    if outside.endswith(b"$"):
        return False
    if name and _sounds_secret(name):
        return True
    words = rest.split()[-2:]
    return sign == rest and (
        words[:1] in ([b"add_user"], [b"change_password"])
        or words[-1:] == [b"-p"]
        or [word.lower() for word in words] == [b"identified", b"by"]
    )


def find(text: bytes, *, code: bool = False) -> list[Place]:
    """Return the places of secrets in settings or in bash code, in order, without overlaps.

    In code it finds only literal values, and lines of just a name and a value only in here-documents. If a text takes
    too long, because somebody wrote it to, it finds only what follows a name and a sign in a line.
    """
    global _spent  # noqa: PLW0603
    began = time.monotonic()
    try:
        with _within(max(0.1, FIND_SECONDS - _spent)):
            return _find(text, code)
    except _TooLongError:
        return _find_in_lines(text)
    finally:
        _spent += time.monotonic() - began


class _TooLongError(Exception):
    """The time is up."""


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise _TooLongError after a number of seconds, in the main thread."""

    def end(_number: int, _frame: object) -> None:
        raise _TooLongError

    try:
        before = signal.signal(signal.SIGALRM, end)
    except ValueError:  # another thread
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _find_in_lines(text: bytes) -> list[Place]:
    places, at = [], 0
    for line in text.splitlines(keepends=True):
        sign = re.search(rb"[=:]", line)
        name = line[: sign.start()].rstrip(b" \t\"'])").rpartition(b" ")[2] if sign else b""
        if sign and name and sounds_secret(name[-200:]):
            start = at + sign.end() + len(line[sign.end() :]) - len(line[sign.end() :].lstrip())
            end = at + len(line.rstrip())
            places += [Place(start, end, name)] if start < end else []
        at += len(line)
    return places


def _find(text: bytes, code: bool) -> list[Place]:
    places = [Place(one.start(1), one.end(1), b"private key") for one in KEY_BLOCK.finditer(text)]
    places += [Place(one.start(2), one.end(2), b"login", True) for one in LOGIN.finditer(text) if _is_login(one)]
    for one in SUBSTITUTED.finditer(text):
        if sounds_secret(one[1]) and one[3]:
            places.append(Place(one.start(3), one.end(3) - 1, one[1]))
    for one in ARRAY.finditer(text):
        if sounds_secret(one[1]):
            places += [
                Place(one.start(2) + element.start(1), one.start(2) + element.end(1), one[1])
                for element in ELEMENT.finditer(one[2])
            ]
    places += list(_assigned(text, code))
    places += [Place(one.start(2), one.end(2), one[1]) for one in DEFAULT.finditer(text) if sounds_secret(one[1])]
    places += [
        Place(one.start(2), one.end(2), one[1])
        for one in OPTION.finditer(text)
        if sounds_secret(one[1]) and one[1].lower() not in SHORT_OPTIONS
    ]
    for bodies in [(one.start("body"), one["body"]) for one in HERE_DOCUMENT.finditer(text)] if code else [(0, text)]:
        places += [
            Place(bodies[0] + one.start(2), bodies[0] + one.end(2), one[1])
            for one in LINE_OF_TWO.finditer(bodies[1])
            if SECRET_NAME.search(one[1]) and sounds_secret(one[1])
        ]
    places += [
        Place(one.start(1), one.end(1), b"option")
        for command in COMMANDS
        for one in command.finditer(text)
        if not one[1].isdigit()
    ]
    return _sorted([one for one in places if one.login or _is_literal(text[one.start : one.end], one.name, code)])


def _assigned(text: bytes, code: bool) -> Iterator[Place]:
    for one in ASSIGNED.finditer(text):
        name = one["name"]
        if not sounds_secret(name) or (code and one["blank"]):
            continue
        if code and not SECRET_NAME.search(name) and text[one.start() - 1 : one.start()] == b"[":
            continue  # the subscript of an array
        start, end = one.span("value")
        if one["blank"] or (one["blanks"] and one["sign"] in (b":", b"=", b"=>")):
            if code and (one["sign"] != b":" or not HEADER.fullmatch(name)):
                continue
            # An INI file or a header: up to the end of the line.
            if start < 0 or text[start : start + 1] not in (b"'", b'"'):
                rest = (REST_OF_WORDS if code else REST_OF_LINE).match(text, one.end("blanks"))
                start, end = rest.span() if rest else (-1, -1)
        quoted = QUOTED.match(text, start) if one["sign"] == b":" and start >= 0 else None
        if quoted:  # in JSON or YAML, where more may follow
            end = quoted.end()
        if start >= 0:
            yield Place(start, start + len(text[start:end].rstrip()), name)


def _is_login(found: re.Match[bytes]) -> bool:
    """Return whether a login in a URL holds a secret, and not only the user of an ssh URL."""
    return found[1].lower() in (b"http", b"https", b"git+http", b"git+https") or b":" in found[2]


def _is_literal(value: bytes, name: bytes, code: bool) -> bool:
    plain = unquoted(value)
    if plain.lower() in NOT_SECRET or not re.search(rb"[^\W_]", plain) or re.fullmatch(rb"\d{1,3}", plain):
        return False
    if re.fullmatch(rb"(?:~|\.{0,2})/[\w./~@+-]*", plain) and name.lower().rstrip(b"0123456789").endswith(b"key"):
        return False  # the file that holds the key
    if value[:1] == b"'" or (not code and value[:1] != b"$"):
        return True
    if b"$(" in value or b"`" in value:
        return False
    return bool(re.search(rb"[^\W_]", re.sub(rb"(?<!\\)(?:\$\{\w+\}|\$\w+)", b"", value)))


def _sorted(places: list[Place]) -> list[Place]:
    """Return the places in order, with overlapping ones joined."""
    joined: list[Place] = []
    for one in sorted(places, key=lambda place: (place.start, -place.end)):
        if joined and one.start < joined[-1].end:
            joined[-1] = joined[-1]._replace(end=max(joined[-1].end, one.end))
        elif one.start < one.end:
            joined.append(one)
    return joined


def left_out(text: bytes, mark: bytes, *, code: bool = False) -> bytes:
    """Return a text of settings or code with the mark in place of each secret, and without logins in URLs."""
    parts, at = [], 0
    for one in find(text, code=code):
        value = text[one.start : one.end]
        quote = value[:1] if value[:1] in (b"'", b'"') and value[-1:] == value[:1] else b""
        lines = b"\n" if one.name == b"private key" else b""
        parts += [text[at : one.start], b"" if one.login else lines + quote + mark + quote + lines]
        at = one.end
    return b"".join([*parts, text[at:]])


def without_logins(text: bytes) -> bytes:
    """Return a text without the logins of its URLs."""
    return LOGIN.sub(lambda one: one[1] + b"://" if _is_login(one) else one[0], text)


def unquoted(value: bytes) -> bytes:
    """Return the value of a bash word, as far as it is literal."""
    if value[:2] == b"$'" and value[-1:] == b"'":
        value = value[1:]
    plain = re.sub(
        rb"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)""",
        lambda one: one[1] or (re.sub(rb'\\(["\\$`])', rb"\1", one[2]) if one[2] else one[3] or b""),
        value,
        flags=re.S,
    )
    return plain.strip()


def values_in(text: bytes, *, code: bool = False) -> list[bytes]:
    """Return the secrets that a text of settings or code holds, as they would appear in logs."""
    values = []
    for one in find(text[:MAX_TEXT], code=code):
        value = text[one.start : one.end]
        if one.login:
            user, colon, password = urllib.parse.unquote_to_bytes(value[:-1]).partition(b":")
            raw_password = value[:-1].partition(b":")[2]
            token_as_user = not colon or not password or password.startswith(b"x-")
            values += [user] if token_as_user else [password, raw_password]
        else:
            plain = re.sub(rb"^(?:Bearer|Basic)[ \t]+", b"", unquoted(value), flags=re.I)
            values += [line.strip() for line in plain.splitlines()]
            if one.name not in (b"private key", b"option") and b"\n" not in plain:
                values += [re.sub(rb"[ \t]+#.*", b"", plain)]
    return [value for value in values if value]


def is_unique(value: bytes) -> bool:
    """Return whether a secret resembles nothing else in a log, so that it can be hidden wherever it stands."""
    if re.match(rb"[~/]|[a-z]+://", value) or value.lower() in NOT_SECRET:
        return False
    parts = re.findall(rb"[a-z]+|\d+", value.lower())
    signs = re.sub(rb"[A-Za-z0-9]", b"", value)
    if not parts:
        return len(value) >= 8 and len(set(value)) >= 5  # noqa: PLR2004  # no line of dashes
    if len(parts) <= 2 and all(part in COMMON or re.fullmatch(rb"\d{1,5}", part) for part in parts):  # noqa: PLR2004
        return len(signs) >= 6 and len(set(signs)) >= 4  # noqa: PLR2004  # words that are not ASCII
    lower, upper = bool(re.search(rb"[a-z]", value)), bool(re.search(rb"[A-Z]", value))
    digit, other = bool(re.search(rb"[0-9]", value)), bool(re.search(rb"[^A-Za-z0-9]", value))
    kinds = lower + upper + digit + other
    if digit and kinds == 1:
        return len(value) >= 12  # noqa: PLR2004  # times and numbers are shorter
    return (
        len(value) >= 16  # noqa: PLR2004
        or (len(value) >= 8 and kinds >= 2)  # noqa: PLR2004
        or (len(value) >= 6 and (kinds >= 3 or (digit and (lower or upper))))  # noqa: PLR2004
    )


class Hider:
    """Hides the values that it knows in texts and streams."""

    def __init__(self, values: Iterable[bytes], mark: bytes = MARK) -> None:
        self._mark = mark
        unique, common = set(), set()
        for value in list(dict.fromkeys(values))[:MAX_VALUES]:
            if is_unique(value):
                unique |= {value, _in_latin(value)}
            elif value.lower() not in NOT_SECRET and len(value) > 1:
                common.add(value)
        self._unique = sorted(unique, key=len, reverse=True)
        self._views = [
            (view, [-len(needle) for needle, _ in found], found)
            for view, needles in VIEWS
            for found in [_needles(needles, self._unique)]
            if found
        ]
        self._written = [(anchor, _Written(value)) for value in self._unique for anchor in _anchors(value)]
        # Any of these may begin at the end of an unfinished line.
        self._forms = sorted({form for value in self._unique for form in _forms(value)}, key=len, reverse=True)
        self._longest_form = max(map(len, self._forms), default=0)
        self._longest = min(MAX_LINE // 2, 8 * max(map(len, self._unique), default=0))  # each byte as \\u0041, say
        self._common = (
            re.compile(
                rb"""(?<=[\s=:'"(,>p])(?:"""
                + b"|".join(map(re.escape, sorted(common, key=len, reverse=True)))
                + rb")(?![\w])"
            )
            if common
            else None
        )
        self._held = b""

    def hide(self, text: bytes, *, same_length: bool = False) -> bytes:
        """Return a text with marks in place of the secrets; of the same length, if offsets in the text matter."""
        for value in self._unique:
            if value in text:
                text = text.replace(value, b"*" * len(value) if same_length else self._mark)
        for pattern in self._elsewhere(text):
            text = pattern.sub((lambda one: b"*" * len(one[0])) if same_length else self._mark, text)
        if same_length:
            return text
        if self._common:
            text = self._common.sub(self._in_context, text)
        if b"://" in text:
            text = LOGIN_IN_LOGS.sub(rb"\1" + self._mark, text)
        if b"uthorization" in text or b"UTHORIZATION" in text or b"-Token" in text:
            text = HEADER_IN_LOGS.sub(lambda one: one[1] + self._mark, text)
        return text

    def _elsewhere(self, text: bytes) -> Iterator[re.Pattern[bytes]]:
        """Yield patterns of the secrets that a text may hold in other forms."""
        for view, lengths, needles in self._views:
            seen = view(text)
            if seen:
                first = bisect.bisect_left(lengths, -len(seen))  # names of files are shorter than most
                yield from (written.pattern for needle, written in needles[first:] if needle in seen)
        yield from (written.pattern for anchor, written in self._written if anchor in text)

    def knows(self, text: bytes) -> bool:
        """Return whether a text holds a secret."""
        return any(value in text for value in self._unique) or any(
            pattern.search(text) for pattern in self._elsewhere(text)
        )

    def _in_context(self, found: re.Match[bytes]) -> bytes:
        at = found.start()
        line = found.string[max(0, at - WINDOW) : at].rpartition(b"\n")[2]
        return self._mark if says_secret(line) else found[0]

    def feed(self, chunk: bytes, *, end: bool = False, same_length: bool = False) -> bytes:
        """Take a piece of a stream; return the part that can be passed on, whole lines if they are short."""
        data = self._held + chunk
        self._held = b""
        if end:
            return self.hide(data, same_length=same_length)
        cut = data.rfind(b"\n") + 1
        if len(data) - cut <= MAX_LINE:
            if _wrapped_at(data, cut) < cut:  # such as base64 that goes on in the next line
                data = self.hide(data, same_length=same_length)
                cut = _wrapped_at(data, data.rfind(b"\n") + 1)
                self._held = data[cut:]
                return data[:cut]
            self._held = data[cut:]
            return self.hide(data[:cut], same_length=same_length) if cut else b""
        data = self.hide(data, same_length=same_length)
        cut = max(len(data) - max(self._longest, WINDOW), 0)
        self._held = data[cut:]
        return data[:cut]

    @property
    def holds(self) -> bool:
        """Return whether a piece is held back."""
        return bool(self._held)

    def begun(self) -> bytes:
        """Return the part of an unfinished line that can be shown: all except what may become a secret."""
        text, self._held = self.hide(self._held), b""
        keep = min(self._longest_form, len(text))
        while keep and not any(form.startswith(text[len(text) - keep :]) for form in self._forms):
            keep -= 1
        if self._common:
            named = re.search(rb"(?:" + NAME_IN_LOGS + rb"|://|--?\w)[^\n]{0,120}\Z", text[-2 * WINDOW :], re.I)
            keep = max(keep, len(named[0]) if named else 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _wrapped_at(data: bytes, end: int) -> int:
    """Return where the lines begin that end at `end` and may be one long text, but only about WRAPPED_BYTES back."""
    begin = end
    while begin and end - begin < WRAPPED_BYTES:
        before = data.rfind(b"\n", 0, begin - 1) + 1
        if not WRAPPED.fullmatch(data, before, begin):
            break
        begin = before
    return begin


class _Written:
    """All the ways in which a secret may be written, as a pattern that is compiled when it is needed."""

    def __init__(self, value: bytes, between: bytes = b"", flags: int = 0, *, whole: bool = False) -> None:
        self._value, self._between, self._flags, self._whole = value, between, flags, whole

    @functools.cached_property
    def pattern(self) -> re.Pattern[bytes]:
        if not self._between:
            return re.compile(b"".join(map(_ways, self._value.decode("utf-8", "surrogateescape"))))
        size = 2 if self._whole else 1  # of the parts that stay together
        parts = [self._value[at : at + size] for at in range(0, len(self._value), size)]
        return re.compile(self._between.join(map(re.escape, parts)), self._flags)


def _ways(char: str) -> bytes:
    """Return a pattern of a character as it is and as URLs, JSON, XML, Python, shells and quoted-printable write it."""
    raw = char.encode("utf-8", "surrogateescape")
    if raw.isalnum():
        return raw
    ways: list[bytes] = [
        re.escape(raw),
        *(
            b"".join(mark + digits % byte for byte in raw)
            for mark, digits in (
                (b"%(?:25){0,3}", b"(?i:%02x)"),
                (rb"\\{1,8}x", b"(?i:%02x)"),
                (rb"\\{1,8}0?", b"%03o"),
                (b"=", b"(?i:%02x)"),
            )
        ),
    ]
    if not "\ud800" <= char <= "\udfff":
        units = re.findall("....", char.encode("utf-16-be").hex())
        names = "".join(f"|{name}" for name in NAMED.get(char, ()))
        ways += [
            b"".join(rb"\\{1,8}u(?i:" + unit.encode() + b")" for unit in units),
            rb"\\{1,8}U(?i:%08x)" % ord(char),
            f"&(?:amp;){{0,3}}(?:#0{{0,5}}{ord(char)}|#[xX]0{{0,5}}(?i:{ord(char):x}){names});".encode(),
        ]
    if "\x80" <= char <= "\xff":
        ways.append(rb"\\{1,8}x(?i:%02x)" % ord(char))  # Python's repr
    ways += {" ": [rb"\+"], "%": [b"%%"], "\\": [rb"\\{1,16}"]}.get(char, [])
    ways.sort(key=len, reverse=True)
    return rb"""[\\'"]{0,8}(?:""" + b"|".join(ways) + rb""")[\\'"]{0,8}"""


def _anchors(value: bytes) -> list[bytes]:
    """Return the longest plain part of a value, which is the same however it is written, unless it is all of it."""
    longest = max(re.findall(rb"[A-Za-z0-9]+", value), key=len, default=b"")
    return [longest if len(longest) >= MIN_ANCHOR else b""] if longest != value else []


def _needles(
    needles: Callable[[bytes], list[tuple[bytes, _Written]]], values: Iterable[bytes]
) -> list[tuple[bytes, _Written]]:
    """Return what to look for, the longest first, since it may begin with another."""
    found = [needle for value in values for needle in needles(value)]
    return sorted(found, key=lambda needle: len(needle[0]), reverse=True)


def _in_one_line(text: bytes) -> bytes:
    return text.replace(b"\\n", b"").translate(None, b" \t\r\n")


def _digits(text: bytes) -> bytes:
    """Return a text in lower case, without what separates the digits in dumps."""
    return text.lower().replace(b"0x", b"").translate(None, b" \t\r\n:,-%x\\&#;")


def _without_nul(text: bytes) -> bytes:
    return text.translate(None, b"\0") if b"\0" in text else b""


def _in_decimals(value: bytes) -> list[bytes]:
    """Return the digits of a value as lists of bytes have it, and as XML has its characters."""
    codes = [ord(char) for char in value.decode("utf-8", "surrogateescape")]
    return ["".join(map(str, numbers)).encode() for numbers in (value, codes)]


# How to transform a text, and what is then in it if it holds a value in base64, in hexadecimal or in UTF-16.
VIEWS: list[tuple[Callable[[bytes], bytes], Callable[[bytes], list[tuple[bytes, _Written]]]]] = [
    (
        _in_one_line,
        lambda value: [
            (form, _Written(form, rb"(?:\\n|[ \t\r\n]){0,80}")) for form in dict.fromkeys(_in_base64(value))
        ],
    ),
    (
        _digits,
        lambda value: [
            (value.hex().encode(), _Written(value.hex().encode(), rb"[ \t\r\n:,0%x\\&#;-]{0,80}?", re.I, whole=True)),
            *((form, _Written(form, rb"[ \t\r\n,&#;]{0,80}")) for form in dict.fromkeys(_in_decimals(value))),
        ],
    ),
    (_without_nul, lambda value: [(value, _Written(value, rb"\0?"))]),
]


def _forms(value: bytes) -> list[bytes]:
    """Return a value as it is, and as URLs, JSON, XML and bash's xtrace write it."""
    text = value.decode("utf-8", "surrogateescape")
    in_json = text.replace("\\", "\\\\").replace('"', '\\"')
    in_xml = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    forms = [
        text,
        urllib.parse.quote(value, safe=""),
        urllib.parse.quote_plus(value),
        re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), urllib.parse.quote(value, safe="")),
        in_json,
        in_json.replace("/", "\\/"),
        "".join(char if char < "\x7f" else f"\\u{ord(char):04x}" for char in in_json),
        in_xml,
        in_xml.replace('"', "&quot;"),
        in_xml.replace('"', "&quot;").replace("'", "&#x27;"),
        text.replace("'", "'\\''"),
        re.sub(r"([^\w@%+=:,./-])", r"\\\1", text),
    ]
    encoded = [form.encode("utf-8", "surrogateescape") for form in forms]
    return [*encoded, *_in_base64(value), value.hex().encode(), value.hex().upper().encode()]


def _in_latin(value: bytes) -> bytes:
    """Return a value as logs have it that are not UTF-8 but Latin-1; the same if that has not all of its letters."""
    try:
        return value.decode().encode("latin-1")
    except UnicodeError:
        return value


def _in_base64(value: bytes) -> list[bytes]:
    """Return what a value looks like in the base64 of any text that holds it, if that is long enough to recognize."""
    forms: list[bytes] = []
    for before in range(3):
        text = base64.b64encode(b"\0" * before + value)[(0, 2, 3)[before] : (before + len(value)) * 8 // 6]
        if len(text) >= MIN_BASE64:
            forms += [text, text.translate(bytes.maketrans(b"+/", b"-_"))]
    return forms


def read_settings(files: Sequence[str]) -> list[bytes]:
    """Return the secrets that settings files hold; a file that cannot be read holds none."""
    values: list[bytes] = []
    for name in files:
        try:
            with open(name, "rb") as file:  # the name may be bytes that are no text
                values += values_in(file.read(MAX_TEXT))
        except OSError:
            continue
    return values


def values_given(records: bytes) -> list[bytes]:
    """Return the secrets in what a run was given: triples of kind, name and text, each ended by a NUL.

    Kinds: setting and environment: a variable; function: bash code; text: devstack's settings; json: the data of a
    test environment. Others hold no secrets.
    """
    fields = records.split(b"\0")
    values: list[bytes] = []
    for kind, name, text in zip(fields[::3], fields[1::3], fields[2::3]):
        if kind in (b"setting", b"environment") and sounds_secret(name):
            values += values_of(text)
        elif kind == b"environment" and WORDS_OF_PEOPLE.fullmatch(name):
            values += values_in(b"\n".join(one[0] for one in LOGIN.finditer(text[:MAX_TEXT])))
        elif kind in (b"environment", b"setting", b"text"):
            values += values_in(text)
        elif kind == b"function":
            values += values_in(text, code=True)
        elif kind == b"json":
            values += values_in_json(text[:MAX_TEXT])
    return [value for value in values if value]


def values_in_json(text: bytes) -> list[bytes]:
    """Return the secrets in JSON: texts and numbers under keys that sound secret, and those inside other texts."""
    try:
        import json  # a distribution's smallest Python lacks it

        left = [(b"", json.loads(text.decode("utf-8")))]
    except (ImportError, ValueError, RecursionError):
        return values_in(text)
    values: list[bytes] = []
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(str(key).encode("utf-8", "replace"), one) for key, one in value.items()]
        elif isinstance(value, list):
            left += [(name, one) for one in value]
        elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
            plain = str(value).encode("utf-8", "replace")
            secret = sounds_secret(name)
            values += values_of(plain) if secret else values_in(plain)
    return values


def values_of(text: bytes) -> list[bytes]:
    """Return the secrets in a secret: all of it, each line, the password of user:password, what has a name in it."""
    return [line.strip() for line in [text, *text.splitlines(), *PASSWORD_OF_USER.findall(text)]] + values_in(text)


def read_given(descriptor: int) -> bytes:
    """Read a file descriptor to its end; return b"" if it is not open."""
    parts: list[bytes] = []
    try:
        while not parts or parts[-1]:
            parts.append(os.read(descriptor, 1 << 20))
    except OSError:
        return b""
    return b"".join(parts)


def pieces_of(descriptor: int, hider: Hider, clean: Callable[[bytes, bool], bytes]) -> Iterator[bytes]:
    """Yield what comes from a file descriptor, cleaned and without secrets, in bounded pieces and with little delay."""
    due = None
    while True:
        wait = None if due is None else max(0.0, due - time.monotonic())
        if select.select([descriptor], [], [], wait)[0]:
            chunk = os.read(descriptor, MAX_LINE)
            piece = hider.feed(clean(chunk, not chunk), end=not chunk)
        else:
            chunk, piece = b"more", b""
        now = time.monotonic()
        if due is not None and now >= due:
            piece += hider.begun()
            due = None
        if due is None and hider.holds and chunk != b"more":
            due = now + IDLE_SECONDS
        if piece:
            yield piece
        if not chunk:
            return


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data."""
    while data:
        data = data[os.write(descriptor, data) :]


def main(arguments: Sequence[str]) -> int:
    """Run as the docstring of this file says."""
    if arguments[:1] == ["stream"]:
        for piece in pieces_of(0, Hider(read_settings(arguments[1:])), lambda chunk, _end: chunk):
            write_all(1, piece)
    elif arguments == ["logins"]:
        write_all(1, without_logins(sys.stdin.buffer.read(MAX_TEXT)))
    else:
        sys.stderr.write(__doc__ or "")
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:
        sys.exit(141)
