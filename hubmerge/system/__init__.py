"""The operating system: disks, files, processes, garbage collection."""
