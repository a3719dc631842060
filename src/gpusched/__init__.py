"""Operations research for generative-AI serving: plan, simulate and cost an LLM deployment."""

__version__ = "0.1.0"
