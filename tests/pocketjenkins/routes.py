"""The URLs of Jenkins and what each does."""

import mimetypes
from collections.abc import Callable
from urllib.parse import quote

from tests.pocketjenkins import pages
from tests.pocketjenkins.builds import Cause, Item, Job
from tests.pocketjenkins.console import run_script
from tests.pocketjenkins.jobxml import BadJobError, Reader
from tests.pocketjenkins.nodes import (
    BadNodeError,
    Node,
    bad_name,
    config_from_form,
    config_from_xml,
    config_to_xml,
)
from tests.pocketjenkins.pages import Reply
from tests.pocketjenkins.parameters import IllegalChoiceError
from tests.pocketjenkins.plugins import listing
from tests.pocketjenkins.site import COOKIE, CRUMB, Refusal, Request, Site
from tests.pocketjenkins.tree import Export, Inline

MASTER = "(master)"
KINDS = {
    "project": "hudson.model.FreeStyleProject",
    "matrix-project": "hudson.matrix.MatrixProject",
    "flow-definition": "org.jenkinsci.plugins.workflow.job.WorkflowJob",
}

Action = Callable[[Site, Request, tuple[str, ...]], Reply]


def answer(site: Site, request: Request) -> Reply:
    """Return Jenkins' answer to a request, which can be a refusal."""
    try:
        site.admit(request)
        found = find_route(request.segments)
        if found is None:
            raise Refusal(pages.not_found(request.path))
        template, names = found
        _check_target(site, request, template, names)
        action = ROUTES[template].get(request.method)
        if action is None:
            raise Refusal(pages.method_not_allowed())
        return action(site, request, names)
    except Refusal as refusal:
        return refusal.reply


def _check_target(site: Site, request: Request, template: str, names: tuple[str, ...]) -> None:
    """Refuse with 404 if the node, job or build does not exist, whatever the request is."""
    if template.startswith("/computer/{name}") and names[0] != MASTER:
        site.node(request, names[0])
    elif template == "/job/{name}/{number}/api/json" and "=" in names[1]:
        site.cell(request, names)
    elif template.startswith("/job/{name}/{"):
        site.build_of(request, names)
    elif template.startswith("/job/{name}"):
        site.job(request, names[0])


# Pages about the whole


