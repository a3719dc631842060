"""Settings of one serving engine, under vLLM's flag names with underscores."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gpusched.domain.document import Section

Framework = Literal["vllm", "sglang", "trtllm"]


def policy_text(value: Any) -> Any:
    """Return a policy given as a mapping of ``name`` and parameters in its short form."""
    if isinstance(value, dict) and "name" in value:
        settings = (
            f"+{key}={str(v).lower() if isinstance(v, bool) else v}"
            for key, v in value.items()
            if key != "name"
        )
        return value["name"] + "".join(settings)
    return value


PolicyName = Annotated[str, BeforeValidator(policy_text)]
"""A policy with its parameters: ``name+parameter=value``, or a mapping of ``name`` and parameters;
``file.py:function`` is a user's own."""


class EngineSettings(Section):
    """How an engine forms its batches and keeps its KV cache."""

    framework: Framework = "vllm"
    """Whose measured efficiencies the timing model uses."""
    batching: PolicyName = "vllm"
    max_num_seqs: int = Field(default=256, ge=1, le=65536)
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=1_048_576)
    """Token budget of one iteration; the planner chooses if not given."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    block_size: int = Field(default=16, ge=1, le=1024)
    """Tokens of one KV block."""
    enable_prefix_caching: bool = True
    expert_imbalance: float | None = Field(default=None, ge=1, le=1000)
    """Work of the busiest rank over the mean, measured or planned, where experts are spread over ranks;
    what was fitted to engines if not given."""
    startup_s: float = Field(default=0.0, ge=0, le=1e6)
    """Time before an engine can take its first iteration."""

    @field_validator("block_size")
    @classmethod
    def _check_power_of_two(cls, tokens: int) -> int:
        if tokens & (tokens - 1):
            raise ValueError(f"must be a power of two, such as 16, got {tokens}")
        return tokens

    @model_validator(mode="after")
    def _check_budget(self) -> "EngineSettings":
        budget = self.max_num_batched_tokens
        if self.batching == "vllm" and budget is not None and budget < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({budget}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): every running request needs one token an iteration"
            )
        return self
