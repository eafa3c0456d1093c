"""Weights from a `.safetensors` file: eight bytes of length, a JSON header, then the raw numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]

_LONGEST_HEADER = 100_000_000


def read_tensors(path: Path) -> dict[str, Floats]:
    """The tensors of a file by name, as 32-bit floats; integers, such as position numbers, are left out.

    Numbers that are 32-bit floats already stay in the file, and the system loads them as they are used. Raises
    `ValueError` for a file that is none, naming what is wrong.
    """
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    if raw.size < 8:
        raise ValueError(f"{path} is too short to be a safetensors file")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if length > min(_LONGEST_HEADER, raw.size - 8):
        raise ValueError(f"{path} is cut, or no safetensors file: its header has {length} bytes")
    try:
        header: Any = json.loads(raw[8 : 8 + length].tobytes())
    except ValueError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header is no object")
    data = raw[8 + length :]
    tensors: dict[str, Floats] = {}
    for name, entry in cast("dict[str, Any]", header).items():
        if name != "__metadata__":
            tensor = _read(data, entry, f"{path}: tensor {name}")
            if tensor is not None:
                tensors[name] = tensor
    return tensors


def _read(data: npt.NDArray[np.uint8], entry: Mapping[str, Any], where: str) -> Floats | None:
    try:
        kind, shape, (begin, end) = str(entry["dtype"]), [int(size) for size in entry["shape"]], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is not described: {error!r}") from error
    if not 0 <= begin <= end <= data.size:
        raise ValueError(f"{where} stands outside of the file, which may be cut")
    piece = data[begin:end]
    match kind:
        case "F32":
            # The format does not promise that numbers stand where a processor wants them.
            floats = np.frombuffer(piece, dtype="<f4")
        case "F16":
            floats = np.frombuffer(piece, dtype="<f2").astype(np.float32)
        case "BF16":
            # The upper half of a 32-bit float.
            floats = (np.frombuffer(piece, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
        case "I64" | "I32" | "I16" | "I8" | "U8" | "BOOL":
            return None
        case _:
            raise ValueError(f"{where} is of the unknown type {kind}")
    if floats.size != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{where} has {floats.size} numbers for the shape {shape}")
    return cast("Floats", floats.reshape(shape))
