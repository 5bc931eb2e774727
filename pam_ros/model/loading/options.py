"""How to load a model: one record for the node, the command line and the measurements. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pam_ros.model.descriptions import AUTO
from pam_ros.model.text.server_address import server_address

REGIONS = 16  # tracked at a time, unless asked otherwise


class Quantization(Enum):
    """How the language model's linear layers are kept. Values are the names in parameters and options."""

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bytes_per_weight(self) -> float:
        """With its share of scales; 0 if the dtype decides."""
        return {Quantization.NONE: 0.0, Quantization.INT8: 1.01, Quantization.INT4: 0.54}[self]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What to load, and where.

    Attributes:
        model: name (`pam-tiny`), hub id (`Perceive-Anything/PAM-3B`) or folder; `auto` takes the best
            official model that is on this disk and fits, see `choice`.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (see `parse_dtype`), `float32`, `bfloat16`, `float16`.
        quantization: of the language model's linear layers: `none`, `int8` or `int4`.
        sam2: SAM 2's weights, where they are not in the model's folder.
        memory_limit_gib: at most this much memory may be used; 0 = what is free.
        regions: most regions that are tracked at a time, over all cameras.
        text_server: URL of a server that generates the texts; empty = this process.

    Raises InputError for a URL that is none.
    """

    model: str = AUTO
    device: str = "auto"
    dtype: str = "auto"
    sam2: Path | None = None
    quantization: str = "none"
    memory_limit_gib: float = 0.0
    regions: int = REGIONS
    text_server: str = ""

    def __post_init__(self) -> None:
        if self.text_server:
            server_address(self.text_server)

    @property
    def decoder(self) -> bool:
        """Whether the language model's decoder is loaded; a text server has its own."""
        return not self.text_server
