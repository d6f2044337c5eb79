"""The section of a recipe that says how the arithmetic is carried out: settings for speed only."""

from typing import Literal, Self

from pydantic import Field, model_validator

from distrain.config.section import Section


class Compute(Section):
    """How the arithmetic is carried out; it affects the last bits of a result, and a resume may change it."""

    memory_format: Literal["contiguous", "channels_last"] = Field(
        "contiguous",
        description="channels_last: images and weights with a pixel's channels side by side, faster for convolutions; "
        "with parallel.strategy=fsdp only images",
    )
    compile: Literal["none", "whole", "regional"] = Field(
        "none",
        description="torch.compile for training: the whole network, or regional: each repeated block, compiled once "
        "for all its copies; evaluation and an epoch's smaller last micro-batch are not compiled",
    )
    cuda_graphs: bool = Field(
        default=False, description="replay compiled steps as CUDA graphs, for small networks; needs compile: whole"
    )
    recompute: bool = Field(
        default=False,
        description="activation checkpointing: compute the activations of each block again in the backward pass, for "
        "less memory and more time, with the same bits",
    )
    tf32: bool | None = Field(
        None,
        description="run float32 convolutions and matrix products on GPUs with inputs rounded to 10 bits; null: unless "
        "train.exact is true",
    )

    @model_validator(mode="after")
    def _compiler_recomputes_itself(self) -> Self:
        if self.recompute and self.compile == "whole":
            raise ValueError(
                "compute.recompute and compute.compile=whole exclude each other: the compiler decides itself what it "
                "computes again; use compile: regional, or remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _cuda_graphs_are_compiled(self) -> Self:
        if self.cuda_graphs and self.compile != "whole":
            raise ValueError(
                f"compute.cuda_graphs needs compute.compile=whole, and compute.compile is {self.compile}; "
                f"set it to whole, or remove cuda_graphs"
            )
        return self
