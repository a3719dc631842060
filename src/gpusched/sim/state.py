"""Records the kernels work on: one a request, one an engine, one a cached prefix block.

An *engine* is one lane of one replica: a batch of its own with KV blocks of its own. Under
data-parallel attention each unit is one, and those that step together follow one another.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ABSENT, WAITING, PREFILL, DECODE, TRANSFER, DONE, REJECTED, PAUSED, HELD, SHIPPING = range(10)
"""States of a request. ``ABSENT``: not arrived; ``PAUSED``: keeps its KV cache but takes no step;
``HELD``: not yet given to an engine; ``SHIPPING``: its history is on the way to a prefill engine."""

MIXED, PREFILL_ONLY, DECODE_ONLY = range(3)
"""Roles."""

NONE = -1
"""End of a linked list."""

REQUEST_BITS = 32
"""Heap keys are ``step << REQUEST_BITS | request``: ties go to the lower request."""
REQUEST_MASK = (1 << REQUEST_BITS) - 1

RANK, ADMITS, SCORE, HOLD = range(4)
"""A user's functions: rows of ``parameters``; one more is the value of ``FAULT``."""

THRASHING, HELD_FOREVER = 5, 6
"""Values of ``FAULT`` when a request is evicted, or held before any engine, without end."""

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("admitted_s", "f8"),
        ("first_s", "f8"),
        ("last_s", "f8"),  # when the latest token came that left the steady rhythm of its batch
        (
            "finish_step",
            "i8",
        ),  # step of its engine at which a decoding request gives its last token
        ("prompt", "i4"),
        ("output", "i4"),
        ("produced", "i4"),  # output tokens given, up to date unless decoding
        ("computed", "i4"),  # KV tokens held, up to date unless decoding
        ("shared", "i4"),  # leading prefix blocks held in the cache's name
        ("stored", "i4"),  # prompt tokens that a store outside the engines holds
        ("cached", "i4"),  # prompt tokens found in the cache or store at first admission
        ("preemptions", "i4"),
        ("holds", "i4"),  # times that admission has put it off, or passed it over
        ("engine", "i4"),
        ("destination", "i4"),  # engine that a transfer goes to
        ("next", "i4"),  # neighbours in the queue or in the running list
        ("previous", "i4"),
        ("link", "i4"),  # child in the queue's heap, or follower in a group's list
        ("follower", "i4"),  # next round of the session
        ("session", "i4"),
        ("rank", "f8"),  # place in the queue, lower first
        ("predicted", "i4"),  # predicted output tokens
        ("planned_end", "i4"),  # iteration that a resident is predicted to end with
        ("planned_base", "i4"),  # its KV tokens in iteration x are planned_base + x
        ("priority", "i2"),
        ("group", "i2"),  # of predicted length, or of decode progress
        ("state", "i1"),
        ("gated", "b1"),  # counted among the prefills of its class
    ],
    align=True,
)

