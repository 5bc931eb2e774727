"""Materials of the slots: named colours, which captions use, and fixed materials."""

from __future__ import annotations

from dataclasses import dataclass

Rgb = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Finish:
    """Finish of a surface: specular, shininess, emission and opacity, each 0..1."""

    specular: float = 0.25
    shininess: float = 0.4
    emission: float = 0.0
    alpha: float = 1.0


# The centre of each named colour; scenes vary it a little.
COLOURS: dict[str, Rgb] = {
    "red": (0.76, 0.1, 0.1),
    "orange": (0.9, 0.42, 0.06),
    "yellow": (0.93, 0.77, 0.1),
    "green": (0.15, 0.5, 0.2),
    "blue": (0.12, 0.28, 0.68),
    "purple": (0.42, 0.18, 0.55),
    "pink": (0.92, 0.5, 0.62),
    "white": (0.9, 0.9, 0.88),
    "black": (0.07, 0.07, 0.075),
    "grey": (0.45, 0.46, 0.48),
    "brown": (0.4, 0.24, 0.13),
    "beige": (0.83, 0.73, 0.56),
    "silver": (0.72, 0.73, 0.75),
    "golden": (0.8, 0.6, 0.2),
    "turquoise": (0.1, 0.62, 0.62),
    "amber": (0.45, 0.22, 0.04),
    "clear": (0.75, 0.82, 0.85),
}

FINISHES: dict[str, Finish] = {
    "plastic": Finish(0.35, 0.5),
    "metal": Finish(0.9, 0.75),
    "steel": Finish(0.9, 0.75),
    "wood": Finish(0.08, 0.2),
    "ceramic": Finish(0.55, 0.8),
    "glass": Finish(0.9, 0.9, alpha=0.55),
    "paper": Finish(0.02, 0.1),
    "cardboard": Finish(0.02, 0.1),
    "rubber": Finish(0.08, 0.2),
    "enamel": Finish(0.6, 0.8),
    "wax": Finish(0.2, 0.4),
    "foam": Finish(0.0, 0.1),
    "wicker": Finish(0.05, 0.2),
    "fruit": Finish(0.3, 0.5),
    "iron": Finish(0.3, 0.3),
}

# Slots with the same colour and finish on every object.
FIXED: dict[str, tuple[Rgb, Finish]] = {
    "steel": ((0.68, 0.69, 0.71), FINISHES["metal"]),
    "black": (COLOURS["black"], FINISHES["plastic"]),
    "white": ((0.88, 0.88, 0.86), Finish(0.3, 0.4)),
    "grey": ((0.4, 0.41, 0.43), FINISHES["plastic"]),
    "red": (COLOURS["red"], FINISHES["plastic"]),
    "pink": (COLOURS["pink"], FINISHES["rubber"]),
    "wood": ((0.66, 0.47, 0.28), FINISHES["wood"]),
    "bark": ((0.27, 0.19, 0.1), FINISHES["wood"]),
    "leaf": ((0.17, 0.42, 0.13), Finish(0.15, 0.3)),
    "glass": ((0.75, 0.84, 0.87), Finish(0.9, 0.9, alpha=0.32)),
    "darkglass": ((0.06, 0.07, 0.08), Finish(0.9, 0.9)),
    "paper": ((0.93, 0.92, 0.87), FINISHES["paper"]),
    "cardboard": ((0.66, 0.5, 0.33), FINISHES["cardboard"]),
    "tape": ((0.78, 0.68, 0.48), Finish(0.6, 0.7)),
    "crumb": ((0.9, 0.78, 0.55), FINISHES["foam"]),
    "eggshell": ((0.9, 0.76, 0.62), Finish(0.2, 0.3)),
    "soil": ((0.2, 0.14, 0.09), FINISHES["foam"]),
    "bristle": ((0.35, 0.26, 0.16), Finish(0.1, 0.2)),
    "scourer": ((0.15, 0.4, 0.22), FINISHES["foam"]),
    "coffee": ((0.14, 0.07, 0.03), Finish(0.7, 0.8)),
    "lamp": ((1.0, 0.96, 0.8), Finish(0.2, 0.4, emission=0.7)),
    "bulb": ((0.95, 0.94, 0.88), Finish(0.9, 0.9, emission=0.15)),
    "flame": ((1.0, 0.72, 0.2), Finish(0.0, 0.0, emission=1.0)),
    "display": ((0.2, 0.75, 0.6), Finish(0.4, 0.6, emission=0.5)),
}
