"""Turns checkpoints into what ships: `python -m zoo.export`.

Writes `zoo/models/<name>/` in the layout of Hugging Face and the GGUF files inside the package.
Without a checkpoint, the GGUF is made again from the safetensors that are there. Scores and cards
are the business of `zoo.cards`, which measures first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

from zoo import gguf_file, tokenizer
from zoo.model import SHAPES
from zoo.paths import CHECKPOINTS, MODELS, SHIPPED
from zoo.train import Progress

Weights = dict[str, torch.Tensor]


def write_hugging_face(name: str, weights: Weights, training: dict[str, float]) -> None:
    """Config, tokenizer, template and F16 weights, as Hugging Face's loaders expect them."""
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "model.part"
    save_file(weights, part, metadata={"format": "pt"})
    os.replace(part, folder / "model.safetensors")
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    files = {
        "config.json": SHAPES[name].config(),
        "generation_config.json": {**ids, "do_sample": False},
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
        "training.json": training,
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    shutil.copyfile(tokenizer.FILE, folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(tokenizer.TEMPLATE)


def weights_of(name: str) -> Weights:
    """The F16 weights that ship: from the checkpoint, or the ones exported before."""
    checkpoint = CHECKPOINTS / f"{name}.pt"
    if not checkpoint.exists():
        return load_file(MODELS / name / "model.safetensors")
    saved = torch.load(checkpoint, map_location="cpu")
    weights = {key: value.half() for key, value in saved["model"].items()}
    spent = Progress(**saved["progress"]).plus(Progress(**saved.get("earlier", {})))
    training = {
        "minutes": round(spent.seconds / 60, 1),
        "steps": spent.step,
        "examples": spent.examples,
        "tokens": spent.tokens,
    }
    write_hugging_face(name, weights, training)
    return weights


def export(name: str) -> None:
    """Both forms of one model."""
    arrays = {key: value.float().numpy() for key, value in weights_of(name).items()}
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
