"""Streaming captions and their judges: the truth scores 1, captions of another clip less."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeText
from PIL import Image
from scripted_model import ScriptedModel, region_of

from pam_ros.datasets.schema import Clip, FramePrompt, PictureFile, Sample
from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.judges import CaptionSequence, ChatJudge, JudgeError, RuleJudge, open_judge
from pam_ros.evaluation.stream import (
    CaptionedClip,
    captioned_clips,
    chosen_regions,
    evaluate_stream,
    events_are_right,
    events_in,
    events_in_order,
    right_captions,
)
from pam_ros.records import Language
from pam_ros.simulator.texts.captions import clip_caption
from pam_ros.simulator.texts.facts import Facts

EN, ZH = Language.EN, Language.ZH


# ---- streaming


SEGMENTS = ((0, 10, "still"), (10, 24, "slides_left"), (24, 34, "lifted"), (34, 48, "held"))
FPS = 8.0


@pytest.fixture
def video(tmp_path: Path) -> Sample:
    """48 frames at 8 a second; region 1 acts, region 2 stands by, region 3 is smaller."""
    paths = []
    for index in range(48):
        paths.append(tmp_path / f"{index:02}.png")
        Image.fromarray(np.full((24, 32, 3), index + 1, np.uint8)).save(paths[-1])
    actor, bystander, small = region_of("mug", 1), region_of("hammer", 2), {0: FramePrompt((20, 2, 22, 4))}
    return Sample(
        name="video 1",
        frames=tuple(PictureFile(path) for path in paths),
        is_video=True,
        fps=FPS,
        actor=1,
        regions=(
            replace(actor, segments=SEGMENTS),
            replace(bystander, segments=((0, 48, "still"),)),
            replace(region_of("kettle", 3), segments=((0, 48, "still"),), prompts=small),
        ),
    )


def truth_teller(video: Sample, shift: int = 0) -> ScriptedModel:
    """Captions every clip with its truth, or with that of the clip `shift` clips on; with the right link."""
    clips = [(0, 25), (25, 48)]  # of 3 s: from the first frame to the one at the decode timestamp

    def answer(number: int, request: FakeText) -> str:
        chosen = chosen_regions(video)
        region = video.regions[chosen[(number - 1) % len(chosen)]]  # the second language counts on
        last = request.embeddings[-1].shade - 1  # a frame's shade is its index plus 1
        place = next(i for i, (start, end) in enumerate(clips) if start <= last < end)
        events = [events_in(region, *clip) for clip in clips]
        previous = events[place - 1] if place else ()
        described_events = events[(place + shift) % len(clips)]
        facts = Facts(region.category, "object", colour="red", material="metal")
        return clip_caption(facts, described_events, previous, request.language, np.random.default_rng(last))

    return ScriptedModel(answer=answer)


def test_true_events_of_a_clip_are_as_in_training(video: Sample) -> None:
    actor = video.regions[0]
    assert events_in(actor, 0, 24) == ("slides_left",)
    assert events_in(actor, 24, 48) == ("lifted",)
    assert events_in(actor, 0, 16) == ("still",)  # six of the slide's fourteen frames: a fragment
    assert events_in(actor, 0, 17) == ("slides_left",)
    assert events_in(actor, 12, 34) == ("slides_left", "lifted")
    assert events_in(actor, 36, 48) == ("held",)
    assert events_in(replace(actor, segments=()), 0, 24) == ()


@pytest.mark.parametrize("language", list(Language))
def test_events_are_right_as_a_set(language: Language) -> None:
    facts, rng = Facts("mug", "object", colour="red"), np.random.default_rng(1)
    both = clip_caption(facts, ("lifted", "put_down"), (), language, rng)
    assert events_are_right(both, language, ("lifted", "put_down"))
    assert not events_are_right(both, language, ("lifted",))
    assert not events_are_right(
        clip_caption(facts, ("lifted",), (), language, rng), language, ("lifted", "put_down")
    )
    assert not events_are_right("", language, ("still",))


def test_the_actor_and_one_bystander_are_captioned(video: Sample) -> None:
    assert chosen_regions(video) == (0, 1)  # the larger of two that stand by
    busy = replace(video.regions[2], segments=((0, 20, "still"), (20, 48, "pushes")))
    assert chosen_regions(replace(video, regions=(*video.regions[:2], busy))) == (0, 2)
    assert chosen_regions(replace(video, actor=0)) == (0, 1, 2)


@pytest.mark.parametrize("carry_over", [True, False])
def test_clips_are_sampled_as_in_the_node(video: Sample, carry_over: bool) -> None:
    model = truth_teller(video)
    clips = captioned_clips(model, video, chosen_regions(video), EN, 3.0, carry_over)
    assert [(clip.start, clip.end) for clip in clips[0]] == [(0, 25), (25, 48 if carry_over else 47)]
    assert [clip.events for clip in clips[0]] == [("slides_left",), ("lifted",)]
    assert [clip.events for clip in clips[1]] == [("still",), ("still",)]
    shades = [
        [row.shade - 1 for row in request.embeddings]
        for request in model.asked
        if request.embeddings[0].region == 1
    ]
    assert shades[0] == [0, 2, 4, 5, 7, 8, 10, 12, 13, 15, 16, 18, 20, 21, 23, 24]  # every 0.2 s
    first, last = (24, 47) if carry_over else (25, 46)
    assert (shades[1][0], shades[1][-1]) == (first, last)
    assert len(shades[1]) == (15 if carry_over else 14)  # the video ends before the clip
    assert model.asked[-1].previous_caption and model.asked[0].previous_caption is None


@pytest.mark.parametrize("limit", [0, 1])
def test_regions_that_cannot_be_tracked_together_are_captioned_in_several_runs(
    video: Sample, limit: int
) -> None:
    model = truth_teller(video)
    model.max_regions = limit
    clips = captioned_clips(model, video, chosen_regions(video), EN, 3.0, True)
    assert {place: [clip.events for clip in each] for place, each in clips.items()} == {
        0: [("slides_left",), ("lifted",)],
        1: [("still",), ("still",)],
    }


def test_a_short_remainder_is_not_scored(video: Sample) -> None:
    clips = captioned_clips(truth_teller(video), video, (0,), EN, 5.0, True)[0]
    assert [(clip.start, clip.end) for clip in clips] == [(0, 41)]
    clips = captioned_clips(truth_teller(video), video, (0,), EN, 4.0, True)[0]
    assert [(clip.start, clip.end) for clip in clips] == [(0, 33), (33, 48)]


def stream_scores(model: ScriptedModel, video: Sample) -> tuple[dict[str, float | None], Findings]:
    findings = Findings()
    evaluate_stream(model, [video], findings, RuleJudge())
    return findings.scores(), findings


def test_true_captions_score_1(video: Sample) -> None:
    scores, findings = stream_scores(truth_teller(video), video)
    for spoken in ("", "_zh"):
        assert scores[f"event_accuracy{spoken}"] == 1 and findings.counts()[f"event_accuracy{spoken}"] == 4
        for role in ("_actor", "_bystander"):
            assert scores[f"event_accuracy{spoken}{role}"] == 1
            assert findings.counts()[f"event_accuracy{spoken}{role}"] == 2
        assert scores[f"continuity{spoken}"] == 1 and findings.counts()[f"continuity{spoken}"] == 2
        assert scores[f"summary_events{spoken}"] == 1 and findings.counts()[f"summary_events{spoken}"] == 2
    assert scores["rouge_l_clip_en"] > 0.5 and scores["cider_clip_zh"] > 0
    case = findings.of("event_accuracy")[0]
    assert case.picture is not None and case.picture().ndim == 3


def test_captions_of_another_clip_score_less(video: Sample) -> None:
    scores, _ = stream_scores(truth_teller(video, shift=1), video)
    assert scores["event_accuracy"] == 1 / 2  # the bystander's clips are all alike
    assert scores["event_accuracy_actor"] == 0 and scores["event_accuracy_bystander"] == 1
    assert scores["summary_events"] < 1
    # The actor's second clip tells the ended slide, and that it goes on: 0.
    assert scores["continuity"] == scores["continuity_zh"] == 1 / 2


def test_data_without_events_are_compared_in_wording_alone(video: Sample) -> None:
    captions = {EN: ("The mug slides to the left.",)}
    clips = (Clip(0, 30, captions), Clip(30, 48, {}))
    plain = replace(video.regions[0], segments=(), category="", clips=(clips,))
    model = ScriptedModel(answer=lambda region, request: "The mug slides to the left.")
    scores, findings = stream_scores(model, replace(video, regions=(plain,), actor=0))
    assert {request.language for request in model.asked} == {EN}  # there is nothing to compare Chinese with
    assert scores["event_accuracy"] is None and scores["continuity"] is None
    assert scores["rouge_l_clip_en"] == 1 and findings.counts()["rouge_l_clip_en"] == 1
    assert right_captions(plain, 24, 48, (), (), EN) == ()


# ---- judges


def sequence(*captions: str, events: tuple[tuple[str, ...], ...], language: Language = EN) -> CaptionSequence:
    return CaptionSequence("video 1 region 1", language, captions, ("",) * len(captions), "mug", events)


FIRST = "The red mug slides to the left."
CHANGE, SAME = (("slides_left",), ("lifted",)), (("slides_left",), ("slides_left",))


@pytest.mark.parametrize(
    ("caption", "events", "score"),
    [
        ("Then the mug is lifted.", CHANGE, 1),
        ("The mug is lifted.", CHANGE, 1),  # without any link
        ("Still, the mug is lifted.", CHANGE, 0.5),  # nothing goes on
        ("Then the mug slides to the left.", CHANGE, 0.5),  # that has ended
        ("As before, the mug slides to the left.", CHANGE, 0),
        ("As before, the mug slides to the left.", SAME, 1),
        ("Next, the mug slides to the left.", SAME, 0.5),  # as if it were new
        ("Still, the mug falls down.", SAME, 0.5),
        ("Then the hammer is lifted.", CHANGE, 0),
        ("", CHANGE, 0),
        ("Then the mug hums.", CHANGE, 0),
    ],
)
def test_the_rule(caption: str, events: tuple[tuple[str, ...], ...], score: float) -> None:
    assert RuleJudge().continuity(sequence(FIRST, caption, events=events)) == score


def test_the_rule_in_chinese() -> None:
    first = "红色的马克杯向左滑动。"
    for text, score in (("马克杯接着被提起。", 1), ("马克杯仍然被提起。", 0.5), ("锤子接着被提起。", 0)):
        assert RuleJudge().continuity(sequence(first, text, events=CHANGE, language=ZH)) == score
    covered = (("stays_covered",), ("stays_covered",))
    text = "马克杯依旧仍被箱子盖着。"
    assert RuleJudge().continuity(sequence(text, text, events=covered, language=ZH)) == 1


def test_the_rule_needs_the_truth() -> None:
    assert RuleJudge().continuity(sequence(FIRST, events=(("slides_left",),))) is None
    assert RuleJudge().continuity(sequence(FIRST, FIRST, events=((), ()))) is None


@dataclass
class Endpoint:
    """A chat endpoint on this machine."""

    url: str
    reply: str = "Fine.\nscore: 4"
    status: int = 200
    requests: list[dict[str, object]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            served.requests.append({"path": self.path, **json.loads(body)})
            served.keys.append(self.headers.get("Authorization", ""))
            message = {"role": "assistant", "content": served.reply}
            answer = {
                "id": "1", "object": "chat.completion", "created": 0, "model": "m",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            }  # fmt: skip
            payload = json.dumps(answer).encode()
            self.send_response(served.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_chat_model_judges(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_JUDGE_API_KEY", "secret")
    judge = open_judge(endpoint.url, "some-model")
    assert judge.name == "some-model"
    assert judge.continuity(sequence(FIRST, "Then it hums.", events=CHANGE)) == 0.8
    (request,) = endpoint.requests
    assert request["path"] == "/v1/chat/completions" and request["model"] == "some-model"
    assert "Then it hums." in json.dumps(request["messages"]) and request["temperature"] == 0
    assert endpoint.keys == ["Bearer secret"]
    assert judge.continuity(sequence(FIRST, events=(("still",),))) is None and len(endpoint.requests) == 1


@pytest.mark.parametrize(("reply", "score"), [("**Score: 3.5**", 0.7), ("score: 1, no: score: 5", 1.0)])
def test_answers_of_a_chat_model(endpoint: Endpoint, reply: str, score: float) -> None:
    endpoint.reply = reply
    assert ChatJudge(url=endpoint.url, model="m").continuity(sequence(FIRST, FIRST, events=SAME)) == score


@pytest.mark.parametrize("reply", ["", "very good", "score: 7"])
def test_an_answer_without_a_score_is_refused(endpoint: Endpoint, reply: str) -> None:
    endpoint.reply = reply
    with pytest.raises(JudgeError, match="0 to 5"):
        ChatJudge(url=endpoint.url, model="m").continuity(sequence(FIRST, FIRST, events=SAME))


def test_a_judge_that_fails_costs_continuity_only(endpoint: Endpoint, video: Sample) -> None:
    endpoint.status = 401
    findings = Findings()
    evaluate_stream(
        truth_teller(video), [video], findings, ChatJudge(url=endpoint.url, model="m"), languages=(EN,)
    )
    assert findings.scores()["continuity"] is None and findings.scores()["event_accuracy"] == 1
    assert any("PAM_JUDGE_API_KEY" in missing.why for missing in findings.missing)
    assert len(endpoint.requests) == 1  # asked no more


def test_a_judge_needs_a_model() -> None:
    with pytest.raises(JudgeError, match="--judge-model"):
        open_judge("http://127.0.0.1:1/v1")
    assert open_judge().name == "rule"


def test_captioned_clips_hold_no_pixels_of_pictures(video: Sample) -> None:
    (clip, *_) = captioned_clips(truth_teller(video), video, (0,), EN, 3.0, True)[0]
    assert isinstance(clip, CaptionedClip)
    assert [index for index, _ in clip.regions] == sorted({index for index, _ in clip.regions})
    assert all(region.mask.size <= 24 * 32 for _, region in clip.regions)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("The mug slides to the left and then is picked up. Then the mug falls down.", 1.0),
        ("The mug slides to the left. Then the mug slides to the left and is lifted. It falls down.", 6 / 7),
        ("The mug is picked up. Then the mug slides to the left and falls down.", 4 / 6),
        ("The mug.", 0.0),
    ],
)
def test_a_summary_is_scored_by_its_events_in_order(text: str, score: float) -> None:
    truth = ["slides_left", "slides_left", "lifted", "falls"]
    assert events_in_order(text, EN, truth) == pytest.approx(score)
