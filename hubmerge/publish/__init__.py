"""Publish a plan on the Hub: read its state, decide, then act, in one atomic commit.

- `push.push_plan` publishes; `preview.preview_push` returns what it would do.
- `staged` lists and removes what unfinished pushes left.
- `preflight` runs before a byte is converted: `remote_state` reads the Hub, `decide` is a pure
  function of that, `record` is the record that a commit carries.
- `pipeline` converts and uploads concurrently, through `staging_folder` and `staging_branch`; the
  latter documents the order in which the Hub sees a push.
- `hub` has every call to huggingface_hub, `hub_errors` translates its errors, `remote` has the
  plain values that both use.

To add an option of a push, add a field in `options`; to explain another refusal of the Hub, add a
line in `hub_errors`.
May import conversion and the rooms below.
"""
