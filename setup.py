"""`pip install .` for machines without ROS: the model, the runtime, training, the command line `pam`.

With ROS, colcon builds CMakeLists.txt instead.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"<version>(.+)</version>", (ROOT / "package.xml").read_text())[1]


def requirements(name: str) -> list[str]:
    """The pins of .setup/NAME.txt as lower bounds: a library must leave its users room."""
    lines = (ROOT / ".setup" / f"{name}.txt").read_text().splitlines()
    return [line.replace("==", ">=", 1) for line in lines if line and not line.startswith("#")]


def shared(folder: str) -> list[tuple[str, list[str]]]:
    """Every file below `folder`, to be found again by pam_ros.share."""
    files = [path.relative_to(ROOT) for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    return [(f"share/pam_ros/{path.parent}", [str(path)]) for path in files if path.suffix != ".pyc"]


setup(
    name="pam_ros",
    version=VERSION,
    description="Segment, recognise, explain and caption anything on a robot's camera",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["pam_ros", "pam_ros.*"]),
    package_data={"": ["*.yaml"]},
    data_files=shared("models") + shared("config"),
    install_requires=[*requirements("model"), *requirements("arrays"), "sam2>=1.1.0"],
    extras_require={
        "training": requirements("training"),
        "quantization": requirements("quantization"),
        "view": requirements("view"),
        "dev": requirements("dev"),
        "behaviour_trees": [line for line in requirements("dev") if line.startswith("py_trees")],
        "judge": [line for line in requirements("dev") if line.startswith("openai")],
        "embedder": ["sentence-transformers>=5"],
    },
    entry_points={"console_scripts": ["pam = pam_ros.start:pam"]},
)
