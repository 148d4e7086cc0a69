"""One cell's repetitions summed up: the metrics of its record."""

from __future__ import annotations

import statistics

from reports.results.record import Metrics, Repetition, Usage


def summarise(
    repetitions: list[Repetition], batch_size: int, peak_expert_bytes: int | None, usage: Usage | None
) -> Metrics:
    """Medians over repetitions; rates and per-token figures are computed per repetition first.

    ``peak_expert_bytes`` is what the system reports, ``usage`` what the kernel does.
    """

    def median(values: list[float | None]) -> float | None:
        present = [v for v in values if v is not None]
        return statistics.median(present) if present else None

    def required(values: list[float]) -> float:
        return statistics.median(values)

    decoded = [r.new_tokens - batch_size for r in repetitions]  # the prefill gives each row its first token
    pairs = list(zip(repetitions, decoded, strict=True))
    link = median([r.decode_link_bytes for r in repetitions])
    kernel = median([r.decode_kernel_read_bytes for r in repetitions])
    return Metrics(
        prefill_tok_s=required([r.prompt_tokens / r.prefill_s for r in repetitions]),
        decode_tok_s=required([n / r.decode_s for r, n in pairs]),
        ttft_s=required([r.prefill_s for r in repetitions]),
        tpot_s=required([r.decode_s * batch_size / n for r, n in pairs]),
        tokens_per_step=required([r.tokens_per_step or n / (r.decode_steps * batch_size) for r, n in pairs]),
        acceptance_rate=median([_ratio(r.accepted_tokens, r.drafted_tokens) for r in repetitions]),
        hit_rate=median([_ratio(r.expert_hits, r.expert_requests) for r in repetitions]),
        link_bytes=None if link is None else int(link),
        link_bytes_per_token=median([_ratio(r.decode_link_bytes, n) for r, n in pairs]),
        kernel_read_bytes=None if kernel is None else int(kernel),
        kernel_read_bytes_per_token=median([_ratio(r.decode_kernel_read_bytes, n) for r, n in pairs]),
        achieved_link_gb_s=median([_ratio(r.decode_link_bytes, r.decode_link_busy_s, scale=1e-9) for r in repetitions]),
        peak_device_expert_bytes=peak_expert_bytes,
        peak_rss_bytes=usage.peak_rss_bytes if usage else None,
        fidelity=min((r.fidelity for r in repetitions if r.fidelity is not None), default=None),
    )


def _ratio(part: float | None, whole: float | None, scale: float = 1.0) -> float | None:
    return None if part is None or not whole else part / whole * scale
