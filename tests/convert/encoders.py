"""Small random encoders with tokenizers of their own kinds, saved as their makers publish them.

bert      WordPiece                          roberta   byte-level BPE, positions from 2
xlm       Unigram with a map of characters   gemma     SentencePiece's BPE, two dense layers
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `torch` is not installed")

TEXTS = (
    "The cat sat on the mat.",
    "rain",
    "where cats wait for hours and hours in the rain, the mat and the hat sat on the cat",
    "naïve cats don't  sit\nin the rain, they wait 1234 hours…",
    "日本語 and ｆｕｌｌ ｗｉｄｔｈ",
)
QUERY = "where did the cat sit?"
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
}
_MAP = {"\n": " ", "\t": " ", "…": "...", "ï": "i", "\u3000": " "} | {
    chr(ord(c) + 0xFEE0): c for c in "fulwidth"
}


def _parts(most: int) -> list[str]:
    """Parts of the words of the texts, of up to `most` letters, in a fixed order."""
    words = sorted({word for text in (*TEXTS, QUERY) for word in re.findall(r"\w+|[^\w\s]", text)})
    found = {
        word[i : i + n] for word in words for n in range(1, most + 1) for i in range(len(word))
    }
    return sorted(found, key=lambda part: (len(part), part))


def _wordpiece() -> Any:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    parts = sorted({part.lower() for part in _parts(3)})
    words = [*names, *parts, *(f"##{part}" for part in parts)]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def _merges(letters: Iterable[str], parts: Iterable[str]) -> tuple[list[str], list[Any]]:
    """Tokens and merges that make each part from its first letters and its last."""
    known = list(dict.fromkeys(letters))
    merges = []
    for part in parts:
        if len(part) > 1 and part[:-1] in known and part[-1] in known and part not in known:
            merges.append((part[:-1], part[-1]))
            known.append(part)
    return known, merges


def _byte_level() -> Any:
    from tokenizers import pre_tokenizers

    names = ["<s>", "<pad>", "</s>", "<unk>"]
    spaced = [f"\u0120{part}" for part in _parts(3) if part.isascii()]
    known, merges = _merges(sorted(pre_tokenizers.ByteLevel.alphabet()), sorted(spaced, key=len))
    vocab = {word: i for i, word in enumerate([*names, *known, "<mask>"])}
    return transformers.RobertaTokenizer(vocab=vocab, merges=merges)


def _unigram() -> Any:
    from tests.tokens import making

    special = [(word, 0.0) for word in ("<s>", "<pad>", "</s>", "<unk>")]
    parts = [part for part in _parts(4) if part.isascii()]
    pieces = ["\u2581", *parts, *(f"\u2581{part}" for part in parts)]
    # Scores of SentencePiece have 32 bits, in whatever file they stand. No two sums are alike.
    scores = [float(torch.tensor(-4.0 - 0.1 * (i * 37 % 101) ** 0.5)) for i in range(len(pieces))]
    vocab = [*special, *zip(pieces, scores, strict=True), ("<mask>", 0.0)]
    charsmap = making.charsmap(_MAP)
    return transformers.XLMRobertaTokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap)


def _gemma() -> Any:
    from tokenizers import Tokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{n:02X}>" for n in range(256))]
    letters = sorted({c for text in TEXTS for c in text if c.isascii() and c.isprintable()})
    spaced = [f"\u2581{part}" for part in _parts(3) if part.isascii()]
    known, merges = _merges(["\u2581", *letters], sorted(spaced, key=len))
    vocab = {word: i for i, word in enumerate([*names, *known])}
    made = transformers.GemmaTokenizer(vocab=vocab, merges=merges)
    content = json.loads(made.backend_tokenizer.to_str())
    ids = {word: {"id": word, "ids": [vocab[word]], "tokens": [word]}
           for word in ("<bos>", "<eos>")}  # fmt: skip
    begin, end = ({"SpecialToken": {"id": word, "type_id": 0}} for word in ids)
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, end,
                 {"Sequence": {"id": "B", "type_id": 1}}, end],
        "special_tokens": ids,
    }  # fmt: skip
    made.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(content)).post_processor
    return made


_KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "bert": ("Bert", _wordpiece, {"type_vocab_size": 2, "pad_token_id": 0}),
    "roberta": ("Roberta", _byte_level, {"type_vocab_size": 1, "pad_token_id": 1}),
    "xlm": ("XLMRoberta", _unigram, {"type_vocab_size": 1, "pad_token_id": 1}),
    "camembert": ("Camembert", _unigram, {"type_vocab_size": 1, "pad_token_id": 1}),
    "gemma": (
        "Gemma3Text",
        _gemma,
        {
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 7,
            "sliding_window": 12,
            "use_bidirectional_attention": True,
        },
    ),
}


def tokenizer(kind: str) -> Any:
    """The tokenizer of a kind of encoder, as transformers has it."""
    return _KINDS[kind][1]()


def make(
    kind: str, folder: Path, *, ranks: bool = False, one_type: bool = False, **settings: Any
) -> tuple[Any, Any]:
    """The model and its tokenizer, saved in `folder`.

    Args:
        ranks: it scores pairs.
        one_type: the types of tokens, where there are two, are alike.
        settings: of its configuration.
    """
    family, tokens, more = _KINDS[kind]
    cuts = tokens()
    config = getattr(transformers, f"{family}Config")(
        **{**_SHAPE, "vocab_size": len(cuts), **more, "num_labels": 1, **settings}
    )
    config._attn_implementation = "eager"
    head = "ForSequenceClassification" if ranks else "Model"
    torch.manual_seed(5)
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that a row, a position or a token of the window too many shows.
            spread = 0.3 if parameter.ndim < 2 else 0.9 if "embed" in name else 0.3
            parameter.copy_(spread * torch.randn_like(parameter))
            if "orm" in name and name.endswith("weight") and kind != "gemma":
                parameter += 1
            if one_type and "token_type" in name:
                parameter.copy_(parameter[:1].clone().expand_as(parameter))
    model.save_pretrained(folder)
    cuts.save_pretrained(folder)
    return model, cuts


def modules(folder: Path, *, pooling: str = "", dense: tuple[int, ...] = ()) -> list[Any]:
    """Sentence-transformers' modules; the weights of the dense layers, applied in order.

    Args:
        pooling: the end of a `pooling_mode_…`; empty for no module that pools.
        dense: sizes between the dense layers, the first and the last included.
    """
    listed = [("", "Transformer")]
    if pooling:
        listed.append(("1_Pooling", "Pooling"))
        write(
            folder / "1_Pooling", {f"pooling_mode_{pooling}": True, "word_embedding_dimension": 64}
        )
    weights = []
    for i in range(len(dense) - 1):
        inputs, outputs = dense[i], dense[i + 1]
        listed.append((f"{i + 2}_Dense", "Dense"))
        activation = "torch.nn.modules.linear.Identity"
        said = {"in_features": inputs, "out_features": outputs, "bias": False,
                "activation_function": activation}  # fmt: skip
        write(folder / listed[-1][0], said)
        generator = torch.Generator().manual_seed(i)
        weights.append(0.2 * torch.randn(outputs, inputs, generator=generator))
        from safetensors.torch import save_file

        save_file({"linear.weight": weights[-1]}, folder / listed[-1][0] / "model.safetensors")
    content = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([*listed, ("9_Normalize", "Normalize")])
    ]
    (folder / "modules.json").write_text(json.dumps(content))
    return weights


def write(folder: Path, settings: dict[str, Any]) -> None:
    """`config.json` in a folder that is made."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))


def vector(model: Any, tokenizer: Any, text: str, pooling: str, dense: list[Any]) -> list[float]:
    """The vector that sentence-transformers gives, of length one."""
    with torch.no_grad():
        given = {k: v for k, v in tokenizer(text, return_tensors="pt").items()}
        hidden = model(**given).last_hidden_state[0]
        found = {"cls_token": hidden[0], "lasttoken": hidden[-1]}.get(pooling, hidden.mean(0))
        for weight in dense:
            found = weight @ found
    numbers: list[float] = (found / found.norm()).tolist()
    return numbers


def score(model: Any, tokenizer: Any, query: str, text: str) -> float:
    """The logit of the only class."""
    with torch.no_grad():
        return float(model(**tokenizer(query, text, return_tensors="pt")).logits[0, 0])
