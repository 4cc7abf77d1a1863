"""Settings that the scripts share.

Nothing here talks to a cloud, to Jenkins or to vm.db. Settings come from the command line, then the environment,
then a file, then a default, and are checked before a script changes anything.
"""

from __future__ import annotations

import binascii
import configparser
import logging
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from gateprocess import LOGIN, ConfigError, nearest, one_line

PACKAGE_NAME = re.compile(r"[A-Za-z0-9@/][A-Za-z0-9.+:_@/()-]*")  # also an rpm group, file or capability
PREFIX_PATTERN = re.compile(r"[A-Za-z0-9-]*")

# Named tuples here and in jenkinsnodes: builds wait for these imports, and a dataclass takes four times as long.


class JenkinsConfig(NamedTuple):
    """How to reach Jenkins, and the credential with which Jenkins reaches the nodes.

    node_login is USER:APIKEY for builds that call Jenkins from their node, empty if none do.
    """

    server: str
    user: str
    apikey: str
    credentials_id: str
    node_login: str = ""
    name: str = ""  # of its section, [jenkins NAME]; empty for [jenkins]

    def __repr__(self) -> str:
        return f"JenkinsConfig({self.server!r}, {self.user!r}, ...)"  # the others are secrets or lead to one


class NodeConfig(NamedTuple):
    """The account on the nodes."""

    user: str
    ssh_key: Path
    remote_fs: str


class ImageConfig(NamedTuple):
    """What every image is made of; empty packages mean the distribution's default, an empty puppet_repo no puppet."""

    packages: tuple[str, ...]
    branches: tuple[str, ...]  # shell patterns
    puppet_repo: str
    puppet_modulepath: str
    puppet_manifest: str


class SecureConfig(NamedTuple):
    """The secure configuration; jenkinses has the [jenkins] sections in their order, and may be empty."""

    path: Path
    jenkinses: tuple[JenkinsConfig, ...]
    node: NodeConfig
    image: ImageConfig

    def jenkins_named(self, name: str) -> JenkinsConfig | None:
        """Return the Jenkins whose section has that name; None if there is none.

        Machines made while there was only [jenkins] have an empty name; they belong to the first Jenkins.
        """
        found = [jenkins for jenkins in self.jenkinses if jenkins.name == name] or self.jenkinses * (not name)
        return found[0] if found else None


SECURE_KEYS = {
    "jenkins": ("server", "user", "apikey", "credentials_id", "node_user", "node_apikey"),
    "node": ("user", "ssh_key", "remote_fs"),
    "image": ("packages", "branches", "puppet_repo", "puppet_modulepath", "puppet_manifest"),
}
SECRET_QUERIES = {"password", "sslpassword", "oauth_client_secret"}  # of the address of a PostgreSQL database
DEFAULT_SSH_KEY = "~/.ssh/id_ed25519"
# What devstack, a Jenkins agent and the gate scripts require.
DEB_PACKAGES = ("build-essential", "python3-dev", "python3-pip", "python3-venv", "git", "curl", "rsync",
                "default-jre-headless")
RPM_PACKAGES = ("gcc", "gcc-c++", "make", "python3-devel", "python3-pip", "git", "curl", "rsync", "java-headless",
                "perl-interpreter", "perl-POSIX")
DEFAULT_BRANCHES = "master stable/*"


def database_place() -> Path | str:
    """Return $DEVSTACK_GATE_DB, or ~/vm.db: the path of vm.db, or the address of a PostgreSQL database."""
    return place_of_database(os.environ.get("DEVSTACK_GATE_DB") or "~/vm.db", "DEVSTACK_GATE_DB")


