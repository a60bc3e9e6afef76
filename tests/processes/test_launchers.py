"""What accelerate's launcher asks for, against the environments that accelerate itself makes of its command lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

import runs
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.processes.errors import LauncherError
from prefiere.processes.launchers import on_cpu, refuse_unread

WORDS = ["dpo", "--data", "my pairs.jsonl"]
TORCHRUN = "torchrun --nproc_per_node {n} -m prefiere dpo --data 'my pairs.jsonl'"


def environment(*options: str, monkeypatch: pytest.MonkeyPatch, tmp: Path) -> dict[str, str]:
    """The environment that `accelerate launch` with these options gives to a process."""
    monkeypatch.setenv("HF_HOME", str(tmp))
    (tmp / "none.yaml").write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\n")
    args = launch_command_parser().parse_args(
        ["--config_file", str(tmp / "none.yaml"), "--main_process_port", "0", "--num_machines", "1",
         "--mixed_precision", "no", *options, "-m", "prefiere", *WORDS]
    )  # fmt: skip
    args = _validate_launch_command(args)[0]
    if args.cpu or not (args.use_fsdp or args.multi_gpu):
        return prepare_simple_launcher_cmd_env(args)[1]
    count = str(args.num_processes)
    return prepare_multi_gpu_env(args) | {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "RANK": "0"}


def test_one_process_on_a_cpu_is_obeyed(monkeypatch, tmp_path) -> None:
    asked = environment("--cpu", "--num_processes", "1", monkeypatch=monkeypatch, tmp=tmp_path)
    refuse_unread(asked, WORDS)
    assert on_cpu(asked)
    assert not on_cpu({})
    refuse_unread({}, WORDS)
    refuse_unread({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, WORDS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--use_fsdp", "--num_processes", "4"), f"FSDP is not read here. Instead: {TORCHRUN.format(n=4)}"),
        (("--cpu", "--num_processes", "2"), f"For N processes: {TORCHRUN.format(n='N')}"),
        (("--cpu", "--num_processes", "1", "--mixed_precision", "bf16"), "set dtype=bfloat16"),
        (("--cpu", "--num_processes", "1", "--dynamo_backend", "inductor"), "set torch_compile=true"),
    ],
)
def test_what_is_not_read_is_refused_with_the_right_command(options, says, monkeypatch, tmp_path) -> None:
    asked = environment(*options, monkeypatch=monkeypatch, tmp=tmp_path)
    with pytest.raises(LauncherError) as e:
        refuse_unread(asked, WORDS)
    assert says in str(e.value)
    assert "\n" not in str(e.value)


def test_a_refused_launcher_writes_nothing(monkeypatch, tmp_path) -> None:
    s = runs.settings(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(LauncherError, match="DeepSpeed"):
        launch(s, display=Display(quiet=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == before
