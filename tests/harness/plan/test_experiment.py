"""An experiment is validated with one clear error, and expands into every combination of its swept fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan.errors import ConfigError
from harness.plan.experiment import plan, validate
from harness.plan.sizes import ExpertSizes
from tests.harness.experiments import MINIMAL, planned


def test_listed_options_and_batches_are_swept() -> None:
    systems = [{"system": "specmoe", "options": {"gamma": [2, 4], "draft_experts": [1, 2, 3]}}]
    cells = planned(systems=systems, batch_sizes=[1, 8])
    assert len(cells) == 12
    assert len({p.cell.cell_id for p in cells}) == 12
    assert cells[0].label == "specmoe γ=2 N=1"


def test_every_swept_field_reaches_the_cell() -> None:
    uniform = {"distribution": "uniform", "low": 2, "high": 14}
    cells = [
        p.cell
        for p in planned(
            new_tokens=[4, uniform],
            prompts=[None, "questions"],
            prompt_tokens=[None, 7],
            threads=[1, 2],
            prompt_offset=[0, 3],
            disk_read_limit=[None, "5MB"],
            expert_budget=["10%", "20%"],
        )
    ]
    assert len({cell.cell_id for cell in cells}) == len(cells) == 2**7
    assert {(c.new_tokens, c.output_tokens is None) for c in cells} == {(4, True), (14, False)}
    assert {c.prompts for c in cells} == {None, "questions"}
    assert {c.prompt_tokens and c.prompt_tokens.highest for c in cells} == {None, 7}
    assert {c.threads for c in cells} == {1, 2}
    assert {c.prompt_offset for c in cells} == {0, 3}
    assert {c.disk_read_limit_bytes_s for c in cells} == {None, 5_000_000}
    assert {c.expert_budget_bytes for c in cells} == {10_000, 20_000}


def test_every_process_gets_the_same_limit_above_the_largest_budget() -> None:
    systems = [{"system": "on-demand"}, {"system": "caching", "expert_budget": "50%"}]
    cells = [p.cell for p in planned(systems=systems, expert_budget="25%", process_overhead="1MB")]
    assert [cell.expert_budget_bytes for cell in cells] == [25_000, 50_000]
    assert {cell.process_limit_bytes for cell in cells} == {1_050_000}
    assert {p.cell.process_limit_bytes for p in planned(process_overhead=None)} == {None}


def test_budgets_and_limits_are_of_the_experts_bytes_in_their_stored_dtype() -> None:
    cells = [p.cell for p in planned(stored_dtype=["float32", "bfloat16"], process_overhead="1MB")]
    assert [(c.stored_dtype, c.expert_budget_bytes) for c in cells] == [("float32", 25_000), ("bfloat16", 12_500)]
    assert [c.process_limit_bytes for c in cells] == [1_025_000, 1_012_500]
    assert len({c.cell_id for c in cells}) == 2


def test_a_cell_names_the_stored_dtype_that_null_stands_for() -> None:
    experiment = validate(MINIMAL, "test")
    sizes = ExpertSizes(100, {"bfloat16": 500}, own="bfloat16")
    (planned_cell,) = plan(experiment, sizes)
    assert planned_cell.cell.stored_dtype == "bfloat16"
    with pytest.raises(ConfigError, match="same cell twice"):
        plan(validate(MINIMAL | {"stored_dtype": [None, "bfloat16"]}, "test"), sizes)


def test_devices_and_slow_tiers_are_swept_by_one_name_each() -> None:
    tiers = ["disk", "host", "paced: 25 GB/s", "paced:25GB/s+10us"]
    cells = [p.cell for p in planned(device=["cpu", "cuda:0", "cuda:1"], slow_tier=tiers)]
    assert len({cell.cell_id for cell in cells}) == 12
    assert [cell.device for cell in cells[::4]] == ["cpu", "cuda", "cuda:1"]
    assert [cell.slow_tier for cell in cells[:4]] == ["disk", "host", "paced:25GB/s", "paced:25GB/s+10us"]
    assert [cell.emulated for cell in cells[:4]] == [False, False, True, True]


@pytest.mark.parametrize(("gpu", "expected"), [(False, ("cpu", "disk")), (True, ("cuda", "host"))])
def test_without_a_device_a_cell_is_of_the_gpu_where_there_is_one(
    gpu: bool, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    (found,) = planned()
    assert (found.cell.device, found.cell.slow_tier) == expected
    (on_cpu,) = planned(device="cpu")
    assert on_cpu.cell.slow_tier == "disk"
    assert on_cpu.cell.cell_id == planned(device="cpu", slow_tier="disk")[0].cell.cell_id


def test_the_limit_of_a_process_that_holds_the_experts_has_room_for_them() -> None:
    limits = {p.cell.slow_tier: p.cell.process_limit_bytes for p in planned(slow_tier=["disk", "host", "paced:1GB/s"])}
    assert limits["host"] == limits["paced:1GB/s"] == (limits["disk"] or 0) + 100_000


def test_device_memory_is_capped_on_a_gpu_alone() -> None:
    cells = [p.cell for p in planned(device=["cpu", "cuda"], device_overhead="1MB", slow_tier="host")]
    assert [cell.device_limit_bytes for cell in cells] == [None, 1_025_000]
    assert planned(device="cuda")[0].cell.device_limit_bytes is None


def test_a_budget_that_fills_the_limit_leaves_the_limit_to_the_others() -> None:
    systems = [{"system": "on-demand"}, {"system": "caching", "expert_budget": "fill"}]
    others, filled = (p.cell for p in planned(systems=systems, expert_budget="25%", process_overhead="1MB"))
    assert filled.fills_limit
    assert filled.expert_budget_bytes == 100_000, "at most all experts"
    assert not others.fills_limit
    assert {others.process_limit_bytes, filled.process_limit_bytes} == {1_025_000}
    assert others.conditions == filled.conditions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_budget": "fill"}, "fill is what the process limit leaves"),
        ({"process_overhead": None}, "process_overhead: null sets none: give process_overhead a size"),
        ({"systems": [{"system": "mmap", "expert_budget": "fill"}]}, "takes what the limit leaves by itself"),
        ({"systems": [{"system": "naive", "expert_budget": "fill"}]}, "chooses no budget within a limit: remove"),
    ],
)
def test_a_budget_that_cannot_fill_a_limit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**{"systems": [{"system": "caching", "expert_budget": "fill"}], **changes})


def test_a_disk_limit_is_bytes_per_second_and_never_a_share() -> None:
    assert [p.cell.disk_read_limit_bytes_s for p in planned(disk_read_limit=[None, "500MB"])] == [None, 500_000_000]
    with pytest.raises(ConfigError, match="is a share, but this field has no whole"):
        planned(disk_read_limit="50%")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "device.*'tpu' is not supported: use 'cpu', 'cuda' or 'cuda:1'"),
        ({"slow_tier": "paced"}, "slow_tier.*'paced' is unknown: use disk, host, .*paced:25GB/s"),
        ({"slow_tier": "paced:0GB/s"}, "slow_tier.*is unknown"),
        ({"slow_tier": "host", "disk_read_limit": "5MB"}, "slows a disk, and slow_tier host reads none"),
        ({"batch_sizes": [0]}, "batch_sizes.*1 or more"),
        ({"batch_sizes": []}, "batch_sizes"),
        ({"surprise": 1}, "surprise: no such field$"),
        ({"rouns": 1}, "test: rouns: no such field, did you mean 'rounds'"),
        ({"systems": [{"system": "on-demand", "labl": "x"}]}, r"systems\.0\.labl: .*did you mean 'label'"),
        ({"new_tokens": 1}, "new_tokens"),
        ({"dtype": "int4"}, "dtype"),
        ({"stored_dtype": "int4"}, "stored_dtype"),
        ({"systems": [{"system": "no-such"}]}, "unknown system 'no-such': use one of .*specmoe"),
        ({"systems": [{"system": "specmoe", "options": {"gama": 3}}]}, "option gama.*options: gamma"),
        ({"systems": [{"system": "specmoe", "options": {"gamma": 65}}]}, "option gamma"),
        ({"systems": [{"system": "on-demand"}, {"system": "on-demand", "label": "again"}]}, "same cell twice"),
        ({"expert_budget": "25 percent"}, "unknown unit"),
        ({"expert_budget": "-1MB"}, "no size|not positive"),
    ],
)
def test_a_bad_experiment_is_one_clear_error(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**changes)


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.text())))
def test_anything_else_is_a_config_error(payload: object) -> None:
    with pytest.raises(ConfigError):
        validate(payload, "fuzz")


def test_an_error_names_the_file_unless_an_assignment_set_the_field() -> None:
    assigned = {"rounds=0": ["rounds"]}
    with pytest.raises(ConfigError, match=r"^--set 'rounds=0': rounds: "):
        validate(MINIMAL | {"rounds": 0}, "e.yaml", assigned)
    with pytest.raises(ConfigError, match=r"^e\.yaml: seed: "):
        validate(MINIMAL | {"seed": "x"}, "e.yaml", assigned)
