"""How a published model is loaded, and what task it does, as far as its config tells."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hubmerge.hf_format.asset_names import CHAT_TEMPLATES, PROCESSORS, is_tokenizer

# transformers' Auto class, and the Hub's tag, by what the name of a class ends in.
_TASKS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", "multiple-choice"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "ForVideoClassification": ("AutoModelForVideoClassification", "video-classification"),
    "ForObjectDetection": ("AutoModelForObjectDetection", "object-detection"),
    "ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "image-segmentation"),
    "ForUniversalSegmentation": ("AutoModelForUniversalSegmentation", "image-segmentation"),
    "ForDepthEstimation": ("AutoModelForDepthEstimation", "depth-estimation"),
    "ForAudioClassification": ("AutoModelForAudioClassification", "audio-classification"),
    "ForCTC": ("AutoModelForCTC", "automatic-speech-recognition"),
    "ForSpeechSeq2Seq": ("AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"),
}

# PEFT's class by the task that an adapter's config names, and the Hub's tag.
_ADAPTER_TASKS = {
    "CAUSAL_LM": ("AutoPeftModelForCausalLM", "text-generation"),
    "SEQ_CLS": ("AutoPeftModelForSequenceClassification", "text-classification"),
    "SEQ_2_SEQ_LM": ("AutoPeftModelForSeq2SeqLM", None),
    "TOKEN_CLS": ("AutoPeftModelForTokenClassification", "token-classification"),
    "QUESTION_ANS": ("AutoPeftModelForQuestionAnswering", "question-answering"),
    "FEATURE_EXTRACTION": ("AutoPeftModelForFeatureExtraction", "feature-extraction"),
}

_CHAT = """\
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def task_of(library: str, config: dict[str, Any]) -> tuple[str, str | None]:
    """Return the class that loads a model, and the tag of its task if that is known.

    Args:
        config: the model's, or the adapter's.
    """
    if library == "peft":
        return _ADAPTER_TASKS.get(str(config.get("task_type")), ("AutoPeftModel", None))
    if library == "diffusers":
        return str(config.get("_class_name")), None
    if library == "lerobot":
        return str(config.get("type")), "robotics"
    if library == "sentence-transformers":
        return "SentenceTransformer", "sentence-similarity"
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if name.endswith("ForConditionalGeneration"):
        return _generation_task(config)
    return next((task for end, task in _TASKS.items() if name.endswith(end)), ("AutoModel", None))


def _generation_task(config: dict[str, Any]) -> tuple[str, str | None]:
    if "vision_config" in config:
        return "AutoModelForImageTextToText", "image-text-to-text"
    if "num_mel_bins" in config:
        return "AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"
    return "AutoModelForSeq2SeqLM", None


def usage(
    library: str, class_name: str, config: dict[str, Any], files: Collection[str], place: str
) -> str:
    """Return code that loads what is there: no tokenizer is loaded if there is none.

    Args:
        class_name: see `task_of`.
        files: the names of the published files.
        place: the repository, or a folder.
    """
    lines = {
        "sentence-transformers": [
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("{place}")',
            'embeddings = model.encode(["A sentence.", "Another one."])',
        ],
        "diffusers": [
            f"from diffusers import {class_name}",
            "",
            f'model = {class_name}.from_pretrained("{place}")',
        ],
        "lerobot": [
            "from lerobot.policies.factory import get_policy_class",
            "",
            f'policy = get_policy_class("{class_name}").from_pretrained("{place}")',
        ],
    }.get(library) or _auto_class_usage(library, class_name, config, files, place)
    return "\n".join(["```python", *lines, "```"])


def _auto_class_usage(
    library: str, class_name: str, config: dict[str, Any], files: Collection[str], place: str
) -> list[str]:
    code = ", trust_remote_code=True" if "auto_map" in config else ""
    imports = [class_name]
    lines = [f'model = {class_name}.from_pretrained("{place}"{code})']
    if not set(files).isdisjoint(PROCESSORS):
        imports.append("AutoProcessor")
        lines.append(f'processor = AutoProcessor.from_pretrained("{place}"{code})')
    elif is_tokenizer(files):
        imports.append("AutoTokenizer")
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{place}"{code})')
        if class_name.endswith("ForCausalLM") and not set(files).isdisjoint(CHAT_TEMPLATES):
            lines += ["", _CHAT]
    if library == "peft":
        head = [f"from peft import {class_name}"]
        head += [f"from transformers import {name}" for name in imports[1:]]
    else:
        head = [f"from transformers import {', '.join(imports)}"]
    return [*head, "", *lines]
