"""TRL's GRPO trainer with a choice of how its reward functions are combined.

    trainer = ParetoGRPOTrainer(model=..., reward_funcs=[helpful, harmless], mode="token", ...)

An adaptation: the paper's own base is PPO with a value head for each objective.
"""

from typing import Any

from trl import GRPOTrainer

from gpusched.alignment.combine import MODES, OF_GRADIENTS, Combined, combine
from gpusched.alignment.normalise import group_advantages
from gpusched.errors import InputError, unknown_name


class ParetoGRPOTrainer(GRPOTrainer):
    """GRPO whose advantages are combined from each reward function's own.

    ``mode`` and ``combine_options`` are those of ``gpusched.alignment.combine.combine``; modes of
    gradients are not offered here, since they need a backward pass an objective. Metrics
    ``pareto/weight/<reward>``, ``pareto/binding/<reward>`` and ``pareto/stalled`` tell which
    objective binds.
    """

    def __init__(
        self, *args: Any, mode: str = "token", combine_options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:  # fmt: skip
        if mode not in MODES:
            raise InputError(unknown_name("mode", mode, MODES))
        if mode in OF_GRADIENTS:
            raise InputError(
                f"mode: {mode} needs gradients, which this trainer has none of; use "
                "gpusched.alignment.policy_gradient, or a mode of advantages such as batch_qp"
            )
        self.combination = mode
        self.combine_options = {"normalise": False, **(combine_options or {})}
        self.last_combined: Combined | None = None
        self._objectives: Any = None
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the matrix of rewards, shape (answers of all processes, reward functions)."""
        self._objectives = super()._calculate_rewards(*args, **kwargs)
        return self._objectives

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Replace the advantages of TRL's own aggregation."""
        output = super()._generate_and_score_completions(inputs)
        training = self.model.training
        size = self.num_generations if training else self.num_generations_eval
        scale = self.scale_rewards != "none"
        advantages = group_advantages(self._objectives, size, scale=scale)
        found = combine(advantages, mode=self.combination, **self.combine_options)  # type: ignore[arg-type]
        mine = len(output["advantages"])
        first = self.accelerator.process_index * mine
        output["advantages"] = found.advantages[first : first + mine]
        self.last_combined = found
        metrics = self._metrics["train" if training else "eval"]
        for name, weight, binds in zip(
            self.reward_func_names, found.weights, found.binding, strict=True
        ):
            metrics[f"pareto/weight/{name}"].append(float(weight))
            metrics[f"pareto/binding/{name}"].append(float(binds))
        metrics["pareto/stalled"].append(found.stalled)
        return output
