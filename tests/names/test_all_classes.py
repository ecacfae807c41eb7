"""Every model class of transformers comes out as `save_pretrained` writes it.

A sample here, converted for real; all of them with ``HUBMERGE_ALL_CLASSES=1``, or by
``python -m tests.support.models.compare``, which takes about ten minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hubmerge
from tests.support.models.compare import compare, differences, saved_by_transformers
from tests.support.models.small import build_small, model_classes
from tests.support.trainers.saves import save, save_config

# Those whose layout on the Hub was the hardest: fused and interleaved projections, rotary rows,
# experts of two kinds, and positions that are left out.
SAMPLE = [
    "Ernie4_5_VLMoeTextModel",
    "GteForMaskedLM",
    "HrmTextForCausalLM",
    "JinaEmbeddingsV3ForMaskedLM",
    "MarianMTModel",
    "Molmo2TextModel",
    "NomicBertForMaskedLM",
    "QianfanOCRForConditionalGeneration",
    "RadioModel",
    "Step3p7ForConditionalGeneration",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_class_comes_out_as_save_pretrained_writes_it(name: str, tmp_path: Path) -> None:
    """The same names, shapes and bytes, and the loader accepts them."""
    model = build_small(name).eval()
    assets = save_config(tmp_path / "assets", model)
    checkpoint = save(tmp_path / "checkpoint", {"model": model.state_dict()})
    result = hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets, dtype="auto")
    ours = load_file(tmp_path / "out/model.safetensors")
    assert differences(ours, saved_by_transformers(model)) == ""
    assert not [warning for warning in result.warnings if "rule" in warning]


@pytest.mark.skipif(not os.environ.get("HUBMERGE_ALL_CLASSES"), reason="takes ten minutes")
def test_all_classes_come_out_as_save_pretrained_writes_them() -> None:
    """Whatever can be built small."""
    differ = {name: result["differs"] for name in model_classes()
              if "differs" in (result := compare(name))}  # fmt: skip
    assert differ == {}
