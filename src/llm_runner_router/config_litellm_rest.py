"""What of a LiteLLM configuration has no counterpart here, and what to do instead.

Knows: settings by name, each with what becomes of it. Does not know: how those that are carried
are carried (`config_litellm.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config_foreign import Notes, Outcome, texts
from .config_yaml import Path as Where

Fate = tuple[Outcome, str]

_DEFAULT: Fate = ("lost", "a model has no default parameters here: send it with each request")
_LIMIT: Fate = ("lost", "counts as a share of a group; as a limit it is not kept")
_CALLBACK: Fate = ("lost", "there are no callbacks; `records/` has one JSON line per request")
_DATABASE: Fate = ("lost", "there is no database: one key, and records in files")
_REDIS: Fate = ("lost", "nothing is shared between servers")
_OWN: Fate = ("moot", "concerns parts that are not here")
_LOG: Fate = ("moot", "the log has no such levels")
_CACHE: Fate = (
    "lost",
    "answers are kept in memory and only for requests that ask for it: `cache: true` in the body",
)
UNKNOWN: Fate = ("lost", "has no counterpart here")

PARAMS: dict[str, Fate | None] = {
    **dict.fromkeys(
        "model api_base base_url api_key api_version headers extra_headers organization timeout"
        " stream_timeout weight order custom_llm_provider litellm_credential_name"
        " aws_region_name".split()
    ),
    **dict.fromkeys(
        "input_cost_per_token output_cost_per_token cache_read_input_token_cost"
        " cache_creation_input_token_cost".split()
    ),
    "rpm": _LIMIT,
    "tpm": _LIMIT,
    "max_parallel_requests": ("lost", "`server.max_requests` bounds all models together"),
    "max_retries": ("lost", "a target is not asked twice; others of its group are"),
    "drop_params": ("moot", "what a provider cannot take is dropped and told"),
    "azure_ad_token": ("lost", "tokens of Entra are not made here: give an `api_key`"),
    **dict.fromkeys(
        "aws_access_key_id aws_secret_access_key aws_session_token aws_profile_name aws_role_name"
        " aws_session_name".split(),
        ("lost", "credentials of AWS are those of the process: set `AWS_…`, or give an `api_key`"),
    ),
    "tags": ("lost", "there is no routing by tags"),
    "mock_response": ("lost", "models answer themselves"),
    **dict.fromkeys(
        "temperature top_p top_k max_tokens max_completion_tokens seed stop presence_penalty"
        " frequency_penalty reasoning_effort thinking response_format tools tool_choice n"
        " logit_bias extra_body".split(),
        _DEFAULT,
    ),
}
"""`litellm_params`: what becomes of each; None: `config_litellm.py` carries it."""

INFO: dict[str, Fate | None] = {
    **dict.fromkeys(
        "id mode max_tokens max_input_tokens supported_environments supports_function_calling"
        " supports_response_schema supports_vision supports_audio_input input_cost_per_token"
        " output_cost_per_token cache_read_input_token_cost cache_creation_input_token_cost".split()
    ),
    "access_groups": ("lost", "one key, which may use every model"),
    "base_model": ("lost", "facts are looked up by the model's own name; say what differs here"),
    "max_output_tokens": ("lost", "known of the model, or not bounded"),
}
"""`model_info`; what is not named here is a remark that changes nothing."""

LIBRARY: dict[str, Fate | None] = {
    **dict.fromkeys(
        "num_retries request_timeout fallbacks default_fallbacks context_window_fallbacks"
        " content_policy_fallbacks".split()
    ),
    "drop_params": (
        "moot",
        "what a provider cannot take is dropped and told (`x-llmrr-fidelity`); `strict: true` in a"
        " request refuses instead",
    ),
    "modify_params": ("moot", "requests are fitted to a provider where that can be done honestly"),
    "cache": _CACHE,
    "cache_params": _CACHE,
    **dict.fromkeys(
        "callbacks success_callback failure_callback service_callback".split(), _CALLBACK
    ),
    "turn_off_message_logging": ("moot", "the record keeps no prompts unless `record.content`"),
    **dict.fromkeys("set_verbose json_logs debug telemetry suppress_debug_info".split(), _LOG),
    "allowed_fails": ("lost", "only `auto` rests a target that keeps failing"),
}
ROUTER: dict[str, Fate | None] = {
    **dict.fromkeys(
        "routing_strategy num_retries timeout model_group_alias fallbacks default_fallbacks"
        " context_window_fallbacks content_policy_fallbacks".split()
    ),
    **dict.fromkeys(
        "redis_host redis_password redis_port redis_url cache_responses".split(), _REDIS
    ),
    **dict.fromkeys(
        "allowed_fails cooldown_time allowed_fails_policy disable_cooldowns".split(),
        ("lost", "only `auto` rests a target that keeps failing, for a time of its own"),
    ),
    "retry_policy": ("lost", "an error that another target may better moves on, others do not"),
    "retry_after": ("lost", "what a provider says is passed on to the client"),
    "enable_pre_call_checks": ("lost", "only `auto` compares a prompt with the context before"),
    "enable_tag_filtering": ("lost", "there is no routing by tags"),
    "routing_strategy_args": ("lost", "objectives have no settings"),
    "set_verbose": _LOG,
}
GENERAL: dict[str, Fate | None] = {
    **dict.fromkeys("master_key global_max_parallel_requests max_request_size_mb".split()),
    **dict.fromkeys(
        "database_url database_connection_pool_limit database_connection_timeout store_model_in_db"
        " disable_spend_logs store_prompts_in_spend_logs".split(),
        _DATABASE,
    ),
    "alerting": ("lost", "nothing is sent elsewhere; the log and `llmrr ps` tell"),
    "alerting_threshold": ("lost", "nothing is sent elsewhere"),
    "max_parallel_requests": ("lost", "`server.max_requests` bounds all models together"),
    "background_health_checks": ("lost", "what fails is told by requests; nothing is asked before"),
    "health_check_interval": ("lost", "nothing is asked before there is a request"),
    "custom_auth": ("lost", "one key; a reverse proxy in front may ask for more"),
    "enable_jwt_auth": ("lost", "one key; a reverse proxy in front may ask for more"),
    "infer_model_from_keys": ("moot", "a host whose key is set is reached as `HOST/MODEL`"),
    "completion_model": ("lost", "each request names its model"),
    "disable_master_key_return": _OWN,
}
_CARRIED = frozenset(
    "model_list litellm_settings router_settings general_settings environment_variables"
    " credential_list".split()
)
_TOP: dict[str, Fate] = {
    "include": ("lost", "other files are not read: copy what they hold into this one"),
    "guardrails": ("lost", "there are no guardrails"),
    "mcp_servers": ("lost", "there are no MCP servers behind this one"),
    "callback_settings": _CALLBACK,
}


def params(given: Mapping[str, Any], at: Where, notes: Notes) -> None:
    """Note what of a `litellm_params` is not carried."""
    _each(given, PARAMS, at, notes, UNKNOWN)


def info(given: Mapping[str, Any], at: Where, notes: Notes) -> None:
    """Note what of a `model_info` is not carried."""
    _each(given, INFO, at, notes, ("moot", "a remark"))


def sections(raw: Mapping[str, Any], notes: Notes) -> None:
    """Note what of the sections is not carried."""
    for name, known in (
        ("litellm_settings", LIBRARY),
        ("router_settings", ROUTER),
        ("general_settings", GENERAL),
    ):
        _each(raw.get(name) or {}, known, (name,), notes, UNKNOWN)
    for name in raw:
        if name not in _CARRIED:
            outcome, text = _TOP.get(name, UNKNOWN)
            (notes.lost if outcome == "lost" else notes.moot)((name,), text)


def special_fallbacks(
    section: str, given: Mapping[str, Any], chains: Mapping[str, list[str]], notes: Notes
) -> None:
    """Note `context_window_fallbacks` and `content_policy_fallbacks`.

    A prompt that is too long moves on along `fallback` here, so what is named there too is carried.
    """
    for kind in ("context_window_fallbacks", "content_policy_fallbacks"):
        listed = given.get(kind)
        for index, pair in enumerate(listed if isinstance(listed, list) else ()):
            at: Where = (section, kind, index)
            for group, names in (pair if isinstance(pair, dict) else {}).items():
                if kind == "content_policy_fallbacks":
                    notes.lost((*at, group), "an answer that was refused for its content stays so")
                elif set(texts(names)) <= set(chains.get(group, ())):
                    notes.became((*at, group), "`fallback`, which also serves prompts too long")
                else:
                    notes.lost(
                        (*at, group),
                        "a prompt too long moves on along `fallbacks` only: name the model there",
                    )


def _each(
    given: Mapping[str, Any],
    known: Mapping[str, Fate | None],
    at: Where,
    notes: Notes,
    unknown: Fate,
) -> None:
    for name, value in given.items():
        fate = known.get(name, unknown)
        if fate is None or value is None:
            continue
        if value is False and fate[0] == "lost":
            fate = ("moot", "off there, and not here")
        (notes.lost if fate[0] == "lost" else notes.moot)((*at, name), fate[1])
