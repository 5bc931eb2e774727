"""`pam doctor`: reports this machine, and says what is wrong with others and how to fix it."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from pam_ros.cli import doctor
from pam_ros.cli.main import main
from pam_ros.findings import Verdict
from pam_ros.model.loading import diagnosis
from pam_ros.model.loading.checksums import Expected, Record

WHEEL = ["sm_80", "sm_90", "sm_120", "compute_120"]  # as of a CUDA 13 build for aarch64


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pam", "doctor", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_this_machine_is_reported_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PAM_MODELS", str(tmp_path))
    code = run(monkeypatch, "--json")
    lines = json.loads(capsys.readouterr().out)
    found = {(line["group"], line["name"]): line for line in lines}
    assert {line["group"] for line in lines} == {"versions", "fonts", "gpu", "memory", "models", "ros"}
    assert found["versions", "torch"]["value"] == version("torch")
    assert found["models", "pam-tiny"]["verdict"] == "ok"
    assert code == (1 if any(line["verdict"] == "error" for line in lines) else 0)
    assert all(line["fix"] for line in lines if line["verdict"] == "error")


def test_an_unfinished_model_is_an_error_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "PAM-3B"
    folder.mkdir()
    Record("Perceive-Anything/PAM-3B", "1" * 40, {"config.json": Expected(2)}).write(folder)
    monkeypatch.setenv("PAM_MODELS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    assert run(monkeypatch) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "is incomplete: 1 of 1 files are missing (config.json)" in said
    assert "→ pam fetch pam-3b --accept-licence" in said
    assert "errors: 1," in said


@pytest.mark.parametrize(
    ("capability", "failure", "verdict", "words"),
    [
        ((9, 0), "", Verdict.OK, "sm_90; torch for sm_80, sm_90, sm_120, compute_120; a kernel runs"),
        ((8, 9), "", Verdict.OK, "a kernel runs"),  # sm_80 code runs on every desktop chip of its generation
        ((12, 1), "", Verdict.OK, "a kernel runs"),
        ((8, 7), "", Verdict.NOTE, "not in the list, but a kernel runs"),  # Orin
        ((7, 5), "no kernel image", Verdict.ERROR, "a kernel fails: no kernel image"),
        ((8, 7), "no kernel image", Verdict.ERROR, "a kernel fails"),
    ],
)
def test_the_gpus_architecture_is_compared_with_torchs(
    capability: tuple[int, int], failure: str, verdict: Verdict, words: str
) -> None:
    found = diagnosis.architecture_finding("cuda:0 X", capability, WHEEL, "torch", failure)
    assert found.verdict is verdict
    assert words in found.value
    assert ("docs/onboard.md" in found.fix) is (verdict is not Verdict.OK)


def test_later_chips_run_ptx_and_earlier_ones_do_not() -> None:
    assert diagnosis.is_built_for((11, 0), ["compute_90"])
    assert not diagnosis.is_built_for((11, 0), ["sm_90", "sm_100"])
    assert not diagnosis.is_built_for((8, 0), ["sm_86", "compute_90"])
    assert diagnosis.is_built_for((8, 7), ["sm_87"])


@pytest.mark.cuda
def test_a_kernel_is_really_run() -> None:
    assert diagnosis.kernel_failure(torch.device("cpu")) == ""
    assert (diagnosis.kernel_failure(torch.device("cuda")) == "") == torch.cuda.is_available()


@pytest.mark.parametrize(("built_for", "words"), [(None, "for CPUs only"), ("13.0", "cannot use it")])
def test_a_gpu_that_torch_cannot_use_is_an_error(
    built_for: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(diagnosis, "_has_nvidia_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (found,) = diagnosis.gpu_findings()
    assert found.verdict is Verdict.ERROR
    assert words in found.value
    assert found.fix


def test_a_hidden_gpu_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(diagnosis, "_has_nvidia_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = diagnosis.gpu_findings()
    assert found.verdict is Verdict.NOTE
    assert (found.value, found.fix) == (
        "CUDA_VISIBLE_DEVICES= hides it; the model runs on the CPU",
        "unset CUDA_VISIBLE_DEVICES",
    )


def test_a_missing_package_and_a_broken_one_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "no-such-package"))
    found = {each.name: each for each in doctor.version_findings()}
    assert (found["no-such-package"].verdict, found["no-such-package"].fix) == (
        Verdict.ERROR,
        "pip install no-such-package",
    )
    monkeypatch.setitem(sys.modules, "pam_ros.model.loading.diagnosis", None)
    broken = [each for each in doctor.examine() if each.group == "gpu"]
    assert [each.verdict for each in broken] == [Verdict.ERROR]


def test_without_ros_only_the_nodes_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # the sources lack the built messages
    (found,) = doctor.ros_findings()
    assert found.verdict is Verdict.NOTE
    assert "source a workspace" in found.fix
