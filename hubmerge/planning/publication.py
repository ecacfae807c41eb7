"""A plan together with the small files that are published beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hubmerge.errors import UsageError
from hubmerge.hf_format.assets import Assets
from hubmerge.planning.card import CARD, CardOptions, is_ours, small_files
from hubmerge.planning.options import DEFAULT_PLAN, PlanOptions
from hubmerge.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Publication:
    """Everything that a folder or a repository is made of.

    Attributes:
        repo_id: where it is published, for the model card; None for a local folder.
        options: what the plan was made with, so that `verify` can make it again.
    """

    plan: Plan
    assets: Assets
    card: CardOptions
    repo_id: str | None = None
    options: PlanOptions = DEFAULT_PLAN

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is in doubt, one sentence each."""
        return self.plan.warnings + self.assets.warnings

    def check_config(self) -> None:
        """Refuse to push a model that nobody can load, unless the user wants that.

        Raises:
            UsageError: there is no config.
        """
        needs_config = not (self.plan.is_adapter or self.options.no_config)
        if needs_config and self.assets.config is None:
            raise UsageError(
                "a model without config.json cannot be loaded from the Hub",
                "Give the folder that holds it with --model-assets-dir; --no-config pushes the "
                "weights alone.",
            )

    def small_files(self, readme: str | None = None) -> dict[str, bytes]:
        """Return the content of each file but the shards, in the order in which it is written.

        Args:
            readme: the card that exists at the destination: it is kept, with missing metadata
                filled in, if hubmerge did not write it and the user gives no other.
        """
        card = self.card
        if readme is not None and self.keeps(readme):
            card = replace(card, text=readme)
        return small_files(self.plan, self.assets, card, self.repo_id)

    def keeps(self, readme: str) -> bool:
        """Return whether the text of a card at the destination stays."""
        return self.card.text is None and not is_ours(readme)

    def what_becomes_of(self, readme: str | None) -> str:
        """Return what is done about the card at the destination: written, kept or extended."""
        if readme is None or not self.keeps(readme):
            return "written"
        return "kept" if self.small_files(readme)[CARD] == readme.encode() else "extended"

    def texts(self) -> dict[str, bytes]:
        """Return every text written by a person that will be public, by the name to call it."""
        return {
            **{asset.name: asset.read() for asset in self.assets.files},
            "the card": (self.card.text or "").encode(),
        }
