"""The names of the files that are published beside weights, by the library that looks for them.

Nothing else is ever taken from an assets folder, whatever lies there.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
TEMPLATES = "additional_chat_templates"

# By the `vocab_files_names` of transformers' tokenizers: any one of these makes a tokenizer.
VOCABULARIES = (
    TOKENIZER,
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "tekken.json",
    "vocab-src.json",
    "vocab-tgt.json",
    "dict.txt",
    "entity_vocab.json",
    "prophetnet.tokenizer",
)

# Any one of these makes a processor of images, video or sound.
PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
)

CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")

_NAMES = (
    CONFIG,
    GENERATION_CONFIG,
    *VOCABULARIES,
    # what a tokenizer has beside its vocabulary
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    ADDED_TOKENS,
    "merges.txt",
    "bpe.codes",
    "normalizer.json",
    "emoji.json",
    "byte_maps.json",
    "target_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    *CHAT_TEMPLATES,
    *PROCESSORS,
    "audio_tokenizer_config.json",
    # sentence-transformers; the folders of its modules are named in the first
    "modules.json",
    "config_sentence_transformers.json",
    # LeRobot
    "train_config.json",
)
_PATTERNS = (
    "*.tiktoken",
    f"{TEMPLATES}/*.jinja",
    "sentence_*_config.json",  # sentence-transformers, one name for each kind of model
    "policy_*.json",  # LeRobot's steps before and after its policy, and their statistics
    "policy_*.safetensors",
)

# Pickles, copied as bytes and never read: the voices of Qwen's Omni models.
PICKLES = ("spk_dict.pt",)

# In the folder of one module of sentence-transformers.
_IN_MODULES = (CONFIG, "*_config.json", "model.safetensors")

# What stands in a model's folder and is of another's making, or of no use to a reader.
_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth",
    "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ckpt",
)  # fmt: skip
_EXPECTED = ("README.md", ".*", "__pycache__", *_WEIGHTS)


def is_asset(name: str) -> bool:
    """Return whether assets have such a name; code, and what a module's folder holds, apart."""
    return name in _NAMES or name in PICKLES or any(fnmatchcase(name, p) for p in _PATTERNS)


def is_in_module(name: str) -> bool:
    """Return whether a file of this name in a module's folder is published."""
    return any(fnmatchcase(name, pattern) for pattern in _IN_MODULES)


def is_expected(name: str) -> bool:
    """Return whether a file that is left out needs no word."""
    return name not in PICKLES and any(fnmatchcase(name, pattern) for pattern in _EXPECTED)


def is_vocabulary(name: str) -> bool:
    """Return whether a tokenizer could be loaded from a file of this name."""
    return name in VOCABULARIES or name.endswith(".tiktoken")


def is_tokenizer(names: Collection[str]) -> bool:
    """Return whether AutoTokenizer could load a tokenizer from files of these names."""
    return any(map(is_vocabulary, names)) or TOKENIZER_CONFIG in names


def order_of(name: str) -> tuple[int, str]:
    """Sort key: files in the order in which this module names them, then by name."""
    return (_NAMES.index(name) if name in _NAMES else len(_NAMES)), name
