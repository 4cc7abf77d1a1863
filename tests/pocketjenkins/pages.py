"""The pages and answers of Jenkins 2.263 on Jetty 9.4 that are not about one node or job, worded as recorded."""

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

VERSION = "2.263.4"
SERVER = "Jetty(9.4.57.v20241219)"
MARKS = (("X-Hudson", "1.395"), ("X-Jenkins", VERSION))
REASONS = {
    200: "OK",
    201: "Created",
    302: "Found",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    500: "Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
STATIC = "/static/c7c2185f"

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Reply:
    """One HTTP answer."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: Headers = ()

    def wire(self, send_body: bool = True) -> bytes:
        """Return status line, headers and body in one piece, for one send."""
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Status')}", f"Server: {SERVER}"]
        lines += [f"{name}: {_latin(value)}" for name, value in self.headers]
        if self.content_type:
            lines.append(f"Content-Type: {self.content_type}")
        lines.append(f"Content-Length: {len(self.body)}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head + self.body if send_body else head


def _latin(value: str) -> str:
    """Return a header as Jetty sends it: characters outside Latin-1 become blanks."""
    return "".join(char if ord(char) < 256 else " " for char in value).strip()


def quoted(text: str) -> str:
    """Return a name in the single quotation marks of Jenkins' messages."""
    return f"\N{LEFT SINGLE QUOTATION MARK}{text}\N{RIGHT SINGLE QUOTATION MARK}"


def json_reply(value: Any) -> Reply:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Reply(200, body, "application/json;charset=utf-8", (("X-Jenkins", VERSION),))


def text_reply(text: str, headers: Headers = ()) -> Reply:
    return Reply(200, text.encode(), "text/plain;charset=utf-8", headers)


def xml_reply(text: str) -> Reply:
    return Reply(200, text.encode(), "application/xml")


def redirect(url: str) -> Reply:
    return Reply(302, headers=(("Location", url),))


def jetty_error(status: int, message: str, path: str) -> Reply:
    """Return an error page of the servlet container, without Jenkins' headers."""
    text = html.escape(message, quote=False)
    page = f"""<html>
<head>
<meta http-equiv="Content-Type" content="text/html;charset=ISO-8859-1"/>
<title>Error {status} {text}</title>
</head>
<body><h2>HTTP ERROR {status} {text}</h2>
<table>
<tr><th>URI:</th><td>{html.escape(path, quote=False)}</td></tr>
<tr><th>STATUS:</th><td>{status}</td></tr>
<tr><th>MESSAGE:</th><td>{text}</td></tr>
<tr><th>SERVLET:</th><td>Stapler</td></tr>
</table>
<hr><a href="https://eclipse.org/jetty">Powered by Jetty:// 9.4.57.v20241219</a><hr/>

</body>
</html>
"""
    return Reply(status, page.encode("latin-1", "replace"), "text/html;charset=iso-8859-1")


def not_found(path: str) -> Reply:
    return jetty_error(404, "Not Found", path)


def jenkins_page(status: int, title: str, text: str, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    """Return a page that Jenkins itself draws, such as one of its error pages."""
    page = (
        f'\n  \n  <!DOCTYPE html><html class=""><head resURL="{STATIC}" data-rooturl="" data-resurl="{STATIC}" '
        f'data-extensions-available="true" data-unit-test="false" data-imagesurl="{STATIC}/images" '
        f'data-crumb-header="Jenkins-Crumb" data-crumb-value=""><title>{html.escape(title)} [Jenkins]</title></head>'
        f'<body id="jenkins" class="yui-skin-sam two-column jenkins-{VERSION}" data-version="{VERSION}">'
        f'<div id="main-panel"><h1>{html.escape(title)}</h1><p>{html.escape(text)}</p></div></body></html>'
    )
    return Reply(status, page.encode(), "text/html;charset=utf-8", (*headers, *MARKS))


def bad_request(message: str) -> Reply:
    return jenkins_page(400, "Error", message, (("X-Error", message),))


def server_error(message: str) -> Reply:
    return jenkins_page(500, "Oops!", f"A problem occurred while processing the request. {message}")


def method_not_allowed() -> Reply:
    return jenkins_page(405, "Form post required", "This URL requires POST")


def permission_missing(user: str, permission: str) -> Reply:
    text = f"{user} is missing the {permission} permission"
    return jenkins_page(403, "Access Denied", text, (("X-Required-Permission", permission),))


def login_required(path: str) -> Reply:
    """Return the answer to a client without a name: a page that sends browsers to the login form."""
    target = "/login?from=" + quote(path, safe="")
    page = (
        f"<html><head><meta http-equiv='refresh' content='1;url={target}'/>"
        f"<script>window.location.replace('{target}');</script></head>"
        "<body style='background-color:white; color:white;'>\n\n\nAuthentication required\n<!--\n"
        "You are authenticated as: anonymous\n-->\n\n</body></html>"
    )
    headers = (*MARKS, ("X-Required-Permission", "hudson.model.Hudson.Read"))
    return Reply(403, page.encode(), "text/html;charset=utf-8", headers)


def no_crumb(path: str) -> Reply:
    return jetty_error(403, "No valid crumb was included in the request", path)


def wrong_password(user: str, path: str) -> Reply:
    reply = jetty_error(401, f"Invalid password/token for user: {user}", path)
    return Reply(401, reply.body, reply.content_type, (("WWW-Authenticate", 'Basic realm="Jenkins"'),))


def starting_up() -> Reply:
    page = (
        f'\n    \n    \n    <!DOCTYPE html><html lang="en"><head resURL="{STATIC}" data-rooturl="" '
        f'data-resurl="{STATIC}" data-imagesurl="{STATIC}/images"><title>Starting Jenkins</title>'
        '<meta name="ROBOTS" content="NOFOLLOW"><meta name="viewport" content="width=device-width">'
        "</head><body><h1>Please wait while Jenkins is getting ready to work</h1>"
        "<p>Your browser will reload automatically when Jenkins is ready.</p></body></html>"
    )
    return Reply(503, page.encode(), "text/html;charset=utf-8")


def canned(status: int, path: str) -> Reply:
    """Return the page that goes with a status, for scripted answers."""
    pages = {
        401: lambda: wrong_password("somebody", path),
        403: lambda: permission_missing("somebody", "hudson.model.Hudson.Read"),
        500: lambda: server_error("java.lang.NullPointerException"),
        503: starting_up,
    }
    make = pages.get(status)
    return make() if make else jetty_error(status, REASONS.get(status, "Error"), path)
