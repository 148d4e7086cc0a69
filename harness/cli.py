"""``specmoe-bench``: list, doctor, run, report, conformance, generate."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEFAULT_OUT = Path("results")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 some cells failed, 2 bad input."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        code: int = args.handler(args)
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept, run the same command to go on", file=sys.stderr)
        return 130
    except _expected_errors() as error:
        if args.debug:
            raise
        print(f"specmoe-bench: {error}", file=sys.stderr)
        return 2
    return code


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors that a user can cause; anything else is ours and shows its traceback."""
    from harness.config import ConfigError
    from harness.record import RecordError
    from harness.runner import RunError
    from reports import ReportError
    from specmoe import SpecMoEError

    return ConfigError, RecordError, RunError, ReportError, SpecMoEError, ValueError, OSError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="specmoe-bench", description="MoE inference under memory limits, measured.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of expected errors")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="systems, models and presets")
    listing.set_defaults(handler=_list)

    doctor = commands.add_parser("doctor", help="what this machine can enforce and measure")
    doctor.set_defaults(handler=_doctor)

    run = commands.add_parser("run", help="run an experiment; continues where an earlier run stopped")
    run.add_argument("experiment", help="preset name (see list) or YAML file")
    run.add_argument("--out", type=Path, help=f"result folder (default: {DEFAULT_OUT}/NAME)")
    run.add_argument("--report", action="store_true", help="write the report when done")
    run.set_defaults(handler=_run)

    report = commands.add_parser("report", help="page, figures and tables from result files")
    report.add_argument("results", type=Path, nargs="+", help="results.jsonl files")
    report.add_argument("--out", type=Path, help="report folder (default: beside the first file)")
    report.set_defaults(handler=_report)

    conformance = commands.add_parser("conformance", help="does a system keep the adapter contract?")
    conformance.add_argument("system")
    conformance.add_argument("--options", type=json.loads, default={}, help='its options as JSON: {"policy": "lru"}')
    conformance.set_defaults(handler=_conformance)

    generate = commands.add_parser("generate", help="continue a text with SpecMoE")
    generate.add_argument("prompt")
    generate.add_argument("--model", default="embedded")
    generate.add_argument("--gamma", type=int, default=5)
    generate.add_argument("--draft-experts", type=int, default=8)
    generate.add_argument("--expert-budget", default="25%")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.set_defaults(handler=_generate)
    return parser


def _list(args: argparse.Namespace) -> int:
    from baselines import contract
    from harness.config import PRESETS

    print("systems")
    for name, system in contract.systems().items():
        card = system.card
        print(f"  {name:20} {card.summary}")
        print(f"  {'':20} moves {card.grain}; tiers {', '.join(card.tiers)}; {', '.join(_facts(card))}")
        for option, field in system.Options.model_fields.items():
            print(f"  {'':20}   {option} = {field.default!r}")
    print("models\n  embedded           trained Qwen3-MoE, 6 layers, 64 experts top-2")
    print("  embedded-xF        the same function with experts F times wider (F a power of two)")
    print("  FOLDER             any Hugging Face MoE checkpoint in safetensors")
    print("presets")
    for name, content in PRESETS.items():
        print(f"  {name:18} {content['model']}, batch {content['batch_sizes']}, {content.get('rounds', 3)} rounds")
    return 0


def _facts(card: Any) -> list[str]:
    """What a user should know of a system before comparing it."""
    facts = [f"kind {card.kind}", "lossless" if card.lossless else "lossy", *card.sampling]
    facts.append("keeps the expert budget itself" if card.knows_budget else "held by the process limit")
    if not card.limited:
        facts[-1] = "runs without a limit"
    if card.extra:
        facts.append(f"needs pip install 'specmoe-bench[{card.extra}]'")
    return facts


def _doctor(args: argparse.Namespace) -> int:
    from harness import environment, limits

    for key, value in environment.capture().items():
        print(f"{key:16} {value}")
    support = limits.detect()
    state = support.mechanism if support.mechanism != "none" else f"no: {support.why_not}"
    print(f"{'memory limit':16} {state}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from harness import config
    from harness.runner import Runner

    named = Path(args.experiment)
    is_file = named.suffix in (".yaml", ".yml") or named.exists()
    experiment = config.from_yaml(named) if is_file else config.preset(args.experiment)
    out = args.out or DEFAULT_OUT / experiment.name
    runner = Runner(experiment, out)
    results = runner.run()
    failed = [r for r in runner.results.read() if r.status in ("failed", "timeout")]
    for record in failed:
        print(f"{record.status}: {record.label}, batch {record.cell.batch_size}: {record.error}", file=sys.stderr)
    print(f"results: {results}")
    if args.report:
        _write_report([results], out)
    return 1 if failed else 0


def _report(args: argparse.Namespace) -> int:
    _write_report(args.results, args.out or args.results[0].parent)
    return 0


def _write_report(results: list[Path], out: Path) -> None:
    from reports import write_report

    paths = write_report(results, out)
    print(paths.markdown.read_text())
    print(f"page: {paths.page}")


def _conformance(args: argparse.Namespace) -> int:
    from harness.conformance import examine

    with tempfile.TemporaryDirectory(prefix="specmoe-bench-") as work:
        checks = examine(args.system, args.options, Path(work))
    for check in checks:
        print(f"{check.status:8} {check.name:26} {check.detail}")
    return 1 if any(check.status == "failed" for check in checks) else 0


def _generate(args: argparse.Namespace) -> int:
    import torch
    from transformers import AutoTokenizer

    from specmoe import SpecMoE
    from workloads import models

    folder = models.path(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer([args.prompt], return_tensors="pt")
    with SpecMoE.from_pretrained(
        folder,
        expert_budget=args.expert_budget,
        gamma=args.gamma,
        draft_experts=args.draft_experts,
        dtype=torch.float32,
        store=models.store_path(args.model, "float32"),
    ) as model:
        output = model.generate(encoded["input_ids"], encoded["attention_mask"], max_new_tokens=args.max_new_tokens)
    assert output.sequences is not None
    assert output.stats is not None
    print(tokenizer.decode(output.sequences[0], skip_special_tokens=True))
    stats = output.stats
    rate = stats.decode_tokens / stats.decode.seconds if stats.decode.seconds else float("nan")
    print(
        f"\n{rate:.1f} tok/s, {stats.tokens_per_step:.2f} tokens per step, "
        f"{stats.decode.link.moved_bytes / 1e6:.1f} MB moved while decoding",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
