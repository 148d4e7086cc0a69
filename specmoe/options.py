"""All options of the algorithm in one typed object: the paper's, those it leaves open, and additional ones."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from specmoe.errors import OptionError

PlacementName = Literal["on-demand", "lru", "top-fraction", "lfu"]
Kernels = Literal["auto", "torch"]
Drafter = Literal["pinned", "ngram", "ngram+pinned"]
DraftPool = Literal["auto", "pinned", "resident", "low-bit"]
Selection = Literal["hot-temporal", "hot-global", "hot-prefill", "random"]
CountWindow = Literal["decayed", "last", "accumulated"]
Substitution = Literal["affinity", "affinity-activation", "random", "best-gate", "drop", "merged"]


class SpecOptions(BaseModel):
    """Options of ``SpecMoE``; ``docs/options.md`` lists them with the ablation of each.

    Raises:
        OptionError: through ``of``, when a value is out of range or two contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gamma: int = Field(default=5, ge=0, le=64, description="draft tokens per cycle; 0 turns speculation off")
    draft_experts: int = Field(default=4, ge=1, description="N, pinned experts per MoE layer that form the draft")
    placement: PlacementName = Field(default="lfu", description="caching policy for the slots that draft experts leave")
    drafter: Drafter = Field(
        default="pinned", description="draft tokens from pinned experts, n-gram lookup, or lookup first"
    )
    draft_pool: DraftPool = Field(
        default="auto",
        description="what drafts: the N pinned experts (paper), all resident ones, or low-bit copies of all experts; "
        "auto: pinned, with controller=auto what a split of the budget by measured costs chooses at load",
    )
    draft_bits: Literal[2, 3, 4, 8] = Field(
        default=4, description="bits per weight of the copies that draft with draft_pool=low-bit"
    )
    selection: Selection = Field(default="hot-temporal", description="how the N draft experts are chosen")
    count_window: CountWindow = Field(
        default="decayed", description="passes whose expert use counts: all with decay, the last, or all equally"
    )
    hot_decay: float = Field(
        default=0.5, ge=0, le=1, description="factor on older counts per pass when count_window is decayed"
    )
    counted: Literal["all", "accepted"] = Field(
        default="all", description="tokens of a verify pass whose experts count: all, or accepted ones only"
    )
    refresh_interval: int = Field(default=1, ge=1, le=64, description="cycles between refreshes of the draft set")
    max_replacements: int | None = Field(default=None, ge=1, description="most experts replaced per layer and refresh")
    ties: Literal["lower-id", "incumbent", "random"] = Field(
        default="lower-id", description="rank among experts of equal count"
    )
    initial: Literal["prefill", "prefill-tail"] = Field(
        default="prefill", description="first draft set: counts of the whole prompt, or of its last 16 tokens"
    )
    substitution: Substitution = Field(default="affinity", description="how an expert that cannot draft is replaced")
    collision: Literal["add", "once"] = Field(
        default="add", description="two picks on one expert: add their weights, or take the larger and rescale"
    )
    merged_experts: int = Field(default=0, ge=0, description="K averaged experts per layer for substitution=merged")
    prefetch: Literal["none", "draft"] = Field(
        default="none", description="draft: load what the draft's gate picks before verification"
    )
    prefetch_share: float = Field(
        default=0.5, gt=0, le=1, description="most bytes prefetched per cycle as a share of the expert budget"
    )
    ngram_max: int = Field(default=4, ge=1, le=16, description="longest suffix looked up by the n-gram drafter")
    ngram_min: int = Field(default=2, ge=1, le=16, description="shortest suffix looked up by the n-gram drafter")
    controller: Literal["fixed", "auto"] = Field(
        default="fixed", description="auto: choose draft_pool, gamma (0 included), N and refresh interval from costs"
    )
    kernels: Kernels = Field(
        default="auto", description="products on a CPU: by the fastest kernel for the number of rows, or by torch alone"
    )
    seed: int = Field(default=0, ge=0, description="seed of random selection, substitution, ties and sampling")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if (self.substitution == "merged") != (self.merged_experts > 0):
            raise ValueError("substitution='merged' and merged_experts go together: give both or neither")
        if self.draft_pool == "low-bit" and self.substitution == "merged":
            raise ValueError("draft_pool='low-bit' and substitution='merged' are two drafts: choose one of them")
        if self.ngram_min > self.ngram_max:
            raise ValueError(f"ngram_min {self.ngram_min} is above ngram_max {self.ngram_max}: swap or equal them")
        if self.controller == "auto" and self.gamma == 0:
            raise ValueError("controller='auto' needs gamma >= 1, the most it may choose; gamma=0 is always off")
        return self

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Validated options.

        Raises:
            OptionError: names the first invalid option, the value given, and what is allowed.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                message = f"no such option, use one of {', '.join(cls.model_fields)}"
            raise OptionError(f"option {where}: {message} (given {first['input']!r})" if where else message) from error

    @property
    def speculates(self) -> bool:
        return self.gamma > 0

    @property
    def drafts_with_experts(self) -> bool:
        """Whether drafting runs the model with draft experts, so that a draft set is needed."""
        return self.speculates and self.drafter != "ngram"

    @property
    def pins_experts(self) -> bool:
        """Whether N experts per layer are pinned to the device for drafting."""
        return self.drafts_with_experts and self.draft_pool != "low-bit"

    @property
    def drafts_with_copies(self) -> bool:
        """Whether drafting runs the model with low-bit copies of the experts."""
        return self.drafts_with_experts and self.draft_pool == "low-bit"
