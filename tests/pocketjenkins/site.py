"""Who makes a request to Jenkins, whether they have the right, and whether its object exists."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from tests.pocketjenkins import pages
from tests.pocketjenkins.api import Api
from tests.pocketjenkins.builds import Build, Job
from tests.pocketjenkins.model import Model
from tests.pocketjenkins.nodes import Node
from tests.pocketjenkins.pages import Reply
from tests.pocketjenkins.tree import Export, by_depth, by_tree, parse_tree

CRUMB = "Jenkins-Crumb"
COOKIE = "JSESSIONID.stand-in"


@dataclass(frozen=True)
class Account:
    """A user's password and API token."""

    password: str
    token: str


@dataclass
class Request:
    """One request; `user` is None if the client gave no name."""

    method: str
    path: str
    segments: tuple[str, ...]
    query: Mapping[str, str]
    headers: Message
    body: bytes
    url: str
    user: str | None = None
    by_token: bool = False

    def form(self) -> dict[str, str]:
        """Return the fields of a posted form."""
        return first_values(self.body.decode("utf-8", "replace"))


class Refusal(Exception):  # noqa: N818 - an answer rather than an error
    """Ends a request with a given answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def first_values(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


class Site:
    """The model as requests see it."""

    def __init__(self, model: Model, users: Mapping[str, Account]) -> None:
        self.model = model
        self.users = users
        self.sessions: set[str] = set()

    def forget_sessions(self) -> None:
        self.sessions.clear()

    def admit(self, request: Request) -> None:
        """Apply the filters before any page: crumb, login, then the right to read at all."""
        if request.method == "POST" and not request.by_token and not self._crumb_fits(request):
            raise Refusal(pages.no_crumb(request.path))
        if request.user is None and request.segments[:1] not in {("whoAmI",), ("login",)}:
            raise Refusal(pages.login_required(request.path))
        if request.user is not None:
            self.require(request, "Overall.Read")

    # Who is asking

    def log_in(self, request: Request, name: str, secret: str) -> None:
        """Set the user of a request; raises Refusal with 401 if name and secret do not match."""
        account = self.users.get(name)
        if account is None or secret not in {account.password, account.token}:
            raise Refusal(pages.wrong_password(name, request.path))
        request.user = name
        request.by_token = secret == account.token

    def session(self, request: Request) -> str | None:
        try:
            cookie = SimpleCookie(request.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return cookie.value if cookie and cookie.value in self.sessions else None

    def open_session(self) -> str:
        session = "node0" + secrets.token_hex(12)
        self.sessions.add(session)
        return session

    def crumb(self, request: Request, session: str) -> str:
        return hashlib.sha256(f"{request.user}:{session}".encode()).hexdigest()

    def _crumb_fits(self, request: Request) -> bool:
        session = self.session(request)
        given = request.headers.get(CRUMB) or request.form().get(CRUMB)
        return session is not None and given == self.crumb(request, session)

    def may(self, request: Request, right: str, job: str = "") -> bool:
        """Return whether the user has a right, everywhere or, as "Item.Build/JOB", on that job."""
        rights = self.model.rights().get(request.user or "")
        return rights is None or not {right, f"{right}/{job}", "Overall.Administer"}.isdisjoint(rights)

    def require(self, request: Request, right: str, job: str = "") -> None:
        if not self.may(request, right, job):
            permission = "hudson.model." + right.replace("Overall.", "Hudson.")
            raise Refusal(pages.permission_missing(request.user or "anonymous", permission))

    # What is asked for

    def node(self, request: Request, name: str) -> Node:
        node = self.model.nodes.get(name)
        if node is None:
            raise Refusal(pages.not_found(request.path))
        return node

    def job(self, request: Request, name: str) -> Job:
        job = self.model.jobs.get(name) if self.may(request, "Item.Read", name) else None
        if job is None:
            raise Refusal(pages.not_found(request.path))
        return job

    def cell(self, request: Request, names: tuple[str, ...]) -> Job:
        """Return the cell of a matrix; names are job and combination."""
        cell = self.job(request, names[0]).cells.get(names[1])
        if cell is None:
            raise Refusal(pages.not_found(request.path))
        return cell

    def build_of(self, request: Request, names: tuple[str, ...]) -> Build:
        """Return a build; names are job and number, for a cell's build with the combination between."""
        cell = "=" in names[1]
        job = self.cell(request, names) if cell else self.job(request, names[0])
        number = names[2] if cell else names[1]
        build = next((build for build in job.builds if str(build.number) == number), None)
        if build is None:
            raise Refusal(pages.not_found(request.path))
        return build

    def api(self, request: Request) -> Api:
        full = self.may(request, "Computer.Connect")
        return Api(self.model, request.url, full, lambda job: self.may(request, "Item.Read", job))

    def show(self, request: Request, export: Export) -> Reply:
        """Return an object as JSON, cut by `depth` or `tree`."""
        tree = request.query.get("tree")
        try:
            if tree:
                return pages.json_reply(by_tree(export, parse_tree(tree)))
            return pages.json_reply(by_depth(export, int(request.query.get("depth") or 0)))
        except ValueError as err:
            return pages.server_error(str(err))
