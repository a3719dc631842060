"""How long engines compute prompts: as the plan's timing model says, at the pace that is measured.

The plan may name a GPU that the engines do not run on, or none that is like them; first bytes say
how much slower or faster they are, and one factor corrects all predictions.
"""

from dataclasses import dataclass

from gpusched.domain.plan import Plan, PlannedPool
from gpusched.errors import GpuschedError
from gpusched.policies.admission.service import RequestClass, ServerModel
from gpusched.sim.deploy import fleet_for
from gpusched.sim.fleet import Pool
from gpusched.sim.front import full_pass_s

BUDGET_TOKENS = 2048
FIXED_S, TOKEN_S = 0.02, 1e-4
"""Of a pass over prompts, where the plan's timing model cannot tell."""
_SMOOTHING = 0.1
_MOST = 1e4


@dataclass(slots=True)
class EngineTimes:
    """Times of one kind of engine; a pass over ``n`` prompt tokens takes ``fixed_s + n token_s``,
    times the ``pace``."""

    fixed_s: float
    token_s: float
    chunk_tokens: int
    """Prompt tokens of one pass at most."""
    pool: Pool | None = None
    """As the simulator has it; None where the plan's timing model cannot tell."""
    seats: int = 256
    pace: float = 1.0
    measured: int = 0

    def prefill_s(self, prompt_tokens: int) -> float:
        """Return the time of a prompt alone on an engine, at the measured pace."""
        return self.pace * self._planned_s(prompt_tokens)

    def learn(self, prompt_tokens: int, seconds: float) -> None:
        """Take in the measured time of a prompt."""
        ratio = min(max(seconds / self._planned_s(prompt_tokens), 1.0 / _MOST), _MOST)
        # The first measurements count as an average, later ones by smoothing.
        weight = max(1.0 / (self.measured + 1), _SMOOTHING)
        self.pace = ratio if self.measured == 0 else self.pace * (ratio / self.pace) ** weight
        self.measured += 1

    def server(self, classes: list[RequestClass]) -> ServerModel:
        """Return the model of one replica for a mix of classes, at the measured pace."""
        if self.pool is not None:
            longest = max(c.prompt_tokens + c.output_tokens for c in classes)
            kv_tokens = max(self.pool.kv_blocks * self.pool.block_tokens, longest)
            plain = ServerModel.of_timing(
                self.pool.timing, classes, float(kv_tokens),
                chunk_tokens=self.chunk_tokens, max_num_seqs=self.seats,
            )  # fmt: skip
        else:
            plain = ServerModel(
                self.seats, self.chunk_tokens, self.fixed_s, self.token_s, self.fixed_s,
                whole_chunks=True,
            )  # fmt: skip
        return ServerModel(
            plain.streams, plain.chunk_tokens, self.pace * plain.mixed_fixed_s,
            self.pace * plain.token_s, self.pace * plain.solo_s, plain.whole_chunks,
        )  # fmt: skip

    def _planned_s(self, prompt_tokens: int) -> float:
        passes = max(-(-prompt_tokens // self.chunk_tokens), 1)
        return passes * self.fixed_s + max(prompt_tokens, 1) * self.token_s


def engine_times(plan: Plan, pool: PlannedPool) -> EngineTimes:
    """Return the times of a pool's engines as planned."""
    settings = pool.engine
    chunk = settings.max_num_batched_tokens or BUDGET_TOKENS
    try:
        simulated = next(p for p in fleet_for(plan).pools if p.name == pool.name)
    except (GpuschedError, StopIteration):
        return EngineTimes(FIXED_S, TOKEN_S, chunk, seats=settings.max_num_seqs)
    chunk = simulated.max_num_batched_tokens
    whole = full_pass_s(simulated.timing, chunk)
    half = full_pass_s(simulated.timing, max(chunk // 2, 1))
    token_s = max((whole - half) / max(chunk - chunk // 2, 1), 1e-9)
    fixed_s = max(whole - token_s * chunk, 1e-6)
    return EngineTimes(fixed_s, token_s, chunk, simulated, settings.max_num_seqs)
