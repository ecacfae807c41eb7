"""A local Hugging Face Hub that huggingface_hub cannot tell from the real one for our calls.

    from tests.support.fake_hub import Hub

    with Hub(folder, transport="lfs") as hub:
        hub.faults.add("commit", times=2, status=503)
        subprocess.run([sys.executable, "-m", "hubmerge", "push", ...], env=hub.env())
        assert hub.log.count("commit") == 3

`server.py` is the Hub and its life, `routes.py` the map of URLs, `repo.py` the git-like model,
`lfs.py` and `xet.py` the stores, `faults.py` what can go wrong, `log.py` what was asked,
`plugin.py` the pytest fixtures. It runs on its own as ``python -m tests.support.fake_hub``.
"""

from .faults import Fault
from .log import Entry
from .repo import Commit, FileEntry, Repo
from .routes import ENDPOINTS
from .server import Hub, State, Transport

__all__ = [
    "ENDPOINTS",
    "Commit",
    "Entry",
    "Fault",
    "FileEntry",
    "Hub",
    "Repo",
    "State",
    "Transport",
]
