"""Metrics by batch size, a line per system: throughput, latency, bytes, hit rate, tokens per pass, link rate."""

from __future__ import annotations

from reports.figures.metric import Metric, metric_spec

_COUNT = "Lower is better. Counted by the link; for systems without such a count, by the kernel (the CSV says which)."
SPECS = (
    metric_spec(
        id="throughput",
        place=("speed", 10),
        title="Decode throughput by batch size",
        question="Which system decodes most tokens per second?",
        metric=Metric("decode_tok_s", "decode tok/s"),
    ),
    metric_spec(
        id="latency",
        place=("speed", 20),
        title="Time per output token by batch size",
        question="How long does a sequence wait for its next token?",
        metric=Metric("tpot_s", "ms per output token", 1e3),
        caption="Lower is better. The first token (prefill) is excluded.",
    ),
    metric_spec(
        id="bytes",
        place=("transfers", 10),
        title="Bytes moved by batch size",
        question="How do transfers grow with the batch?",
        metric=Metric("moved_bytes", "GB moved while decoding", 1e-9),
        caption=_COUNT,
    ),
    metric_spec(
        id="bytes_per_token",
        place=("transfers", 20),
        title="Bytes moved per output token",
        question="How many bytes are moved for each output token?",
        metric=Metric("moved_bytes_per_token", "MB moved per token", 1e-6),
        caption=_COUNT,
        of_systems=False,
    ),
    metric_spec(
        id="tokens_per_step",
        place=("drafting", 10),
        title="Tokens per target pass",
        question="How many tokens does one pass of the target yield per row?",
        metric=Metric("tokens_per_step", "tokens per row and pass, T(γ)", may_log=False, above=1.0),
        caption="Systems that do not speculate have 1 and are left out.",
        needs="finished cells of a system that drafts",
    ),
    metric_spec(
        id="accepted_length",
        place=("drafting", 15),
        title="Accepted length",
        question="How many drafted tokens does the target accept?",
        metric=Metric("accepted_length", "accepted tokens per draft of a row", may_log=False),
        caption="Systems that do not draft are left out. The figure by position shows where drafts are rejected.",
        needs="finished cells of a system that drafts",
        of_systems=False,
    ),
    metric_spec(
        id="hit_rate",
        place=("drafting", 20),
        title="Expert hit rate",
        question="How often is a requested expert already on the device?",
        metric=Metric("hit_rate", "requests served on the device, %", 100.0, may_log=False, top=100.0),
        caption="Systems that do not manage single experts have no hit rate and are left out.",
        needs="finished cells of a system that counts expert requests",
    ),
    metric_spec(
        id="link_rate",
        place=("resources", 20),
        title="Link bandwidth against its ceiling",
        question="How much of the link's bandwidth is used during transfers?",
        metric=Metric("achieved_link_gb_s", "GB/s while transferring", may_log=False, line="ceiling_gb_s"),
        caption="Bytes divided by the time the link was busy. Dotted: the ceiling measured by specmoe-bench calibrate "
        "on this machine; not drawn without a calibration.",
        needs="finished cells of a system that has a link",
        command="specmoe-bench calibrate && nox -s reproduce",
    ),
)
