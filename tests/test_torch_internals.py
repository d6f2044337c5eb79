"""Lists the private names of torch that the package uses, so that one missing from a new torch is noticed at once."""

import ast
import pkgutil

import pytest

from tests.test_architecture import TREES

# Where a public name would do, it is used. What each is for:
PRIVATE = {
    "torch._C._current_graph_task_id": "whether a layer runs again in a backward pass",
    "torch._C._distributed_c10d._dump_nccl_trace": "NCCL's flight recorder, on a GPU alone",
    "torch._dynamo.callback.on_compile_end": "how long a step was compiled",
    "torch._dynamo.callback.on_compile_start": "how long a step was compiled",
    "torch._dynamo.config.recompile_limit": "how many shapes of a batch are compiled",
    "torch._foreach_clamp_max_": "one call for many tensors",
    "torch._foreach_clamp_min_": "one call for many tensors",
    "torch._foreach_copy_": "one call for many tensors",
    "torch._foreach_lerp_": "one call for many tensors",
    "torch._foreach_mul_": "one call for many tensors",
    "torch._foreach_norm": "one call for many tensors",
    "torch._fused_sgd_": "an update of a small network without the optimizer's own Python",
    "torch._inductor.config.compile_threads": "the compiler's processes are not more than this rank's share",
    "torch._inductor.config.deterministic": "kernels chosen without timing them",
    "torch.cuda._is_in_bad_fork": "whether a fork may use the GPU",
    "torch.nn.modules.batchnorm._BatchNorm": "all BatchNorm layers",
    "torch.nn.modules.batchnorm._NormBase": "all layers with running statistics",
    "torch.nn.modules.conv._ConvNd": "all convolutional layers",
    "torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model": "unused weights",
    "torch.ops.aten._upsample_bilinear2d_aa.out": "resizing into memory that is there",
    "torch.utils._pytree.tree_leaves": "all tensors in what a network returns",
}
NEEDS_GPU = {"torch._C._distributed_c10d._dump_nccl_trace"}


def uses(tree: ast.Module) -> set[str]:
    """Return the dotted names of torch that a module uses."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.asname or a.name.partition(".")[0]: a.name if a.asname else "torch"
                for a in node.names
                if is_torch(a.name)
            }
        elif isinstance(node, ast.ImportFrom) and is_torch(node.module or ""):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def dotted(node: ast.expr) -> str | None:
        if isinstance(node, ast.Attribute):
            before = dotted(node.value)
            return before and f"{before}.{node.attr}"
        return names.get(node.id) if isinstance(node, ast.Name) else None

    found = {name for node in ast.walk(tree) if isinstance(node, ast.expr) if (name := dotted(node)) is not None}
    return found | set(names.values())


def is_torch(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "torchvision", "accelerate")


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def test_private_names_in_use_are_those_of_the_table() -> None:
    used = {name for tree in TREES.values() for name in uses(tree) if is_private(name)}
    inner = {name for name in used if any(other.startswith(f"{name}.") for other in {*used, *PRIVATE})}
    assert used - inner == PRIVATE.keys()


@pytest.mark.parametrize("name", sorted(PRIVATE.keys() - NEEDS_GPU))
def test_torch_still_has(name: str) -> None:
    pkgutil.resolve_name(name)  # raises where a part of the name is missing
