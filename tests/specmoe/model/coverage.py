"""The coverage table: what this engine makes of each Mixture-of-Experts family, and the page that shows it.

``python -m tests.specmoe.model.coverage`` rewrites ``docs/families.md`` from the table, and
``python -m tests.specmoe.model.coverage measure [FAMILY ...]`` prints what families give now, for new rows.
``test_families.py`` checks that every row is true.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import transformers

from tests import families
from tests.specmoe.model.measure import Outcome, measure

HEADERS = ("family", "example checkpoint", "result", "attention", "dtypes", "notes")
PAGE = Path(__file__).parents[3] / "docs" / "families.md"


@dataclass(frozen=True)
class Row:
    """The expected result of a family.

    Attributes:
        attention: the attention implementations that transformers has for it; each is exact.
        refused: what the refusal's message must contain; empty for an exact family.
        note: a remark for the page; the reason, for a refused family.
        has_model: whether tests/families builds its model; without, its config alone must be refused.
    """

    attention: tuple[str, ...] = ("sdpa", "eager")
    refused: str = ""
    note: str = ""
    has_model: bool = True

    def claims(self) -> tuple[str, ...]:
        """The separately tested parts of a row."""
        return ("refusal",) if self.refused else (*self.attention, "dtypes")


EXACT = Row()
EAGER_ONLY = Row(attention=("eager",), note="transformers has no sdpa for it")
OWN_EXPERTS = Row(refused="experts interface", note="experts outside transformers' experts interface")
STATES = Row(refused="linear_attention", note="linear attention or state-space layers")
QWEN4 = Row(
    refused=STATES.refused, note="indexed attention, n-gram embeddings and convolutions beside gated delta nets"
)
DELTA_NET = Row(note="gated delta net: its state goes back to the last accepted token")
INDEXED = Row(refused="indexed_attention", note="attention over keys that an index chooses")
WRAPPER = Row(refused="causal language model", note="a multimodal wrapper, not a causal language model")
TEXT_PART = Row(note="text only: the weights of its vision part are not loaded")
WRAPPER_CONFIG = Row(refused=WRAPPER.refused, note=WRAPPER.note, has_model=False)
POSITIONS = Row(note="a batch that reaches the position where the rotary frequencies change is refused")
ENCODER_DECODER = Row(attention=("eager",), note="an encoder-decoder, for which transformers has no sdpa")
NLLB = Row(
    attention=("eager",),
    note=f"{ENCODER_DECODER.note}; uses experts 0 and 1 only, as transformers does, unless config.json has "
    '`"experts_follow_router": true`; a batch in which capacity drops tokens of the decoder is refused',
)

EXPECTED: dict[str, Row] = {
    "afmoe": EXACT,
    "aria": TEXT_PART,
    "aria_text": EXACT,
    "axk1": EXACT,
    "axk2": INDEXED,
    "bailing_hybrid": STATES,
    "beam": EXACT,
    "cohere2_moe": EXACT,
    "dbrx": EXACT,
    "deepseek_ocr2": WRAPPER_CONFIG,
    "deepseek_v2": EXACT,
    "deepseek_v3": EXACT,
    "deepseek_v32": INDEXED,
    "deepseek_v4": Row(refused="attention of type", note="compressed attention"),
    "diffusion_gemma": WRAPPER,
    "doge": OWN_EXPERTS,
    "dots1": EXACT,
    "dots3_note": Row(refused=INDEXED.refused, note=INDEXED.note, has_model=False),
    "dots3_note_text": INDEXED,
    "ernie4_5_moe": EXACT,
    "ernie4_5_vl_moe": TEXT_PART,
    "exaone_moe": EXACT,
    "flex_olmo": EXACT,
    "flint": EAGER_ONLY,
    "gemma4": EXACT,
    "gemma4_text": EXACT,
    "glm4_moe": EXACT,
    "glm4_moe_lite": EXACT,
    "glm4v_moe": TEXT_PART,
    "glm5_next": WRAPPER,
    "glm_moe_dsa": INDEXED,
    "gpt_oss": EAGER_ONLY,
    "granitemoe": EXACT,
    "granitemoe_swa": EAGER_ONLY,
    "granitemoehybrid": STATES,
    "granitemoeshared": EXACT,
    "hunyuan_v1_moe": EXACT,
    "hy_v3": EXACT,
    "hy_v4": INDEXED,
    "hy_v4_vl": WRAPPER,
    "inkling2": WRAPPER,
    "inkling2_loop": WRAPPER,
    "inkling2_loop_text": Row(
        refused="'hybrid'", note="sliding attention joined with a convolution, layers run several times"
    ),
    "inkling2_text": Row(refused="attention of type", note="sliding attention joined with a convolution"),
    "inkling_mm_model": WRAPPER,
    "inkling_text": Row(refused="hybrid_sliding", note="sliding attention joined with a convolution"),
    "jamba": STATES,
    "jetmoe": Row(note="experts of its attention stay in memory with the other weights"),
    "kimi_linear": STATES,
    "kolibri1": EXACT,
    "laguna": EXACT,
    "lara_mini": DELTA_NET,
    "lfm2_moe": Row(refused="'conv'", note="convolution layers"),
    "llama4": TEXT_PART,
    "llama4_text": EXACT,
    "longcat_flash": EXACT,
    "mellum": EXACT,
    "mimo_v2_flash": EAGER_ONLY,
    "minimax": STATES,
    "minimax_m2": EXACT,
    "minimax_m3_vl": WRAPPER,
    "minimax_m3_vl_text": Row(refused="minimax_m3_sparse", note=INDEXED.note),
    "mistral4": EXACT,
    "mistral_large4": WRAPPER,
    "mixtral": EXACT,
    "muse_spark": WRAPPER,
    "nemo_speechlm": Row(refused=STATES.refused, note=STATES.note, has_model=False),
    "nemotron_h": STATES,
    "nllb-moe": NLLB,
    "olmoe": EXACT,
    "phimoe": EXACT,
    "qwen2_moe": EXACT,
    "qwen3_5_moe": Row(note=f"{DELTA_NET.note}; the text model of the checkpoint"),
    "qwen3_5_moe_text": DELTA_NET,
    "qwen3_moe": EXACT,
    "qwen3_next": DELTA_NET,
    "qwen3_omni_moe": WRAPPER_CONFIG,
    "qwen3_omni_moe_thinker": WRAPPER,
    "qwen3_vl_moe": TEXT_PART,
    "qwen4_exp": QWEN4,
    "qwen4_exp_text": QWEN4,
    "sarvam_mla": EXACT,
    "sarvam_moe": EXACT,
    "solar_open": EXACT,
    "step3p7": WRAPPER,
    "switch_transformers": ENCODER_DECODER,
    "unlimited_ocr": WRAPPER,
    "zaya": Row(refused="'hybrid'", note="attention joined with a convolution"),
}

EXPECTED |= {
    "deepseek_v3+yarn": EXACT,
    "dots3_note_text+sliding-attention": EXACT,
    "gemma4_text+bidirectional": Row(refused="bidirectional", note="attends to later tokens"),
    "gemma4_text+shared-kv": EXACT,
    "lfm2_moe+full-attention": EXACT,
    "llama4_text+scaled-queries": EXACT,
    "llama4_text+top-2-every-second-layer": EXACT,
    "minimax+full-attention": Row(refused="a cache of its own (MiniMaxCache)", note="needs a cache class of its own"),
    "phimoe+longrope": POSITIONS,
    "qwen3_moe+dynamic-ntk": POSITIONS,
    "qwen3_moe+longrope": POSITIONS,
    "qwen3_moe+sliding-upper-layers": EXACT,
}

# Claims that are not true yet: claim -> family -> why.  Tests fail when one becomes true: then delete it here.
OPEN: dict[str, dict[str, str]] = {}


def page() -> str:
    """The page ``docs/families.md``."""
    rows = {family: row for family, row in EXPECTED.items() if family not in families.VARIANTS}
    sorted_rows = sorted(EXPECTED.items())
    exact = [family for family, row in rows.items() if not row.refused]
    return PAGE_TEXT.format(
        version=transformers.__version__.rpartition(".")[0],
        families=len(rows),
        exact=len(exact),
        refused=len(rows) - len(exact),
        table="\n".join([_line(HEADERS), _line(["---"] * len(HEADERS)), *(_line(_cells(*row)) for row in sorted_rows)]),
    )


PAGE_TEXT = """\
# Families

