"""A model whose vision runs here and whose texts come from a server; the decoder's weights are not loaded."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from pam_ros.errors import CheckpointError, StateError
from pam_ros.model.descriptions import AUTO
from pam_ros.model.fast_model import accelerated
from pam_ros.model.interface import ModelInfo, PerceptionModel, PurposeJudge, VisionModel
from pam_ros.model.loading.checkpoint import Progress, load_model
from pam_ros.model.loading.files import find_files
from pam_ros.model.loading.language_export import served_name
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.text.names import ObjectNames
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE
from pam_ros.model.text.remote import RemoteGenerator
from pam_ros.model.text.text_server import KEY_VARIABLE, Patience, TextServer
from pam_ros.model.warm_up import warm_up

MAX_NEW_TOKENS = 512  # of a model without a description


class RemoteTextModel:
    """Implements `interface.PerceptionModel`. Not thread-safe."""

    def __init__(self, sight: PerceptionModel, text: RemoteGenerator) -> None:
        """`sight`: whose vision is used; it needs no decoder."""
        self._sight = sight
        self._text = text
        self._closed = False
        self.info: ModelInfo = replace(sight.info, text_server=text.server.url)

    @property
    def vision(self) -> VisionModel:
        """Masks and embeddings."""
        return self._sight.vision

    @property
    def text(self) -> RemoteGenerator:
        """Texts. Raises StateError if it is closed."""
        if self._closed:
            raise StateError("the model is closed; load it again")
        return self._text

    @property
    def judge(self) -> PurposeJudge:
        """Judges what regions are good for. Raises StateError unless the model has a matcher of its own."""
        return self._sight.judge

    @property
    def names(self) -> ObjectNames | None:
        """The names of what the model knows."""
        return self._sight.names

    def close(self) -> None:
        """Closes all streams and drops the weights; the model cannot be used afterwards."""
        self._text.server.close()
        self._sight.close()
        self._closed = True


def load_with_text_server(
    options: LoadOptions,
    *,
    patience: Patience | None = None,
    progress: Progress | None = None,
    note: Progress | None = None,
) -> RemoteTextModel:
    """Loads a model without its decoder, for texts from `options.text_server`, and warms it up.

    An unusable server is not an error: `model.text.problem` says what is wrong, and texts are generated
    as soon as it can. The other arguments and errors are those of `load_model`.
    """
    report = progress or (lambda line: None)
    pam = load_model(options, progress=progress, note=note)
    files = find_files(pam.info.name if options.model == AUTO else options.model, options.sam2)
    if pam.language.tokenizer is None:
        raise CheckpointError(f"{files.folder} has no tokenizer; texts need one")
    pam.language.to("cpu")  # prompts are put together on the host
    with torch.inference_mode():
        probe = pam.language.embed(pam.language.encode_text(TEXT_BEFORE_IMAGE))
    server = TextServer(
        options.text_server,
        served_name(files),
        stop_ids=sorted(pam.language.stop_ids),
        probe=probe,
        key=os.environ.get(KEY_VARIABLE, ""),
        patience=patience,
    )
    server.wait_checked()
    report(server.problem or f"texts come from {server.url}, which serves {server.model}")
    longest = MAX_NEW_TOKENS if files.description is None else files.description.max_new_tokens
    text = RemoteGenerator(pam.language, pam.projector, server, max_new_tokens=longest)
    text.confidence = pam.confidence
    pam.info = replace(pam.info, text_server=server.url)
    sight = accelerated(pam, regions=options.regions, report=report, texts=False)
    model = RemoteTextModel(sight, text)
    if sight is pam:
        report("warming up")
        warm_up(model)
    return model


def _conforms(model: RemoteTextModel) -> PerceptionModel:
    return model
