"""Glance v2: images."""

import csv
import hashlib
import time
from typing import Any
from urllib.parse import urlencode

from tests.pocketcloud.httpd import Answer, Call, RefusalError, Routes, not_found
from tests.pocketcloud.records import Image, new_id, stamp

PAGE, LARGEST_PAGE = 25, 1000
FIELDS = {  # Glance's name: Image's name
    "name": "name",
    "visibility": "visibility",
    "disk_format": "disk_format",
    "container_format": "container_format",
    "min_disk": "min_disk",
    "min_ram": "min_ram",
    "protected": "protected",
    "os_hidden": "hidden",
    "tags": "tags",
}
VISIBILITIES = ("all", "community", "private", "public", "shared")
READ_ONLY = {"id", "status", "owner", "size", "checksum", "created_at", "updated_at", "self", "file", "schema"}
OPERATED = {"id", "name", "status", "container_format", "disk_format"}  # their filters can begin with OPERATOR:
PAGING = {"limit", "marker", "sort", "sort_key", "sort_dir", "member_status", "os_hidden", "tag"}


def describe(image: Image) -> dict[str, Any]:
    """Return the image as Glance shows it, with its properties beside its fields."""
    path = f"/v2/images/{image.id}"
    has_data = image.status in ("active", "killed")
    stored = {"stores": "disk"} if has_data else {}
    return {
        **image.properties,
        **{theirs: getattr(image, ours) for theirs, ours in FIELDS.items()},
        "id": image.id,
        "status": image.status,
        "owner": image.owner,
        "size": image.size,
        "virtual_size": image.size,
        "checksum": image.checksum,
        "os_hash_algo": "sha512" if has_data else None,
        "os_hash_value": hashlib.sha512(image.id.encode()).hexdigest() if has_data else None,
        "created_at": stamp(image.created),
        "updated_at": stamp(image.updated),
        "self": path,
        "file": f"{path}/file",
        "schema": "/v2/schemas/image",
        **stored,
    }


def visible(call: Call) -> list[Image]:
    """Return the images that the caller may see, newest first."""
    seen = [i for i in call.cloud.images.values() if i.visibility == "public" or i.owner == call.project]
    return sorted(seen, key=lambda i: (i.created, i.id), reverse=True)


def _find(call: Call) -> Image:
    for image in visible(call):
        if image.id == call.args["id"]:
            return image
    raise not_found(f"No image found with ID {call.args['id']}")


def _own(call: Call, action: str) -> Image:
    image = _find(call)
    if image.owner != call.project:
        raise RefusalError(403, f"You are not authorized to complete {action} action.")
    return image


def _versions(call: Call) -> Answer:
    links = [{"rel": "self", "href": f"{call.base}/image/v2/"}]
    versions = [
        {"id": f"v2.{minor}", "status": "CURRENT" if minor == 15 else "SUPPORTED", "links": links}
        for minor in (15, 9, 7, 5, 4, 3, 2, 1, 0)
    ]
    return Answer(300 if call.unversioned else 200, {"versions": versions})


def _list(call: Call) -> Answer:
    if not (call.first("limit") or "0").isdigit():
        raise RefusalError(400, "limit param must be an integer")
    if call.first("visibility", "all") not in VISIBILITIES:
        raise RefusalError(400, f"Invalid visibility value: {call.first('visibility')}")
    with call.cloud.lock:
        found = [i for i in (describe(image) for image in visible(call)) if _wanted(call, i)]
    found = _sorted(call, found)
    page, more = _page(call, found)
    kept = {name: values for name, values in call.query.items() if name != "marker"}
    first = f"/v2/images?{urlencode(kept, doseq=True)}" if kept else "/v2/images"
    answer: dict[str, Any] = {"images": page, "first": first, "schema": "/v2/schemas/images"}
    if more:
        answer["next"] = f"/v2/images?{urlencode(kept | {'marker': page[-1]['id']}, doseq=True)}"
    return Answer(200, answer)


