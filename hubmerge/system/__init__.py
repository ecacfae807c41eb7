"""The operating system and the processes of a job; knows nothing of checkpoints or plans.

- `disk`: locks, atomic files, hashes, free space, and errors about writing.
- `linux_files`: system calls that Python does not wrap.
- `ranks`: the processes of one job, started by torchrun.
- `offline`: no network access for the code that runs in one thread.
- `gc_pause`: no garbage collection while millions of objects are built.

May import errors, formatting and progress only.
"""
