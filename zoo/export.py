"""Turns checkpoints into what ships: `python -m zoo.export`.

Writes `zoo/models/<name>/` in the layout of Hugging Face and the GGUF files inside the package.
Scores, cards and the machine-readable list are written by `zoo.cards`, which measures first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from zoo import gguf_file, tokenizer
from zoo.model import SHAPES
from zoo.train import CHECKPOINTS

MODELS = Path(__file__).parent / "models"
SHIPPED = Path(__file__).parent.parent / "src" / "llm_runner_router" / "zoo"


def weights_of(name: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, rounded to the F16 that ships."""
    saved = torch.load(CHECKPOINTS / f"{name}.pt", map_location="cpu")["model"]
    return {key: value.half() for key, value in saved.items()}


def write_hugging_face(name: str, weights: dict[str, torch.Tensor]) -> None:
    """Config, tokenizer, template and F16 weights, as Hugging Face's loaders expect them."""
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "model.part"
    save_file(weights, part, metadata={"format": "pt"})
    os.replace(part, folder / "model.safetensors")
    files = {
        "config.json": SHAPES[name].config(),
        "generation_config.json": {
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": SHAPES[name].max_position_embeddings,
            "chat_template": tokenizer.TEMPLATE,
        },
    }  # fmt: skip
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    shutil.copyfile(tokenizer.FILE, folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(tokenizer.TEMPLATE)


def export(name: str) -> None:
    """Both forms of one model."""
    weights = weights_of(name)
    write_hugging_face(name, weights)
    arrays = {key: value.float().numpy() for key, value in weights.items()}
    SHIPPED.mkdir(parents=True, exist_ok=True)
    gguf_file.write(SHIPPED / f"{name}.gguf", name, SHAPES[name].config(), arrays)


def main() -> None:
    """Export the named models, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(SHAPES))
    for name in parser.parse_args().model or SHAPES:
        export(name)
        print(f"{name}: {(SHIPPED / f'{name}.gguf').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
