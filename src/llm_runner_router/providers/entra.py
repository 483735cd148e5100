"""Tokens of Microsoft Entra for Azure's hosts, where no API key is set.

Knows: the client-credentials grant of Microsoft's identity platform 2.0, with a secret or with the
token that a Kubernetes cluster gives its pods; the variables that Azure's own tools read. Does not
know: dialects, targets.

A token is fetched when it is first needed, kept, and renewed before it ends; while a new one cannot
be had, the old one serves to its end.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Struct

from llm_runner_router.errors import (
    BadResponse,
    DeadlineExceeded,
    RunnerError,
    UpstreamRefused,
    UpstreamTimeout,
)

from .dialects.openai_errors import parse_error, shorten
from .http import HttpClient, Response, Timeouts

AUTHORITY = "https://login.microsoftonline.com"
"""Who gives tokens, unless `AZURE_AUTHORITY_HOST` names another one."""
SCOPES = {
    ".azure.us": "https://cognitiveservices.azure.us/.default",
    ".azure.cn": "https://cognitiveservices.azure.cn/.default",
}
"""What tokens are for in other clouds, by the end of the host's name."""
SCOPE = "https://cognitiveservices.azure.com/.default"
EARLY = 300.0
"""Seconds before its end from which on a token is renewed."""
SECONDS = 30.0
"""How long getting one may take."""
MAX_BODY = 64 * 1024
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_HINT = (
    "set AZURE_OPENAI_API_KEY, or AZURE_TENANT_ID and AZURE_CLIENT_ID with AZURE_CLIENT_SECRET or"
    " AZURE_FEDERATED_TOKEN_FILE"
)


class _Told(Struct):
    access_token: str
    expires_in: float


class _Refusal(Struct):
    error: str = ""
    error_description: str = ""


class Entra:
    """Says in a header who asks; see `remote.Signer`.

    Args:
        base_url: of the host that is asked; its name says which cloud it is in.
        client: for asking for tokens.
        environ: where `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` and what proves them stand.
        clock: seconds that only go up, to know when a token ends.
    """

    def __init__(
        self,
        base_url: str,
        client: HttpClient,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        host = urlsplit(base_url).hostname or ""
        self._scope = next((s for end, s in SCOPES.items() if host.endswith(end)), SCOPE)
        self._client = client
        self._environ = environ
        self._clock = clock
        self._token = ""
        self._ends = 0.0
        self._again = 0.0
        """When the next try to renew a token that still counts makes sense."""
        self._asking = asyncio.Lock()
        self.secrets: tuple[str, ...] = ()
        """What no message may repeat; known once a token was asked for."""

    async def sign(self, url: str, body: bytes, deadline: float | None) -> list[tuple[str, str]]:
        """The header for any request.

        Args:
            deadline: an instant of the loop's clock that bounds the wait.

        Raises:
            UpstreamRefused: there are no credentials, or they are refused.
            RunnerError: nobody answers who could give a token.
        """
        now = self._clock()
        if now >= self._ends or (now >= self._ends - EARLY and now >= self._again):
            await self._renew(deadline)
        return [("Authorization", f"Bearer {self._token}")]

    async def _renew(self, deadline: float | None) -> None:
        until = asyncio.get_running_loop().time() + SECONDS
        first = until if deadline is None else min(until, deadline)
        try:
            async with asyncio.timeout_at(first), self._asking:
                now = self._clock()
                if now < self._ends and (now < self._ends - EARLY or now < self._again):
                    return  # the one that was waited for has tried
                self._again = now + SECONDS
                await self._ask()
        except TimeoutError:
            if self._clock() < self._ends:
                return
            if first == deadline:
                raise DeadlineExceeded("the deadline passed before there was a token") from None
            raise UpstreamTimeout(f"no token of Microsoft Entra within {SECONDS:g} s") from None
        except RunnerError:
            if self._clock() >= self._ends:
                raise

    async def _ask(self) -> None:
        url, form = await self._question()
        now = self._clock()
        async with self._client.stream(
            "POST",
            url,
            headers=[("Content-Type", "application/x-www-form-urlencoded")],
            body=urlencode(form).encode(),
            timeouts=Timeouts(first_byte=SECONDS, idle=SECONDS),
        ) as response:
            data = await response.read(MAX_BODY)
        if response.status != 200:
            raise _refused(response, data)
        try:
            told = msgspec.json.decode(data, type=_Told)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Not chained: what was answered may hold a token.
            raise BadResponse("Microsoft Entra answered without a token") from None
        self._token, self._ends = told.access_token, now + told.expires_in
        self.secrets = (*self.secrets[-2:], told.access_token)

    async def _question(self) -> tuple[str, dict[str, str]]:
        """Where to ask, and what."""
        env = self._environ
        tenant, who = env.get("AZURE_TENANT_ID", ""), env.get("AZURE_CLIENT_ID", "")
        form = {"grant_type": "client_credentials", "client_id": who, "scope": self._scope}
        secret, file = env.get("AZURE_CLIENT_SECRET"), env.get("AZURE_FEDERATED_TOKEN_FILE")
        if not tenant or not who or not (secret or file):
            raise UpstreamRefused("there are no credentials for Azure", hint=_HINT)
        if secret:
            form["client_secret"] = secret
        else:
            try:
                secret = (await asyncio.to_thread(Path(file or "").read_text)).strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise UpstreamRefused(
                    f"the file in AZURE_FEDERATED_TOKEN_FILE cannot be read: {exc}", hint=_HINT
                ) from exc
            form |= {"client_assertion_type": _ASSERTION, "client_assertion": secret}
        self.secrets = (*self.secrets[-2:], secret)
        authority = env.get("AZURE_AUTHORITY_HOST") or AUTHORITY
        authority = authority if "://" in authority else f"https://{authority}"
        return f"{authority.rstrip('/')}/{quote(tenant, safe='')}/oauth2/v2.0/token", form


def _refused(response: Response, data: bytes) -> RunnerError:
    """Who is wrong about a refusal is whoever set the credentials, not the client."""
    status = response.status
    if status in (408, 429) or status >= 500:
        return parse_error(status, response.header, data, now=time.time())
    try:
        told = msgspec.json.decode(data, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = _Refusal()
    words = shorten(told.error_description or told.error or f"HTTP status {status}")
    error = UpstreamRefused(f"Microsoft Entra gives no token: {words}", hint=_HINT)
    error.upstream_status = status
    return error
