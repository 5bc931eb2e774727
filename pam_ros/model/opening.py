"""`open_model`: a model as the node and the command line use it, on the fastest path that works here."""

from __future__ import annotations

from pam_ros.errors import CheckpointError
from pam_ros.model.fast_model import Progress, accelerated
from pam_ros.model.interface import PerceptionModel
from pam_ros.model.kernel_compiler import KernelCompiler
from pam_ros.model.loading.checkpoint import load_model
from pam_ros.model.loading.device import parse_device
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.remote_text import load_with_text_server
from pam_ros.model.warm_up import warm_up


def open_model(
    options: LoadOptions, *, progress: Progress | None = None, note: Progress | None = None
) -> PerceptionModel:
    """Loads a model, puts it on the fast engines if device and model allow it, and warms it up.

    `progress` says which path runs; `note` and errors: see `load_model`.
    """
    if options.text_server:
        return load_with_text_server(options, progress=progress, note=note)
    report = progress or (lambda line: None)
    compiler = KernelCompiler()
    try:
        if parse_device(options.device).type == "cuda":
            compiler.start()  # while the weights are read
        model = load_model(options, progress=progress, note=note)
        if model.language.tokenizer is None:
            raise CheckpointError(f"{model.info.name} has no tokenizer (tokenizer.json); texts need one")
        best = accelerated(model, regions=options.regions, report=report, compiler=compiler)
        if best is model:
            compiler.close()
            report("warming up")
            warm_up(model)
    except BaseException:
        compiler.close()
        raise
    return best
