"""Leaves of the tree: references become local or remote targets, each measured.

Knows: how a local model gets its runner and a remote one its host, key and price. Does not know:
strategies, or what holds around a whole answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from . import config_load, refs
from .app_tree import Entry
from .config import Config, Node, Provider, Secret
from .engine import adopted, llamacpp
from .engine.local import LocalTarget
from .engine.residency import Endpoint, Residency
from .engine.select import load_engine
from .errors import ConfigError, RunnerError, UnknownModel
from .home import find, stored_names
from .models.info import Adapter, LocalModel, templated
from .models.resolve import path_hint, resolve, zoo_names
from .policy.measure import Measure
from .providers import hosts
from .providers.http import HttpClient, Timeouts
from .providers.remote import RemoteTarget
from .strategies.stats import LiveStats
from .tokens import given
from .types import ModelCard


class AppLeaves:
    """See `app_tree.Leaves`."""

    def __init__(
        self,
        config: Config,
        *,
        residency: Residency,
        prepare: Callable[[LocalModel], Awaitable[LocalModel]],
        client: HttpClient,
        stats: LiveStats,
        clock: Callable[[], float],
        environ: Mapping[str, str],
        local_files: bool,
    ) -> None:
        self._config = config
        self._residency = residency
        self._prepare = prepare
        self._client = client
        self._stats = stats
        self._clock = clock
        self._environ = environ
        self._local_files = local_files
        self._zoo: tuple[str, ...] | None = None

    def names(self) -> Sequence[str]:
        """The demonstration models, when they are served."""
        if self._zoo is None:
            self._zoo = tuple(f"zoo:{n}" for n in zoo_names()) if self._config.zoo else ()
        return self._zoo

    def stored(self) -> Sequence[str]:
        """See `app_tree.Leaves`. Files that are kept by their paths are not offered by them."""
        names = stored_names(find(self._environ).models)
        return tuple(name for name in names if not name.startswith("file:"))

    def leaf(self, ref: refs.Ref, name: str, facts: Node) -> Entry:
        """See `app_tree.Leaves`."""
        if ref.kind == "provider":
            if facts.chat_template is not None:
                raise ConfigError(
                    f"models.{name}.chat_template: `{ref}` does not run here",
                    hint="remove it: a provider renders conversations itself",
                )
            return self._remote(ref, name, facts)
        if ref.kind == "file" and not self._local_files and not facts.target:
            raise UnknownModel(
                f"files are not served by name: {name[:200]!r}",
                hint="add it to `models:` in the configuration",
                param="model",
            )
        return self._local(ref, name, facts)

    def _local(self, ref: refs.Ref, name: str, facts: Node) -> Entry:
        model = resolve(ref, environ=self._environ, format=facts.format)
        if facts.quantization is not None:
            model = msgspec.structs.replace(model, name=name, quantization=facts.quantization)
        if facts.draft is not None:
            with _saying(f"the `draft` of `{name}`"):
                draft = resolve(refs.parse(facts.draft), environ=self._environ)
            # Under its own name: beside it, the same file may run without a draft.
            model = msgspec.structs.replace(model, name=name, draft=draft)
        if facts.adapters:
            model = self._with_adapters(name, model, facts)
        if facts.chat_template is not None:
            setting = f"models.{name}.chat_template"
            model = msgspec.structs.replace(
                templated(model, given.read(facts.chat_template, setting)), name=name
            )
        if facts.engine is not None:
            load_engine(facts.engine)  # a name that does not exist is told now
            # Under its own name: the same file may run on another engine beside it.
            model = msgspec.structs.replace(
                model, name=name, engine=facts.engine, options=dict(facts.options)
            )
        return self._run(name, model, facts)

    def _with_adapters(self, name: str, model: LocalModel, facts: Node) -> LocalModel:
        """`model` under its own name, on the engine that has adapters, with those of `facts`."""
        if facts.engine not in (None, llamacpp.NAME):
            raise ConfigError(
                f"`{name}` has `adapters`, which work on `{llamacpp.NAME}`, not on"
                f" `{facts.engine}`",
                hint="leave the engine out",
            )
        if model.info.task != "generate":
            raise ConfigError(
                f"`{name}` has `adapters`, which are for models that write; it is one to"
                f" {model.info.task}",
                hint="merge the adapter into the model",
            )
        found = []
        for adapter, text in facts.adapters.items():
            with _saying(f"the adapter `{adapter}` of `{name}`"):
                part = resolve(refs.parse(text), environ=self._environ, part="adapter")
            found.append(Adapter(adapter, part.path, part.info.bytes))
        return msgspec.structs.replace(
            model, name=name, engine=llamacpp.NAME, adapters=tuple(found)
        )

    def adapted(self, name: str, base: Entry, adapter: str) -> Entry:
        """See `app_tree.Leaves`."""
        model = base.model
        assert model is not None, "only local models have adapters"
        able = msgspec.structs.replace(base.card.capabilities, embeddings=False)
        card = msgspec.structs.replace(
            base.card,
            name=name,
            description=f"{base.card.name} with the LoRA adapter {adapter}",
            capabilities=able,
            # What was measured of the model itself says nothing of it.
            scores={},
            speed=None,
        )
        leaf = self._target(name, model, card, adapter)
        measured = Measure(leaf, self._stats, self._clock)
        kind = "model with an adapter"
        return Entry(card, measured, model=model, outlook=leaf.outlook, kind=kind)

    def adopted(self, name: str, node: Node) -> Entry:
        """See `app_tree.Leaves`."""
        adopt = node.adopt
        assert adopt is not None
        where = f"models.{name}.adopt"
        key = None
        if adopt.api_key is not None:
            key = config_load.secret(adopt.api_key, self._environ, f"{where}.api_key")
        env = {
            variable: config_load.secret(value, self._environ, f"{where}.env").reveal()
            for variable, value in adopt.env.items()
        }
        source = adopt.url or " ".join(adopt.command[:1])
        card = _card(ModelCard(name=name, local=True, source=f"adopted: {source}"), name, node)
        settings = msgspec.structs.replace(adopt, env=env)
        return self._run(name, adopted.model(name, settings, key, card), node)

    def _run(self, name: str, model: LocalModel, facts: Node) -> Entry:
        card = _card(model.card, name, facts)
        leaf = self._target(name, model, card)
        measured = Measure(leaf, self._stats, self._clock)
        return Entry(card, measured, leaf, leaf, model=model, outlook=leaf.outlook)

    def _target(
        self, name: str, model: LocalModel, card: ModelCard, adapter: str = ""
    ) -> LocalTarget:
        return LocalTarget(
            name,
            model,
            self._residency,
            lambda endpoint: self._connect(name, endpoint, card),
            price=card.price,
            prepare=self._prepare,
            adapter=adapter,
        )

    def _connect(self, name: str, endpoint: Endpoint, card: ModelCard) -> RemoteTarget:
        """A runner, seen as what it is: an OpenAI server at a private address."""
        return RemoteTarget(
            name=name,
            base_url=endpoint.base_url,
            api_key=Secret(endpoint.api_key),
            model=endpoint.model,
            client=self._client,
            price=card.price,
            local=True,
        )

    def _remote(self, ref: refs.Ref, name: str, facts: Node) -> Entry:
        assert ref.provider is not None, "kind `provider` has one"
        settings = self._config.providers.get(ref.provider)
        host = hosts.find((settings.host if settings else None) or ref.provider)
        if settings is None and (host is None or not self._has_key(host)):
            raise self._no_provider(ref, ref.provider, host)
        settings = settings or Provider()
        base_url = settings.base_url or (host.base_url if host else None)
        if base_url is None:
            raise ConfigError(
                f"provider `{ref.provider}` has no address",
                hint=f"set `providers.{ref.provider}.base_url`",
            )
        card = _card(hosts.card_for(host.name if host else ref.provider, ref.name), name, facts)
        leaf = RemoteTarget(
            name=name,
            base_url=base_url,
            api_key=self._key(ref.provider, settings, host),
            model=ref.name,
            client=self._client,
            host=host,
            price=card.price,
            timeouts=Timeouts(
                settings.connect_timeout, settings.first_token_timeout, settings.idle_timeout
            ),
            headers=self._headers(ref.provider, settings),
            max_output=card.max_output,
        )
        return Entry(card, Measure(leaf, self._stats, self._clock), leaf, leaf)

    def _has_key(self, host: hosts.Host) -> bool:
        return bool(host.key_env and self._environ.get(host.key_env))

    def _key(self, name: str, settings: Provider, host: hosts.Host | None) -> Secret | None:
        if settings.api_key is not None:
            where = f"providers.{name}.api_key"
            return config_load.secret(settings.api_key, self._environ, where)
        value = self._environ.get(host.key_env, "") if host and host.key_env else ""
        return Secret(value) if value else None

    def _headers(self, name: str, settings: Provider) -> dict[str, str]:
        where = f"providers.{name}.headers"
        return {
            key: config_load.secret(value, self._environ, where).reveal()
            for key, value in settings.headers.items()
        }

    def _no_provider(self, ref: refs.Ref, provider: str, host: hosts.Host | None) -> UnknownModel:
        if host is None:
            # Whoever may not name files is not told either which ones there are.
            path = path_hint(ref) if self._local_files else ""
            add = f"add `providers: {{{provider[:100]}: {{base_url: …}}}}` to the configuration"
            return UnknownModel(
                f"there is no provider `{provider[:100]}`", hint=path or add, param="model"
            )
        configure = f"`providers: {{{provider}: {{}}}}` in the configuration"
        return UnknownModel(
            f"provider `{provider}` is not set up",
            hint=f"set {host.key_env}, or {configure}" if host.key_env else f"put {configure}",
            param="model",
        )


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Put `what` before the message of an error that passes."""
    try:
        yield
    except RunnerError as exc:
        exc.message = f"{what}: {exc.message}"
        exc.args = (exc.message,)
        raise


def _card(card: ModelCard, name: str, facts: Node) -> ModelCard:
    """What is known, under the name it is served by; the configuration's facts win."""
    return msgspec.structs.replace(
        card,
        name=name,
        price=facts.price or card.price,
        context=facts.context or card.context,
        capabilities=facts.capabilities or card.capabilities,
        scores={**card.scores, **facts.scores},
        speed=facts.speed or card.speed,
    )
