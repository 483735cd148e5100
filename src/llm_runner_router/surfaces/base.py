"""All that a surface sees of the product: the `Gateway`, its `Admin`, and `Reply`.

Knows: names, targets, model cards and calls, as protocols that `app.App` satisfies.
Does not know: how targets are built, any transport, any wire format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Raw, Struct

from llm_runner_router.policy.files import Files
from llm_runner_router.policy.stored import Responses
from llm_runner_router.types import (
    Call,
    Decision,
    Embedder,
    ModelCard,
    Origin,
    Request,
    Reranker,
    Target,
    Tokenized,
    TokenizeRequest,
    Trace,
    Usage,
)

if TYPE_CHECKING:
    from llm_runner_router.policy.batches import Batch

    from .batch_run import Wish


class FileFacts(Struct, frozen=True):
    """What the file of a local model says; the fields are those of `models.info.ModelInfo`."""

    format: str
    architecture: str
    parameters: int
    quantisation: str
    bytes: int
    context: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    chat_template: str | None
    task: str


class Described(Struct, frozen=True):
    """A served model, with what its file says where it runs here."""

    card: ModelCard
    info: FileFacts | None = None
    digest: str = ""
    """SHA-256 of its content in hexadecimal, where the store knows it."""
    modified: float = 0.0
    """Unix seconds; when it came here."""


class Deployment(Struct, frozen=True):
    """A single target behind a served name."""

    model: str
    """The name that clients ask for."""
    name: str
    """What the target is called here."""
    target: str
    """The reference it was made of."""
    card: ModelCard | None = None
    """None where it cannot be used."""
    problem: str = ""
    """Why it is not asked now; empty while it is well."""


class Loaded(Protocol):
    """A row of `Admin.ps`, as far as surfaces look into it."""

    name: str
    memory: int | None
    reserved: int
    context: int
    expires_in: float | None


class Watch(Protocol):
    """Someone who looks on while a model is brought; must not block."""

    def say(self, line: str) -> None:
        """A step, in a few words."""
        ...

    def begin(self, name: str, size: int | None, done: int) -> None:
        """A file starts, with `done` bytes of `size` there already."""
        ...

    def advance(self, name: str, count: int) -> None:
        """`count` more bytes are there."""
        ...

    def end(self, name: str) -> None:
        """The file is there and checked."""
        ...


class Shelf(Protocol):
    """The models on this machine, and how to change which there are."""

    def has(self, name: str) -> bool:
        """Whether the store has a model of that name."""
        ...

    async def pull(self, name: str, watch: Watch) -> str:
        """Bring a model here, and say what it is called now.

        Raises:
            RunnerError: it cannot be had.
        """
        ...

    async def copy(self, source: str, destination: str) -> None:
        """Give a stored model another name as well.

        Raises:
            UnknownModel, BadRequest
        """
        ...

    async def delete(self, name: str) -> None:
        """Forget a stored model.

        Raises:
            UnknownModel: there is no such stored model.
        """
        ...


class Admin(Protocol):
    """What an operator may ask. Everything returned can be encoded as JSON by `msgspec`."""

    def ps(self) -> Any:
        """The loaded models: memory, threads, queue, speed."""
        ...

    def status(self) -> Any:
        """Version, uptime, counts, the state of the record."""
        ...

    def records(self, limit: int) -> Sequence[Any]:
        """The newest request records, newest first, at most `limit`."""
        ...

    def explain(self, request: Request) -> Decision | None:
        """What would answer `request` and why, without asking anyone. None: nothing to choose.

        Raises:
            UnknownModel: no model of that name.
        """
        ...

    async def load(self, name: str) -> Any:
        """Load a local model and wait for it.

        Raises:
            UnknownModel, ModelFileError, LoadFailed
        """
        ...

    @property
    def shelf(self) -> Shelf:
        """The models on this machine."""
        ...

    def deployments(self) -> Sequence[Deployment]:
        """The single targets behind every listed name, name by name."""
        ...

    def described(self) -> Sequence[Described]:
        """Every served name that can be used."""
        ...

    def keep(self, name: str, seconds: float | None) -> None:
        """Unload a local model when it was idle for `seconds`; None: as configured.

        Raises:
            UnknownModel: no model of that name.
        """
        ...

    async def stop(self, name: str) -> Any:
        """Unload a local model.

        Raises:
            UnknownModel: no model of that name.
        """
        ...


class BatchDesk(Protocol):
    """Where batches are asked for. They belong to the key they were made with."""

    async def create(self, owner: str, wish: Wish) -> Batch:
        """Begin a batch.

        Raises:
            NotFound: there is no such file of `owner`'s.
            BadRequest: it is for something else, or no batches are run.
            Overloaded: too many are not done.
            Unavailable: another process runs the batches.
        """
        ...

    async def get(self, owner: str, id: str) -> Batch:
        """A batch as it is now.

        Raises:
            NotFound: there is none, or it is another's.
        """
        ...

    async def page(self, owner: str, after: str | None, limit: int) -> tuple[Sequence[Batch], bool]:
        """Up to `limit` batches, the newest first, and whether there are more.

        Raises:
            NotFound: there is none called `after`.
        """
        ...

    async def cancel(self, owner: str, id: str) -> Batch:
        """End a batch; what is answered stays.

        Raises:
            NotFound: there is none, or it is another's.
            BadRequest: it has ended.
        """
        ...


class Gateway(Protocol):
    """The product as a surface sees it."""

    @property
    def admin(self) -> Admin:
        """The operator's side."""
        ...

    @property
    def responses(self) -> Responses:
        """What clients may come back to."""
        ...

    @property
    def files(self) -> Files:
        """What clients put here."""
        ...

    @property
    def batches(self) -> BatchDesk:
        """Files of requests that are answered in their own time."""
        ...

    def authenticate(self, headers: Mapping[bytes, bytes]) -> str:
        """The name of the key in `headers` (names lower-case, values raw).

        Raises:
            Unauthenticated: no key, or a wrong one.
        """
        ...

    def target(self, model: str) -> Target:
        """What answers for `model`.

        Raises:
            UnknownModel: with the nearest names.
        """
        ...

    def embedder(self, model: str) -> Embedder:
        """What embeds for `model`.

        Raises:
            UnknownModel, Unsupported
        """
        ...

    def reranker(self, model: str) -> Reranker:
        """What reranks for `model`.

        Raises:
            UnknownModel, Unsupported
        """
        ...

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """The tokens of a text or a conversation, without loading the model.

        Raises:
            UnknownModel, Unsupported, BadRequest, ModelFileError
        """
        ...

    async def count(self, request: TokenizeRequest) -> tuple[int, bool]:
        """How many tokens a prompt has, and whether they were counted: some providers do not tell,
        and what they have is estimated.

        Raises:
            UnknownModel, BadRequest, ModelFileError
        """
        ...

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens by their names.

        Raises:
            UnknownModel, Unsupported, BadRequest, ModelFileError
        """
        ...

    def cards(self) -> Sequence[ModelCard]:
        """A card for every served name, virtual ones too."""
        ...

    def start_call(
        self,
        *,
        id: str | None = None,
        caller: str | None = None,
        session: str | None = None,
        timeout: float | None = None,
        traceparent: str | None = None,
    ) -> Call:
        """A `Call` that starts now; `timeout` is what the client asked for, in seconds."""
        ...


class Reply:
    """The head of one answer, filled in while it is encoded.

    `id` and `created` (Unix seconds) stay the same through a stream. `encode` notes what passes
    by, so that the transport can say it in headers and nobody parses twice.
    """

    __slots__ = ("created", "id", "origin", "timings", "trace", "usage")

    def __init__(self, id: str, created: int, trace: Trace | None = None) -> None:
        self.id = id
        self.created = created
        self.trace = trace or Trace()
        self.origin: Origin | None = None
        self.usage: Usage | None = None
        self.timings: Raw | None = None

    @property
    def cost(self) -> float | None:
        """US dollars, if it is known; see `Origin.cost`."""
        return None if self.origin is None else self.origin.cost(self.usage)
