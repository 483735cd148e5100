"""Requests signed with AWS credentials: Signature Version 4, for hosts that want no key.

Knows: how the package `botocore` (the extra `bedrock`) finds credentials and signs; it does nothing
else here. Does not know: dialects, targets. The credentials are those of AWS's usual chain:
variables (`AWS_ACCESS_KEY_ID` …), `~/.aws`, a role of the machine or container.

Some of that chain asks the network, so signing happens in a thread.
"""

from __future__ import annotations

import asyncio
import os
import re
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from llm_runner_router.errors import ConfigError, DeadlineExceeded, UpstreamRefused, UpstreamTimeout

SERVICE = "bedrock"
"""As signatures name the service behind `bedrock-runtime`."""
SECONDS = 30.0
"""How long finding and renewing credentials may take; then the request fails."""
_REGION = re.compile(r"\bbedrock-runtime(?:-fips)?\.([a-z]{2,}(?:-[a-z0-9]+)+)\.")
_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")


class SigV4:
    """Signs requests to one base URL; see `remote.Signer`.

    Args:
        base_url: its host says the region, else `AWS_REGION` or the AWS configuration does.

    Raises:
        ConfigError: the extra is not installed.
    """

    def __init__(self, base_url: str) -> None:
        if find_spec("botocore") is None:
            raise ConfigError(
                "requests to Amazon Bedrock without an API key are signed by the package"
                " `botocore`, which is not installed",
                hint="pip install 'llm-runner-router[bedrock]', or set AWS_BEARER_TOKEN_BEDROCK",
            )
        self._region = region_of(base_url)
        self._credentials: Any = None
        self.secrets: tuple[str, ...] = ()
        """What no message may repeat; known once something was signed."""

    async def sign(self, url: str, body: bytes, deadline: float | None) -> list[tuple[str, str]]:
        """The headers for a `POST` of `body` as JSON to `url`.

        Args:
            deadline: an instant of the loop's clock that bounds the wait.

        Raises:
            UpstreamRefused: there are no credentials, or they cannot be renewed.
            ConfigError: no region is known.
            UpstreamTimeout, DeadlineExceeded: finding them took too long.
        """
        until = asyncio.get_running_loop().time() + SECONDS
        first = until if deadline is None else min(until, deadline)
        try:
            async with asyncio.timeout_at(first):
                return await asyncio.to_thread(self._sign, url, body)
        except TimeoutError:
            if first == deadline:
                raise DeadlineExceeded(
                    "the request's deadline passed before it was signed"
                ) from None
            raise UpstreamTimeout(f"no AWS credentials within {SECONDS:g} s") from None

    def _sign(self, url: str, body: bytes) -> list[tuple[str, str]]:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError

        try:
            if self._credentials is None:
                self._find()
            now = self._credentials.get_frozen_credentials()
        except BotoCoreError as exc:
            raise UpstreamRefused(
                f"no AWS credentials: {exc}", hint="`aws sts get-caller-identity` shows who you are"
            ) from exc
        found = (now.secret_key, now.token, now.access_key)
        self.secrets = tuple(secret for secret in found if secret)
        asked = AWSRequest("POST", url, {"Content-Type": "application/json"}, body)
        SigV4Auth(now, SERVICE, self._region).add_auth(asked)
        return [
            (name, str(value)) for name, value in asked.headers.items() if name != "Content-Type"
        ]

    def _find(self) -> None:
        """The credentials and the region, found once; the credentials renew themselves."""
        from botocore.session import Session

        session = Session()
        region = self._region or session.get_config_variable("region")
        if not region:
            raise ConfigError(
                "the AWS region is not known", hint="set AWS_REGION, or a base_url that names it"
            )
        credentials = session.get_credentials()
        if credentials is None:
            raise UpstreamRefused(
                "there are no AWS credentials",
                hint="set AWS_BEARER_TOKEN_BEDROCK, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        self._region, self._credentials = region, credentials


def region_of(base_url: str) -> str | None:
    """The region in the name of a host of AWS's, else that of the environment."""
    named = _REGION.search((urlsplit(base_url).hostname or "") + ".")
    if named is not None:
        return named[1]
    return next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), None)
