"""What transformers' Auto classes look for beside a model of a given type."""

from __future__ import annotations


def needs_processor(model_type: str) -> bool:
    """Return whether a model of this type takes images, video or sound."""
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    return any(
        model_type in names
        for names in (
            PROCESSOR_MAPPING_NAMES,
            IMAGE_PROCESSOR_MAPPING_NAMES,
            FEATURE_EXTRACTOR_MAPPING_NAMES,
        )
    )


def needs_tokenizer(model_type: str) -> bool:
    """Return whether a model of this type can take text: one that takes images alone cannot."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    takes_text = model_type in TOKENIZER_MAPPING_NAMES or model_type in PROCESSOR_MAPPING_NAMES
    return takes_text or not needs_processor(model_type)
