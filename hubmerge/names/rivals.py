"""Several models in one checkpoint: one is taken for a reason that is said, or the user chooses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hubmerge.errors import UsageError
from hubmerge.formatting import format_list
from hubmerge.names.prefixes import best_rule
from hubmerge.names.structure import Shapes, is_ema, share_names

# Names that a model can have, with the shape if that is known.
Known = Mapping[str, tuple[int, ...] | None]


@dataclass(frozen=True)
class Rival:
    """One of the models.

    Attributes:
        key: what leads to it in the checkpoint, as `--model-key` takes it.
        shapes: its tensors, by the names that they have in it.
    """

    key: str
    shapes: Shapes

    @property
    def is_ema(self) -> bool:
        return is_ema(self.key.rpartition(".")[2])

    @property
    def is_master(self) -> bool:
        """Return whether it is the copy in full precision that an optimizer works on."""
        return "master" in self.key.rpartition(".")[2]

    def fit(self, known: Known) -> int:
        """Count the tensors that the known model has too."""
        if not known:
            return 0
        rule = best_rule(self.shapes, known)[0]
        fitting = ((known.get(rule(name), ()), shape) for name, shape in self.shapes.items())
        return sum(wanted is None or wanted == shape for wanted, shape in fitting)


def choose(
    rivals: Sequence[Rival], known: Known, *, ema: bool, preferred: Rival | None = None
) -> tuple[Rival, str]:
    """Choose the model to publish.

    Args:
        known: the names of the model, if anything tells them.
        ema: the user wants the EMA copy.
        preferred: the one that is the model by its name.

    Returns:
        The model, and a warning that says why and what else there is.

    Raises:
        UsageError: nothing tells which.
    """
    averages = [rival for rival in rivals if rival.is_ema]
    copies = [rival for rival in rivals if rival.is_ema or rival.is_master]
    wanted = averages if ema else [rival for rival in rivals if rival not in copies]
    wanted = ([preferred] if preferred else wanted) or list(rivals)
    chosen, why = wanted[0], ", the model by its name" if preferred else ""
    if len(wanted) > 1:
        fits = sorted(((rival.fit(known), rival) for rival in wanted), key=lambda f: -f[0])
        (most, chosen), (second, _) = fits[:2]
        if most == second:
            raise _ask(wanted)
        why = f", because {most} of its {len(chosen.shapes)} tensors are those of the config"
    others = [rival for rival in rivals if rival is not chosen]
    if ema and chosen.is_ema and not any(share_names(chosen.shapes, r.shapes) for r in others):
        raise UsageError(
            f"--ema: the EMA copy under '{chosen.key}' does not have the model's names",
            "Leave --ema out to publish the model, or save the copy under the model's names.",
        )
    return chosen, f"published '{chosen.key}'{why}; left out " + "; ".join(
        _left_out(rival, chosen) for rival in others
    )


def takes_copy(copy: Rival, *, ema: bool) -> tuple[bool, str]:
    """Choose between a copy and the bare model whose modules lie beside it.

    Returns:
        Whether it is the copy, and a warning that says what else there is.

    Raises:
        UsageError: nothing tells which.
    """
    if not copy.is_ema:
        pattern = f"'^{re.escape(copy.key)}\\.'"
        root = copy.key.rpartition(".")[0]
        everything = f"'^{re.escape(root)}\\.'" if root else "'.'"
        raise UsageError(
            "the checkpoint holds 2 models, and nothing tells which to publish: "
            f"'{copy.key}', and the one whose modules lie beside it",
            f"Choose the first with --model-key {copy.key}, or the other with --exclude {pattern}; "
            f"if they are parts of one model, take all with --include {everything}.",
        )
    if ema:
        return True, f"published '{copy.key}'; left out the model that it is the EMA copy of"
    return False, (
        f"published the model beside '{copy.key}'; left out '{copy.key}', its EMA copy (--ema "
        "publishes that instead)"
    )


def _left_out(rival: Rival, chosen: Rival) -> str:
    if rival.is_ema and not share_names(rival.shapes, chosen.shapes):
        return f"'{rival.key}', an EMA copy whose tensors do not have the model's names"
    if rival.is_ema:
        return f"'{rival.key}', its EMA copy (--ema publishes that instead)"
    what = "an optimizer's copy of it" if rival.is_master else "another model"
    if chosen.is_ema:
        what = "the model that it is the EMA copy of"
    return f"'{rival.key}', {what} (--model-key {rival.key} publishes that instead)"


def _ask(rivals: Sequence[Rival]) -> UsageError:
    keys = [rival.key for rival in rivals]
    choices = " or ".join(f"--model-key {key}" for key in keys[:4])
    together = "|".join(map(re.escape, keys))
    return UsageError(
        f"the checkpoint holds {len(keys)} models, and nothing tells which to publish: "
        + format_list([f"'{key}'" for key in keys]),
        f"Choose one with {choices}; if they are parts of one model, take all with "
        f"--include '^({together})\\.'.",
    )