ENGINE = np.dtype(
    [
        # settings
        ("pool", "i8"),
        ("units", "i8"),  # engines that step together, this one included
        ("unit", "i8"),  # which of them it is
        ("timing", "i8"),
        ("role", "i8"),
        ("stepwise", "b1"),  # no leap over several chunks of a prompt
        ("forming", "i8"),  # these up to hold_s: see policies.batching.discipline
        ("order", "i8"),
        ("gate", "i8"),
        ("eviction", "i8"),
        ("preemptive", "b1"),
        ("reserve_prompt", "b1"),
        ("restart", "b1"),
        ("nested", "b1"),  # groups are of decode progress
        ("strict", "b1"),
        ("skip", "i8"),
        ("spare_blocks", "i8"),  # that admission leaves free
        ("limit_tokens", "i8"),  # of predicted KV use
        ("ageing_tokens_per_s", "f8"),
        ("quantum_tokens", "f8"),
        ("clear_probability", "f8"),
        ("groups", "i8"),
        ("hold_s", "f8"),
        ("kv_blocks", "i8"),
        ("block_shift", "i8"),  # log2 of the block size in tokens
        ("max_seqs", "i8"),
        ("max_batched_tokens", "i8"),
        ("prefix_blocks", "i8"),  # KV blocks per prefix block; 0 without prefix caching
        ("prefix_tokens", "i8"),
        # the leap under way
        ("start_s", "f8"),
        ("end_s", "f8"),
        ("steps", "i8"),
        ("first_s", "f8"),  # duration of its first step
        ("slope_s", "f8"),  # growth of the duration from step to step
        ("grown", "i8"),  # its steps for which the decodes have their blocks
        ("active", "i8"),  # requests that decode in it
        ("prefill_head", "i8"),  # first running request with a chunk in it
        ("chunk_tokens", "i8"),  # prompt tokens in each step
        ("finishing", "i8"),  # prompts that are computed with it
        ("work", "f8"),  # query-key pairs of its chunks
        ("window_work", "f8"),  # the same pairs inside the sliding window
        ("used_blocks", "i8"),  # KV blocks in use when it began
        ("open", "b1"),  # a new arrival could join at the end of the current step
        # running and waiting requests
        ("step", "i8"),
        ("running", "i8"),
        ("running_head", "i8"),
        ("running_tail", "i8"),
        ("waiting", "i8"),
        ("waiting_head", "i8"),
        ("waiting_tail", "i8"),
        ("blocked", "b1"),  # the gate, not memory or seats, kept the first one waiting
        ("blocked_chunks", "i8"),  # iterations its prompt would take
        ("hold_until_s", "f8"),  # when a held group may start without its threshold
        ("paused", "i8"),  # running requests that are held between groups
        ("residents", "i8"),  # size of ends and bases
        ("draws", "i8"),  # random decisions so far
        ("decoding", "i8"),
        ("context", "i8"),  # KV tokens of decoding requests
        ("window_context", "i8"),  # the same, each at most the sliding window
        ("growing", "i8"),  # decoding requests shorter than the window
        ("finishes", "i8"),  # size of the heap of finish steps
        ("crossings", "i8"),  # size of the heap of steps at which a request reaches the window
        ("fresh", "i8"),  # decoding requests whose latest token is not the batch's latest step
        ("last_decode_s", "f8"),  # when the other decoding requests got their latest token
        # KV blocks
        ("free", "i8"),  # blocks with nothing worth keeping
        ("evictable", "i8"),  # prefix blocks nobody holds, or KV blocks of histories likewise
        ("lru_head", "i8"),
        ("lru_tail", "i8"),
        # totals
        ("iterations", "i8"),
        ("busy_s", "f8"),
        ("prefill_busy_s", "f8"),
        ("prompt_tokens", "i8"),
        ("output_tokens", "i8"),
        ("peak_blocks", "i8"),
        ("send_free_s", "f8"),
        ("receive_free_s", "f8"),
    ],
    align=True,
)

CACHED_BLOCK = np.dtype([("holders", "i4"), ("previous", "i4"), ("next", "i4")])
"""A prefix block on one engine: ``holders`` is -1 if absent, 0 if only cached."""

TIMING_SCALARS = np.dtype(
    [
        ("context_s", "f8"),
        ("window_context_s", "f8"),
        ("decode_fixed_s", "f8"),
        ("prefill_fixed_s", "f8"),
        ("work_s", "f8"),
        ("window_work_s", "f8"),
        ("window", "i8"),
        ("max_tokens", "i8"),
        ("max_group_tokens", "i8"),
    ]
)


FRONT = np.dtype(
    [
        ("tick_s", "f8"),  # when to look at held requests again
        ("head", "i8"),  # held requests, linked through ``next``
        ("tail", "i8"),
        ("held", "i8"),
        ("held_tokens", "i8"),
        # staggered release
        ("lowest_s", "f8"),
        ("network_s", "f8"),
        ("prior_s", "f8"),
        ("age_limit", "i8"),
        ("last_release_s", "f8"),
        ("passes", "i8"),
        ("unloaded", "b1"),
        # gates
        ("gate", "i8"),
        ("burst", "f8"),
        ("accrued_s", "f8"),
    ],
    align=True,
)
"""Requests held before any engine; one record."""


class Window(NamedTuple):
    """Room to pack held requests onto the units of an engine; the first index is a place."""

    requests: NDArray[np.int64]
    order: NDArray[np.int64]
    lengths: NDArray[np.int64]
    ages: NDArray[np.int64]
    assigned: NDArray[np.int64]
    hits: NDArray[np.int64]
    """Cached tokens, shape (places, engines)."""
    room: NDArray[np.int64]
    """Tokens that each engine can take into its next pass."""
    passes_s: NDArray[np.float64]
    """Ring of the latest passes' times, shape (1, passes)."""
    reported_s: NDArray[np.float64]
    """When each engine's last pass ended."""


