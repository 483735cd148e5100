"""Encoders that embed texts or score pairs: BERT with MiniLM and BGE, RoBERTa and XLM-R, Nomic's.

Knows: their rows and fields. Heads for training (masked words, next sentence) are left out. A
classifier of one class becomes `cls` (with the tangent behind it) and `cls.output`, which
llama.cpp computes where the pooling is `rank`.
"""

from __future__ import annotations

from collections.abc import Iterator

from llm_runner_router.convert.family import (
    Config,
    Context,
    Family,
    Fields,
    Out,
    Row,
    behind_padding,
    first_position,
    refuse,
    same,
    standard,
)
from llm_runner_router.errors import ModelFileError, Unsupported


def one_class(context: Context, source: str, target: str) -> Iterator[Out]:
    """The last layer of a classifier, if it gives one number."""
    classes = context.shape(source)[0]
    if classes != 1:
        raise Unsupported(
            f"`{source}` sorts texts into {classes} classes; what scores a document has one",
            hint="run the folder with transformers behind a server, and name that as a provider",
        )
    yield from same(context, source, target)


EMBEDDINGS: tuple[Row, ...] = (
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.position_ids", ""),
    ("cls.predictions.bias", ""),
    ("cls.predictions.decoder", ""),
    ("cls.predictions.transform.dense", ""),
    ("cls.predictions.transform.LayerNorm", ""),
    ("cls.seq_relationship", ""),
)
POOLER: Row = ("pooler.dense", "")
"""What only the prediction of the next sentence uses."""
LAYERS: tuple[Row, ...] = (
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("encoder.layer.*.attention.self.query", "blk.*.attn_q"),
    ("encoder.layer.*.attention.self.key", "blk.*.attn_k"),
    ("encoder.layer.*.attention.self.value", "blk.*.attn_v"),
    ("encoder.layer.*.attention.output.dense", "blk.*.attn_output"),
    ("encoder.layer.*.attention.output.LayerNorm", "blk.*.attn_output_norm"),
    ("encoder.layer.*.intermediate.dense", "blk.*.ffn_up"),
    ("encoder.layer.*.output.dense", "blk.*.ffn_down"),
    ("encoder.layer.*.output.LayerNorm", "blk.*.layer_output_norm"),
)
BERT: tuple[Row, ...] = (
    *EMBEDDINGS,
    ("embeddings.position_embeddings", "position_embd"),
    *LAYERS,
)
BERT_RANKS: tuple[Row, ...] = (
    *BERT,
    ("pooler.dense", "cls"),
    ("classifier", "cls.output", one_class),
)
ROBERTA: tuple[Row, ...] = (
    *EMBEDDINGS,
    ("embeddings.position_embeddings", "position_embd", behind_padding),
    *LAYERS,
    POOLER,
    ("lm_head", ""),
    ("lm_head.dense", ""),
    ("lm_head.layer_norm", ""),
    ("lm_head.decoder", ""),
)
ROBERTA_RANKS: tuple[Row, ...] = (
    *ROBERTA,
    ("classifier.dense", "cls"),
    ("classifier.out_proj", "cls.output", one_class),
)
NOMIC: tuple[Row, ...] = (
    *EMBEDDINGS,
    POOLER,
    ("emb_ln", "token_embd_norm"),
    ("encoder.layers.*.attn.Wqkv", "blk.*.attn_qkv"),
    ("encoder.layers.*.attn.out_proj", "blk.*.attn_output"),
    ("encoder.layers.*.norm1", "blk.*.attn_output_norm"),
    ("encoder.layers.*.mlp.fc11", "blk.*.ffn_up"),
    ("encoder.layers.*.mlp.fc12", "blk.*.ffn_gate"),
    ("encoder.layers.*.mlp.fc2", "blk.*.ffn_down"),
    ("encoder.layers.*.norm2", "blk.*.layer_output_norm"),
)


def _fields(config: Config) -> Fields:
    return {
        **standard(config),
        "attention.causal": False,
        "attention.layer_norm_epsilon": config.real(
            "layer_norm_eps", "layer_norm_epsilon", default=1e-12
        ),
    }


def _roberta(config: Config) -> Fields:
    positions = config.count("max_position_embeddings", default=514) - first_position(config)
    if positions < 1:
        raise ModelFileError("`max_position_embeddings` in `config.json` leaves no position")
    return {**_fields(config), "context_length": positions}


def _nomic(config: Config) -> Fields:
    theta = config.rope.get("rope_theta", config.get("rotary_emb_base"))
    return {
        **_fields(config),
        "rope.freq_base": float(theta or 1000.0),
        "feed_forward_length": config.count("intermediate_size", "n_inner"),
    }


def _check_bert(config: Config) -> None:
    kind = config.get("position_embedding_type", default="absolute")
    if kind != "absolute":
        raise refuse("position_embedding_type", kind, "bert")
    _check_gelu(config, "bert")


def _check_gelu(config: Config, architecture: str) -> None:
    act = config.get("hidden_act", default="gelu")
    if not str(act).startswith("gelu"):
        raise refuse("hidden_act", act, architecture)


def _check_nomic(config: Config) -> None:
    if config.get("moe_every_n_layers"):
        raise refuse("moe_every_n_layers", config.get("moe_every_n_layers"), "nomic-bert")
    if config.get("prenorm"):
        raise refuse("prenorm", True, "nomic-bert")


FAMILIES = (
    Family(
        name="bert",
        classes=("BertModel", "BertForMaskedLM"),
        rows=(*BERT, POOLER),
        fields=_fields,
        check=_check_bert,
        pooling=True,
    ),
    Family(
        name="bert",
        classes=("BertForSequenceClassification",),
        rows=BERT_RANKS,
        fields=_fields,
        check=_check_bert,
        ranks=True,
    ),
    Family(
        name="bert",
        classes=(
            "RobertaModel",
            "RobertaForMaskedLM",
            "XLMRobertaModel",
            "XLMRobertaForMaskedLM",
            "CamembertModel",
            "CamembertForMaskedLM",
        ),
        rows=ROBERTA,
        fields=_roberta,
        check=_check_bert,
        pooling=True,
    ),
    Family(
        name="bert",
        classes=(
            "RobertaForSequenceClassification",
            "XLMRobertaForSequenceClassification",
            "CamembertForSequenceClassification",
        ),
        rows=ROBERTA_RANKS,
        fields=_roberta,
        check=_check_bert,
        ranks=True,
    ),
    Family(
        name="nomic-bert",
        classes=("NomicBertModel",),
        rows=NOMIC,
        fields=_nomic,
        check=_check_nomic,
        pooling=True,
    ),
)
