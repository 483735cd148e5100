"""What the routes of OpenAI's files API take and give."""

from __future__ import annotations

from llm_runner_router.surfaces import files_routes
from llm_runner_router.surfaces.openapi.operation import (
    READS,
    TAKES,
    Api,
    Operation,
    Parameter,
    path,
    query,
)
from llm_runner_router.surfaces.openapi.schemas import (
    INTEGER,
    TEXT,
    TRUTH,
    Schema,
    listed,
    nullable,
    shape,
)

from .openai import ERROR

_SECONDS: Schema = {
    **INTEGER,
    "minimum": files_routes.SHORTEST,
    "maximum": files_routes.LONGEST,
}
_FORM: Schema = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"enum": list(files_routes.PUT)},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": _SECONDS,
    },
    "required": ["file", "purpose"],
}
_FILE = shape(
    {"expires_at": nullable("integer")},
    id=TEXT,
    object={"const": "file"},
    bytes=INTEGER,
    created_at=INTEGER,
    filename=TEXT,
    purpose=TEXT,
    status={"const": "processed"},
)
_ID = path("file_id", "The id of a file made with the same key.")


def paging(most: int, default: int) -> tuple[Parameter, ...]:
    """The parameters of a list."""
    return (
        query(
            "limit",
            {**INTEGER, "minimum": 1, "maximum": most, "default": default},
            "Objects on a page.",
        ),
        query("after", TEXT, "The id of the last object of the page before."),
    )


def pages(item: Schema) -> Schema:
    """A page of a list."""
    ends = {"first_id": nullable("string"), "last_id": nullable("string")}
    return shape(ends, object={"const": "list"}, data=listed(item), has_more=TRUTH)


API = Api(
    name="OpenAI files",
    order=3,
    description="Files that are kept for a time, for whoever has the key they were made with.",
    error=ERROR,
    operations=(
        Operation(
            method="POST",
            path="/v1/files",
            summary="Put a file here",
            body=_FORM,
            body_media="multipart/form-data",
            answer=_FILE,
            failures=TAKES,
        ),
        Operation(
            method="GET",
            path="/v1/files",
            summary="List the files",
            answer=pages(_FILE),
            params=(
                *paging(files_routes.PAGE, files_routes.PAGE),
                query("order", {"enum": ["asc", "desc"]}, "The newest first (`desc`) or last."),
                query("purpose", TEXT, "Only files with this purpose."),
            ),
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/v1/files/{file_id}",
            summary="Show one file",
            answer=_FILE,
            params=(_ID,),
            failures=READS,
        ),
        Operation(
            method="DELETE",
            path="/v1/files/{file_id}",
            summary="Delete a file",
            answer=shape(id=TEXT, object={"const": "file"}, deleted={"const": True}),
            params=(_ID,),
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/v1/files/{file_id}/content",
            summary="Read a file",
            answer={"type": "string", "contentMediaType": "application/octet-stream"},
            media="application/octet-stream",
            params=(_ID,),
            failures=READS,
        ),
    ),
)