class Classes(NamedTuple):
    """Held requests by class, and the plan of a gate; an entry a class."""

    heads: NDArray[np.int64]
    tails: NDArray[np.int64]
    waiting: NDArray[np.int64]
    arrival_s: NDArray[np.float64]
    """Of each class's first request."""
    targets: NDArray[np.float64]
    queue_targets: NDArray[np.float64]
    metered: NDArray[np.bool_]
    credits: NDArray[np.float64]
    rates_rps: NDArray[np.float64]
    priorities: NDArray[np.float64]


SESSION = np.dtype(
    [
        ("worker", "i4"),  # decode engine that the session is bound to, or -1
        ("tokens", "i4"),  # KV tokens of its history kept there
        ("blocks", "i4"),
        ("counted", "i4"),  # its part of the worker's ``bound_tokens``
        ("older", "i4"),  # neighbours in order of last use, where nobody holds the history
        ("newer", "i4"),
    ],
    align=True,
)

WORKER = np.dtype(
    [
        ("oldest", "i8"),  # sessions whose history may be evicted, in order of last use
        ("newest", "i8"),
        ("bound_tokens", "i8"),  # contexts of the sessions bound to a decode engine
        ("queued", "i8"),  # prefills queued or running, and their predicted time
        ("queue_s", "f8"),
        ("evictions", "i8"),
        ("observed", "i8"),  # steps of the leap under way whose tokens are in the window
        ("window", "i8"),  # prompts looked at by on-time batching; 0 for other disciplines
        ("ttft_s", "f8"),  # their deadline
    ],
    align=True,
)

ROUND_SETTINGS = np.dtype(
    [
        ("keeps", "b1"),  # histories stay on decode engines
        ("rule", "i8"),
        ("alpha", "f8"),
        ("beta", "f8"),
        ("ttft_s", "f8"),
        ("itl_s", "f8"),
        ("window_s", "f8"),
    ],
    align=True,
)


class Rounds(NamedTuple):
    """Sessions whose rounds are placed one by one: see ``sim.rounds``."""

    settings: NDArray[np.void]
    """One record."""
    sessions: NDArray[np.void]
    workers: NDArray[np.void]
    """A record an engine."""
    continues: NDArray[np.bool_]
    """Requests whose prompt begins with all of the round before, of which some KV cache was kept."""
    relied: NDArray[np.int32]
    """KV tokens that a request counts on finding on its decode engine."""
    predicted_s: NDArray[np.float64]
    """Predicted time of each request's prefill while it is queued."""
    history: NDArray[np.int32]
    """KV tokens of history that each round found when it was placed."""
    branch: NDArray[np.int8]
    """Branch that placed it: see ``policies.routing.adaptive``."""
    evicted: NDArray[np.bool_]
    """Rounds whose history was evicted before they could use it."""
    totals_s: NDArray[np.float64]
    """Windows of TTFT on prefill engines and of ITL on decode engines, shape (engines, slots)."""
    counts: NDArray[np.int64]
    slots: NDArray[np.int64]
    remote_s: NDArray[np.float64]
    """Room for a number an engine."""
    candidates: NDArray[np.int64]
    """Room for on-time batching."""
    durations_s: NDArray[np.float64]
    deadlines_s: NDArray[np.float64]
    passed: NDArray[np.int64]
    elapsed_s: NDArray[np.float64]
    on_time: NDArray[np.int64]
    completions_s: NDArray[np.float64]


