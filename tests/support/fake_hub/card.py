"""`/api/validate-yaml`: is the metadata block of a README.md acceptable?

A real YAML parse and the checks that a model card can realistically fail. The reply is JSON even
when it is an error, because the client parses it before it looks at the status.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from starlette.responses import JSONResponse, Response

from .call import Call

_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research
    lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0
    postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3
    llama4 grok2-community gemma unknown
    other
"""
LICENSES = frozenset(_LICENSES.split())
RELATIONS = frozenset(("adapter", "merge", "quantized", "finetune"))

_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


def check(content: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings of a card."""
    block = _BLOCK.match(content)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(block.group(1))
    except yaml.YAMLError as error:
        return [f"YAML parse error: {error}"], []
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ["The metadata must be a mapping"], []
    return _errors(metadata), _warnings(metadata)


def _errors(metadata: dict[str, Any]) -> list[str]:
    found = [
        f'"{key}" must be a string or an array of strings'
        for key in ("license", "tags", "base_model", "datasets", "language", "metrics")
        if not all(isinstance(value, str) for value in _as_list(metadata.get(key)))
    ]
    found += [
        f'"{key}" must be a string'
        for key in ("library_name", "pipeline_tag", "license_name", "license_link")
        if not isinstance(metadata.get(key, ""), str)
    ]
    if not isinstance(metadata.get("tags", []), list):
        found.append('"tags" must be an array')
    unknown = [name for name in _as_list(metadata.get("license")) if name not in LICENSES]
    if unknown:
        found.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    if metadata.get("base_model_relation", "finetune") not in RELATIONS:
        found.append(f'"base_model_relation" must be one of [{", ".join(sorted(RELATIONS))}]')
    return found


def _warnings(metadata: dict[str, Any]) -> list[str]:
    return [
        f'"base_model" with value "{name}" is not valid. Use a model id from https://hf.co/models.'
        for name in _as_list(metadata.get("base_model"))
        if not _REPO_ID.fullmatch(str(name))
    ]


def _as_list(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


async def validate_yaml(call: Call) -> Response:
    """POST /api/validate-yaml"""
    body = await call.json()
    wrong, doubtful = check(str(body.get("content", "")))
    reply = {
        "errors": [{"message": message} for message in wrong],
        "warnings": [{"message": message} for message in doubtful],
    }
    return JSONResponse(reply, status_code=400 if wrong else 200)
