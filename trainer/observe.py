"""Ray metrics of a training step, for Prometheus and the Ray dashboard."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

SHOWN = {
    "reward_mean": ("burnish_reward", "Mean total reward of a step's episodes"),
    "success": ("burnish_success", "Share of a step's episodes that succeeded"),
    "episodes_per_second": ("burnish_episodes_per_second", "Episodes finished per second while a step samples"),
    "groups_trained": ("burnish_groups_trained", "Groups of a step that were trained on"),
    "rollout_seconds": ("burnish_rollout_seconds", "Seconds a step spent sampling"),
    "sync_seconds": ("burnish_sync_seconds", "Seconds a step spent sending weights"),
    "learner/seconds": ("burnish_update_seconds", "Seconds a step spent updating the policy"),
    "learner/loss": ("burnish_policy_loss", "Policy loss"),
    "learner/entropy": ("burnish_entropy", "Entropy of the policy over trained tokens, nats per token"),
    "learner/mismatch_kl": ("burnish_mismatch_kl", "KL between engine and learner under equal weights, k3 estimate"),
    "learner/reference_kl": ("burnish_reference_kl", "KL of the policy from its reference, k3 estimate"),
    "learner/parity_max": ("burnish_parity_max", "Largest log-probability difference between engine and learner"),
    "learner/grad_norm": ("burnish_grad_norm", "Global gradient norm before clipping"),
    "held_out/success": ("burnish_held_out_success", "Success on held-out tasks, as last measured in the course of a phase"),
    "held_out/reward_mean": ("burnish_held_out_reward", "Mean total reward on held-out tasks, as last measured in the course of a phase"),
    "loss": ("burnish_loss", "Loss of a step on examples or pairs"),
    "held_out_loss": ("burnish_held_out_loss", "Loss on the rows that a phase on examples holds out, nats per token"),
    "seconds": ("burnish_step_seconds", "Seconds a step on examples or pairs took"),
    "tokens_per_second": ("burnish_trained_tokens_per_second", "Tokens that a step on examples or pairs trained on, per second"),
}
"""Metric of a step -> name and description of the gauge. Those of policy steps come first, then those of all other phases' steps."""


class StepGauges:
    """One gauge per metric in `SHOWN`. Example: `StepGauges().show({"reward_mean": 0.7})`."""

    def __init__(self) -> None:
        self._gauges = {metric: Gauge(name, description) for metric, (name, description) in SHOWN.items()}

    def show(self, metrics: Mapping[str, float]) -> None:
        """Set the gauges of the metrics that this step has; the others stay as they are."""
        if metrics.get("seconds", 0.0) > 0 and "tokens" in metrics:
            metrics = {**metrics, "tokens_per_second": metrics["tokens"] / metrics["seconds"]}
        for metric, gauge in self._gauges.items():
            if metric in metrics:
                gauge.set(metrics[metric])
