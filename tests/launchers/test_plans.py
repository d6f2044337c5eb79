"""Launchers are pure functions: their plans are compared with the profile files, and nothing is started."""

import shlex
import sys
from pathlib import Path

import pytest
import yaml

from distrain.config.profile import LaunchOptions, Profile, resolve_profile
from distrain.errors import LaunchError
from distrain.launchers import LAUNCHERS
from distrain.launchers.accelerate import native_config
from distrain.launchers.profile_files import builtin_profiles, read_launch_options, read_launch_profile
from tests.cli_runner import distrain

# What is known only when a run begins; the files write it in capitals.
PLACE = {"rendezvous": "HOST:6000", "node_rank": 7, "address": "10.0.0.7", "interface": "eth0"}
WRITTEN = {"--node-rank=7": "--node-rank=NODE_RANK", "--master-port=6001": "--master-port=PORT", "/run": "RUN_DIR"}
MODULES = {"torch.distributed.run": "torchrun", "accelerate.commands.launch": "accelerate launch"}


def profile_of(wanted: LaunchOptions, **place: object) -> Profile:
    """The profile on a machine with enough GPUs."""
    known = {key: value for key, value in wanted.model_dump().items() if value is not None}
    return Profile.model_validate({"nodes": 1, **known, "threads": 1, **place})


def raw_command(profile: Profile) -> list[str]:
    """The planned command as a person types it."""
    plan = LAUNCHERS[profile.launcher](profile, Path("/run"))
    before, (module, *rest) = plan.argv[: plan.argv.index("-m")], plan.argv[plan.argv.index("-m") + 1 :]
    assert before[-1] == sys.executable
    words = [*before[:-1], *MODULES.get(module, f"python -m {module}").split(), *rest]
    return [WRITTEN.get(word, word) for word in words]


@pytest.mark.parametrize("name", builtin_profiles())
def test_first_line_of_a_launch_profile_is_the_command_that_is_planned(name: str) -> None:
    wanted = read_launch_profile(name)
    place = PLACE if (wanted.nodes or 1) != 1 and wanted.launcher != "slurm" else {}
    if wanted.launcher == "accelerate":  # its own file: by itself it says all that the profile does
        profile = profile_of(wanted.model_copy(update={"accelerate_config": None}), **place)
        assert native_config(profile) == yaml.safe_load(builtin_profiles()[name].read_text())
    else:
        profile = profile_of(wanted, **place)
    planned = shlex.join(raw_command(profile)).replace("/run/accelerate.yaml", f"launch/{name}.yaml")
    assert builtin_profiles()[name].read_text().splitlines()[0] == f"# {planned}"


def test_profiles_of_the_top_level_are_those_that_ship() -> None:
    top = Path(__file__).parents[2] / "launch"
    assert {path.stem for path in top.glob("*.yaml")} == builtin_profiles().keys()


def test_command_line_overrides_the_profile() -> None:
    wanted = read_launch_options("cpu-2", LaunchOptions(processes=4, restarts=0))
    assert (wanted.processes, wanted.restarts, wanted.launcher, wanted.device) == (4, 0, "torchrun", "cpu")


def test_several_nodes_use_the_port_above_the_rendezvous_and_its_interface() -> None:
    profile = resolve_profile(
        LaunchOptions(nodes=2, node_rank=0, rendezvous="127.0.0.1:6000", device="cpu", processes=3),
        threads=1,
        in_one_process=False,
        recipe="digits",
    )
    plan = LAUNCHERS["torchrun"](profile, Path("/run"))
    assert profile.world_size == 6
    assert {"--nnodes=2", "--node-rank=0", "--master-addr=127.0.0.1", "--master-port=6001"} <= set(plan.argv)
    assert plan.env["GLOO_SOCKET_IFNAME"] == plan.env["NCCL_SOCKET_IFNAME"] == "lo"
    accelerated = LAUNCHERS["accelerate"](profile.model_copy(update={"launcher": "accelerate"}), Path("/run"))
    config = yaml.safe_load(accelerated.files[Path("/run/accelerate.yaml")])
    assert (config["num_processes"], config["num_machines"], config["main_process_port"]) == (6, 2, 6001)


