"""``python -m hubmerge``."""

from hubmerge.cli.app import main

if __name__ == "__main__":
    main()
