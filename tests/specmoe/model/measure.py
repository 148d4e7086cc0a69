"""What this engine makes of a family's tiny model: exact or not for each attention implementation, or refused."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from specmoe import SpecMoE
from specmoe.errors import UnsupportedModelError
from specmoe.model.checkpoint import expert_modules
from specmoe.model.load_plan import Keys
from specmoe.model.wrappers import is_left_out
from tests import families
from tests.conftest import prompts, reference

NEW_TOKENS = 10
GAMMAS = (0, 4)
FEWEST_DISTINCT = 8  # new tokens of the batch
EXACT = "exact"


@dataclass
class Outcome:
    """The result of one family.

    Attributes:
        tokens: ``exact`` or the first difference, by attention implementation that transformers has for the family.
        dtypes: parameters and buffers whose dtype in a bfloat16 model differs from transformers'.
        refusal: the message, if the engine refused the family.
        wrote_store: a refusal came after the expert store was written.
    """

    tokens: dict[str, str] = field(default_factory=dict)
    dtypes: list[str] = field(default_factory=list)
    refusal: str | None = None
    wrote_store: bool = False


def measure(family: str, complete: bool = True) -> Outcome:
    """Compare this engine with transformers on a family's tiny model, or on its config alone if not ``complete``."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, outcome = Path(folder) / "model", Outcome()
        if complete:
            families.build(family, checkpoint)
        else:
            families.save_config(family, checkpoint)
        try:
            _compare_tokens(family, checkpoint, outcome)
            _compare_dtypes(family, checkpoint, outcome)
        except UnsupportedModelError as error:
            outcome.refusal, outcome.wrote_store = (
                str(error).replace(str(checkpoint), "PATH"),
                _store(checkpoint).exists(),
            )
        return outcome


def _store(checkpoint: Path) -> Path:
    return checkpoint.with_name("store")


def _compare_tokens(family: str, checkpoint: Path, outcome: Outcome) -> None:
    """Greedy tokens of a ragged batch, for every attention implementation and gamma."""
    ids, mask = prompts(3)
    model: PreTrainedModel | None = None
    for gamma in GAMMAS:
        with SpecMoE.from_pretrained(
            checkpoint, store=_store(checkpoint), dtype=torch.float32, gamma=gamma, draft_experts=2, expert_budget="60%"
        ) as engine:
            model = model or families.auto_class(family).from_pretrained(checkpoint, dtype=torch.float32).eval()
            for implementation in ("sdpa", "eager") if model._supports_sdpa else ("eager",):
                model.set_attn_implementation(implementation)
                engine.model.set_attn_implementation(implementation)
                output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0)
                expected = reference(model, ids, mask, NEW_TOKENS)
                if len(expected[:, -NEW_TOKENS:].unique()) < FEWEST_DISTINCT:
                    raise ValueError(f"the tiny {family} repeats itself, which proves little: change its config")
                if outcome.tokens.get(implementation, EXACT) == EXACT:
                    outcome.tokens[implementation] = _difference(output.sequences, expected, ids.shape[1], gamma)


def _difference(found: torch.Tensor | None, expected: torch.Tensor, prompt: int, gamma: int) -> str:
    if found is None or found.shape != expected.shape:
        return f"gamma {gamma}: {None if found is None else tuple(found.shape)}, not {tuple(expected.shape)} tokens"
    wrong = (found != expected).nonzero()
    if not len(wrong):
        return EXACT
    return f"gamma {gamma}: new token {int(wrong[:, 1].min()) - prompt} differs, {len(wrong)} in all"


def _compare_dtypes(family: str, checkpoint: Path, outcome: Outcome) -> None:
    """The dtypes of a bfloat16 model; those of experts are in the store."""
    model = families.auto_class(family).from_pretrained(checkpoint, dtype=torch.bfloat16)
    store = checkpoint.with_name("bfloat16")
    with SpecMoE.from_pretrained(checkpoint, store=store, dtype=torch.bfloat16, gamma=0) as engine:
        experts = tuple(f"{name}." for name in expert_modules(engine.model))
        keys, ours = Keys(engine.model, None), dict(_dtypes(engine.model))
    for name, dtype in _dtypes(model):
        own_name = name if name in ours or name.startswith(experts) else keys.place(name)[0]
        found = engine.store.dtype if own_name.startswith(experts) else ours.get(own_name)
        if found != dtype and not is_left_out(model.config, name):
            outcome.dtypes.append(f"{name} is {found}, in transformers {dtype}")


def _dtypes(model: PreTrainedModel) -> list[tuple[str, torch.dtype]]:
    return [(name, tensor.dtype) for name, tensor in (*model.named_parameters(), *model.named_buffers())]
