"""Habits of LiteLLM's clients: health, facts of models, keys."""

from __future__ import annotations

from llm_runner_router.surfaces import litellm_routes
from llm_runner_router.surfaces.openapi.operation import READS, Api, Operation, path, query
from llm_runner_router.surfaces.openapi.schemas import TEXT, shape

from .openai import ERROR

_VERB = path("verb", "For example `generate` or `info`.")
_NO_KEYS = "There is one key, and it is not managed here yet."

API = Api(
    name="LiteLLM",
    order=8,
    description="What clients and orchestrators of a LiteLLM proxy look for.",
    error=ERROR,
    operations=(
        Operation(
            method="GET",
            path="/health",
            summary="Which models answered lately, and which rest after failures",
            description="No model is asked for it.",
            answer=litellm_routes._Health,
            failures=READS,
        ),
        *(
            Operation(
                method="GET",
                path=f"/health/{word}",
                summary="Whether the server is up",
                answer={"const": "I'm alive!"},
                failures=(),
                public=True,
            )
            for word in ("liveliness", "liveness")
        ),
        Operation(
            method="GET",
            path="/health/readiness",
            summary="Whether the server takes requests",
            answer=shape(status={"const": "healthy"}, db=TEXT),
            failures=(),
            public=True,
        ),
        Operation(
            method="GET",
            path="/v1/model/info",
            summary="The deployments behind each model, without secrets",
            answer=litellm_routes._Rows,
            params=(query("litellm_model_id", TEXT, "Only the deployment with this id."),),
            failures=READS,
        ),
        *(
            Operation(
                method=method,
                path="/key/{verb}",
                summary="Not here yet: keys",
                description=_NO_KEYS,
                params=(_VERB,),
                failures=READS,
                refused=True,
            )
            for method in ("GET", "POST")
        ),
    ),
)
