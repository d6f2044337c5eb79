"""The section of a recipe that says how the arithmetic is carried out: what makes it quick, and nothing else."""

from typing import Literal, Self

from pydantic import Field, model_validator

from distrain.config.section import Section


class Compute(Section):
    """How the arithmetic is carried out; the last bits of a result depend on it, and a resume may change it."""

    memory_format: Literal["contiguous", "channels_last"] = Field(
        "contiguous",
        description="channels_last: images and weights with a pixel's channels side by side, quicker for convolutions; "
        "with parallel.strategy=fsdp images alone",
    )
    compile: Literal["none", "whole", "regional"] = Field(
        "none",
        description="torch.compile for training, of the whole network, or of each repeated block, which is compiled "
        "once for all like it; evaluation and an epoch's smaller last micro-batch are not compiled",
    )
    cuda_graphs: bool = Field(
        default=False, description="replay compiled steps as CUDA graphs, for small networks; needs compile: whole"
    )
    tf32: bool | None = Field(
        None,
        description="float32 convolutions and matrix products of GPUs with inputs of 10 bits' precision; null: where "
        "train.exact is false",
    )

    @model_validator(mode="after")
    def _cuda_graphs_are_compiled(self) -> Self:
        if self.cuda_graphs and self.compile != "whole":
            raise ValueError(
                f"compute.cuda_graphs replays what compute.compile=whole makes, and compute.compile is {self.compile}; "
                f"set it to whole, or leave cuda_graphs out"
            )
        return self