def _sorted(call: Call, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    key, _, direction = (call.first("sort") or call.first("sort_key") or "created_at").partition(":")
    descending = (direction or call.first("sort_dir") or "desc") == "desc"
    if key == "created_at":  # they come in this order, finer than the seconds shown
        return found if descending else found[::-1]
    return sorted(found, key=lambda i: (str(i.get(key) or ""), i["id"]), reverse=descending)


def _page(call: Call, found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    marker, start = call.first("marker"), 0
    if marker:
        places = [place for place, image in enumerate(found) if image["id"] == marker]
        if not places:
            raise RefusalError(400, f"No image found with ID {marker}")
        start = places[0] + 1
    limit = min(int(call.first("limit") or PAGE), LARGEST_PAGE)
    return found[start : start + limit], len(found) > start + limit


def _quoted(text: str) -> list[str]:
    """Return the values of a comma-separated list; values with a comma are in quotes."""
    return next(csv.reader([text]))


def _wanted(call: Call, image: dict[str, Any]) -> bool:
    hidden = (call.first("os_hidden") or "false").lower() == "true"
    if image["os_hidden"] != hidden or not set(call.query.get("tag", [])) <= set(image["tags"]):
        return False
    for name, values in call.query.items():
        if name in PAGING or (name == "visibility" and values == ["all"]):
            continue
        operator, colon, rest = values[0].partition(":")
        if name in OPERATED and colon and operator not in ("in", "eq"):
            raise RefusalError(400, f"Unable to filter by unknown operator '{operator}'.")
        wanted = _quoted(rest) if operator == "in" and colon else [rest if operator == "eq" and colon else values[0]]
        if str(image.get(name)) not in [one.strip('"') for one in wanted]:
            return False
    return True


def _show(call: Call) -> Answer:
    with call.cloud.lock:
        return Answer(200, describe(_find(call)))


def _create(call: Call) -> Answer:
    wish = dict(call.json())
    image = Image(
        wish.pop("id", None) or new_id(), wish.pop("name", ""), call.project, visibility="shared"
    )
    for theirs, ours in FIELDS.items():
        if theirs in wish:
            setattr(image, ours, wish.pop(theirs))
    wrong = [name for name in wish if name in READ_ONLY]
    if wrong:
        raise RefusalError(403, f"Attribute '{wrong[0]}' is read-only.")
    if not all(isinstance(value, str) for value in wish.values()):
        raise RefusalError(400, "Provided object does not match schema 'image'")
    image.properties = wish
    if image.visibility == "public":
        raise RefusalError(403, "You are not authorized to complete publicize_image action.")
    with call.cloud.lock:
        if image.id in call.cloud.images:
            raise RefusalError(409, f"Image ID {image.id} already exists!")
        call.cloud.images[image.id] = image
    return Answer(201, describe(image), {"Location": f"{call.base}/image/v2/images/{image.id}"})


def _upload(call: Call) -> Answer:
    with call.cloud.lock:
        image = _own(call, "upload_image")
        if image.status != "queued":
            raise RefusalError(409, f"Image status transition from {image.status} to saving is not allowed")
        if not (image.disk_format and image.container_format):
            raise RefusalError(400, "Properties disk_format, container_format must be set prior to saving data.")
        image.size, image.checksum = len(call.body), hashlib.md5(call.body).hexdigest()
        image.status, image.updated = "active", time.time()
    return Answer(204)


def _update(call: Call) -> Answer:
    with call.cloud.lock:
        image = _own(call, "modify_image")
        for change in call.json():
            name = change["path"].strip("/").replace("~1", "/").replace("~0", "~")
            if name in READ_ONLY:
                raise RefusalError(403, f"Attribute '{name}' is read-only.")
            if name in FIELDS:
                setattr(image, FIELDS[name], change["value"])
            elif change["op"] == "remove":
                if image.properties.pop(name, None) is None:
                    conflict = "There was a conflict when trying to complete your request."
                    raise RefusalError(409, conflict, detail=f"Property {name} does not exist.")
            else:
                image.properties[name] = change["value"]
        image.updated = time.time()
        return Answer(200, describe(image))


def _delete(call: Call) -> Answer:
    with call.cloud.lock:
        if call.args["id"] not in {image.id for image in visible(call)}:
            raise not_found(f"Failed to find image {call.args['id']} to delete")
        image = _own(call, "delete_image")
        if image.protected:
            raise RefusalError(403, f"Image {image.id} is protected and cannot be deleted.")
        call.cloud.delete_image(image)
    return Answer(204)


def _add_tag(call: Call) -> Answer:
    with call.cloud.lock:
        tags = _own(call, "modify_image").tags
        tags.extend({call.args["tag"]} - set(tags))
    return Answer(204)


def _drop_tag(call: Call) -> Answer:
    with call.cloud.lock:
        tags = _own(call, "modify_image").tags
        if call.args["tag"] not in tags:
            raise not_found(f"No tag found with name {call.args['tag']}")
        tags.remove(call.args["tag"])
    return Answer(204)


def _import_info(_call: Call) -> Answer:
    return Answer(200, {"import-methods": {"description": "Import methods available.", "type": "array", "value": []}})


def _schema(_call: Call) -> Answer:
    properties = {name: {"type": "string"} for name in (*FIELDS, *READ_ONLY)}
    return Answer(200, {"name": "image", "properties": properties})


ROUTES = Routes(
    [
        ("GET", "/", _versions),
        ("GET", "/versions", _versions),
        ("GET", "/images", _list),
        ("POST", "/images", _create),
        ("GET", "/images/{id}", _show),
        ("PATCH", "/images/{id}", _update),
        ("DELETE", "/images/{id}", _delete),
        ("PUT", "/images/{id}/file", _upload),
        ("PUT", "/images/{id}/tags/{tag}", _add_tag),
        ("DELETE", "/images/{id}/tags/{tag}", _drop_tag),
        ("GET", "/info/import", _import_info),
        ("GET", "/schemas/image", _schema),
    ],
    public=("/", "/versions"),
)