def front_page(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    return pages.jenkins_page(200, "Dashboard", "Welcome to Jenkins!")


def show_root(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    with site.model.lock:
        return site.show(request, site.api(request).root())


def show_me(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    return site.show(request, site.api(request).user(request.user or ""))


def who_am_i(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    anonymous = request.user is None
    fields = {
        "_class": "hudson.security.WhoAmI",
        "anonymous": anonymous,
        "authenticated": True,
        "authorities": ["" if anonymous else "authenticated"],
        "name": request.user or "anonymous",
    }
    return pages.json_reply(fields)


def issue_crumb(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    session = site.session(request)
    new = session is None
    session = session or site.open_session()
    fields = {
        "_class": "hudson.security.csrf.DefaultCrumbIssuer",
        "crumb": site.crumb(request, session),
        "crumbRequestField": CRUMB,
    }
    reply = pages.json_reply(fields)
    cookie = ("Set-Cookie", f"{COOKIE}={session}; Path=/; HttpOnly")
    return Reply(reply.status, reply.body, reply.content_type, (*reply.headers, cookie)) if new else reply


def quiet_down(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Overall.Administer")
    site.model.quieting_down = request.segments[0] == "quietDown"
    site.model.kick()
    return pages.redirect(request.url)


def show_plugins(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Overall.Administer")
    plugins = Inline([Export(plugin) for plugin in listing(site.model.knobs.plugins, site.model.knobs.inactive)])
    return site.show(request, Export({"_class": "hudson.LocalPluginManager", "plugins": plugins}))


def run_in_console(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    """Return what a script prints, or its stack trace; the status is 200 in both cases."""
    site.require(request, "Overall.Administer")
    script = request.form().get("script", "")
    return pages.text_reply(run_script(script, site.model, list(site.users), request.url))


# Computers


def nodes_page(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    return pages.jenkins_page(200, "Nodes", " ".join(sorted(site.model.nodes)))


def show_nodes(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    with site.model.lock:
        return site.show(request, site.api(request).computers())


def create_node(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Computer.Create")
    form = request.form()
    name = form.get("name", "").strip()
    refused = bad_name(name)
    if refused:
        return pages.bad_request(refused)
    exists = f"Agent called {pages.quoted(name)} already exists"
    if name in site.model.nodes:
        return pages.bad_request(exists)
    if not form.get("type"):
        return pages.bad_request("No mode given")
    try:
        config = config_from_form(form.get("json", ""))
    except BadNodeError as err:
        return pages.server_error(str(err))
    if not site.model.add_node(name, config):
        return pages.bad_request(exists)
    return pages.redirect(f"{request.url}computer/")


def check_name(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    """Return whether a name is allowed for a node, as the form asks during input; from the sources, 2.7 to 2.5xx."""
    site.require(request, "Computer.Create")
    refused = bad_name(request.query.get("value", "x") or "x")
    return Reply(200, f"<div class=error>{refused}</div>".encode() if refused else b"<div/>", "text/html;charset=utf-8")


def node_page(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    return pages.jenkins_page(200, names[0], "Agent " + names[0])


def show_node(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    with site.model.lock:
        api = site.api(request)
        if names[0] == MASTER:
            return site.show(request, api.master())
        return site.show(request, api.computer(site.node(request, names[0])))


def show_node_config(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Computer.Configure")
    return pages.xml_reply(config_to_xml(site.node(request, names[0])))


def change_node_config(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Computer.Configure")
    try:
        config = config_from_xml(request.body)
    except BadNodeError as err:
        return pages.server_error(str(err))
    site.model.relabel(site.node(request, names[0]), config)
    return Reply(200)


def node_url(request: Request, node: Node) -> str:
    return f"{request.url}computer/{quote(node.name)}/"


def toggle_offline(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Computer.Disconnect")
    node = site.node(request, names[0])
    site.model.toggle_offline(node, message_of(request), request.user)
    return pages.redirect(node_url(request, node))


def change_offline_cause(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Computer.Disconnect")
    node = site.node(request, names[0])
    site.model.change_offline_cause(node, message_of(request), request.user)
    return pages.redirect(node_url(request, node))


def disconnect(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Computer.Disconnect")
    node = site.node(request, names[0])
    site.model.disconnect(node, message_of(request), request.user)
    return pages.redirect(node_url(request, node))


def message_of(request: Request) -> str:
    return request.query.get("offlineMessage") or request.form().get("offlineMessage", "")


def launch_agent(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Computer.Connect")
    node = site.node(request, names[0])
    if node.online:
        return pages.not_found(request.path)
    site.model.launch(node)
    return pages.redirect(node_url(request, node) + "log")


def delete_node(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Computer.Delete")
    site.model.delete_node(site.node(request, names[0]))
    return pages.redirect(f"{request.url}computer/")


def node_log(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    node = site.node(request, names[0])
    return progressive(request, node.log, under_way=node.launch is not None)


def progressive(request: Request, lines: list[str], under_way: bool) -> Reply:
    """Return a log from `start` on; X-More-Data says that it can still grow."""
    text = "".join(line + "\n" for line in lines)
    headers = [("X-Text-Size", str(len(text)))] + ([("X-More-Data", "true")] if under_way else [])
    return pages.text_reply(text[int(request.query.get("start") or 0) :], tuple(headers))


def show_label(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    with site.model.lock:
        label = site.api(request).label(names[0])
        fields = {"_class": "hudson.model.labels.LabelAtom", **label.fields}
        return site.show(request, Export(fields, label.more))


# Jobs, builds, queue


def create_job(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Item.Create")
    name = request.query.get("name", "")
    refused = bad_name(name)
    if refused:
        return pages.bad_request(refused)
    if name in site.model.jobs:
        return pages.bad_request(f"A job already exists with the name {pages.quoted(name)}")
    return store_job(site, request, Job(name))


def store_job(site: Site, request: Request, job: Job) -> Reply:
    """Store a posted config.xml; as in the recordings, it is kept unchanged except for its declaration."""
    text = request.body.decode("utf-8", "replace")
    try:
        config = Reader(site.model.installed()).read(text)
    except BadJobError as err:
        return pages.server_error(str(err))
    with site.model.lock:
        job.kind, job.label, job.concurrent, job.config = KINDS[config.kind], config.label, config.concurrent, config
        job.config_xml = f'<?xml version="1.0" encoding="UTF-8"?>{without_declaration(text)}'
        site.model.jobs[job.name] = job
    return Reply(200)


def without_declaration(text: str) -> str:
    text = text.strip()
    return text.partition("?>")[2].strip() if text.startswith("<?xml") else text


def change_job(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Item.Configure", names[0])
    return store_job(site, request, site.job(request, names[0]))


def show_job_config(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    return pages.xml_reply(site.job(request, names[0]).config_xml)


def delete_job(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Item.Delete", names[0])
    site.model.delete_job(site.job(request, names[0]))
    return pages.redirect(request.url)


def job_page(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    return pages.jenkins_page(200, names[0], "Project " + names[0])


def show_job(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    with site.model.lock:
        return site.show(request, site.api(request).job(site.job(request, names[0])))


def build_job(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    """Queue a build. The refusals are from Jenkins' documentation and sources, not from recordings."""
    site.require(request, "Item.Build", names[0])
    job = site.job(request, names[0])
    given = {**request.query, **request.form()} if request.segments[-1] == "buildWithParameters" else {}
    given = {name: value for name, value in given.items() if name not in {"token", "delay", CRUMB}}
    if job.disabled:
        return pages.jenkins_page(409, "Error", f"{job.name} is not buildable")
    if job.config and job.config.parameters and request.segments[-1] == "build":
        return pages.jenkins_page(400, "Error", "Nothing is submitted")
    if job.config and not job.config.parameters and request.segments[-1] == "buildWithParameters":
        return pages.server_error("java.lang.IllegalStateException: This build is not parameterized!")
    try:
        item = site.model.add_build(job, given, Cause(user=request.user or "anonymous"))
    except IllegalChoiceError as err:
        return pages.bad_request(str(err))
    return Reply(201, headers=(("Location", f"{request.url}queue/item/{item.id}/"),))


def show_build(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    """Return a build, or a cell of a matrix, whose address has the same form."""
    with site.model.lock:
        api = site.api(request)
        if len(names) == 2 and "=" in names[1]:
            return site.show(request, api.job(site.cell(request, names)))
        return site.show(request, api.build(site.build_of(request, names)))


def show_artifact(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    build, name = site.build_of(request, names), names[-1]
    if name not in build.artifacts:
        return pages.not_found(request.path)
    data = (build.folder(site.model.root) / "archive" / name).read_bytes()
    return Reply(200, data, mimetypes.guess_type(name)[0] or "application/octet-stream")


def console_text(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    return pages.text_reply("".join(line + "\n" for line in site.build_of(request, names).console))


def console_progress(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    build = site.build_of(request, names)
    with site.model.lock:
        return progressive(request, build.console, under_way=build.result is None)


def stop_build(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    site.require(request, "Item.Cancel", names[0])
    build = site.build_of(request, names)
    if build.result is None:
        site.model.stop_build(build)
    return pages.redirect(f"{request.url}{build.job.path}{build.number}/")


def show_queue(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    with site.model.lock:
        return site.show(request, site.api(request).queue())


def find_item(site: Site, request: Request, number: str) -> Item:
    items = site.model.items
    item = items[int(number) - 1] if number.isdigit() and 0 < int(number) <= len(items) else None
    if item is None or not site.may(request, "Item.Read", item.job.name.partition("/")[0]):
        raise Refusal(pages.not_found(request.path))
    return item


def show_item(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    with site.model.lock:
        return site.show(request, site.api(request).item(find_item(site, request, names[0])))


def cancel_item(site: Site, request: Request, names: tuple[str, ...]) -> Reply:
    item = find_item(site, request, request.query.get("id", ""))
    site.require(request, "Item.Cancel", item.job.name)
    site.model.cancel(item)
    return pages.redirect(f"{request.url}queue/")


ROUTES: dict[str, dict[str, Action]] = {
    "/": {"GET": front_page},
    "/login": {"GET": front_page},
    "/api/json": {"GET": show_root},
    "/me/api/json": {"GET": show_me},
    "/whoAmI/api/json": {"GET": who_am_i},
    "/crumbIssuer/api/json": {"GET": issue_crumb},
    "/pluginManager/api/json": {"GET": show_plugins},
    "/scriptText": {"POST": run_in_console},
    "/quietDown": {"POST": quiet_down},
    "/cancelQuietDown": {"POST": quiet_down},
    "/createItem": {"POST": create_job},
    "/computer": {"GET": nodes_page},
    "/computer/api/json": {"GET": show_nodes},
    "/computer/doCreateItem": {"POST": create_node},
    "/computer/checkName": {"GET": check_name},
    "/computer/{name}": {"GET": node_page},
    "/computer/{name}/log": {"GET": node_page},
    "/computer/{name}/api/json": {"GET": show_node},
    "/computer/{name}/config.xml": {"GET": show_node_config, "POST": change_node_config},
    "/computer/{name}/logText/progressiveText": {"GET": node_log, "POST": node_log},
    "/computer/{name}/toggleOffline": {"POST": toggle_offline},
    "/computer/{name}/changeOfflineCause": {"POST": change_offline_cause},
    "/computer/{name}/doDisconnect": {"POST": disconnect},
    "/computer/{name}/launchSlaveAgent": {"POST": launch_agent},
    "/computer/{name}/doDelete": {"POST": delete_node},
    "/label/{name}/api/json": {"GET": show_label},
    "/job/{name}": {"GET": job_page},
    "/job/{name}/api/json": {"GET": show_job},
    "/job/{name}/config.xml": {"GET": show_job_config, "POST": change_job},
    "/job/{name}/build": {"POST": build_job},
    "/job/{name}/buildWithParameters": {"POST": build_job},
    "/job/{name}/doDelete": {"POST": delete_job},
    "/job/{name}/{number}": {"GET": job_page},
    "/job/{name}/{number}/api/json": {"GET": show_build},
    "/job/{name}/{number}/consoleText": {"GET": console_text},
    "/job/{name}/{number}/logText/progressiveText": {"GET": console_progress, "POST": console_progress},
    "/job/{name}/{number}/stop": {"POST": stop_build},
    "/job/{name}/{number}/artifact/{path}": {"GET": show_artifact},
    "/job/{name}/{cell}/{number}/api/json": {"GET": show_build},
    "/job/{name}/{cell}/{number}/consoleText": {"GET": console_text},
    "/job/{name}/{cell}/{number}/stop": {"POST": stop_build},
    "/job/{name}/{cell}/{number}/artifact/{path}": {"GET": show_artifact},
    "/queue/api/json": {"GET": show_queue},
    "/queue/item/{number}/api/json": {"GET": show_item},
    "/queue/cancelItem": {"POST": cancel_item},
}
PATTERNS = [(template, tuple(part for part in template.split("/") if part)) for template in ROUTES]


def find_route(segments: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """Return the template that matches a path, and the values of its braces; the first match in ROUTES wins."""
    if "artifact" in segments[3:5]:  # the rest after it is one path
        number = segments.index("artifact", 3) + 1
        segments = (*segments[:number], "/".join(segments[number:]))
    for template, parts in PATTERNS:
        if len(parts) != len(segments):
            continue
        if all(part == segment or part[0] == "{" for part, segment in zip(parts, segments, strict=True)):
            names = tuple(segment for part, segment in zip(parts, segments, strict=True) if part[0] == "{")
            return template, names
    return None