def place_of_database(text: str, what: str) -> Path | str:
    """Return a path, or an address postgresql://...; a ConfigError begins with `what`, the name of the setting.

    An address that contains a password is refused: everybody on this host can see a process's arguments.
    """
    scheme, found, _ = text.partition("://")
    if not text or not text.isprintable():
        raise ConfigError(f"{what}: expected a path or an address, in printable characters of UTF-8")
    if not found and re.match(r"postgres(ql)?:|(.*\s)?(host|hostaddr|dbname|password|service)\s*=", text):
        raise ConfigError(f"{what}: expected a path, or an address as postgresql://HOST/DATABASE; this is neither")
    if not found:
        return expanded(text, what)
    if scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"{what}: expected a path, or an address as postgresql://HOST/DATABASE, got {scheme}://...")
    try:
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError as err:
        raise ConfigError(f"{what}: expected an address as postgresql://HOST/DATABASE ({err})") from err
    login = LOGIN.search(text)
    if (login and ":" in login[0][3:]) or query.keys() & SECRET_QUERIES:
        raise ConfigError(f"{what}: expected an address without a password; libpq finds it in ~/.pgpass, or in the "
                          "file that PGPASSFILE names")
    return text


def expanded(path: str, what: str) -> Path:
    """Return a path with ~ and ~user resolved; a ConfigError begins with `what`, the name of the setting."""
    try:
        return Path(path).expanduser()
    except RuntimeError as err:
        raise ConfigError(f"{what}: {path}: there is no such home folder") from err


def name_prefix() -> str:
    """Return $DEVSTACK_GATE_PREFIX, which begins server, image, label and node names; ConfigError if it is invalid."""
    prefix = os.environ.get("DEVSTACK_GATE_PREFIX", "")
    if not PREFIX_PATTERN.fullmatch(prefix):
        raise ConfigError(f"DEVSTACK_GATE_PREFIX: {prefix!r} may hold letters, digits and - only")
    return prefix


def secure_config_path() -> Path:
    """Return the path of the secure configuration: $DEVSTACK_GATE_SECURE_CONFIG, or ~/devstack-gate-secure.conf."""
    variable = "DEVSTACK_GATE_SECURE_CONFIG"
    return expanded(os.environ.get(variable) or "~/devstack-gate-secure.conf", variable)


def load_secure_config() -> SecureConfig:
    """Read the secure configuration; raises ConfigError, which names file and key."""
    path = secure_config_path()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open(encoding="utf-8-sig") as stream:  # some editors write a byte order mark
            parser.read_file(stream)
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: secure configuration cannot be read ({reason}); "
                          "set DEVSTACK_GATE_SECURE_CONFIG or create it") from err
    except configparser.Error as err:
        raise ConfigError(f"{path}: not an INI file: {ini_problem(err)}") from err
    check_private(path)
    _refuse_unknown(path, parser)
    node = _node_config(path, parser)
    check_private(node.ssh_key)
    return SecureConfig(path=path, jenkinses=_jenkins_configs(path, parser), node=node,
                        image=_image_config(path, parser))


def ini_problem(err: configparser.Error) -> str:
    """Return what is wrong with an INI file and in which line, without its text, which may be a secret."""
    if isinstance(err, configparser.DuplicateOptionError):
        return f"line {err.lineno}: [{err.section}] {err.option} is given twice"
    if isinstance(err, configparser.DuplicateSectionError):
        return f"line {err.lineno}: section [{err.section}] is given twice"
    if isinstance(err, configparser.MissingSectionHeaderError):
        return f"line {err.lineno}: expected key = value in a [section]"
    if isinstance(err, configparser.ParsingError):
        return f"line {err.errors[0][0]}: expected key = value in a [section]"
    return one_line(err)


def check_private(path: Path) -> None:
    """Warn if others than its owner can read a file of secrets; raise ConfigError if they can write it."""
    try:
        seen = path.stat().st_mode
    except OSError:
        return  # whoever needs the file says what is wrong with it
    if stat.S_ISDIR(seen):
        return
    mode = stat.S_IMODE(seen)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path}: can be written by others than its owner (mode {mode:o}); see that it is as you "
                          "wrote it, and chmod 600 it")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        logging.warning("%s can be read by others than its owner (mode %o); chmod 600 it", path, mode)


def check_clouds_yaml() -> None:
    """Call check_private for clouds.yaml and secure.yaml."""
    for path in cloud_files().values():
        if path:
            check_private(path)


