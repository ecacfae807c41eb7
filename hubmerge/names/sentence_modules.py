"""The modules of a sentence-transformers model: a state dict numbers them, the Hub has folders.

``0.auto_model.encoder…`` (``0.model.…`` in newer releases) is the model itself, ``2.linear.weight``
is `linear.weight` in the folder that `modules.json` names for the module "2".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from hubmerge.hf_format.assets import Module
from hubmerge.names.draft import Draft
from hubmerge.names.weights import Weight

# What the first module puts before the names of the model that it wraps.
_WRAPPER = re.compile(r"(?:auto_model|model)\.")


def take_modules(draft: Draft, modules: Sequence[Module]) -> list[Weight]:
    """Take the weights of the other modules out of a draft, and bring it to the model's names."""
    if not _is_numbered(draft.tensors, modules):
        return []
    draft.why.append("sentence-transformers' modules")
    weights = []
    for module in modules:
        prefix = f"{module.name}."
        inside = [name for name in draft.tensors if name.startswith(prefix)]
        if module.folder:
            weights += [
                Weight(
                    name.removeprefix(prefix),
                    draft.tensors.pop(name),
                    folder=module.folder,
                )
                for name in inside
            ]
        else:
            own = {name: _WRAPPER.sub("", name.removeprefix(prefix), count=1) for name in inside}
            draft.rename({name: own.get(name, name) for name in draft.tensors}, "")
    return weights


def _is_numbered(names: Collection[str], modules: Sequence[Module]) -> bool:
    """Return whether all names begin with a module's; a model alone was saved otherwise."""
    known = {module.name for module in modules}
    return bool(known) and all(name.partition(".")[0] in known for name in names)