Every Mixture-of-Experts family that transformers {version} generates text with: {families} of them, {exact} exact and
{refused} refused. A family is the `model_type` in a checkpoint's `config.json`; `family+variant` is one with settings
that change how it computes.

- **exact**: a tiny random model of the family gives the same greedy tokens as transformers' own `generate`, without
  drafts and with four draft tokens, for a batch of three prompts of different lengths, in float32, with each attention
  implementation named.
- **dtypes**: `same` where every parameter and buffer of a bfloat16 model has the dtype that `from_pretrained` gives it.
- **refused**: loading ends with one line that names the reason.

Mistral-3 and InternVL checkpoints are loaded for text if their text model is an exact family of the table.

The table is generated from what the tests check (`tests/specmoe/model/test_families.py`); to write it again, run
`python -m tests.specmoe.model.coverage`. A family that a new transformers release adds shows up as a failing test.

{table}
"""


def _line(cells: Iterable[str]) -> str:
    """A table line without padding: a change of one row changes one line."""
    return f"| {' | '.join(cells)} |"


def _cells(family: str, row: Row) -> tuple[str, ...]:
    checkpoint = families.example_checkpoint(family)
    name = (f"`{family}`", f"`{checkpoint}`" if checkpoint else "")
    open_claims = {claim: OPEN[claim][family] for claim in row.claims() if family in OPEN.get(claim, {})}
    notes = "; ".join(
        [*filter(None, [row.note]), *(f"open: {reason}" for reason in dict.fromkeys(open_claims.values()))]
    )
    if row.refused:
        return (*name, "refused", "", "", notes)
    right = [claim for claim in row.attention if claim not in open_claims]
    return (*name, "exact", ", ".join(right), "differ" if "dtypes" in open_claims else "same", notes)


def _described(outcome: Outcome) -> str:
    if outcome.refusal is not None:
        return f"refused{' after the store was written' if outcome.wrote_store else ''}: {outcome.refusal}"
    return f"tokens {outcome.tokens}, dtypes that differ: {outcome.dtypes or 'none'}"


def main(arguments: list[str]) -> None:
    """Rewrite the page, or measure families."""
    if arguments[:1] != ["measure"]:
        PAGE.write_text(page())
        return
    for family in arguments[1:] or families.moe_families():
        row = EXPECTED.get(family, EXACT)
        print(f"{family}: {_described(measure(family, row.has_model))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
