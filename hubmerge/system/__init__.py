"""The operating system and the processes of a job; knows nothing of checkpoints or plans.

- `disk`: locks, atomic files, hashes, free space, and errors about writing.
- `linux_files`: system calls that Python has no names for.
- `ranks`: the processes of one job, started by torchrun.
- `gc_pause`: no cycle collection while millions of objects are built.

May import errors, formatting and progress only.
"""
