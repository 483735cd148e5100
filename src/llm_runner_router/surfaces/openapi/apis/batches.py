"""What the routes of OpenAI's batches API take and give."""

from __future__ import annotations

from llm_runner_router.policy.batches import Batch
from llm_runner_router.surfaces import batches_routes, files_routes
from llm_runner_router.surfaces.batch_answer import ENDPOINTS
from llm_runner_router.surfaces.openapi.operation import READS, TAKES, Api, Operation, path
from llm_runner_router.surfaces.openapi.schemas import (
    INTEGER,
    OBJECT,
    TEXT,
    Schema,
    nullable,
    shape,
)

from .files import pages, paging
from .openai import ERROR

_TIMES = {name: nullable("integer") for name in Batch.__struct_fields__ if name.endswith("_at")}
_BATCH = shape(
    {
        **_TIMES,
        "errors": {"type": ["object", "null"]},
        "metadata": {"type": ["object", "null"]},
        "output_file_id": nullable("string"),
        "error_file_id": nullable("string"),
    },
    id=TEXT,
    object={"const": "batch"},
    endpoint=TEXT,
    input_file_id=TEXT,
    completion_window=TEXT,
    status=TEXT,
    request_counts=OBJECT,
)
_ID = path("batch_id", "The id of a batch made with the same key.")
_FIELDS: dict[str, Schema] = {
    "input_file_id": {"description": "A file with the purpose `batch`: one request on a line."},
    "endpoint": {"enum": list(ENDPOINTS)},
    "completion_window": {
        "pattern": batches_routes.WINDOW,
        "description": "When what is not answered expires, up to `30d`.",
    },
    "metadata": {"description": f"Up to {batches_routes.MAX_PAIRS} pairs, which come back."},
    "output_expires_after": {
        "type": ["object", "null"],
        "properties": {
            "anchor": {"const": "created_at"},
            "seconds": {
                **INTEGER,
                "minimum": files_routes.SHORTEST,
                "maximum": files_routes.LONGEST,
            },
        },
        "required": ["anchor", "seconds"],
    },
}

API = Api(
    name="OpenAI batches",
    order=4,
    description="Many requests in a file, answered into another one when nothing else is going on.",
    error=ERROR,
    operations=(
        Operation(
            method="POST",
            path="/v1/batches",
            summary="Begin a batch",
            body=batches_routes._Body,
            example={
                "input_file_id": "file-abc",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            },
            fields=_FIELDS,
            answer=_BATCH,
            failures=TAKES,
        ),
        Operation(
            method="GET",
            path="/v1/batches",
            summary="List the batches",
            answer=pages(_BATCH),
            params=paging(batches_routes.MAX_PAGE, batches_routes.PAGE),
            failures=READS,
        ),
        Operation(
            method="GET",
            path="/v1/batches/{batch_id}",
            summary="Show one batch",
            answer=_BATCH,
            params=(_ID,),
            failures=READS,
        ),
        Operation(
            method="POST",
            path="/v1/batches/{batch_id}/cancel",
            summary="End a batch; what is answered stays",
            answer=_BATCH,
            params=(_ID,),
            failures=READS,
        ),
    ),
)
