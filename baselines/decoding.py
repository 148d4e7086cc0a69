"""How a cell's tokens are chosen: greedily (None), or drawn from the model's processed distribution."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Decoding(BaseModel):
    """Sampling as transformers does it: temperature, then top-k, then top-p, then a draw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    def again(self, number: int) -> Decoding:
        """The same with the seed of repetition ``number``, so that no two repetitions draw the same tokens."""
        return self.model_copy(update={"seed": self.seed + number})

    def __str__(self) -> str:
        processing = [f"temperature {self.temperature:g}"]
        processing += [f"top-k {self.top_k}"] if self.top_k else []
        processing += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        return f"sampling, {', '.join(processing)}, seed {self.seed}"
