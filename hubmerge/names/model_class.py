"""Which class of transformers a config means, if it does not simply name one.

Trainers write class names of their own into config.json: FSDP2 wraps `Qwen3ForCausalLM` as
`FSDPQwen3ForCausalLM`, others derive `TrainableQwen3ForCausalLM`. Without the class nothing would
be known of ties, experts and precision, so the nearest that transformers has is looked for: in the
name, among the bases in the model's own code (which is parsed, never run), and by `model_type`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from hubmerge.names.prefixes import best_rule

_FSDP = "FSDP"

# The head of a class by the end of its name.
_HEAD = re.compile(r"(?:For[A-Z]\w*|LMHeadModel)$")

# By model_type, in the order of preference if neither the class's name nor the tensors' decide.
_MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_CTC_MAPPING",
    "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_MAPPING",
)

Build = Callable[[Any], Any]


def class_called(name: str) -> Any | None:
    """Return transformers' model class of this name, as FSDP2 may have wrapped it.

    A config may come from a repository: nothing but a model is built because it says so.
    """
    import transformers

    for real in (name, name.removeprefix(_FSDP)):
        found = getattr(transformers, real, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return None


def _classes_in(name: str) -> Iterator[Any]:
    """Yield the model classes whose names are a part of this one, longest first."""
    capitals = [match.start() for match in re.finditer("[A-Z]", name)][:40]
    ends = [*capitals[1:], len(name)]
    parts = {name[start:end] for start in capitals for end in ends if end > start}
    for part in sorted(parts - {name}, key=len, reverse=True):
        found = class_called(part)
        if found is not None:
            yield found


def _bases(name: str, code: Mapping[str, list[str]]) -> Iterator[Any]:
    """Yield the model classes that a class in the model's own code is derived from."""
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        if current != name and (found := class_called(current)) is not None:
            yield found
        waiting += code.get(current, ())


def bases_in(sources: Iterable[bytes]) -> dict[str, list[str]]:
    """Return the names of the bases of each class in some Python code, which is only parsed."""
    found: dict[str, list[str]] = {}
    for source in sources:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names = [getattr(base, "id", getattr(base, "attr", "")) for base in node.bases]
                found[node.name] = [base for base in names if base]
    return found


def related_classes(name: str, code: Mapping[str, list[str]]) -> Iterator[Any]:
    """Yield transformers' classes that a class's name or bases lead to, the nearest first."""
    found = class_called(name)
    if found is not None:
        yield found
    yield from _bases(name, code)
    yield from _classes_in(name)


def nearest_class(
    config: Any, name: str, code: Mapping[str, list[str]], keys: Collection[str], build: Build
) -> Any | None:
    """Return the class of transformers that is nearest to one that it does not have.

    Args:
        name: the class that the config names, or "".
        code: see `bases_in`.
        keys: names in the checkpoint, which show the head if nothing else does.
        build: makes a model without data of a class.
    """
    for found in related_classes(name, code):
        if found.config_class is not None and isinstance(config, found.config_class):
            return found
    classes = _by_model_type(config)
    head = _HEAD.search(name)
    same_head = [found for found in classes if head and found.__name__.endswith(head[0])]
    if same_head or len(classes) < 2:
        return next(iter(same_head or classes), None)
    return max(classes, key=lambda found: _fit(build(found), keys))


def _by_model_type(config: Any) -> list[Any]:
    import transformers

    found: dict[Any, None] = {}
    for mapping in (getattr(transformers, name, {}) for name in _MAPPINGS):
        if type(config) in mapping:
            classes = mapping[type(config)]
            found |= dict.fromkeys(classes if isinstance(classes, tuple) else (classes,))
    return list(found)


def _fit(model: Any, keys: Collection[str]) -> int:
    """Return how well the checkpoint's names are the model's: the higher, the better."""
    names = set(model.state_dict())
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    rule, known = best_rule(keys, names)
    missing = len(names - tied - {rule(key) for key in keys})
    return known - missing
