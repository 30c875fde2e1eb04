"""What a command needs beyond the base of burnish: said in one line before it begins, rather than as a failed import half-way."""

from __future__ import annotations

from burnish.rpc.extras import require

TRAINING = ["ray", "torch", "transformers"]


def needs_training(command: str) -> None:
    """Raise ValueError saying what to install, unless Ray and torch are here."""
    require(f"burnish {command}", TRAINING, "train")


def needs_episodes(command: str) -> None:
    """Raise ValueError saying what to install, unless stored episodes can be read."""
    require(f"burnish {command}", ["pyarrow"], "train")


def needs_weights(command: str) -> None:
    """Raise ValueError saying what to install, unless the files of weights can be read."""
    require(f"burnish {command}", ["safetensors"], "train")


def needs_engine(command: str) -> None:
    """Raise ValueError saying what to install, unless everything is here that trains, generates and serves."""
    require(f"burnish {command}", [*TRAINING, "starlette", "vllm"], "cpu")
