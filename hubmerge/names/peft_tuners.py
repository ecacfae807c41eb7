"""What each of PEFT's tuners adds to a model: a table, so that planning does not need PEFT.

`tests/names/test_adapter.py` holds it against the PEFT that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple


class Tuner(NamedTuple):
    """What one of PEFT's tuners adds to a model.

    Attributes:
        attributes: what each layer that it adapts has, beside ``base_layer``.
        shared: what the tuner has once for all layers, saved if `save_projection` says so.
    """

    attributes: tuple[str, ...]
    shared: tuple[str, ...] = ()


_LORA = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")

TUNERS = {
    "LORA": Tuner((*_LORA, "lora_magnitude_vector", "lora_diag")),
    "ADALORA": Tuner((*_LORA, "lora_E")),
    "BEFT": Tuner(("beft_bias",)),
    "BOFT": Tuner(("boft_R", "boft_s")),
    "C3A": Tuner(("c3a_kernel",)),
    "DEFT": Tuner(("deft_P", "deft_R")),
    "DELORA": Tuner(("delora_A", "delora_B", "delora_lambda", "delora_w_norm")),
    "FOURIERFT": Tuner(("fourierft_spectrum",)),
    "GLORA": Tuner(("glora_A", "glora_B", "glora_C", "glora_D", "glora_E")),
    "GRALORA": Tuner(("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general")),
    "HIRA": Tuner(("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B")),
    "HRA": Tuner(("hra_u",)),
    "IA3": Tuner(("ia3_l",)),
    "LILY": Tuner(("lily_A", "lily_B", "lily_router")),
    "LN_TUNING": Tuner(("ln_tuning_layers",)),
    "LOHA": Tuner(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    "LOKR": Tuner(
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    ),
    "MISS": Tuner(("miss_block",)),
    "OFT": Tuner(("oft_R", "oft_embedding_R")),
    "OSF": Tuner(("osf_svd_params",)),
    "POLY": Tuner(("poly_router", "poly_lora_A", "poly_lora_B")),
    "PSOFT": Tuner(("psoft_R",)),
    "PVERA": Tuner(("pvera_lambda_b", "pvera_lambda_d"), ("pvera_A", "pvera_B")),
    "RANDLORA": Tuner(
        ("randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"),
        ("randlora_A", "randlora_B"),
    ),
    "ROAD": Tuner(("road_theta", "road_alpha")),
    "SUPERTUNING": Tuner(
        (
            "supertuning_values",
            "supertuning_indices",
            "supertuning_lora_A",
            "supertuning_lora_B",
        )
    ),
    "TRAINABLE_TOKENS": Tuner(("trainable_tokens_delta",)),
    "VERA": Tuner(("vera_lambda_b", "vera_lambda_d"), ("vera_A", "vera_B")),
    "WAVEFT": Tuner(("waveft_spectrum",)),
}

# Adapters whose file holds more than tensors of the model under other names (PEFT computes them),
# and how their names in a model begin.
UNSUPPORTED = {
    "ADAMSS": "adamss_",
    "ADAPTION_PROMPT": "adaption_",
    "CARTRIDGE": "prompt_encoder",
    "CPT": "prompt_encoder",
    "FROD": "frod_",
    "MULTITASK_PROMPT_TUNING": "prompt_encoder",
    "PEANUT": "peanut_",
    "PREFIX_TUNING": "prompt_encoder",
    "PROMPT_TUNING": "prompt_encoder",
    "P_TUNING": "prompt_encoder",
    "SHADOW": "shadow_",
    "SHIRA": "shira_",
    "TINYLORA": "tinylora_",
    "UNILORA": "unilora_",
    "VBLORA": "vblora_",
    "XLORA": "internal_xlora_",
}

# What may follow an attribute and the adapter's name: a module's parameters, a dict's entries.
_LEAVES = (
    *("weight", "bias", "module_logits", "vector_a", "vector_b"),
    *("X", "Xd", "Xu", "S_low", "U_low", "V_low"),
)


class Mark(NamedTuple):
    """A tuner's parameter, as its name tells.

    Attributes:
        layer: the name of the layer that it was added to; "" for the model's own.
        adapter: the adapter's name, which PEFT has in memory and leaves out of files.
    """

    layer: str
    attribute: str
    adapter: str | None
    leaf: str | None

    @property
    def name(self) -> str:
        """What the adapter's file calls it."""
        # In memory DoRA's magnitude is a module's weight; files keep the name from before that.
        leaf = None if self.attribute == "lora_magnitude_vector" else self.leaf
        return ".".join(filter(None, (self.layer, self.attribute, leaf)))


class Marks:
    """Recognises the names of the parameters that some tuners add."""

    def __init__(self, tuners: Collection[Tuner]) -> None:
        names = "|".join(name for tuner in tuners for name in (*tuner.attributes, *tuner.shared))
        leaves = "|".join(_LEAVES)
        self._pattern = re.compile(
            rf"(?:(.*)\.)?({names})(?:\.(?!(?:{leaves})(?:\.|$))([^.]+))?(?:\.({leaves}))?"
        )

    def find(self, name: str) -> Mark | None:
        """Parse the name of a tuner's parameter; None for any other."""
        match = self._pattern.fullmatch(name)
        return Mark(match[1] or "", match[2], match[3], match[4]) if match else None


ANY_TUNER = Marks(TUNERS.values())
_UNSUPPORTED_MARK = re.compile(rf"(?:^|\.)({'|'.join(sorted(set(UNSUPPORTED.values())))})")


def has_unsupported_mark(name: str) -> bool:
    """Return whether this is the name of a tensor of one of the `UNSUPPORTED` adapters."""
    return _UNSUPPORTED_MARK.search(name) is not None
