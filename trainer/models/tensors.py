"""The tensors of a model folder, one at a time, wherever in its weight files they are. Imports torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from .folder import tensor_shapes, weight_files


class Tensors:
    """Names, shapes and values of the weights in a folder; a value is read when it is asked for.

    Example: `Tensors(Path("models/nano")).read("model.norm.weight")`.
    """

    def __init__(self, folder: Path) -> None:
        shapes = {file: tensor_shapes(file) for file in weight_files(folder)}
        self._files = {name: file for file, of_file in shapes.items() for name in of_file}
        self.shapes = {name: shape for of_file in shapes.values() for name, shape in of_file.items()}

    @property
    def names(self) -> list[str]:
        return sorted(self._files)

    def read(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
            return tensor
