"""Architecture dataclasses, and SAM 2's configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from pam_ros.errors import CheckpointError, ModelNotFoundError
from pam_ros.model.schema import check_perceiver, check_sam2, check_yaml, short

# PAM's flags, where they differ from the stock SAM 2 configuration (see docs/reference.md).
PAM_SAM2_FLAGS = {"multimask_output_in_sam": False}
# SAM 2 configurations name classes to build; only SAM 2's own may be named.
SAM2_TARGET_PREFIX = "sam2.modeling."


class PerceiverInput(Enum):
    """From which side of the mask decoder's two-way transformer (the paper's S2-FFM) the Perceiver reads.

    Only `AFTER` is the paper's model (section 3.2); the others are for ablations, see docs/reference.md.
    """

    AFTER = "after"  # image embedding and mask tokens as the transformer leaves them
    IMAGE_BEFORE = "image_before"  # image embedding as it enters the decoder, mask tokens as they leave
    BEFORE = "before"  # both as they enter: no prompt has touched them, only memory has


@dataclass(frozen=True, slots=True)
class PerceiverConfig:
    """Sizes of the Semantic Perceiver; its width is SAM 2's. `mm_perceiver` of config.json."""

    semantic_tokens: int = 16  # 0: image tokens only
    depth: int = 2
    heads: int = 8
    hidden: int = 2048  # of the MLPs
    input: PerceiverInput = PerceiverInput.AFTER
    crop_small_regions: bool = False  # see `vision.region_crop`

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> PerceiverConfig:
        """From config.json. Raises CheckpointError for a key or an input it does not know."""
        check_perceiver(values)
        try:
            # Folders written before the option was renamed name it "closer_look".
            values = {
                "crop_small_regions" if key == "closer_look" else key: value for key, value in values.items()
            }
            side = PerceiverInput(values.get("input", PerceiverInput.AFTER))
            return replace(cls(**values), input=side)
        except (AttributeError, TypeError, ValueError) as error:
            allowed = ", ".join(each.value for each in PerceiverInput)
            raise CheckpointError(
                f"config.json, mm_perceiver: {error}; input must be one of {allowed}"
            ) from error

    def as_json(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self) | {"input": self.input.value}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that decides shapes. Image size, grids and token counts follow from it."""

    sam2: Mapping[str, Any]  # the `model` node of a configuration of package sam2
    language: Mapping[str, Any]  # keyword arguments of transformers' Qwen2Config
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)


def sam2_config(name_or_path: str | Path) -> dict[str, Any]:
    """The `model` node of a SAM 2 configuration, with PAM's flags.

    Takes a YAML file, or the name of one inside package sam2, e.g. `sam2.1/sam2.1_hiera_l`.
    """
    path = Path(name_or_path)
    if not path.is_file():
        import sam2

        path = Path(sam2.__file__).parent / "configs" / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ModelNotFoundError(
            f"SAM 2 configuration {name_or_path} not found, neither as a file nor in package sam2"
        )
    check_yaml(path)
    try:
        # OmegaConf reads "1e-6" as a number, plain YAML 1.1 does not.
        loaded = OmegaConf.to_container(OmegaConf.load(path))
        config = loaded.get("model") if isinstance(loaded, dict) else None
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a SAM 2 configuration: {short(error)}") from error
    if not isinstance(config, dict) or "_target_" not in config:
        raise CheckpointError(f"{path} is not a SAM 2 configuration: 'model' has no _target_")
    _check_targets(config, path)
    check_sam2(config, path)
    return {str(key): value for key, value in config.items()} | PAM_SAM2_FLAGS


def _check_targets(node: Any, path: Path) -> None:
    """An untrusted configuration must not build, or call, anything but SAM 2's modules."""
    if isinstance(node, Mapping):
        if "_target_" in node and not _is_sam2_module(str(node["_target_"])):
            target = node["_target_"]
            raise CheckpointError(f"{path} builds {target}; only modules of package sam2 are allowed")
        for value in node.values():
            _check_targets(value, path)
    elif isinstance(node, list):
        for value in node:
            _check_targets(value, path)


def _is_sam2_module(target: str) -> bool:
    if not target.startswith(SAM2_TARGET_PREFIX):
        return False
    try:
        built = get_class(target)
    except Exception:  # hydra raises whatever the import or the look-up does
        return False
    # The prefix alone would let through what sam2's modules import, `sam2.modeling.utils.os.system`.
    return issubclass(built, nn.Module) and built.__module__.startswith(SAM2_TARGET_PREFIX)
