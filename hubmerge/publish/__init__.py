"""Publish a plan on the Hub: read its state, decide, then act, in one atomic commit.

- `push.push_plan` publishes, `preview.preview_push` says what that would do.
- `staged` lists and removes what unfinished pushes left.
- `preflight` finds out what can be known before a byte is converted: `remote_state` reads the Hub,
  `decide` is a pure function, `record` is what a commit says about itself.
- `pipeline` converts and uploads concurrently, by way of `staging_folder` and `staging_branch`; the
  latter has the order in which the Hub sees a push.
- `hub` has every call to huggingface_hub, `hub_errors` its errors, `remote` plain values for both.

A new option of a push is a field in `options`; a new refusal of the Hub a line in `hub_errors`.
May import conversion and the rooms below.
"""
