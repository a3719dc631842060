"""A model behind an OpenAI-compatible endpoint, asked asynchronously."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from gpusched.errors import GpuschedError, InputError

Messages = Sequence[Mapping[str, Any]]


class EndpointError(GpuschedError):
    """An endpoint gave no usable completion."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of the endpoint's answer, where it was not 200."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion."""

    message: Mapping[str, Any]
    """``content``, ``role`` and perhaps ``tool_calls``."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    top_logprobs: tuple[Mapping[str, Any], ...] = ()
    """Of the first token, where asked for: each ``{token, logprob}``."""
    mean_logprob: float | None = None
    """Of the answer's tokens, where asked for."""

    @property
    def text(self) -> str:
        """The message's text, empty for none."""
        content = self.message.get("content")
        return content if isinstance(content, str) else ""


class Model(Protocol):
    """Whatever completes a chat; cancelling the call must stop the work."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    async def complete(self, messages: Messages, **options: Any) -> Sample:
        """Return one completion.

        Raises:
            EndpointError: there is none.
        """
        ...


@dataclass
class Endpoint:
    """A model of a server that speaks OpenAI's chat completions; an async context manager.

    A cancelled call closes its connection, on which vLLM and most servers abort the request.
    Needs the extra ``sampling``.
    """

    url: str
    """Up to and including the version, such as ``http://127.0.0.1:8000/v1``."""
    model: str
    api_key: str | None = None
    timeout_s: float = 600.0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Sent with every request, such as ``temperature``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request, beside the key."""
    connector: Any = None
    """Connections shared with other endpoints (an aiohttp connector); left open on exit."""
    _session: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"url: must start with http:// or https://, got {self.url!r}")
        if not self.timeout_s > 0:
            raise InputError(f"timeout_s: must be positive, got {self.timeout_s}")

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> Any:
        if self._session is None:
            try:
                import aiohttp
            except ImportError:
                raise InputError(
                    "asking endpoints needs aiohttp: pip install 'gpusched[sampling]'"
                ) from None
            key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
            self._session = aiohttp.ClientSession(
                headers={**key, **self.headers},
                timeout=aiohttp.ClientTimeout(total=self.timeout_s),
                connector=self.connector or aiohttp.TCPConnector(limit=0),
                connector_owner=self.connector is None,
            )
        return self._session

    async def complete(self, messages: Messages, **options: Any) -> Sample:
        """Return one completion of a chat; ``options`` go into the request.

        Raises:
            EndpointError: no connection, a status other than 200, too late, or no completion.
        """
        session = self._open()
        import aiohttp

        body = {"model": self.model, "messages": list(messages), **self.options, **options}
        address = self.url.rstrip("/") + "/chat/completions"
        try:
            async with session.post(address, json=body) as response:
                if response.status != 200:
                    said = (await response.text())[:200]
                    problem = f"{address}: status {response.status}: {said}"
                    raise EndpointError(problem, response.status)
                return _sample(await response.json(content_type=None), address)
        except TimeoutError:
            raise EndpointError(f"{address}: no answer within {self.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise EndpointError(f"{address}: {type(error).__name__}: {error}") from None
        except ValueError as error:
            raise EndpointError(f"{address}: not a chat completion ({error})") from None


def _sample(document: Any, address: str) -> Sample:
    try:
        choice = document["choices"][0]
        message = choice["message"]
        usage = document.get("usage") or {}
        tokens = (choice.get("logprobs") or {}).get("content") or [{}]
        given = [float(token["logprob"]) for token in tokens if "logprob" in token]
        return Sample(
            {"role": "assistant", **message},
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
            choice.get("finish_reason"),
            tuple(tokens[0].get("top_logprobs") or ()),
            sum(given) / len(given) if given else None,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(
            f"{address}: not a chat completion ({type(error).__name__}: {error})"
        ) from None
