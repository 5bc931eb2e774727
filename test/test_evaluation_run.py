"""Runs of an evaluation: samples from files and seeds, JSON, page, table, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluation_world import HEIGHT, SCENE, WIDTH, SeeingModel, paint, shifted_by_5, write_shards
from numpy.typing import NDArray

from pam_ros import media
from pam_ros.cli import main as cli
from pam_ros.datasets.schema import Kind
from pam_ros.errors import DatasetError, InputError, StateError
from pam_ros.evaluation import run as run_module
from pam_ros.evaluation.cases import Case, Findings, JudgedLabel
from pam_ros.evaluation.masks import evaluate_masks
from pam_ros.evaluation.report import rows_of, write_page
from pam_ros.evaluation.run import (
    MAIN_KEYS,
    Part,
    Plan,
    SeedFindings,
    evaluate_samples,
    evaluation,
)
from pam_ros.evaluation.samples import Samples, read_data, render_samples
from pam_ros.evaluation.video import evaluate_video
from pam_ros.evaluation.wording import Wording, add_wordings
from pam_ros.model.text.prompts import TASK_TEXT
from pam_ros.records import Language, Task


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


# ---- samples


def test_a_folder_of_shards_is_read(shards: Path) -> None:
    samples = read_data(shards)
    image, video = samples.images[0], samples.videos[0]
    assert [region.kind for region in image.regions] == [Kind.BACKGROUND, Kind.OBJECT, Kind.PART, Kind.OBJECT]
    masks = [region.mask() for region in image.regions]
    assert masks[1] is not None and masks[1].sum() == 20 * 20 + 6 * 12  # with its part
    assert masks[2] is not None and masks[2].sum() == 6 * 12
    assert image.regions[1].texts[Task.LABEL, Language.EN] == ("mug", "cup")
    assert video.regions[1].box_xyxy() == (70, 60, 90, 80) and video.actor == 1 and len(video) == 20
    assert video.stamps_ns()[8] == 1_000_000_000 and not np.any(video.regions[1].mask(7))
    assert [frame.stamp_ns for frame in video.stream()] == video.stamps_ns()


def test_errors_of_folders_name_the_reason(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"has no index\.jsonl"):
        read_data(tmp_path / "empty")
    (shards / ".half").mkdir()  # a run that was broken off, or is under way
    (shards / ".half/index.jsonl").write_text("{}\n")
    assert len(read_data(shards).images) == 1
    with (shards / "index.jsonl").open("a") as file:
        file.write('{"image": "b.png"}\n')
    with pytest.raises(DatasetError, match=r"index\.jsonl, line 3, regions is missing"):
        read_data(shards)
    with pytest.raises(DatasetError, match=r"a folder of shards, a \.jsonl file"):
        read_data(tmp_path / "nothing.txt")


def test_rendered_scenes_are_kept_and_not_rendered_twice(tmp_path: Path) -> None:
    first = render_samples(5, 1, 0, tmp_path).images[0]
    (picture,) = tmp_path.glob("*/*.jpg")
    made = picture.stat().st_mtime_ns
    assert first.name == "image 5000000" and first.regions
    assert render_samples(5, 1, 0, tmp_path).images[0] == first and picture.stat().st_mtime_ns == made
    assert not list(tmp_path.glob(".*"))


def test_data_with_boxes_alone_have_no_mask_metrics(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    question = {task: {"value": TASK_TEXT[task, Language.EN]} for task in (Task.LABEL, Task.CLIP)}
    image = {"type": "image", "image": "0.png", "bbox": [1, 2, 10, 20]}
    video = {"type": "video", "frames": ["0.png", "1.png", "2.png"], "bbox": [[1, 2, 10, 20]]}
    lines = [
        image | {"conversations": [question[Task.LABEL], {"value": "mug"}]},
        video | {"conversations": [question[Task.CLIP], {"value": "It falls."}]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for index in range(3):
        paint(tmp_path, str(index), SCENE)
    plan = Plan(data=path, parts=(Part.MASKS, Part.VIDEO))
    findings = evaluate_samples(SeeingModel(), read_data(path), plan)
    assert set(findings.scores()) == {key for key, _ in MAIN_KEYS}
    assert not any(findings.scores().values())
    (row,) = [row for row in rows_of([SeedFindings(None, findings)]) if row.metric == "jf_video"]
    assert row.value is None and row.why == "these data have boxes, no masks"


# ---- findings, report, command


def test_findings_collect_means_numbers_and_reasons() -> None:
    one, two = Findings(), Findings()
    one.add(Case("a", "s1", 1.0))
    two.add(Case("a", "s2", 0.5))
    two.put("fps", 12.0, 40)
    two.lack("a", "never seen")
    two.lack("b", "no data")
    one.merge(two)
    assert one.scores() == {"a": 0.75, "fps": 12.0, "b": None}
    assert one.counts() == {"a": 2, "fps": 40, "b": 0}
    assert [case.sample for case in one.of("a")] == ["s2", "s1"]
    with pytest.raises(ValueError, match="finite"):
        one.add(Case("a", "s3", float("nan")))


def test_the_page_shows_the_worst_first_and_draws_each_picture_once(tmp_path: Path) -> None:
    drawn = []

    def picture() -> NDArray[np.uint8]:
        drawn.append(1)
        return np.zeros((20, 30, 3), np.uint8)

    findings = Findings()
    for number in range(20):
        findings.add(Case("a", f"sample {number}", 1 - number / 20, "<mug>", "杯子 & co", picture))
    page = write_page(tmp_path / "page", [SeedFindings(3, findings)], "pam-test").read_text("utf-8")
    shown = [number for number in range(20) if f">sample {number}<" in page]
    assert shown == [9, 10, 11, *range(12, 20)][-11:]
    assert page.index(">sample 19<") < page.index(">sample 12<") < page.index(">sample 9<")
    assert "&lt;mug&gt;" in page and "杯子 &amp; co" in page and "seed 3" in page
    assert len(drawn) == 1 and media.read_image(tmp_path / "page/0000.jpg").shape == (20, 30, 3)


def test_the_page_shows_the_reliability_curve(tmp_path: Path) -> None:
    findings = Findings()
    findings.labels += [JudgedLabel(0.95, False, True), JudgedLabel(0.35, True, False)]
    page = write_page(tmp_path / "page", [SeedFindings(3, findings)], "pam-test").read_text("utf-8")
    assert "src='reliability.png'" in page
    assert media.read_image(tmp_path / "page/reliability.png").std() > 5


def test_the_pictures_of_real_cases_can_be_drawn(shards: Path) -> None:
    findings, samples = Findings(), read_data(shards)
    evaluate_masks(SeeingModel(blur=shifted_by_5), samples.images, findings)
    evaluate_video(SeeingModel(), samples.videos, findings)
    drawn = findings.of("mask_iou_click")[0].picture()
    assert drawn.shape == (HEIGHT, 2 * WIDTH + 6, 3)
    assert (drawn[:, :WIDTH] == (255, 255, 0)).all(2).any()  # the click
    assert (drawn[:, :WIDTH] == (60, 220, 60)).all(2).any()  # the truth's outline
    frames = findings.of("jf_video")[0].picture()
    assert frames.shape == (2 * 288 + 6, 3 * 384 + 2 * 6, 3)


def test_the_command_writes_json_page_and_table(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pam_ros.cli.evaluate.load", lambda *options: SeeingModel())
    out, page = tmp_path / "out/result.json", tmp_path / "page"
    options = ["--data", str(shards), "--only", "video,masks", "--json", str(out), "--page", str(page)]
    cli.app(["evaluate", *options], standalone_mode=False)
    record = json.loads(out.read_text("utf-8"))
    assert {key for key, _ in MAIN_KEYS} <= set(record)
    assert record["mask_iou_box"] == 1.0 == record["jf_video"] and record["label_accuracy_zh"] is None
    assert record["samples"]["mask_iou_box"] == 2 and record["spread"]["jf_video"] == [1.0, 1.0]
    assert record["missing"]["tracked_fps"] == "speed was not evaluated"
    assert (page / "index.html").exists() and len(list(page.glob("*.jpg"))) >= 6
    table = capsys.readouterr().out
    assert "mask_iou_box" in table
    assert "label_accuracy_en" not in table and "was not evaluated" not in table
    assert "label_accuracy_en" not in (page / "index.html").read_text("utf-8")


def test_several_seeds_give_mean_and_spread(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def render(
        seed: int, images: int, videos: int, folder: Path, tell: object, *, absences: int, open_meshes: bool
    ) -> Samples:
        asked.append((seed, images, videos, absences, open_meshes))
        blur = shifted_by_5 if seed == 2 else lambda mask, frame: mask
        model.blur = blur
        return read_data(shards)

    model = SeeingModel()
    monkeypatch.setattr(run_module, "render_samples", render)
    plan = Plan(seeds=(1, 2), count=9, parts=(Part.MASKS, Part.VIDEO), open_meshes=True)
    with evaluation(model, plan) as found:
        row = rows_of(found)[0]
    assert asked == [(1, 9, 2, 1, True), (2, 9, 2, 1, True)]
    assert row.metric == "mask_iou_box" and row.high == 1.0 and row.low is not None and row.low < 0.7
    assert row.value == pytest.approx((row.low + 1) / 2) and row.samples == 4
    assert row.spread_text().endswith("..1.000")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Part.parse("masks,mask"), "'mask' .*masks, video, texts, find, stream, speed, surfaces"),
        (lambda: Plan(count=0), "at least 1, not 0"),
        (lambda: Plan(seeds=(1, 1)), "different whole numbers"),
        (lambda: Plan(seeds=(-1,)), r"0 or above, not \[-1\]"),
        (lambda: Plan(seeds=()), "give a seed or data"),
        (
            lambda: Plan(parts=(Part.SURFACES,), data=Path("here")),
            "surfaces .*leave out data and open meshes",
        ),
    ],
)
def test_errors_of_arguments_name_what_is_allowed(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_quarter_as_many_videos_at_least_one() -> None:
    assert [Plan(count=count).videos for count in (1, 7, 8, 40)] == [1, 1, 2, 10]


@pytest.mark.parametrize(("options", "carried"), [([], True), (["--no-carry-over"], False)])
def test_carry_over_can_be_switched_off(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], carried: bool
) -> None:
    asked: list[bool] = []

    def stream(*given: object, carry_over: bool, **more: object) -> None:
        asked.append(carry_over)

    monkeypatch.setattr("pam_ros.cli.evaluate.load", lambda *options: SeeingModel())
    monkeypatch.setattr("pam_ros.evaluation.stream.evaluate_stream", stream)
    out = tmp_path / "result.json"
    arguments = ["evaluate", "--data", str(shards), "--only", "stream", "--json", str(out), *options]
    cli.app(arguments, standalone_mode=False)
    assert asked == [carried] and json.loads(out.read_text("utf-8"))["carry_over"] is carried


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "find_spec", lambda name: None)
    for parts, words in (
        (tuple(Part), "mujoco, nltk, pycocoevalcap, pycocotools"),
        ((Part.MASKS,), "mujoco, pycocotools"),
    ):
        plan = Plan(count=1, parts=parts)
        with (
            pytest.raises(StateError, match=rf"^{words} not installed.*\.\[training\]"),
            evaluation(SeeingModel(), plan),
        ):
            pass


def test_the_page_explains_every_metric(shards: Path) -> None:
    findings = evaluate_samples(
        SeeingModel(), read_data(shards), Plan(data=shards, parts=(Part.MASKS, Part.VIDEO))
    )
    add_wordings([Wording("a", task, Language.ZH, "杯子", ("杯子",)) for task in list(Task)[1:]], findings)
    spoken = {"semantic_similarity_zh", "semantic_iou_parts", "event_accuracy_zh", "event_accuracy_actor"}
    keys = {*findings.scores(), *spoken, "event_accuracy_bystander", "continuity"}
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| [a-z, ]+ \| `(\w+)` \| .{20}", page, flags=re.MULTILINE)
    patterns = [
        key.replace("TASK", "(explain|brief|detail|clip)").replace("LANGUAGE", "(en|zh)") for key in explained
    ]
    allowed = re.compile(rf"({'|'.join(patterns)})(_zh)?(_parts|_background)?")
    assert {key for key, _ in MAIN_KEYS} <= keys
    assert [key for key in sorted(keys) if not allowed.fullmatch(key)] == []


def test_data_and_seed_exclude_each_other(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="give one of them"):
        cli.app(["evaluate", "--data", str(shards), "--seed", "1"], standalone_mode=False)
