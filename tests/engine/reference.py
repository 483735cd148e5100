"""What transformers itself says, as the reference: `python -m tests.engine.reference FOLDER`.

Reads a JSON list of prompts from stdin and writes for each the greedy continuation's tokens, the
logits after the prompt, and the mean of the last hidden states.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def answers(folder: Path, prompts: list[str], count: int) -> list[dict[str, Any]]:
    """Greedy continuations of `count` tokens at most, in 32 bits."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([tokenizer.encode(prompt).ids])
            out = model(input_ids=ids, output_hidden_states=True)
            text = model.generate(ids, do_sample=False, max_new_tokens=count)[0, ids.shape[1] :]
            mean = out.hidden_states[-1][0].mean(0)
            found.append(
                {
                    "tokens": text.tolist(),
                    "text": tokenizer.decode(text.tolist()),
                    "logprobs": torch.log_softmax(out.logits[0, -1], -1).tolist(),
                    "vector": (mean / mean.norm()).tolist(),
                }
            )
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answers(Path(sys.argv[1]), json.load(sys.stdin), 24)))
