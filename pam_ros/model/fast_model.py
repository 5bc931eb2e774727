"""`FastModel`: a model on the fast engines; `accelerated`, which falls back to the plain path by itself."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pam_ros.errors import PamError, StateError
from pam_ros.model.config import PerceiverInput
from pam_ros.model.cuda_device import free_cuda_memory
from pam_ros.model.engines import Engines
from pam_ros.model.interface import (
    FIRST_FRAME_STRIDE,
    LATER_FRAME_STRIDE,
    ModelInfo,
    PerceptionModel,
    PurposeJudge,
    VisionModel,
)
from pam_ros.model.kernel_compiler import KernelCompiler
from pam_ros.model.loading.options import REGIONS
from pam_ros.model.openvino_network import openvino_is_installed
from pam_ros.model.pam import Pam, RegionEmbeddings
from pam_ros.model.text.fast.background_generator import BackgroundGenerator
from pam_ros.model.text.fast.text_engine import CACHE_TOKENS
from pam_ros.model.text.names import ObjectNames
from pam_ros.model.vision.fast.engine_vision import EngineVision
from pam_ros.model.vision.openvino_networks import OpenVinoNetworks
from pam_ros.model.warm_up import first_text, warm_up

LOGGER = logging.getLogger(__name__)
Progress = Callable[[str], None]
MIN_CAPABILITY = (8, 0)  # Ampere: bfloat16 in hardware
SPARE_REGIONS = 4  # for images that callers send along


class FastModel:
    """Implements `interface.PerceptionModel`. Masks and texts run on threads and streams of their own.

    Everything works immediately, eagerly; CUDA graphs replace it in the background, see `prepared`.
    """

    def __init__(
        self,
        model: Pam,
        *,
        regions: int = REGIONS,
        cache_tokens: int = CACHE_TOKENS,
        graphs: bool = True,
        texts: bool = True,
        compiler: KernelCompiler | None = None,
    ) -> None:
        """See `Engines`. Raises CheckpointError if the engines do not support the model.

        Args:
            texts: False for a model without a decoder, whose texts come from elsewhere.
            compiler: its workers may have been started; None: of its own.
        """
        self._model = model
        self._began_s = time.monotonic()
        self._unprepared = 1 + texts  # masks and texts
        self._graphs = graphs
        self.info: ModelInfo = replace(model.info, max_regions=regions)
        self._lock = threading.Lock()
        self._engines = engines = Engines(
            model,
            cache_tokens=cache_tokens,
            regions=regions + SPARE_REGIONS,
            graphs=graphs,
            stop_ids=sorted(model.language.stop_ids),
            texts=texts,
        )
        self._vision = EngineVision(
            engines.vision, engines.encode, engines.region_embeddings, model.segmenter
        )
        self._text: BackgroundGenerator | None = None
        if texts:
            self._text = BackgroundGenerator(
                model.language,
                model.projector,
                engines.text,
                later_frame_tokens=model.region_tokens(LATER_FRAME_STRIDE),
            )
            self._text.max_new_tokens = model.text.max_new_tokens
            self._text.confidence = model.confidence
        self._compiler = compiler or KernelCompiler()
        self._closing = threading.Event()
        self._closed = False
        self._preparing = threading.Thread(target=self._prepare, name="pam_prepare", daemon=True)

    @property
    def vision(self) -> VisionModel:
        """Masks and embeddings. Raises StateError if it is closed."""
        if self._closed:
            raise StateError("the model is closed; load it again")
        return self._vision

    @property
    def text(self) -> BackgroundGenerator:
        """Texts. Raises StateError if it is closed."""
        if self._closed:
            raise StateError("the model is closed; load it again")
        assert self._text is not None, "made without texts"
        return self._text

    @property
    def judge(self) -> PurposeJudge:
        """What regions are good for."""
        return self._model.judge

    @property
    def names(self) -> ObjectNames | None:
        """The names of what the model knows."""
        return self._model.names

    @property
    def prepared(self) -> bool:
        """Whether all kernels are compiled and all graphs captured."""
        return self._unprepared == 0

    def prepare(self) -> None:
        """Starts to capture graphs in the background, while the model is used."""
        atexit.register(self._end_threads)  # a thread that captures must not outlive the interpreter
        self._preparing.start()
        if self._text is not None:
            pieces = self._engines.text.preparations() if self._graphs else []
            self._text.prepare([*pieces, self._half_prepared])

    def compile(self) -> None:
        """Compiles what the first frame and text need, in parallel. Raises what a compiler raises."""
        device = self._engines.vision.device
        with torch.inference_mode(), torch.cuda.device(device):
            self._compiler.open()  # until all graphs are captured
            steps = self._engines.first_runs()
            self._compiler.ahead(steps)
            if not self._compiler.compiled:
                self._compiler.close()  # an earlier process compiled them
            for step in steps:
                step()
            torch.cuda.current_stream().synchronize()
        if self._text is not None:
            self._first_text()
        torch.cuda.empty_cache()  # what so many first runs took at once

    def _first_text(self) -> None:
        """A short text about nothing."""
        tokens = self._model.region_tokens(FIRST_FRAME_STRIDE)
        weight = self._model.projector.frame_newline
        first_text(self.text, RegionEmbeddings(weight.detach().expand(tokens, -1)))

    def close(self) -> None:
        """Ends the threads and frees the memory of weights, caches and graphs."""
        self._end_threads()
        atexit.unregister(self._end_threads)
        self._model.close()
        if not self._closed:
            self._closed, self._text = True, None
            del self._engines, self._vision
            free_cuda_memory()

    def _end_threads(self) -> None:
        self._closing.set()
        if self._preparing.ident is not None:
            self._preparing.join()
        self.end_texts()

    def end_texts(self) -> None:
        """Ends the thread of the texts, and the compiler's processes. Idempotent."""
        if self._text is not None:
            self._text.close()
        self._compiler.close()

    def _prepare(self) -> None:
        try:
            with torch.cuda.device(self._engines.vision.device):
                for piece in self._engines.vision_preparations():
                    if self._closing.is_set():
                        return
                    piece()
            self._half_prepared()
        except Exception:  # what is not captured stays eager
            LOGGER.exception("preparing the vision engine failed; parts without a CUDA graph run eagerly")
            self._compiler.close()

    def _half_prepared(self) -> None:
        """Runs after the preparations of masks, and after those of texts."""
        with self._lock:
            self._unprepared -= 1
        if self.prepared:
            self._compiler.close()
            LOGGER.info(
                "all CUDA graphs are captured, %.0f s after loading", time.monotonic() - self._began_s
            )


