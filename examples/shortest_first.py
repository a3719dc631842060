"""A batching policy of one's own: shortest prompt first, answers already begun before that.

gpusched simulate examples/chat.yaml --batching examples/shortest_first.py:shortest_first
gpusched compare examples/chat.yaml --batching vllm,examples/shortest_first.py:shortest_first
"""


def shortest_first(request, engine, grace_tokens=0.0):
    """Rank of a waiting request: lower goes first."""
    if request.produced_tokens > 0:
        return 0.0
    return max(request.prompt_tokens - grace_tokens, 1.0)