def cloud_files() -> dict[str, Path | None]:
    """Return the paths of clouds.yaml and secure.yaml, each in the first place where OpenStack's clients find one."""
    folders = [Path(), Path("~/.config/openstack").expanduser(), Path("/etc/openstack")]
    found: dict[str, Path | None] = {}
    for variable, name in (("OS_CLIENT_CONFIG_FILE", "clouds"), ("OS_CLIENT_SECURE_FILE", "secure")):
        named = [Path(os.environ[variable])] if os.environ.get(variable) else []
        places = named + [folder / f"{name}.{ending}" for folder in folders for ending in ("yaml", "yml", "json")]
        found[f"{name}.yaml"] = next((path for path in places if path.is_file()), None)
    return found


def check_ours(folder: Path, what: str) -> None:
    """Raise ConfigError, which begins with `what`, if another account owns a folder or others can write to it."""
    try:
        seen = folder.stat()
    except OSError:
        return  # whoever needs the folder says what is wrong with it
    if seen.st_uid != os.geteuid():
        raise ConfigError(f"{what}: {folder} belongs to somebody else; name a folder of your own")
    if seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{what}: {folder} can be written by others than you; see that nobody has put anything "
                          "there, and chmod go-w it")


def load_image_config() -> ImageConfig:
    """Return section [image] of the secure configuration, all defaults if there is no such file."""
    path = secure_config_path()
    return load_secure_config().image if path.exists() else _image_config(path, configparser.ConfigParser())


def _refuse_unknown(path: Path, parser: configparser.ConfigParser) -> None:
    for section in parser.sections():
        keys = SECURE_KEYS.get(_kind_of(section))
        if keys is None and section.startswith("jenkins "):
            raise ConfigError(f"{path}: [{section}]: expected [jenkins NAME], NAME with at most 60 letters, digits, ., "
                              "_ and -")
        if keys is None:
            raise ConfigError(f"{path}: unknown section [{section}]{nearest(section, SECURE_KEYS)}")
        for key in parser[section]:
            if key not in keys:
                where = parser.default_section if key in parser.defaults() else section
                raise ConfigError(f"{path}: [{where}] unknown key {key}{nearest(key, keys)}")


def _kind_of(section: str) -> str:
    """Return a section's name without the name of its Jenkins."""
    return "jenkins" if re.fullmatch(r"jenkins [A-Za-z0-9._-]{1,60}", section) else section


def _secure_value(
    path: Path, parser: configparser.ConfigParser, section: str, key: str, default: str | None = None
) -> str:
    value = parser.get(section, key, fallback="") or default
    if not value:
        raise ConfigError(f"{path}: [{section}] {key} is missing")
    if not value.isprintable():
        raise ConfigError(f"{path}: [{section}] {key}: expected one line of text (an indented line goes on with the "
                          "one before it)")
    return value


def _jenkins_configs(path: Path, parser: configparser.ConfigParser) -> tuple[JenkinsConfig, ...]:
    """Return each Jenkins; two sections for one are refused, as each would take the other's nodes for strays."""
    found: list[tuple[str, JenkinsConfig]] = []
    for section in [section for section in parser.sections() if _kind_of(section) == "jenkins"]:
        jenkins = _jenkins_config(path, parser, section)
        if same := next((other for other, known in found if is_same_url(known.server, jenkins.server)), None):
            raise ConfigError(f"{path}: [{section}] server: is the same Jenkins as in [{same}]; expected one "
                              "section for each Jenkins")
        found.append((section, jenkins))
    return tuple(jenkins for _, jenkins in found)