def accelerated(
    model: Pam,
    *,
    regions: int = REGIONS,
    report: Progress = LOGGER.info,
    texts: bool = True,
    compiler: KernelCompiler | None = None,
) -> PerceptionModel:
    """`model` on the fast engines; `model` itself, with a reported reason, where they cannot run.

    On a CPU OpenVINO then runs its masks. `texts`, `compiler`: see `FastModel`.
    """
    if model.device.type == "cpu" and model.segmenter.dtype is torch.float32:
        use_openvino(model, report)
    why = why_plain(model)
    fast: FastModel | None = None
    if why is None:
        try:
            fast = FastModel(model, regions=regions, texts=texts, compiler=compiler)
            report("compiling the fast engines' kernels")
            fast.compile()
            report("warming up")
            warm_up(fast)
            fast.prepare()
            report("the fast engines run; CUDA graphs are captured in the background")
            return fast
        except Exception as error:  # a compiler, a driver, memory: whatever this card's software breaks
            if not isinstance(error, (PamError, torch.OutOfMemoryError)):
                LOGGER.exception("the fast engines failed")
            why = f"failed: {type(error).__name__}: {error}"
        if fast is not None:
            fast.end_texts()
            fast = None
        free_cuda_memory()
    report(f"running without the CUDA engines ({why})")
    return model


def use_openvino(model: Pam, report: Progress = LOGGER.info) -> None:
    """Lets OpenVINO run SAM 2's networks of a float32 model on a CPU, if the package is installed."""
    if not openvino_is_installed():
        return
    try:
        model.segmenter.inference = OpenVinoNetworks(model.segmenter.sam2)
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        LOGGER.warning("OpenVINO is not used, so masks take longer: %s; set XDG_CACHE_HOME", why)
        report(f"OpenVINO is not used: {why}")
    except Exception as error:  # whatever the package raises on this machine
        LOGGER.exception("OpenVINO failed")
        report(f"OpenVINO is not used: {type(error).__name__}: {error}")
    else:
        report("OpenVINO runs SAM 2's networks")


def why_plain(model: Pam) -> str | None:
    """Why the fast engines cannot run this model here; None if they can."""
    device, dtype = model.device, model.segmenter.dtype
    if device.type != "cuda":
        return "no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return (
            f"compute capability {'.'.join(map(str, MIN_CAPABILITY))} or newer is needed, "
            f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}"
        )
    if dtype not in (torch.bfloat16, torch.float32):
        return f"dtype bfloat16 or float32 is needed, not {str(dtype).removeprefix('torch.')}"
    if model.segmenter.perceiver_input is not PerceiverInput.AFTER or model.segmenter.crop_small_regions:
        return f"model {model.info.name} crops small regions or reads other decoder features than the paper"
    if model.language.tokenizer is None:
        return f"model {model.info.name} has no tokenizer"
    return None
