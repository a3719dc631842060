"""How many tokens a prompt has: by the model's tokenizer, or estimated and corrected by answers."""

from pathlib import Path
from typing import Any

from gpusched.errors import InputError

WHOLE_BYTES = 2048
"""Prompts up to this size are tokenised whole; of longer ones samples of this size in all."""
SAMPLES = 4
BYTES_PER_TOKEN = 4.0
"""Of English text, before any answer has told."""
_FORGETTING = 0.995
"""Weight of an answer against the next."""
_ENOUGH = 8


class TokenEstimate:
    """Tokens as an affine function of a prompt's bytes, by least squares over recent answers.

    The constant is what a chat template adds to each request.
    """

    def __init__(self, per_byte: float = 1.0 / BYTES_PER_TOKEN) -> None:
        self.per_byte = per_byte
        self.constant = 0.0
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def of(self, size_bytes: float) -> int:
        """Return the estimated tokens of a prompt, at least 1."""
        return max(round(self.constant + self.per_byte * size_bytes), 1)

    def learn(self, size_bytes: float, tokens: int) -> None:
        """Take in a prompt's size and its tokens by the engine's count."""
        f, x, y = _FORGETTING, float(size_bytes), float(tokens)
        self._n = f * self._n + 1.0
        self._x = f * self._x + x
        self._y = f * self._y + y
        self._xx = f * self._xx + x * x
        self._xy = f * self._xy + x * y
        if self._n < _ENOUGH or self._x <= 0.0:
            return
        spread = self._n * self._xx - self._x * self._x
        slope, constant = self._y / self._x, 0.0
        if spread > 1e-3 * self._n * self._xx:
            fitted = (self._n * self._xy - self._x * self._y) / spread
            level = (self._y - fitted * self._x) / self._n
            if fitted > 0.0 and level >= 0.0:
                slope, constant = fitted, level
        self.per_byte, self.constant = slope, constant


class PromptTokens:
    """Counts prompts.

    Args:
        tokenizer: path of a tokenizer.json, if there is one; it counts the text of messages, what a
            chat template adds is left out.

    Raises:
        InputError: the file cannot be read, or the library is missing.
    """

    def __init__(self, tokenizer: str | None = None) -> None:
        self._encode = None if tokenizer is None else _encoder(tokenizer)
        self.counts = self._encode is not None
        self.estimate = TokenEstimate()

    def of(self, text: str, size_bytes: int) -> int:
        """Return a prompt's tokens; ``size_bytes`` is the size of the text in UTF-8."""
        if self._encode is None:
            return self.estimate.of(size_bytes)
        return max(round(self._count(text, size_bytes)), 1)

    def learn(self, size_bytes: int, tokens: int) -> None:
        """Take in the engine's count of a prompt's tokens."""
        self.estimate.learn(size_bytes, tokens)

    def _count(self, text: str, size_bytes: int) -> float:
        assert self._encode is not None
        if size_bytes <= WHOLE_BYTES:
            return float(self._encode(text))
        length = len(text)
        part = max(WHOLE_BYTES * length // (size_bytes * SAMPLES), 1)
        step = (length - part) // (SAMPLES - 1)
        tokens = sum(self._encode(text[i * step : i * step + part]) for i in range(SAMPLES))
        return float(tokens) * length / (part * SAMPLES)


def _encoder(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("a tokenizer needs gpusched[gateway], which brings tokenizers") from None
    if not Path(path).is_file():
        raise InputError(f"gateway.tokenizer: no file {path}; give a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:
        raise InputError(f"gateway.tokenizer: {path} is no tokenizer.json ({error})") from None
    encode = tokenizer.encode
    return lambda text: len(encode(text, add_special_tokens=False))
