"""The command line: parse, call the library, print.

- `app.main` runs the command; each subcommand is a function in `app`.
- `options` declares the command's own options, and builds click's options from all declared ones.
- `text` formats a result as text, as one line, or as JSON.
- `signals` ends the process on SIGINT and SIGTERM; `demo` is `hubmerge demo`.

Nothing else prints or exits. May import everything; nothing but `hubmerge.__main__` imports it.
"""
