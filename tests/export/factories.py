"""Images of handwritten digits as files, and bundles of small untrained networks."""

from pathlib import Path

import torch
from PIL import Image

from distrain.checkpoint.tensors import digest
from distrain.config import Data, Model
from distrain.data.sources.base import Source, TensorSource
from distrain.data.sources.registry import open_sources
from distrain.export import Bundle
from distrain.export.metadata import Description, Preprocessing
from distrain.models.registry import build_model

CPU = torch.device("cpu")


def validation_digits() -> TensorSource:
    source: Source = open_sources(Data(source="digits", batch_size=1))["val"]
    assert isinstance(source, TensorSource)
    return source


def write_digits(folder: Path, count: int) -> list[Path]:
    """Write the first validation digits as PNG files and return their paths, sorted as a folder is read."""
    folder.mkdir(parents=True, exist_ok=True)
    source = validation_digits()
    files = [folder / f"{index:03}.png" for index in range(count)]
    for index, file in enumerate(files):
        Image.fromarray(source.images[index, 0].numpy()).save(file)
    return files


def make_bundle(**changes: object) -> Bundle:
    """A digits network with random weights; `changes` replace fields of its description."""
    torch.manual_seed(0)
    config = changes.get("model", Model(name="digits-cnn"))
    assert isinstance(config, Model)
    in_channels = 1 if config.name == "digits-cnn" else 3
    classes = changes.get("classes", ("a", "b", "c"))
    assert isinstance(classes, tuple)
    tensors = build_model(config, num_classes=len(classes), in_channels=in_channels).state_dict()
    description = Description(
        recipe="made",
        step=0,
        metrics=None,
        weights="trained",
        weights_digest=digest(tensors),
        model=config,
        classes=classes,
        preprocessing=Preprocessing(
            image_channels=1,
            transforms=(),
            input_dtype="uint8",
            input_shape=(1, 8, 8),
            mean=(0.3,),
            std=(0.4,),
            normalization="",
        ),
        torch="2",
    )
    return Bundle(description.model_copy(update=changes), tensors, device=CPU)
