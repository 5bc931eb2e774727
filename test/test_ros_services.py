"""A real `pam_node` with a fake model: services beside each other, the action with feedback and cancel."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from action_msgs.msg import GoalStatus
from rclpy.parameter import Parameter
from ros_harness import Camera, Client, Process, click, image_of, stamp_of, wait_until
from vision_msgs.msg import BoundingBox2D, Point2D, Pose2D

from pam_ros.action import CaptionClip
from pam_ros.msg import Prompt, RegionArray, Status
from pam_ros.nodes.inputs import services
from pam_ros.nodes.link import EngineLink
from pam_ros.nodes.requests import PromptDefaults
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.tools.processes import Processes
from pam_ros.records import Language, Task
from pam_ros.runtime.options import EngineOptions
from pam_ros.srv import CaptionNow, ClearRegions, Find, PerceiveAll, PerceiveRegion, RemoveRegion

# Texts of 20 words take 0.4 s: long enough to do something meanwhile.
SLOW = "model:=fake:words=20,step_s=0.02"
PARAMETERS = (SLOW, "autostart:=true")  # of the fixture `active`


def start_perceive(robot: Client, prompt: Prompt) -> object:
    return robot.start_call(PerceiveRegion, "/pam/perceive", PerceiveRegion.Request(prompt=prompt))


def test_perceive_answers_with_every_task_and_language(robot: Client) -> None:
    tasks = ["label", "explain", "brief", "detail"]
    with Camera(robot) as camera:
        answer = robot.perceive(click(30, 30, tasks=tasks, languages=["zh", "en"]))
    assert answer.status.code == Status.OK
    assert answer.status.message == ""
    assert [text.language for text in answer.region.texts] == ["zh", "en"]
    for text in answer.region.texts:
        words = (text.label, text.explanation, text.brief_caption, text.detailed_caption)
        assert [word.split("-")[0] for word in words] == tasks
        assert text.stamp.sec * 10**9 + text.stamp.nanosec in camera.sent_ns
    assert answer.region.id > 0
    for message in (answer, answer.region.mask):
        assert message.header.frame_id == "camera_optical"
        assert stamp_of(message) in camera.sent_ns


def test_everything_in_view_is_answered_and_kept_only_if_asked(robot: Client) -> None:
    with Camera(robot) as camera:
        robot.perceive(click(1, 1))
        robot.call(ClearRegions, "/pam/clear_regions", ClearRegions.Request())
        ask = PerceiveAll.Request(tasks=["label"], languages=["zh"])
        answer = robot.call(PerceiveAll, "/pam/perceive_all", ask)
        assert (answer.status.code, answer.status.message) == (Status.OK, "")
        assert {(each.roi.x_offset, each.roi.width) for each in answer.regions} == {(4, 16), (30, 30)}
        assert [each.id for each in answer.regions] == [0, 0]
        assert all(each.texts[0].label.startswith("label-zh") for each in answer.regions)
        assert (answer.left_out, answer.complete) == (0, True)
        assert stamp_of(answer) in camera.sent_ns
        ask = PerceiveAll.Request(keep=True, without_mask=True, max_regions=1)
        kept = robot.call(PerceiveAll, "/pam/perceive_all", ask)
        assert (len(kept.regions), kept.left_out, len(kept.regions[0].mask.data)) == (1, 1, 0)
        again = robot.perceive(Prompt(region_id=kept.regions[0].id))
        assert again.region.id == kept.regions[0].id > 0
    pixels = image_of(np.full((40, 60, 3), 90, np.uint8), "rgb8")
    own = robot.call(
        PerceiveAll, "/pam/perceive_all", PerceiveAll.Request(image=pixels, boxes=[box_at(20, 20, 10)])
    )
    assert [(each.roi.x_offset, each.roi.width) for each in own.regions] == [(15, 10)]
    bad = robot.call(PerceiveAll, "/pam/perceive_all", PerceiveAll.Request(tasks=["clip"]))
    assert bad.status.code == Status.INVALID_INPUT
    assert "allowed: label, explain, brief, detail" in bad.status.message


def test_find_ranks_regions_and_says_if_none_fits(robot: Client) -> None:
    with Camera(robot):
        robot.perceive(click(1, 1))
        none = robot.call(Find, "/pam/find", Find.Request(request="something else"))
        assert (none.status.code, none.fitting) == (Status.OK, 0)
        assert [round(score, 3) for score in none.scores] == [0.1, 0.1]
        explained = robot.perceive(click(10, 10, tasks=["explain"])).region
        said = explained.texts[0].explanation
        ask = Find.Request(request=said, region_ids=[explained.id], without_mask=True)
        found = robot.call(Find, "/pam/find", ask)
        assert (found.fitting, list(found.scores)) == (1, [1.0])
        assert found.regions[0].id == explained.id
        assert found.regions[0].texts[0].label
        chinese = robot.call(Find, "/pam/find", Find.Request(request="用来喝水的东西", min_score=0.05))
        assert (chinese.fitting, chinese.regions[0].texts[0].language) == (2, "zh")
        empty = robot.call(Find, "/pam/find", Find.Request(request=" "))
        assert (empty.status.code, "say what you need" in empty.status.message) == (
            Status.INVALID_INPUT,
            True,
        )


def box_at(x: float, y: float, size: float) -> BoundingBox2D:
    return BoundingBox2D(
        center=Pose2D(position=Point2D(x=float(x), y=float(y))), size_x=float(size), size_y=float(size)
    )


def test_a_mask_that_is_not_wanted_is_left_out(robot: Client) -> None:
    with Camera(robot) as camera:
        answer = robot.perceive(click(30, 30), without_mask=True)
        assert answer.status.code == Status.OK
        assert (len(answer.region.mask.data), answer.region.mask.width) == (0, 0)
        assert (answer.region.roi.width, answer.region.bbox.size_x) == (8, 8.0)
        assert stamp_of(answer) in camera.sent_ns
        again = robot.perceive(Prompt(region_id=answer.region.id))
        assert len(again.region.mask.data) == 64


def test_many_callers_are_served_beside_each_other(robot: Client) -> None:
    """Each text takes 0.4 s, and a quick request comes between. (An rclpy client queues 10 answers.)"""
    with Camera(robot):
        robot.perceive(click(1, 1, tasks=["label"]))
        begun_s = time.monotonic()
        futures = [start_perceive(robot, click(4 * number + 4, 20)) for number in range(9)]
        quick = robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=999))
        assert time.monotonic() - begun_s < 2.0, "a waiting service held up another"
        assert quick.status.code == Status.UNKNOWN_REGION
        wait_until(lambda: all(future.done() for future in futures), "all answers")
        took_s = time.monotonic() - begun_s
    answers = [future.result() for future in futures]
    assert {answer.status.code for answer in answers} == {Status.OK}
    assert len({answer.region.id for answer in answers}) == 9
    assert took_s < 9 * 0.4, f"{took_s:.1f} s: one after the other"


def test_several_robots_call_at_once(active: tuple[Client, Process], robot: Client) -> None:
    others = [Client(f"robot_{number}", robot.domain) for number in range(3)]
    with Camera(robot):
        futures = [
            start_perceive(each, click(10 * index + 5, 20)) for index, each in enumerate([robot, *others])
        ]
        wait_until(lambda: all(future.done() for future in futures), "all answers")
    assert {future.result().status.code for future in futures} == {Status.OK}
    for other in others:
        other.close()


def test_region_id_describes_and_refines(robot: Client) -> None:
    with Camera(robot):
        region = robot.perceive(click(30, 30)).region
        described = robot.perceive(Prompt(region_id=region.id, tasks=["explain"])).region
        assert described.id == region.id
        assert described.texts[0].explanation.startswith("explain-en")
        assert described.texts[0].label == region.texts[0].label
        refined = robot.perceive(Prompt(box=[2.0, 2.0, 12.0, 14.0], region_id=region.id)).region
        assert refined.id == region.id
        assert (refined.roi.x_offset, refined.roi.width, refined.roi.height) == (2, 10, 12)


def test_own_image_is_answered_without_tracking(robot: Client) -> None:
    picture = image_of(np.full((30, 40, 3), 77, np.uint8))
    picture.header.frame_id, picture.header.stamp.sec = "hand", 42
    answer = robot.perceive(Prompt(box=[5.0, 5.0, 15.0, 20.0]), image=picture)
    assert answer.status.code == Status.OK
    assert answer.region.id == 0
    assert "s77" in answer.region.texts[0].label
    assert (answer.region.mask.header.frame_id, answer.region.mask.header.stamp.sec) == ("hand", 42)
    cleared = robot.call(ClearRegions, "/pam/clear_regions", ClearRegions.Request())
    assert (cleared.status.code, cleared.removed) == (Status.OK, 0)


def test_remove_and_clear(robot: Client) -> None:
    with Camera(robot):
        ids = [robot.perceive(click(x, 20)).region.id for x in (10, 30, 50)]
        removed = robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=ids[0]))
        assert removed.status.code == Status.OK
        again = robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=ids[0]))
        assert again.status.code == Status.UNKNOWN_REGION
        assert str(ids[1]) in again.status.message
        cleared = robot.call(ClearRegions, "/pam/clear_regions", ClearRegions.Request())
        assert (cleared.status.code, cleared.removed) == (Status.OK, 2)


def test_removing_a_region_cancels_the_requests_about_it(robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    with Camera(robot):
        waiting = start_perceive(robot, click(30, 30, tasks=["label", "explain", "brief", "detail"]))
        region = wait_until(lambda: messages and messages[-1].regions, "the region")[0]
        robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=region.id))
        wait_until(waiting.done, "the answer")
    assert waiting.result().status.code == Status.CANCELLED
    assert "removed" in waiting.result().status.message


def test_caption_now(robot: Client) -> None:
    with Camera(robot) as camera:
        region_id = robot.perceive(click(30, 30)).region.id
        for language, expected in (("", "en"), ("zh", "zh")):
            request = CaptionNow.Request(region_id=region_id, language=language)
            answer = robot.call(CaptionNow, "/pam/caption_now", request)
            assert answer.status.code == Status.OK
            assert answer.caption.text.startswith(f"clip-{expected}")
            assert (answer.caption.region_id, answer.caption.final) == (region_id, True)
            assert stamp_of(answer.caption) in camera.sent_ns


def test_clip_of_a_prompt_with_growing_feedback(robot: Client) -> None:
    with Camera(robot) as camera:
        goal = robot.send_goal(CaptionClip.Goal(prompt=click(30, 30), duration_s=1.0, language="zh"))
        status, result = goal.result()
    assert (status, result.status.code) == (GoalStatus.STATUS_SUCCEEDED, Status.OK), result.status
    caption = result.caption
    assert caption.text.startswith("clip-zh")
    assert caption.frame_count > 5
    assert stamp_of(caption) in camera.sent_ns
    recorded = [feedback.recorded_s for feedback in goal.feedback]
    assert recorded == sorted(recorded)
    assert recorded[-1] == pytest.approx(1.0, abs=0.2)
    partial = [feedback.partial_text for feedback in goal.feedback if feedback.partial_text]
    assert len(partial) > 5, "the text did not come word by word"
    assert all(caption.text.startswith(text) for text in partial)


def test_cancel_stops_the_text_and_nothing_else(robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    with Camera(robot):
        other = robot.perceive(click(10, 10)).region.id
        goal = robot.send_goal(CaptionClip.Goal(prompt=click(40, 30), duration_s=0.3))
        wait_until(lambda: any(feedback.partial_text for feedback in goal.feedback), "the first word")
        goal.cancel()
        begun_s = time.monotonic()
        status, result = goal.result()
        assert time.monotonic() - begun_s < 1.0
        assert (status, result.status.code) == (GoalStatus.STATUS_CANCELED, Status.CANCELLED)
        count = len(goal.feedback)
        time.sleep(0.3)
        assert len(goal.feedback) == count, "it went on generating"
        assert robot.perceive(Prompt(region_id=other)).status.code == Status.OK
        frames = len(messages)
        wait_until(lambda: len(messages) > frames + 5, "masks")
        assert other in [region.id for region in messages[-1].regions]


def test_cancel_while_recording(robot: Client) -> None:
    with Camera(robot):
        goal = robot.send_goal(CaptionClip.Goal(prompt=click(40, 30), duration_s=60.0))
        wait_until(lambda: goal.feedback, "feedback")
        goal.cancel()
        status, result = goal.result()
    assert (status, result.status.code) == (GoalStatus.STATUS_CANCELED, Status.CANCELLED)


def test_two_clips_at_once(robot: Client) -> None:
    with Camera(robot):
        goals = [robot.send_goal(CaptionClip.Goal(prompt=click(x, 30), duration_s=0.5)) for x in (10, 40)]
        results = [goal.result() for goal in goals]
    assert [status for status, _ in results] == [GoalStatus.STATUS_SUCCEEDED] * 2
    assert len({result.caption.region_id for _, result in results}) == 2


def test_camera_that_dies_under_a_clip(robot: Client) -> None:
    with Camera(robot, dies=True):
        goal = robot.send_goal(CaptionClip.Goal(prompt=click(40, 30), duration_s=60.0))
        wait_until(lambda: len(goal.feedback) > 5, "feedback")
    status, result = goal.result()  # a caption of what was recorded
    assert (status, result.status.code) == (GoalStatus.STATUS_SUCCEEDED, Status.OK)
    assert "of 60 s: no image arrived for 5." in result.status.message


def test_results_of_goals_expire_while_simulated_time_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_RESULT_TIMEOUT_S", 1)
    with Processes(tmp_path) as processes, Client("pam", processes.domain) as server:
        server.node.set_parameters([Parameter("use_sim_time", value=True)])
        offered = services.Services(
            server.node,
            camera="camera",
            link=EngineLink(EngineOptions()),
            log=ThrottledLog(server.node.get_logger()),
            defaults=lambda: PromptDefaults((Task.LABEL,), (Language.EN,)),
            frame_id=str,
            surfaces=None,  # type: ignore[arg-type]
        )
        with Client("robot", processes.domain) as client:
            status, result = client.send_goal(CaptionClip.Goal(prompt=click(3, 3), duration_s=1.0)).result()
        assert (status, result.status.code) == (GoalStatus.STATUS_ABORTED, Status.NOT_ACTIVE)
        assert offered._action._goal_handles
        wait_until(lambda: not offered._action._goal_handles, "the end of the result", 5.0)
        server.close()
        offered.destroy()