class State(NamedTuple):
    """Everything the kernels read and write."""

    requests: NDArray[np.void]
    engines: NDArray[np.void]
    finishes: NDArray[np.int64]
    """Heap of finish steps per engine, shape (engines, max sequences)."""
    crossings: NDArray[np.int64]
    """Heap of window-crossing steps per engine."""
    phases: NDArray[np.int64]
    """Decoding requests by (KV tokens - step) modulo the block size, per engine."""
    fresh: NDArray[np.int32]
    """Requests counted by ``fresh``, per engine."""
    ends: NDArray[np.int64]
    """Predicted last iterations of the running requests in ascending order, per engine."""
    bases: NDArray[np.int64]
    """Beside ``ends``: KV tokens less iteration."""
    group_heads: NDArray[np.int64]
    """Lists of held requests, shape (engines, groups)."""
    group_tails: NDArray[np.int64]
    group_counts: NDArray[np.int64]
    """Requests held in each list."""
    group_sizes: NDArray[np.int64]
    """Running requests of each group, held ones aside."""
    group_ends: NDArray[np.int64]
    """Largest output length, or decode progress, of each group."""
    group_thresholds: NDArray[np.int64]
    """Requests with which a group starts."""
    group_caps: NDArray[np.int64]
    """Running requests of a group at most."""
    cache: NDArray[np.void]
    """Prefix blocks, shape (engines, distinct blocks)."""
    prefix_offsets: NDArray[np.int64]
    prefix_ids: NDArray[np.int32]
    scalars: NDArray[np.void]
    """Timing constants, one record a timing."""
    tokens_s: NDArray[np.float64]
    decode_s: NDArray[np.float64]
    logits_s: NDArray[np.float64]
    experts_s: NDArray[np.float64]
    """Timing tables, one row a timing."""
    gap_counts: NDArray[np.int64]
    gap_totals: NDArray[np.void]
    kv_series: NDArray[np.float64]
    """Blocks in use integrated over time, shape (pools, bins)."""
    series_width_s: NDArray[np.float64]
    """Width of a bin, shape (1,); doubles whenever time outruns the series."""
    load_requests: NDArray[np.int64]
    load_tokens: NDArray[np.int64]
    """What routers see: requests and expected tokens outstanding on each engine."""
    ready_s: NDArray[np.float64]
    """When each engine has started up."""
    owners: NDArray[np.int32]
    """Router's prefix index: engine that last took a request with this block, or -1."""
    session_owners: NDArray[np.int32]
    """Engine that took each session's last round, or -1; empty without sessions."""
    think_s: NDArray[np.float64]
    """Delay before each later round; empty without sessions."""
    front: NDArray[np.void] | None
    window: Window | None
    classes: Classes | None
    """Where ``coupled``."""
    class_prefills: NDArray[np.int64]
    """Prefills in service that a gate let in, by class."""
    scratch: NDArray[np.float64]
    """Room for a number an engine."""
    by_tokens: NDArray[np.int64]
    """Engines, sorted by load as far as the last placement left them."""
    timers_s: NDArray[np.float64]
    """When each engine's leap ends: leaves of ``winners``."""
    winners: NDArray[np.int64]
    """Tournament tree over ``timers_s``; ``winners[1]`` is the engine that ends first."""
    pending_s: NDArray[np.float64]
    pending: NDArray[np.int32]
    """Heap of arrivals made by the simulation: rounds, transfers, closed-loop users."""
    counters: NDArray[np.int64]
    """See the indices below."""
    rank: Any
    """A user's functions, compiled: see ``policies.custom``."""
    admits: Any
    score: Any
    hold: Any
    parameters: NDArray[np.float64]
    """Their parameters, a row each."""
    coupled: bool | None
    """None where every engine steps for itself and admission holds no request: the compiler then
    leaves out what only other fleets need."""
    rounds: Rounds | None
    """None where no round of a session needs a place of its own and prompts go in order."""


class Router(NamedTuple):
    """A routing policy's settings: see ``policies.routing.policy``."""

    kind: int
    slack_requests: float
    factor: float
    outlier_factor: float


class Rules(NamedTuple):
    """What stays fixed during a run."""

    routing: Router
    decode_routing: Router
    admission: int
    seed: int
    entry_engines: int
    """Engines ``0 .. entry_engines - 1`` take arrivals; those after them only decode."""
    expected_output_tokens: int
    closed_loop: int
    """Whether an answer lets the next row of the trace arrive."""
    closed_loop_think_s: float
    link_latency_s: float
    link_token_s: float


PENDING, REMAINING, NEXT_ROW, TURN, DECODE_TURN, FAULT, FAULTY, N_COUNTERS = range(8)
"""Indices into ``counters``: size of the pending heap, requests not yet done, next row of the
trace to issue, the two routers' decisions so far, and which of a user's functions failed (see
``policies.custom``) on which request."""