def _jenkins_config(path: Path, parser: configparser.ConfigParser, section: str) -> JenkinsConfig:
    server, user, apikey, credentials_id = (
        _secure_value(path, parser, section, key) for key in ("server", "user", "apikey", "credentials_id"))
    if "@" in server:
        raise ConfigError(f"{path}: [{section}] server: expected a URL without a login in it; [{section}] user and "
                          "apikey are keys of their own")
    if not _is_url(server):
        raise ConfigError(f"{path}: [{section}] server: expected an http(s) URL, got {server!r}")
    node_login = ""
    if parser.get(section, "node_user", fallback="") or parser.get(section, "node_apikey", fallback=""):
        node_login = ":".join(_secure_value(path, parser, section, key) for key in ("node_user", "node_apikey"))
    return JenkinsConfig(server, user, apikey, credentials_id, node_login, section.partition(" ")[2])


def is_same_url(one: str, other: str) -> bool:
    """Return whether two addresses of a Jenkins are the same, however host, port and final slash are written."""
    def parts(url: str) -> tuple[str, str | None, int | None, str]:
        split = urlsplit(url)
        return (split.scheme, split.hostname, split.port or {"http": 80, "https": 443}.get(split.scheme),
                split.path.rstrip("/"))

    try:
        return parts(one) == parts(other)
    except ValueError:
        return False


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _node_config(path: Path, parser: configparser.ConfigParser) -> NodeConfig:
    user = _secure_value(path, parser, "node", "user", "jenkins")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]*", user):
        raise ConfigError(f"{path}: [node] user: expected an account name, got {user!r}")
    home = "/root" if user == "root" else f"/home/{user}"
    remote_fs = _secure_value(path, parser, "node", "remote_fs", home)
    if not re.fullmatch(r"/[^:\n]+", remote_fs):
        raise ConfigError(f"{path}: [node] remote_fs: expected an absolute path on the nodes, got {remote_fs!r}")
    return NodeConfig(
        user=user,
        ssh_key=expanded(_secure_value(path, parser, "node", "ssh_key", DEFAULT_SSH_KEY), f"{path}: [node] ssh_key"),
        remote_fs=remote_fs,
    )


def _image_config(path: Path, parser: configparser.ConfigParser) -> ImageConfig:
    packages, branches, repo, modulepath, manifest = (
        parser.get("image", key, fallback="").strip() for key in SECURE_KEYS["image"])
    for package in packages.split():
        if not PACKAGE_NAME.fullmatch(package):
            raise ConfigError(f"{path}: [image] packages: {package!r} is no package's name")
    if (modulepath or manifest) and not repo:
        raise ConfigError(f"{path}: [image] puppet_repo is missing, which puppet_modulepath and "
                          "puppet_manifest belong to")
    return ImageConfig(
        packages=tuple(packages.split()), branches=tuple((branches or DEFAULT_BRANCHES).split()),
        puppet_repo=repo, puppet_modulepath=modulepath or "modules", puppet_manifest=manifest or "manifests/site.pp")


def require_ssh_key(config: SecureConfig) -> str:
    """Return the public key beside [node] ssh_key, one line; ConfigError if a file is missing or holds no such key."""
    public = Path(f"{config.node.ssh_key}.pub")
    for path in (config.node.ssh_key, public):
        if not path.is_file():
            raise ConfigError(f"{config.path}: [node] ssh_key: there is no file {path}")
    try:
        key = public.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{config.path}: [node] ssh_key: {public} cannot be read") from err
    if not is_public_key(key):
        raise ConfigError(f"{config.path}: [node] ssh_key: {public} holds no public key")
    return key


def is_public_key(text: str) -> bool:
    """Return whether a text is one whole OpenSSH public key: type, base64, perhaps a comment.

    The base64 stands for strings with their lengths (RFC 4253, section 6.6), of which the first is the type again.
    """
    match = re.fullmatch(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]+) ([A-Za-z0-9+/]+=*)(?: [^\n]*)?", text)
    if match is None:
        return False
    try:
        left = binascii.a2b_base64(match[2], strict_mode=True)
    except binascii.Error:
        return False
    parts = []
    while left:
        end = 4 + int.from_bytes(left[:4], "big")
        if len(left) < end:
            return False
        parts.append(left[4:end])
        left = left[end:]
    return parts[:1] == [match[1].encode()] and len(parts) > 1
