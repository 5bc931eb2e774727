"""`pam export-language` and `pam text-server`: texts from a server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pam_ros.cli.common import DeviceOption, DtypeOption, JsonOption, ModelOption, folder_of, inputs, within
from pam_ros.cli.output import json_target, note, table_console, working
from pam_ros.model.descriptions import AUTO
from pam_ros.model.loading.options import LoadOptions
from pam_ros.output_files import result_folder, write_text

EXPORTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def export_language(
    model: Annotated[
        str, typer.Argument(help="model name (see `pam models`), hub id or folder", metavar="MODEL")
    ],
    folder: Annotated[Path, typer.Argument(parser=folder_of, help="folder to write", metavar="DIR")],
) -> None:
    """Export the language model for a vLLM server.

    The folder has Qwen2's format. The node uses the server that its parameter `texts.server` names.
    """
    from pam_ros.model.loading.files import find_files

    result_folder(folder, EXPORTED, [find_files(model, None).folder])
    from pam_ros.model.loading.language_export import export_language as export

    with working(f"reading {model}"):
        exported = export(model, folder)
    note(f"wrote {folder}/ ({exported.bytes / 1e6:.0f} MB of weights); serve it with:")
    print(f"vllm serve {folder} --served-model-name {exported.served_name} --enable-prompt-embeds")


def text_server(
    url: Annotated[str, typer.Argument(help="as in http://host:8000", metavar="URL")],
    repeats: Annotated[
        int, typer.Option("--repeats", callback=within(1), help="runs of each figure", metavar="N")
    ] = 5,
    json_file: JsonOption = None,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Check a text server and measure what texts cost.

    Prints bytes and milliseconds for a text and for a clip. Exits with 2 if the server cannot be used.
    """
    from pam_ros.evaluation.bench_text_server import bench_text_server
    from pam_ros.model.remote_text import load_with_text_server

    json_file = json_target(json_file, inputs(model, None))
    with working("loading") as report:
        loaded = load_with_text_server(
            LoadOptions(model, text_server=url, device=device, dtype=dtype), progress=report
        )
        try:
            figures = bench_text_server(loaded, repeats=repeats, progress=report)
        finally:
            loaded.close()
    table = Table("request", "texts", "prompt tokens", "sent MB", "first token ms", "done ms", "tokens")
    for figure in figures:
        table.add_row(
            figure.name,
            str(figure.texts),
            str(figure.prompt_tokens),
            f"{figure.sent_bytes / 1e6:.2f}",
            f"{figure.first_token_ms:.0f}",
            f"{figure.done_ms:.0f}",
            str(figure.tokens),
        )
    table_console(json_file, width=100).print(table)
    if json_file is not None:
        about = asdict(loaded.info)
        content = {"about": about, "figures": [asdict(figure) for figure in figures]}
        write_text(json_file, json.dumps(content, indent=1) + "\n")
