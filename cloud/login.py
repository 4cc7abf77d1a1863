"""clouds.yaml: connect as a provider's entry says, and explain what is wrong with an entry."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gateconfig
from cloud.errors import CloudConfigError, CloudError, make_readable, short_text
from gateprocess import NONSENSE, get_log

PROFILE_SECONDS = 10  # for a profile that an entry names by a URL
PROFILE_PATH = "/.well-known/openstack/api"  # where openstacksdk looks for it

# Set unless the entry sets them: fewer hidden retries, since every caller here has its own time limit.
RETRIES = {"image_status_code_retries": 1, "network_status_code_retries": 1, "block_storage_status_code_retries": 1}
AUTH_TYPES = {"application_credential_id": "v3applicationcredential",
              "application_credential_name": "v3applicationcredential",
              "application_credential_secret": "v3applicationcredential", "token": "v3token"}


def connect(provider: Any, call_seconds: float) -> Any:
    """Return an openstacksdk connection for a provider, not yet logged in.

    call_seconds is the time limit of a call if the entry has no api_timeout. CloudConfigError says what is wrong
    with the entry; CloudError means that the profile named by the entry cannot be fetched now.
    """
    import keystoneauth1.exceptions
    import openstack
    import openstack.exceptions
    import requests
    import yaml

    import httpcalls

    where = f"provider {provider.name}: clouds.yaml"
    entry = f"{where}: entry {provider.cloud}"
    profile = ""
    try:
        _check_clouds_yaml(where)
        clouds = openstack.config.OpenStackConfig()
        profile = _checked_profile(clouds, provider.cloud, entry)
        if urlsplit(profile).netloc:
            _fetch_profile(profile, f"{entry}: profile {profile}", min(PROFILE_SECONDS, call_seconds))
        config = clouds.get_one(provider.cloud, region_name=provider.region)
        _complete(config.config, call_seconds, entry)
        _check_files(config.config, entry)
        if unknown := _unknown_profile(profile):
            get_log(provider=provider.name).warning("%s%s", entry, unknown)
        connection = openstack.connection.Connection(config=config)
        httpcalls.limit(connection.session.session)
        connection.session.session.hooks["response"].append(make_readable)
        return connection
    except requests.exceptions.RequestException as err:
        raise CloudError(f"{entry}: profile {profile} cannot be fetched now: {short_text(err)}") from err
    except (openstack.exceptions.ConfigException, keystoneauth1.exceptions.ClientException) as err:
        text = short_text(err).rstrip(".")  # of a sentence
        raise CloudConfigError(f"{entry}: {text}{_unknown_profile(profile)}{_where_looked()}") from err
    except TypeError as err:
        raise CloudConfigError(_wrong_auth(entry, err) or f"{where} cannot be read: {short_text(err)}") from err
    except (OSError, yaml.YAMLError, AttributeError, ValueError, KeyError) as err:
        raise CloudConfigError(f"{where} cannot be read: {short_text(err)}") from err


def _check_clouds_yaml(where: str) -> None:
    """Raise CloudConfigError if the file as a whole is wrong: openstacksdk might silently ignore it."""
    import yaml

    path = gateconfig.cloud_files()["clouds.yaml"]
    if path is None:
        return
    path = path.absolute()
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(err, "problem", None) or short_text(err)
        raise CloudConfigError(f"{where}: {place}: not YAML: {problem}") from err
    except UnicodeDecodeError as err:
        raise CloudConfigError(f"{where}: {path}: cannot be read (not UTF-8 text)") from err
    if not isinstance(content, dict) or not isinstance(content.get("clouds", {}), dict):
        raise CloudConfigError(f"{where}: {path}: expected clouds: with an entry for each cloud")


def _checked_profile(clouds: Any, name: str, entry: str) -> str:
    """Return the vendor profile that an entry names, or ''; CloudConfigError if the entry is malformed."""
    known = clouds.cloud_config.get("clouds") or {}
    if name in known:
        settings = known[name]
        if not settings:
            raise CloudConfigError(f"{entry} is empty; expected auth with auth_url, user, password and project")
        if not isinstance(settings, dict) or not isinstance(settings.get("auth") or {}, dict):
            raise CloudConfigError(f"{entry}: expected a mapping with auth, itself a mapping")
        url = (settings.get("auth") or {}).get("auth_url", "")
        if not isinstance(url, str) or (url and not re.match("https?://", url, re.IGNORECASE)):
            raise CloudConfigError(f"{entry}: auth: auth_url: expected an http(s) URL, got {url!r}")
        if "auth" in settings and not settings["auth"]:
            raise CloudConfigError(f"{entry}: auth is empty; expected auth_url, user, password and project")
        return str(settings.get("profile") or settings.get("cloud") or "")
    return ""


def _fetch_profile(profile: str, what: str, seconds: float) -> None:
    """Fetch the profile at a URL for openstacksdk, which would otherwise fetch it itself without a limit.

    CloudError if it cannot be fetched now; CloudConfigError if the URL is wrong (a status below 500) or has no profile.
    """
    import requests
    from openstack.config import _util, vendors

    import httpcalls

    known = vendors._get_vendor_defaults()  # where the library keeps what it has fetched
    if profile in known:
        return
    session, parts = requests.Session(), urlsplit(profile)
    httpcalls.limit(session)
    answer = session.get(f"{parts.scheme}://{parts.netloc}{PROFILE_PATH}", timeout=seconds)
    if not answer.ok:
        failure = CloudConfigError if answer.status_code < 500 else CloudError  # noqa: PLR2004
        raise failure(f"{what} cannot be fetched: {answer.status_code} {short_text(Exception(answer.reason))}")
    try:
        told = answer.json()
        fetched = told["profile"]
        if not isinstance(fetched, Mapping) or not isinstance(fetched.get("auth", {}), Mapping):
            raise TypeError("expected an object with auth, itself one")
        merged = _util.merge_clouds(dict(fetched), known.get(str(told["name"]), {}))
    except NONSENSE as err:
        raise CloudConfigError(f"{what} is none: {short_text(err)}") from err
    merged.pop("profile", None)
    known[profile] = merged


def _complete(config: dict[str, Any], call_seconds: float, entry: str) -> None:
    """Set the values that the entry leaves open."""
    import openstack.config.defaults

    timeout = config.get("api_timeout")
    try:
        config["api_timeout"] = call_seconds if timeout is None else float(timeout)
    except (TypeError, ValueError) as err:
        raise CloudConfigError(f"{entry}: api_timeout: expected seconds, got {timeout!r}") from err
    if config["api_timeout"] <= 0:
        raise CloudConfigError(f"{entry}: api_timeout: expected seconds above 0, got {timeout!r}")
    defaults = openstack.config.defaults.get_defaults()
    for key, value in RETRIES.items():
        if config.get(key) in (None, defaults.get(key)):
            config[key] = value


def _check_files(config: Mapping[str, Any], entry: str) -> None:
    """Refuse missing files and passwords: openstacksdk would fail without naming the entry."""
    for key in ("cacert", "cert", "key"):
        if config.get(key) and not Path(str(config[key])).expanduser().exists():
            raise CloudConfigError(f"{entry}: {key}: there is no file {config[key]}")
    auth = config.get("auth") or {}
    if config.get("auth_type") in ("password", "v3password") and not auth.get("password"):
        raise CloudConfigError(f"{entry}: auth: password is missing, in secure.yaml, too")


def _where_looked() -> str:
    """Return a hint if OS_CLIENT_CONFIG_FILE names no file or there is no clouds.yaml, else ''."""
    named = os.environ.get("OS_CLIENT_CONFIG_FILE")
    if named and not Path(named).is_file():
        return f"; OS_CLIENT_CONFIG_FILE names {named}, and there is no such file"
    if not gateconfig.cloud_files()["clouds.yaml"]:
        return "; there is no clouds.yaml in this folder, ~/.config/openstack or /etc/openstack"
    return ""


def _unknown_profile(profile: str) -> str:
    """Return a hint if openstacksdk does not know a profile, else ''; it ignores that and then lacks its values."""
    from openstack.config import vendors

    if not profile or profile.startswith("http") or vendors.get_profile(profile):
        return ""
    return f"; the client knows no profile {profile}"


def _wrong_auth(entry: str, err: TypeError) -> str:
    """Return a hint for a key under auth that does not belong to the auth_type (by default, password), else ''."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(err))
    if not found:
        return ""
    needed = AUTH_TYPES.get(found[1])
    hint = f"; set auth_type: {needed}" if needed else "; see auth_type"
    return f"{entry}: auth: {found[1]} does not go with the auth_type, which is password by default{hint}"
