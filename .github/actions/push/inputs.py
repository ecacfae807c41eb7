"""Writes the inputs of action.yml from hubmerge's declared options; run it after changing one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path

from hubmerge.cli.options import PUSH_GROUPS
from hubmerge.options import declared_in, flag_of

ACTION = Path(__file__).with_name("action.yml")
TRUSTED = "true: no secret; the job's OIDC token is exchanged (needs permissions: id-token: write)."


def inputs() -> Iterator[tuple[str, str, bool]]:
    """Yield the name of each input, its description, and whether it is required."""
    for declared, about in declared_in(*PUSH_GROUPS):
        if not about.is_input:
            continue
        text, name = about.help, flag_of(declared).removeprefix("--")
        default = about.if_unset or declared.default
        if isinstance(declared.default, bool):
            word = "false: do not" if declared.default else "true:"
            text = f"{word} {text[0].lower()}{text[1:]}"
        elif about.choices:
            text += f" One of {', '.join(about.choices)}."
        if isinstance(default, str) and declared.default is not True:
            text += f" Default: {default}."
        yield name, text.replace("may be repeated", "one a line"), declared.default is MISSING
        if name == "token":
            yield "trusted-publisher", TRUSTED, False


def written(text: str) -> str:
    """Return the action's text with the declared inputs, and the variables that carry them."""
    declarations, variables = "", ""
    for name, description, is_required in inputs():
        quoted = description.replace("'", "''")
        declarations += f"  {name}:\n    description: '{quoted}'\n"
        declarations += f"    required: {str(is_required).lower()}\n"
        declarations += "" if is_required else "    default: ''\n"
        variable = "HUBMERGE_INPUT_" + name.replace("-", "_").upper()
        variables += f"        {variable}: ${{{{ inputs.{name} }}}}\n"
    text = re.sub(
        r"(?<=\ninputs:\n).*?(?=\noutputs:)", lambda _: declarations, text, flags=re.DOTALL
    )
    return re.sub(r"(?:        HUBMERGE_INPUT_.*\n)+", lambda _: variables, text)


if __name__ == "__main__":
    ACTION.write_text(written(ACTION.read_text()))
