"""The actions of builds and queue items and the properties of jobs, as Jenkins' JSON API shows them.

The causes of people follow recordings; the rest follows the exported fields in the sources of Jenkins and its plugins.
"""

from typing import Any

from tests.pocketjenkins.builds import Build, Cause, Item
from tests.pocketjenkins.jobxml import Parameter


def causes_of(item: Item) -> list[dict[str, Any]]:
    """Return the action with the causes of a build."""
    return [{"_class": "hudson.model.CauseAction", "causes": [_cause(cause) for cause in item.causes]}]


def _cause(cause: Cause) -> dict[str, Any]:
    if cause.project:
        return {
            "_class": "hudson.model.Cause$UpstreamCause",
            "shortDescription": cause.text,
            "upstreamBuild": cause.number,
            "upstreamProject": cause.project,
            "upstreamUrl": f"job/{cause.project}/",
        }
    return {
        "_class": "hudson.model.Cause$UserIdCause",
        "shortDescription": cause.text,
        "userId": cause.user,
        "userName": cause.user,
    }


def parameters_of(item: Item) -> list[dict[str, Any]]:
    """Return the action with a build's parameters, if it has any."""
    defined = {one.name: one for one in item.job.config.parameters} if item.job.config else {}
    values = [_value(defined.get(name), name, value) for name, value in item.parameters.items()]
    return [{"_class": "hudson.model.ParametersAction", "parameters": values}] if values else []


def _value(defined: Parameter | None, name: str, value: str) -> dict[str, Any]:
    """Return a parameter of a build; a secret one shows its name only."""
    kind = (defined.kind if defined else "hudson.model.StringParameter") + "Value"
    kind = "hudson.model.StringParameterValue" if "Choice" in kind else kind
    if defined and defined.secret:
        return {"_class": kind, "name": name}
    return {"_class": kind, "name": name, "value": value == "true" if "Boolean" in kind else value}


def definitions_of(parameters: tuple[Parameter, ...]) -> list[dict[str, Any]]:
    """Return the property with a job's parameters, if it has any."""
    definitions = [
        {
            "_class": one.kind + "Definition",
            "defaultParameterValue": _value(one, one.name, one.default),
            "description": one.description,
            "name": one.name,
            "type": one.kind.rpartition(".")[2] + "Definition",
            **({"choices": list(one.choices)} if one.choices else {}),
        }
        for one in parameters
    ]
    kind = "hudson.model.ParametersDefinitionProperty"
    return [{"_class": kind, "parameterDefinitions": definitions}] if definitions else []


def tests_of(build: Build) -> list[dict[str, Any]]:
    """Return the action with the counts of a build's test reports, if there are any."""
    if not build.tests["totalCount"]:
        return []
    counts = {name: build.tests[name] for name in ("failCount", "skipCount", "totalCount")}
    return [{"_class": "hudson.tasks.junit.TestResultAction", **counts, "urlName": "testReport"}]
