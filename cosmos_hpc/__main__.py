"""``python -m cosmos_hpc`` is ``cosmos-hpc``."""

from cosmos_hpc.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
