"""What the tests of push share.

`models.py` makes small real checkpoints and says what they must turn into, `command.py` runs the
command in this process and `driver.py` in one of its own, `checks.py` is what must hold after every
push, `plugin.py` has the fixtures.
"""
