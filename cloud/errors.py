"""Errors of a cloud, as classes that say what the caller may conclude."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from gateprocess import NONSENSE, ConfigError, GateError, innermost, plain

TEXT_LENGTH = 400  # characters of a client library's message that go into ours
WHOLE_LENGTH = 10_000  # characters of it that are searched

# What clouds say when there is no more room. "exceeded maximum number of retries" can also mean that one host failed.
CAPACITY_FAULTS = re.compile(
    r"no valid host|quota|insufficient|limit ?exceeded|no more ip addresses|"
    r"maximum number of (ports|volumes|instances|floating)", re.IGNORECASE)
RETRY_FAULTS = re.compile(
    r"exceeded max(imum)? (number of retries|scheduling attempts)|exhausted all hosts", re.IGNORECASE)


class CloudError(GateError):
    """A call failed; the state of what it was about is unknown, and trying again can help."""


class GoneError(CloudError):
    """404: the thing asked for is not there."""


class CapacityError(CloudError):
    """The provider refuses more: quota or no room. Nothing was made."""


class RefusedError(CloudError):
    """The provider understood the request and refused it for good. Nothing was made."""


class CloudConfigError(ConfigError):
    """Wrong credentials, cloud, region, image, flavor or network name."""


class RateLimitedError(CloudError):
    """429, or 413 with Retry-After: make the same call again, after retry_after seconds if the cloud named them."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = max(0.0, retry_after)


@contextlib.contextmanager
def explained(what: str, cloud: str) -> Iterator[None]:
    """Turn the exceptions of the client libraries into ours; what: the call in words, cloud: the clouds.yaml entry."""
    import keystoneauth1.exceptions
    import novaclient.exceptions
    import openstack.exceptions

    try:
        yield
    except novaclient.exceptions.ClientException as err:
        raise _by_status(what, cloud, err.code, err, getattr(err, "retry_after", 0)) from err
    except openstack.exceptions.HttpException as err:
        headers = err.response.headers if err.response is not None else {}
        raise _by_status(what, cloud, err.status_code or 0, err, _seconds(headers.get("Retry-After"))) from err
    except keystoneauth1.exceptions.HttpError as err:
        raise _by_status(what, cloud, err.http_status, err, getattr(err, "retry_after", 0)) from err
    except keystoneauth1.exceptions.DiscoveryFailure as err:
        answer = re.search(r"\b[A-Z][A-Za-z ]{0,60} \(HTTP [0-9]{3}\)", str(err)[:WHOLE_LENGTH])
        text = f"{what}: no identity service answers there: {answer[0] if answer else short_text(err)}" \
               f"; see auth_url in entry {cloud} of clouds.yaml"
        raise (CloudConfigError(text) if "HTTP 4" in text else CloudError(text)) from err
    except (keystoneauth1.exceptions.CatalogException, keystoneauth1.exceptions.MissingRequiredOptions,
            keystoneauth1.exceptions.MissingAuthPlugin) as err:
        raise CloudConfigError(f"{what}: {short_text(err)}; see entry {cloud} of clouds.yaml") from err
    except (keystoneauth1.exceptions.ClientException, openstack.exceptions.SDKException) as err:
        raise CloudError(f"{what}: {short_text(err)}") from err
    except NONSENSE as err:
        # The clients raise these for answers that are truncated or break the API's promises.
        raise CloudError(f"{what}: the answer makes no sense ({type(err).__name__}: {short_text(err)})") from err


def make_readable(answer: Any, *_: Any, **__: Any) -> None:
    """Rewrite the body of a failed call, a hook of requests, so that every client library finds its text.

    Gateways before a service have forms of their own, on which novaclient fails and which the others do not show. An
    answer that is neither a success nor a failure has no meaning for the libraries: AnswerError names its status.
    """
    import httpcalls

    if answer.status_code < 300:  # noqa: PLR2004
        return
    told = _json_of(answer)
    if answer.status_code < 400 and not (isinstance(told, dict) and "versions" in told):  # noqa: PLR2004
        raise httpcalls.AnswerError(f"{answer.status_code} {answer.reason}: {answer.text[:WHOLE_LENGTH]}")
    if answer.status_code < 400 or _is_readable(told) or not answer.text.strip() \
            or answer.text.lstrip().startswith("<"):  # noqa: PLR2004
        return
    answer._content = json.dumps({"error": {"message": answer.text[:WHOLE_LENGTH]}}).encode()
    answer.headers["Content-Type"] = "application/json"


def _json_of(answer: Any) -> Any:
    try:
        return answer.json()
    except NONSENSE:
        return None


def _is_readable(told: Any) -> bool:
    """Return whether the body of an answer has a message where OpenStack's services write it."""
    inner = told if not isinstance(told, dict) or "message" in told else next(iter(told.values()), None)
    return isinstance(inner, dict) and isinstance(inner.get("message"), str)


def _by_status(what: str, cloud: str, status: int, err: Exception, retry_after: float) -> GateError:
    text = f"{what}: {short_text(err)}"
    if status and not re.search(rf"\b{status}\b", text):
        text += f" (HTTP {status})"
    if status == 404:  # noqa: PLR2004
        return GoneError(text)
    if status == 401:  # noqa: PLR2004
        return CloudConfigError(f"{text}; see entry {cloud} of clouds.yaml")
    if status == 429 or (status == 413 and retry_after):  # noqa: PLR2004
        return RateLimitedError(text, retry_after)
    if status == 413 or (status in (403, 409) and CAPACITY_FAULTS.search(text)):  # noqa: PLR2004
        return CapacityError(text)
    if status in (400, 403, 406, 409, 412):
        return RefusedError(text)
    return CloudError(text)


def short_text(err: BaseException) -> str:
    """Return an exception's message in one short line, without HTML; the exception's name if it has no message."""
    text = innermost(str(err)[:WHOLE_LENGTH])
    return plain(re.sub(r"<[^<>]*>", " ", text), TEXT_LENGTH) or type(err).__name__


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and re.fullmatch("[0-9]{1,9}", retry_after) else 0.0