def test_elastic_run_may_train_on_every_number_of_nodes_in_its_range() -> None:
    wanted = LaunchOptions(nodes="1:3", node_rank=0, rendezvous="127.0.0.1:6000", device="cpu", processes=2)
    assert resolve_profile(wanted, threads=1, in_one_process=False, recipe="digits").world_sizes == [2, 4, 6]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("mixed_precision: bf16", "mixed_precision='bf16', which belongs in the recipe"),
        ("fsdp_config: {fsdp_version: 2}", "--set parallel.strategy=fsdp"),
        ("gradient_accumulation_steps: 4", "--set train.micro_batch_size"),
        ("deepspeed_config: {zero_stage: 2}", "deepspeed_config="),
        ("dynamo_config: {dynamo_backend: INDUCTOR}", "dynamo_config="),
        ("distributed_type: FSDP", "has distributed_type FSDP; use MULTI_GPU, MULTI_CPU or NO"),
        ("num_processes: 3\nnum_machines: 2", "3 processes on 2 nodes"),
    ],
)
def test_settings_of_the_recipe_are_refused_in_accelerates_file(tmp_path: Path, line: str, sentence: str) -> None:
    file = tmp_path / "own.yaml"
    config = {"distributed_type": "MULTI_GPU", "num_processes": 2, **yaml.safe_load(line)}
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(LaunchError) as caught:
        read_launch_profile(str(file))
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--launcher=mpirun"], "--launcher mpirun: must be inprocess, torchrun"),
        (["--launcher=inprocess", "--procs=2"], "--launcher inprocess runs one process, not 2"),
        (["--launch=nowhere"], "unknown launch profile 'nowhere'; use accelerate-cpu-2"),
        (["--launch=missing.yaml"], "missing.yaml cannot be read: No such file"),
        (["--launch=bad.yaml"], "launch profile bad.yaml: it has no key gpus (its keys: launcher, device"),
        (["--launch=accelerate-cpu-2", "--launcher=torchrun"], "--accelerate-config does not go with"),
        (["--nodes=2", "--run=r"], "--nodes 2 also needs --rendezvous HOST:PORT"),
        (["--nodes=x"], "--nodes x is not a number of nodes"),
        (["--nodes=3:2"], "--nodes 3:2 is not a range from 1 on"),
        (["--node-rank=-1"], "--node-rank -1: must be at least 0"),
        (["--rendezvous=here:5"], "--rendezvous and --node-rank are for several nodes"),
        (["--nodes=2", "--node-rank=2", "--rendezvous=127.0.0.1:5"], "--node-rank 2 is out of range for 2 nodes"),
        (["--nodes=2", "--node-rank=0", "--rendezvous=127.0.0.1"], "--rendezvous 127.0.0.1 is not of the form"),
        (
            ["--nodes=2", "--node-rank=0", "--rendezvous=no.invalid:5"],
            "--rendezvous host no.invalid is unknown on this machine",
        ),
        (["--nodes=2", "--node-rank=1", "--rendezvous=127.0.0.1:5"], "several nodes need one run directory"),
        (["--nodes=1:3", "--node-rank=0", "--rendezvous=127.0.0.1:5"], "does not divide over 3 processes"),
    ],
)
def test_bad_options_are_one_sentence_and_create_nothing(tmp_path: Path, words: list[str], sentence: str) -> None:
    (tmp_path / "bad.yaml").write_text("gpus: 2\n")
    done = distrain("fit", *words, "--device=cpu", cwd=tmp_path)
    assert done.code == 2, done.out + done.err
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_dry_run_prints_accelerates_file_and_creates_nothing(tmp_path: Path) -> None:
    done = distrain("fit", "--launcher=accelerate", "--procs=2", "--device=cpu", "--run=r", "--dry-run", cwd=tmp_path)
    assert done.code == 0
    assert f"accelerate.commands.launch --config_file={tmp_path}/r/accelerate.yaml -m distrain.worker" in done.out
    assert "distributed_type: MULTI_GPU" in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("device", "trace", "may_fork"), [("cuda", True, False), ("cuda", False, True), ("cpu", True, True)]
)
def test_ranks_with_traced_gpus_are_not_forks(device: str, trace: bool, may_fork: bool) -> None:
    profile = Profile.model_validate(
        {"launcher": "torchrun", "device": device, "processes": 2, "threads": 1, "trace": trace}
    )
    assert (LAUNCHERS["torchrun"](profile, Path("/run")).torchrun is not None) == may_fork


def test_profiles_are_listed_and_shown(tmp_path: Path) -> None:
    assert "cpu-2             Two CPU processes" in distrain("launch", cwd=tmp_path).out
    assert distrain("launch", "show", "gpu-4", cwd=tmp_path).out.startswith("# torchrun --standalone")
    assert "unknown launch profile 'x'" in distrain("launch", "show", "x", cwd=tmp_path).err
