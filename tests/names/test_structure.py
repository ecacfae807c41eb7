"""Names and shapes tell copies of a model apart, and the prefix of a trainer's module."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path

import pytest

from hubmerge.names.module_names import BASES, MODULES
from hubmerge.names.structure import find_copies, find_rivals, own_prefix
from tests.support.checkpoints.described import BASE, HIDDEN, LLAMA, VOCAB, Shapes, under

LAYERS = {f"layers.{i}.fc1.weight": (HIDDEN, HIDDEN) for i in range(3)}
BERT = {
    "embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
    **{f"encoder.layer.{i}.attention.self.query.weight": (HIDDEN, HIDDEN) for i in range(2)},
    "pooler.dense.weight": (HIDDEN, HIDDEN),
}
T5_ENCODER = {
    "shared.weight": (VOCAB, HIDDEN),
    "encoder.embed_tokens.weight": (VOCAB, HIDDEN),
    "encoder.block.0.layer.0.SelfAttention.q.weight": (HIDDEN, HIDDEN),
    "encoder.final_layer_norm.weight": (HIDDEN,),
}
DRAFT = {
    "fc.weight": (HIDDEN, 3 * HIDDEN),
    "midlayer.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "norm.weight": (HIDDEN,),
    "d2t": (8,),
}
GPT2 = {"transformer.wte.weight": (VOCAB, HIDDEN), "transformer.h.0.attn.c_attn.weight": (3, 3)}
CLIP = under("text_model.encoder.", LAYERS) | under("vision_model.encoder.", LAYERS)
VLM = under("model.language_model.", BASE) | under("model.visual.blocks.", LAYERS)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (LLAMA, ""),
        (BASE, ""),
        (under("model.", BASE), ""),
        (GPT2, ""),
        (BERT, ""),
        (under("bert.", BERT) | {"cls.predictions.bias": (VOCAB,)}, ""),
        (T5_ENCODER, ""),
        (VLM, ""),
        (CLIP, ""),
        ({"linear.weight": (2, 2), "linear.bias": (2,)}, ""),
        ({"net.0.weight": (2, 2), "net.2.weight": (2, 2)}, ""),
        (under("model.", LLAMA), "model."),
        (under("model.model.", LLAMA), "model.model."),
        (under("model.module.", LLAMA), "model.module."),
        (under("policy.", LLAMA), "policy."),
        (under("policy.", BASE), "policy."),
        (under("student.net.", under("model.", BASE)), "student.net."),
        (under("net.", GPT2), "net."),
        (under("draft_model.", DRAFT), "draft_model."),
        (under("transformer.", GPT2), "transformer."),
        # Metrics, a loss and a value head beside a whole model; a backbone and its only head.
        (under("net.", LLAMA) | {"acc.total": (), "loss.weight": (VOCAB,)}, "net."),
        (under("pretrained_model.", LLAMA) | {"v_head.weight": (1, HIDDEN)}, "pretrained_model."),
        (under("body.", BASE) | {"my_head.weight": (VOCAB, HIDDEN)}, ""),
        (under("llm.", LLAMA) | under("vision.blocks.", LAYERS), ""),
    ],
)
def test_the_models_own_prefix(shapes: Shapes, expected: str) -> None:
    """A lone prefix is found whatever it is called; one that models have themselves stays."""
    assert own_prefix(shapes) == expected


CRITIC = {**{n: s for n, s in LLAMA.items() if n != "lm_head.weight"}, "v_head.weight": (1, HIDDEN)}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (LLAMA, set()),
        (CLIP, set()),
        (VLM, set()),
        (under("encoder.", LAYERS) | under("decoder.", LAYERS), set()),
        (under("net.", LLAMA) | under("net_ema.", LLAMA), {"net.", "net_ema."}),
        (under("net.", DRAFT) | under("ema.", DRAFT), {"net.", "ema."}),
        (under("actor.", LLAMA) | under("critic.", CRITIC), {"actor.", "critic."}),
        (under("a.student.", BASE) | under("a.teacher.", BASE), {"a.student.", "a.teacher."}),
        (under("model.", LLAMA) | under("ema_model.module.", LLAMA), {"model.", "ema_model."}),
        (under("vq.embed.", {"w": (2, 2)}) | under("vq.ema_embed.", {"w": (2, 2)}), set()),
    ],
)
def test_copies(shapes: Shapes, expected: set[str]) -> None:
    """Modules of the same names and shapes are copies; layers and towers of one model are not."""
    assert set(find_copies(shapes)) == expected


def test_rivals_are_whole_models_that_are_not_alike() -> None:
    """Models of other sizes beside one another; not the modules of one that has both."""
    small = {name: tuple(size // 2 for size in shape) for name, shape in LLAMA.items()}
    assert find_rivals(under("policy.", LLAMA) | under("value.", small)) == ["policy.", "value."]
    assert not find_rivals(under("thinker.", LLAMA) | under("talker.", small))
    assert not find_rivals(LLAMA)


def test_a_million_names_in_linear_time() -> None:
    """Ten times the names take about ten times as long."""

    def seconds(layers: int) -> float:
        names = {f"p.model.layers.{i}.e.{e}.w": (2, 2) for i in range(layers) for e in range(100)}
        began = time.perf_counter()
        assert not find_copies(names)
        own_prefix(names)
        return time.perf_counter() - began

    assert seconds(1000) < 40 * seconds(100) + 0.2


def test_base_prefixes_are_those_of_transformers() -> None:
    """The table has them all, but for what a newer transformers may have added."""
    found: set[str] = set()
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    for path in (Path(spec.origin).parent / "models").glob("*/modeling_*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'base_model_prefix = "([a-z]\w*)', text))
    assert len(found) > 100
    assert len(found - BASES - MODULES) < 10
