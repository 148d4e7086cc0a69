"""A model's size, training and routing in ``card.json``, for programs; ``README.md`` has the same for people."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from specmoe.files import write_text

FILE = "card.json"


@dataclass(frozen=True)
class LayerSkew:
    """Routing of one MoE layer on held-out text.

    ``top_10_percent_share``: share of activations on the most used ``ceil(E / 10)`` experts.
    ``gini``: Gini coefficient of activations over experts (0: uniform, 1: all on one expert).
    ``repeat_rate``: share of a token's experts that the previous token of the same sequence used too.
    """

    layer: int
    top_10_percent_share: float
    gini: float
    unused_experts: int
    repeat_rate: float


@dataclass(frozen=True)
class ModelCard:
    """Size, training and routing of one model; losses in nats per token, ``None`` where not measured.

    ``expert_parameters`` counts the routed experts only.  ``weights_sha256`` is the checksum of ``model.safetensors``,
    ``data_sha256`` that of the training text as the recipe reads it.  ``prompts_loss_nats`` is the mean loss per token
    of the saved weights on the first 64 of the model's prompts, or on their references if it translates.
    """

    name: str
    architecture: str
    parameters: int
    expert_parameters: int
    layers: int
    moe_layers: int
    experts: int
    experts_per_token: int
    data: str
    licence: str
    data_sha256: str
    weights_sha256: str
    steps: int
    training_tokens: int
    cpu_s: float | None
    train_loss_nats: float | None
    held_out_loss_nats: float | None
    prompts_loss_nats: float | None = None
    shared_expert: bool = False
    routing: list[LayerSkew] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> ModelCard | None:
        """The card in ``folder``, or None if it has none.

        Raises:
            ValueError: the file is not a valid card.
        """
        file = folder / FILE
        if not file.exists():
            return None
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            return cls(**row | {"routing": [LayerSkew(**layer) for layer in row["routing"]]})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is not a model card ({error}): build or install the model again") from error

    def write(self, folder: Path) -> None:
        """Write the card into ``folder``."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    def mean_top_10_percent_share(self) -> float | None:
        """Mean over MoE layers; None if routing was not measured."""
        return _mean([layer.top_10_percent_share for layer in self.routing])

    def mean_gini(self) -> float | None:
        """Mean over MoE layers; None if routing was not measured."""
        return _mean([layer.gini for layer in self.routing])

    def mean_repeat_rate(self) -> float | None:
        """Mean over MoE layers; None if routing was not measured."""
        return _mean([layer.repeat_rate for layer in self.routing])


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
