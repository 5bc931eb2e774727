"""Task strings and chat template, letter for letter as the weights were trained."""

from __future__ import annotations

from pam_ros.records import Language, Task

TEXT_BEFORE_IMAGE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER_TASK = "<|im_end|>\n<|im_start|>assistant\n"

TASK_TEXT: dict[tuple[Task, Language], str] = {
    (Task.LABEL, Language.EN): "Classify this subject and provide its label.",
    (Task.LABEL, Language.ZH): "对该目标对象进行分类并提供标签",
    (Task.EXPLAIN, Language.EN): "Classify this subject and provide the label and its definition.",
    (Task.EXPLAIN, Language.ZH): "对该目标对象进行分类并提供标签和名词功能解释",
    (Task.BRIEF, Language.EN): "Provide a concise caption for this subject.",
    (Task.BRIEF, Language.ZH): "对该目标对象提供一个概括的描述",
    (Task.DETAIL, Language.EN): "Provide a comprehensive and detailed description for this subject.",
    (Task.DETAIL, Language.ZH): "对该目标对象提供一个全面且详细的描述",
    (
        Task.CLIP,
        Language.EN,
    ): "Provide a caption for this subject in this video.\nPrevious caption: {previous}",
    (Task.CLIP, Language.ZH): "对该视频中的目标对象提供一个描述。\n历史描述：{previous}",
}
NO_PREVIOUS = {Language.EN: "None", Language.ZH: "无"}


def text_after_image(task: Task, language: Language, previous_caption: str | None = None) -> str:
    """The text after `<image>`. `previous_caption` is for `Task.CLIP` only."""
    text = TASK_TEXT[task, language]
    if task is Task.CLIP:
        text = text.replace("{previous}", previous_caption or NO_PREVIOUS[language])
    return f"\n{text}{AFTER_TASK}"
